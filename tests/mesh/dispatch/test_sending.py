"""A desk sends units by real gRPC: the list, offers that are open at the same time, orders by radio, and two officers at once."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2

from services.common import times
from services.common.clock import MeshClock
from services.common.geometry import LatLon
from services.common.messaging.bus import Bus
from services.common.rpc import server
from services.common.rpc.identity import FIELD
from services.common.storage.db import open_database
from services.dispatch.__main__ import MIGRATIONS
from services.dispatch.domain.answers import Reject
from services.dispatch.domain.escalation import Deadlines
from services.dispatch.domain.leg import Leg
from services.dispatch.domain.roster import Status, UnitReport
from services.dispatch.leg import api, roster
from services.dispatch.leg import translate as leg_translate
from services.dispatch.leg.service import open_leg
from services.dispatch.leg.store import Store
from services.dispatch.leg.tables import StreamPosition
from services.dispatch.settings import DispatchSettings
from tandem.common.v1 import geometry_pb2
from tandem.dispatch.v1 import dispatch_pb2, roster_pb2, unit_duty_pb2, unit_duty_pb2_grpc
from tandem.dispatch.v1.dispatch_pb2 import (
    ACKNOWLEDGED,
    DISPATCHED,
    EN_ROUTE,
    ESCALATED,
    OFFERED,
    STOOD_DOWN,
    UNIT_ACCEPTED,
    UNIT_ASKED,
    UNIT_MISSED,
    UNIT_NOT_NEEDED,
    UNIT_REFUSED,
)
from tests.support.common.nats import TestServer
from tests.support.dispatch.dispatch import (
    DESKS,
    METRICS,
    SECRET,
    Desk,
    RunningLeg,
    Subscription,
    alert,
    client,
    process,
    publish,
    running,
    stored_steps,
)
from tests.support.dispatch.roster_records import office, put, unit
from tests.support.ingest.ingest import details

KIM, LEE = "spiffe://npa/desk/console/kim", "spiffe://npa/desk/console/lee"


def offers(assignment: dispatch_pb2.Assignment) -> dict[str, int]:
    """What became of each offer, by unit."""
    return {offer.choice.unit_id: offer.state for offer in assignment.unit_offers}


def newest(assignment: dispatch_pb2.Assignment) -> int:
    """The greatest number of an offer, as a page sends it."""
    return max([assignment.offer_number, *(offer.offer_number for offer in assignment.unit_offers)])


async def reason(call: Any) -> tuple[str, str]:
    """Machine-readable reason and text of a FAILED_PRECONDITION."""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION, refused.value
    return details(refused.value, error_details_pb2.ErrorInfo).reason, refused.value.details() or ""


async def at(desk: Desk, unit_id: str, north_deg: float, status: Any = roster_pb2.AVAILABLE) -> None:
    """Reports where a unit is, north of the destination."""
    await desk.call(
        "ReportUnit",
        unit_id=unit_id,
        status=status,
        position=geometry_pb2.Point(lat_deg=37.5 + north_deg, lon_deg=127.0),
        at=times.to_timestamp(MeshClock().now_ms()),
    )


async def waiting_for_the_desk(bus: Bus, leg: RunningLeg, steps: Subscription) -> dispatch_pb2.Assignment:
    """An assignment that waits for the supervisor's desk, and three units that came on duty since."""
    await put(leg.desk, [office()])
    await publish(bus, alert(5))
    found = (await steps.next(ESCALATED)).step.assignment
    # The latency of the offer is measured after its publication; from then on two answers about the assignment are the same.
    await leg.desk.incident_when(lambda incident: incident.assignments[0].report_to_published_ms > 0)
    await leg.desk.call("PutUnits", units=[unit(id_) for id_ in ("a1", "a2", "a3")])
    return found


def send(desk: Desk, seen: dispatch_pb2.Assignment, unit_id: str) -> Any:
    return desk.call("SendUnit", assignment_id=seen.assignment_id, unit_id=unit_id, offer_number=newest(seen))


def radio(desk: Desk, seen: dispatch_pb2.Assignment, name: str) -> Any:
    return desk.call("SendByRadio", assignment_id=seen.assignment_id, unit_name=name, offer_number=newest(seen))


async def test_a_desk_sends_a_unit_and_only_its_acceptance_is_a_dispatch(bus: Bus, police: DispatchSettings) -> None:
    async with running(police) as leg, leg.desk.subscription() as steps:
        kim = leg.caller(KIM)
        seen = await waiting_for_the_desk(bus, leg, steps)
        listed = await kim.call("ListCandidates", assignment_id=seen.assignment_id)
        assert listed.has_roster and [each.unit.unit.unit_id for each in listed.candidates] == ["a1", "a2", "a3"]
        asked = (await send(kim, listed.assignment, "a2")).assignment
        assert (asked.state, asked.acknowledged_by, asked.choice.unit_id) == (ACKNOWLEDGED, KIM, "")
        assert offers(asked) == {"a2": UNIT_ASKED} and asked.unit_offers[0].asked_by == KIM
        assert not asked.HasField("sent_at"), "to ask is no dispatch"
        due_at = asked.due_at
        for _ in range(2):  # a retry asks nobody twice
            assert (await send(kim, listed.assignment, "a2")).assignment == asked
        assert (await reason(kim.call("Progress", assignment_id=asked.assignment_id, state=DISPATCHED)))[
            0
        ] == "NOBODY_ASKED"
        assert asked.due_at == due_at, "asking stops no deadline"
        accepted = await leg.desk.acknowledge(asked.assignment_id, "a2")
        assert (accepted.choice.unit_id, offers(accepted)) == ("a2", {"a2": UNIT_ACCEPTED})
        assert accepted.HasField("sent_at") and accepted.offer_number == asked.unit_offers[0].offer_number
        going = (await kim.call("Progress", assignment_id=asked.assignment_id, state=DISPATCHED)).assignment
        assert (going.state, going.progressed_by) == (DISPATCHED, KIM)
        assert (await reason(send(kim, going, "a1"))) == (
            "UNIT_HAS_IT",
            "unit a2 has the assignment: give it back before another unit is sent",
        )


async def test_the_next_one_is_asked_as_well_and_an_earlier_unit_may_still_accept(
    bus: Bus, police: DispatchSettings
) -> None:
    brief = police.model_copy(update={"answer_within_s": 0.3, "receive_within_s": 0.3})
    async with running(brief) as leg, leg.desk.subscription() as steps:
        await put(leg.desk, [office()], [unit("a1"), unit("a2")])
        await publish(bus, alert(5))
        first = (await steps.next(OFFERED)).step.assignment
        assert offers(first) == {"a1": UNIT_ASKED}
        second = (await steps.next(ESCALATED)).step.assignment
        # Nobody else is at the next level of this office, and a2 of the same office was skipped with its silent machine.
        assert offers(second)["a1"] == UNIT_ASKED
        engaged = {each.unit.unit_id: each.incident_id for each in (await leg.desk.call("ListUnits")).units}
        assert engaged["a1"] == "incident-1", "a unit that is asked is engaged"
        accepted = await leg.desk.acknowledge(first.assignment_id, "a1")
        assert (accepted.state, accepted.choice.unit_id) == (ACKNOWLEDGED, "a1")
        assert set(offers(accepted).values()) <= {UNIT_ACCEPTED, UNIT_NOT_NEEDED}


async def test_after_a_desks_send_the_leg_asks_the_next_free_unit_by_itself(bus: Bus, police: DispatchSettings) -> None:
    brief = police.model_copy(update={"answer_within_s": 0.2, "offer_within_s": 0.6})
    async with running(brief) as leg, leg.desk.subscription() as steps:
        seen = await waiting_for_the_desk(bus, leg, steps)
        asked = (await send(leg.caller(KIM), seen, "a2")).assignment
        shown: dict[str, int] = {}
        while len(shown) < 3 or set(shown.values()) != {UNIT_MISSED}:
            step = (await steps.next(ACKNOWLEDGED)).step
            shown = offers(step.assignment)
            assert step.assignment.due_at == asked.due_at, "the desk's deadline goes on"
            assert [offer.asked_by for offer in step.assignment.unit_offers][1:] == [""] * (len(shown) - 1)
        assert list(shown) == ["a2", "a1", "a3"]
        over = await leg.desk.call("ListCandidates", assignment_id=seen.assignment_id)
        assert not any(each.is_next for each in over.candidates)
        assert [each.offer.state for each in over.candidates] == [UNIT_MISSED] * 3
        assert (await send(leg.caller(KIM), over.assignment, "a1")).assignment.unit_offers[-1].state == UNIT_ASKED, (
            "a unit that missed its offer may be asked once more"
        )


async def test_two_officers_at_once_one_sends_and_the_other_sees_who(bus: Bus, police: DispatchSettings) -> None:
    async with running(police) as leg, leg.desk.subscription() as steps:
        seen = await waiting_for_the_desk(bus, leg, steps)
        both = [send(leg.caller(KIM), seen, "a1"), send(leg.caller(LEE), seen, "a2")]
        results = await asyncio.gather(*both, return_exceptions=True)
        [won] = [result for result in results if not isinstance(result, BaseException)]
        [lost] = [result for result in results if isinstance(result, grpc.aio.AioRpcError)]
        [offer] = won.assignment.unit_offers
        assert details(lost, error_details_pb2.ErrorInfo).reason == "OFFERED_ON"
        assert f"{offer.asked_by} asked unit {offer.choice.unit_id}" in (lost.details() or "")
        loser = leg.caller(LEE if offer.asked_by == KIM else KIM)
        code, text = await reason(radio(loser, seen, "12"))
        assert (code, offer.asked_by in text) == ("OFFERED_ON", True)
        sent = (await radio(loser, won.assignment, "12")).assignment
        assert sent.state == DISPATCHED, "an officer who has seen it may send by radio all the same"


async def test_an_order_by_radio_is_a_dispatch_and_ends_open_offers(
    bus: Bus, nats: TestServer, police: DispatchSettings
) -> None:
    async with running(police) as leg, leg.desk.subscription() as steps:
        await put(leg.desk, [office()], [unit("a1")])
        await publish(bus, alert(5))
        seen = (await steps.next(OFFERED)).step.assignment
        sent = (await radio(leg.caller(KIM), seen, " 순찰 12호 ")).assignment
        assert (sent.state, sent.radio_unit, sent.radio_by, sent.progressed_by) == (DISPATCHED, "순찰 12호", KIM, KIM)
        assert offers(sent) == {"a1": UNIT_NOT_NEEDED} and sent.HasField("sent_at") and sent.acknowledged_by == KIM
        assert sent.due_at.ToMilliseconds() - sent.radio_at.ToMilliseconds() == 180_000, "as of any unit: 2 min, then 1"
        assert (await reason(leg.desk.acknowledge(seen.assignment_id, "a1")))[0] == "ANOTHER_UNIT_HAS_IT"
        assert (await reason(radio(leg.caller(LEE), seen, "21")))[0] == "OFFERED_ON"
        corrected = (await radio(leg.caller(KIM), seen, "순찰 21호")).assignment
        assert (corrected.state, corrected.radio_unit, corrected.radio_at != sent.radio_at) == (
            DISPATCHED,
            "순찰 21호",
            True,
        )
        assert corrected.due_at == sent.due_at
        going = (await leg.desk.call("Progress", assignment_id=seen.assignment_id, state=EN_ROUTE)).assignment
        assert (going.radio_unit, going.progressed_by) == ("순찰 21호", DESKS["police"])
        for name, text in (("", "missing"), (" ", "missing"), ("x" * 61, "60"), ("a\nb", "one line")):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await leg.desk.call("SendByRadio", assignment_id=seen.assignment_id, unit_name=name)
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert (refused.value.details() or "").startswith("unit_name:") and text in (refused.value.details() or "")
    for step in await stored_steps(bus, "police", "incident-1", count=4):
        written = step.SerializeToString()
        assert "순찰".encode() not in written and not step.assignment.unit_offers
        assert not step.assignment.progressed_by and not step.assignment.radio_by


async def test_a_unit_that_cannot_go_is_refused_by_field_and_nothing_is_half_done(
    bus: Bus, police: DispatchSettings
) -> None:
    async with running(police) as leg, leg.desk.subscription() as steps:
        seen = await waiting_for_the_desk(bus, leg, steps)
        with pytest.raises(grpc.aio.AioRpcError) as unknown:
            await send(leg.desk, seen, "b9")
        assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
        assert (unknown.value.details() or "").startswith("unit_id:")
        await at(leg.desk, "a1", 0.01, roster_pb2.OFF)
        await leg.desk.call("PutUnits", units=[unit("a3", version=2, removed=True)])
        for unit_id in ("a1", "a3"):
            assert (await reason(send(leg.desk, seen, unit_id)))[0] == "NOT_ON_DUTY"
        listed = await leg.desk.call("ListCandidates", assignment_id=seen.assignment_id)
        assert [each.unit.unit.unit_id for each in listed.candidates] == ["a2"]
        assert listed.assignment.state == ESCALATED and not listed.assignment.acknowledged_by, "nothing was accepted"
        for method, request in (
            ("SendUnit", {"unit_id": "a1"}),
            ("SendByRadio", {"unit_name": "12"}),
            ("ListCandidates", {}),
        ):
            for caller, expected in (
                (leg.desk, grpc.StatusCode.NOT_FOUND),
                (leg.caller(DESKS["probation"]), grpc.StatusCode.PERMISSION_DENIED),
            ):
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await caller.call(method, assignment_id="assign-none", **request)
                assert refused.value.code() is expected, method


async def test_candidates_are_free_ones_first_then_the_nearest_on_each_database(where: Path | str) -> None:
    home, now_ms = LatLon(37.5, 127.0), MeshClock().now_ms()
    async with (
        open_database(where, MIGRATIONS) as database,
        open_leg(Leg.POLICE, Store(database), MeshClock(), deadlines=Deadlines(30_000), metrics=METRICS) as leg,
    ):
        leg.last_known_positions.put("p1", home, None)
        offices = [roster.parse_office(office()), roster.parse_office(office("b", subject_ids=["elsewhere"]))]
        cars = [unit("far"), unit("near"), unit("busy"), unit("lost"), unit("off"), unit("other", "b")]
        await leg.change_roster(partial(roster.put_offices, given=offices))
        await leg.change_roster(partial(roster.put_units, given=[roster.parse_unit(car) for car in cars]))
        for unit_id, north_deg, status in (
            ("far", 0.05, Status.AVAILABLE),
            ("near", 0.01, Status.AVAILABLE),
            ("other", 0.02, Status.AVAILABLE),
            ("busy", 0.001, Status.BUSY),
            ("off", 0.002, Status.OFF),
        ):
            place = LatLon(home.lat_deg + north_deg, home.lon_deg)
            await leg.change_roster(
                partial(roster.report_unit, unit_id=unit_id, given=UnitReport(status, now_ms, place, now_ms))
            )
        parsed = leg_translate.alert(alert(5).SerializeToString(), Leg.POLICE)
        assert parsed
        await leg.fold([parsed], StreamPosition("ALERTS", "log", 5))
        [incident] = await leg.record.open_incidents()
        [id_] = incident.assignments
        listed = api.candidates_message(await leg.scene(id_))
        assert [each.unit.unit.unit_id for each in listed.candidates] == ["near", "other", "far", "lost", "busy"]
        by_id = {each.unit.unit.unit_id: each for each in listed.candidates}
        assert [each.unit.unit.unit_id for each in listed.candidates if each.is_next] == ["far"], (
            "its office is asked first"
        )
        near = by_id["near"]
        assert near.offer.state == UNIT_ASKED and near.unit.incident_id == "incident-1"
        assert abs(near.distance_m - 1_112) < 3 and near.travel_s == near.offer.choice.travel_s > 0
        assert by_id["other"].travel_s > 0, "a desk may send a unit of any office, so its way is known too"
        assert not by_id["lost"].HasField("travel_s") and not by_id["lost"].HasField("distance_m")
        await leg.answer(Reject(id_, "unit/near", near.offer.offer_number, reason="no car"))
        listed = api.candidates_message(await leg.scene(id_))
        assert [each.unit.unit.unit_id for each in listed.candidates] == ["near", "other", "far", "lost", "busy"]
        assert [each.offer.state for each in listed.candidates] == [UNIT_REFUSED, 0, UNIT_ASKED, 0, 0]


async def test_a_unit_that_missed_its_offer_learns_who_has_it(bus: Bus, police: DispatchSettings) -> None:
    brief = police.model_copy(update={"answer_within_s": 0.2, "offer_within_s": 0.4})
    page, desk = server.bearer(FIELD, SECRET), server.bearer(DESKS["police"], SECRET)
    async with running(brief) as leg, leg.desk.subscription() as steps:
        duty = unit_duty_pb2_grpc.UnitDutyServiceStub(leg.channel)
        await put(leg.desk, [office()], [unit("a1")])
        link = await duty.IssueUnitLink(unit_duty_pb2.IssueUnitLinkRequest(unit_id="a1"), metadata=desk)
        signed_in = await duty.SignInUnit(unit_duty_pb2.SignInUnitRequest(code=link.code), metadata=page)
        watched: Any = duty.WatchUnits(unit_duty_pb2.WatchUnitsRequest(), metadata=page)
        changes = aiter(watched)
        await anext(changes)
        await publish(bus, alert(5))
        seen = (await steps.next(OFFERED)).step.assignment
        change = await anext(changes)
        [asked] = change.units
        assert (asked.unit_id, asked.is_offer, asked.offer_number) == ("a1", True, seen.offer_number)

        async def end() -> str:
            request = unit_duty_pb2.GetDutyRequest(token=signed_in.token, shown_assignment_ids=[seen.assignment_id])
            answer = await duty.GetDuty(request, metadata=page)
            [found] = answer.ends
            return unit_duty_pb2.TaskEndReason.Name(found.reason)

        while (change := await anext(changes)).units:
            pass  # its page is woken once more when the offer has ended
        assert await end() == "TASK_NOBODY_HAS_IT"
        at_desk = await leg.desk.acknowledge(seen.assignment_id)
        assert at_desk.state == ACKNOWLEDGED and await end() == "TASK_DESK_HAS_IT"
        accepted = unit_duty_pb2.AnswerTaskRequest(
            token=signed_in.token, assignment_id=seen.assignment_id, offer_number=seen.offer_number
        )
        accepted.accepted.SetInParent()
        assert (await reason(duty.AnswerTask(accepted, metadata=page)))[0] == "DESK_HAS_IT"
        await radio(leg.desk, at_desk, "12")
        assert await end() == "TASK_ANOTHER_UNIT_HAS_IT"
        await publish(bus, alert(7, geometry_pb2.RECORD, protected=(), ends=True))
        await steps.next(STOOD_DOWN)
        assert await end() == "TASK_OVER"
        watched.cancel()


async def test_what_is_due_for_the_units_that_are_asked_survives_a_kill(bus: Bus, police: DispatchSettings) -> None:
    brief = police.model_copy(update={"answer_within_s": 1.0, "offer_within_s": 3.0})
    more = {"TANDEM_ANSWER_WITHIN_S": "1", "TANDEM_OFFER_WITHIN_S": "3"}
    async with process(brief, **more) as started, client(brief) as leg, leg.desk.subscription() as steps:
        seen = await waiting_for_the_desk(bus, leg, steps)
        assert offers((await send(leg.desk, seen, "a2")).assignment) == {"a2": UNIT_ASKED}
        started.kill()
        await started.wait()
    async with process(brief, **more), client(brief) as leg, leg.desk.subscription(new_only=True):
        listed: Any = None
        while listed is None or UNIT_ASKED in offers(listed).values() or len(listed.unit_offers) < 3:
            [incident] = (await leg.desk.list()).incidents
            [listed] = incident.assignments
            await asyncio.sleep(0.05)
        assert listed.state in (ACKNOWLEDGED, ESCALATED)
        assert set(offers(listed)) == {"a1", "a2", "a3"} and set(offers(listed).values()) == {UNIT_MISSED}
