"""Offices and units by real gRPC: what is kept, what is refused, and whom an offer goes to."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2

from services.common import times
from services.common.clock import MeshClock
from services.common.messaging.bus import Bus
from services.dispatch.settings import DispatchSettings
from tandem.common.v1 import geometry_pb2
from tandem.dispatch.v1 import dispatch_pb2, roster_pb2
from tandem.dispatch.v1.dispatch_pb2 import (
    ACKNOWLEDGED,
    CLOSED,
    DISPATCHED,
    ESCALATED,
    NOBODY_AVAILABLE,
    OFFERED,
    ON_SCENE,
    REJECTED,
    STOOD_DOWN,
)
from tandem.dispatch.v1.roster_pb2 import AVAILABLE, OFF, STORED, SUPERSEDED, UNCHANGED
from tests.support.common.nats import TestServer
from tests.support.dispatch.dispatch import DESKS, Desk, alert, publish, running, settings, stored_steps
from tests.support.ingest.ingest import details

DAY_MS = 86_400_000


@pytest.fixture
def police(nats: TestServer, bus: Bus, tmp_path: Path) -> DispatchSettings:
    """Settings of one leg over a mesh that is there."""
    return settings("police", nats, tmp_path)


def office(office_id: str = "a", **more: Any) -> roster_pb2.Office:
    given: dict[str, Any] = {"version": 1, "supervisor_desk": f"supervisor-{office_id}", "national_desk": "national"}
    return roster_pb2.Office(office_id=office_id, **(given | more))


def unit(unit_id: str, office_id: str = "a", **more: Any) -> roster_pb2.Unit:
    now_ms = MeshClock().now_ms()
    given: dict[str, Any] = {
        "version": 1,
        "unit_class": "patrol-car",
        "shift_from": times.to_timestamp(now_ms // DAY_MS * DAY_MS - DAY_MS),
        "shift_until": times.to_timestamp(now_ms // DAY_MS * DAY_MS + 2 * DAY_MS),
        "contact_key": "radio-7",
    }
    return roster_pb2.Unit(unit_id=unit_id, office_id=office_id, **(given | more))


async def put(desk: Desk, offices: Iterable[roster_pb2.Office], units: Iterable[roster_pb2.Unit] = ()) -> None:
    await desk.tell("PutOffices", offices=offices)
    if units:
        await desk.tell("PutUnits", units=units)


async def refusal(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details() or ""


async def test_records_are_kept_by_version_and_survive_a_restart(bus: Bus, police: DispatchSettings) -> None:
    second = office("b", version=2, next_office_id="a", subject_ids=["order-1/home", "p1"])
    second.circle.CopyFrom(geometry_pb2.Circle(lat_deg=37.5, lon_deg=127, radius_m=3_000))
    async with running(police) as leg:
        told = [await leg.desk.tell("PutOffices", offices=[office(), second]) for _ in range(2)]
        assert [list(one.outcomes) for one in told] == [[STORED, STORED], [UNCHANGED, UNCHANGED]]
        older = await leg.desk.tell("PutOffices", offices=[office("b")])
        assert list(older.outcomes) == [SUPERSEDED]
        other = leg.desk.tell("PutOffices", offices=[office("c"), office(next_office_id="b")])
        assert (await refusal(other))[0] is grpc.StatusCode.ABORTED
        await leg.desk.tell("PutUnits", units=[unit("a1"), unit("b1", "b", skills=["x"])])
        now = times.to_timestamp(MeshClock().now_ms())
        where = geometry_pb2.Point(lat_deg=37.5, lon_deg=127)
        report = {"unit_id": "a1", "status": AVAILABLE, "position": where, "at": now}
        outcomes = [(await leg.desk.tell("ReportUnit", **report)).outcome for _ in range(2)]
        assert outcomes == [STORED, UNCHANGED]
        earlier = times.to_timestamp(MeshClock().now_ms() - 60_000)
        late = await leg.desk.tell("ReportUnit", unit_id="a1", status=OFF, at=earlier)
        assert late.outcome == SUPERSEDED
    async with running(police) as leg:
        known = await leg.desk.tell("ListUnits")
        assert list(known.offices) == [office(), second], "of those that were refused none is kept"
        one, other = known.units
        assert (one.unit.unit_id, one.status, one.position, one.reported_at) == ("a1", AVAILABLE, where, now)
        assert other.unit.unit_id == "b1" and not other.HasField("position") and not other.unit.contact_key
        assert [one.unit.unit_id for one in (await leg.desk.tell("ListUnits", office_id="b")).units] == ["b1"]


async def test_bad_records_are_refused_by_their_field_and_nothing_of_them_is_kept(
    bus: Bus, police: DispatchSettings
) -> None:
    now_ms = MeshClock().now_ms()
    far = geometry_pb2.Point(lat_deg=91, lon_deg=0)
    ahead = times.to_timestamp(now_ms + 600_000)
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("PutOffices", {}, "offices"),
        ("PutOffices", {"offices": [office(), office("a b")]}, "offices[1].office_id"),
        ("PutOffices", {"offices": [office(), office()]}, "offices[1].office_id"),
        ("PutOffices", {"offices": [office(version=0)]}, "offices[0].version"),
        ("PutOffices", {"offices": [office(national_desk="")]}, "offices[0].national_desk"),
        ("PutOffices", {"offices": [office(next_office_id="a")]}, "offices[0].next_office_id"),
        ("PutOffices", {"offices": [office(subject_ids=["p1", "?"])]}, "offices[0].subject_ids[1]"),
        ("PutOffices", {"offices": [office(circle=geometry_pb2.Circle(radius_m=1e9))]}, "offices[0].circle.radius_m"),
        (
            "PutOffices",
            {"offices": [office(polygon=geometry_pb2.Polygon(vertices=[far]))]},
            "offices[0].polygon.vertices",
        ),
        ("PutUnits", {"units": [unit("a1", skills=[""])]}, "units[0].skills[0]"),
        ("PutUnits", {"units": [unit("a1", shift_until=times.to_timestamp(0))]}, "units[0].shift_until"),
        ("PutUnits", {"units": [unit("a1", unit_class="")]}, "units[0].unit_class"),
        ("ReportUnit", {"unit_id": "a1"}, "status"),
        ("ReportUnit", {"unit_id": "a1", "status": 9, "at": ahead}, "status"),
        ("ReportUnit", {"unit_id": "a1", "status": OFF}, "at"),
        ("ReportUnit", {"unit_id": "a1", "status": OFF, "at": ahead}, "at"),
        (
            "ReportUnit",
            {"unit_id": "a1", "status": OFF, "at": times.to_timestamp(now_ms), "position": far},
            "position.lat_deg",
        ),
    ]
    async with running(police) as leg:
        for method, request, field in cases:
            code, text = await refusal(leg.desk.tell(method, **request))
            assert code is grpc.StatusCode.INVALID_ARGUMENT and text.startswith(field + ":"), (method, field, text)
        nobody = leg.desk.tell("ReportUnit", unit_id="a1", status=OFF, at=times.to_timestamp(now_ms))
        assert (await refusal(nobody))[0] is grpc.StatusCode.NOT_FOUND
        for stranger in (DESKS["probation"], DESKS["warning"], "spiffe://npa/records"):
            for method in ("PutOffices", "PutUnits", "ReportUnit", "ListUnits"):
                code, _ = await refusal(leg.caller(stranger).tell(method))
                assert code is grpc.StatusCode.PERMISSION_DENIED
        assert not (await leg.desk.tell("ListUnits")).offices


async def test_an_incident_from_the_offer_to_its_cause(bus: Bus, police: DispatchSettings) -> None:
    async with running(police) as leg, leg.desk.subscription() as steps:
        await put(leg.desk, [office()], [unit("a1")])
        await publish(bus, alert(5))
        offer = (await steps.next(OFFERED)).step.assignment
        id_, number = offer.assignment_id, offer.offer_number
        assert (offer.choice.unit_id, offer.choice.candidates) == ("a1", 1)
        assert (await leg.desk.tell("ListUnits")).units[0].incident_id == "incident-1"
        early = leg.desk.tell("Progress", assignment_id=id_, state=DISPATCHED)
        assert await refusal(early) == (
            grpc.StatusCode.FAILED_PRECONDITION,
            "the assignment is OFFERED: nobody has it who could go on",
        )
        receipt = {"assignment_id": id_, "offer_number": number}
        has_it, again = [(await leg.desk.tell("Receive", **receipt)).assignment for _ in range(2)]
        assert has_it.received_at == again.received_at and has_it.HasField("received_at") and has_it.state == OFFERED
        assert (has_it.due_at.ToMilliseconds() - offer.offered_at.ToMilliseconds()) == 30_000
        taken = await leg.desk.acknowledge(id_)
        assert taken.due_at.ToMilliseconds() - taken.acknowledged_at.ToMilliseconds() == 60_000
        for state in (DISPATCHED, dispatch_pb2.EN_ROUTE, ON_SCENE, dispatch_pb2.APPREHENDED):
            assert (await leg.desk.tell("Progress", assignment_id=id_, state=state)).assignment.state == state
        for request, field in (
            ({"cause": 0}, "cause"),
            ({"cause": 99}, "cause"),
            ({"cause": dispatch_pb2.OTHER}, "note"),
            ({"cause": dispatch_pb2.OTHER, "note": "x" * 501}, "note"),
        ):
            code, text = await refusal(leg.desk.tell("Close", assignment_id=id_, **request))
            assert code is grpc.StatusCode.INVALID_ARGUMENT and text.startswith(field + ":")
        cause = dispatch_pb2.BREACH_CONFIRMED
        closed = (await leg.desk.tell("Close", assignment_id=id_, cause=cause, note="at the door")).assignment
        assert (closed.state, closed.close_cause, closed.close_note) == (CLOSED, cause, "at the door")
        assert (await refusal(leg.desk.acknowledge(id_)))[0] is grpc.StatusCode.FAILED_PRECONDITION
        assert (await leg.desk.tell("ListUnits")).units[0].incident_id == ""
        for method, request in (("Receive", {}), ("Reject", {"offer_number": 1}), ("Progress", {}), ("Close", {})):
            code, _ = await refusal(leg.desk.tell(method, assignment_id=id_, **request))
            assert code is grpc.StatusCode.INVALID_ARGUMENT, method
            code, _ = await refusal(leg.caller(DESKS["probation"]).tell(method, assignment_id=id_, **request))
            assert code is grpc.StatusCode.PERMISSION_DENIED, method


async def test_the_ladder_is_climbed_without_anybody(bus: Bus, police: DispatchSettings) -> None:
    brief = police.model_copy(update={"acknowledge_within_s": 0.2, "receive_within_s": 0.1})
    async with running(brief) as leg, leg.desk.subscription() as steps:
        await put(leg.desk, [office(next_office_id="b"), office("b", subject_ids=["x"])], [unit("a1"), unit("b1", "b")])
        await publish(bus, alert(5))
        assert (await steps.next(OFFERED)).step.assignment.choice.unit_id == "a1"
        climbed = [(await steps.next(ESCALATED)).step.assignment for _ in range(4)]
    assert [(one.choice.unit_id or one.choice.desk, one.escalation_reason) for one in climbed] == [
        ("b1", dispatch_pb2.NOT_RECEIVED),
        ("supervisor-a", dispatch_pb2.NOT_RECEIVED),
        ("national", dispatch_pb2.NOT_RECEIVED),
        ("national", dispatch_pb2.NOT_RECEIVED),
    ]


async def test_a_refusal_goes_on_at_once_and_one_that_comes_late_is_refused_itself(
    bus: Bus, police: DispatchSettings
) -> None:
    async with running(police) as leg, leg.desk.subscription() as steps:
        await put(leg.desk, [office()], [unit("a1"), unit("a2")])
        await publish(bus, alert(5))
        offer = (await steps.next(OFFERED)).step.assignment
        answer = {"assignment_id": offer.assignment_id, "offer_number": offer.offer_number, "reason": "no car"}
        code, text = await refusal(leg.desk.tell("Reject", **(answer | {"reason": " "})))
        assert code is grpc.StatusCode.INVALID_ARGUMENT and text.startswith("reason:")
        told = (await leg.desk.tell("Reject", **answer)).assignment
        assert (told.state, told.choice.unit_id, told.rejected_reason) == (ESCALATED, "a2", "no car")
        assert (await steps.next(REJECTED)).step.assignment.choice.unit_id == "a1"
        code, text = await refusal(leg.desk.tell("Reject", **answer))
        assert code is grpc.StatusCode.FAILED_PRECONDITION and "offered on since" in text


async def test_an_answer_that_saw_another_state_is_refused_with_a_code_and_changes_nothing(
    bus: Bus, police: DispatchSettings
) -> None:
    async with running(police) as leg, leg.desk.subscription() as steps:
        await put(leg.desk, [office()], [unit("a1"), unit("a2")])
        await publish(bus, alert(5))
        seen = (await steps.next(OFFERED)).step.assignment
        await leg.desk.acknowledge(seen.assignment_id)
        of = {"assignment_id": seen.assignment_id, "offer_number": seen.offer_number}
        old, now = of | {"seen_state": OFFERED}, of | {"seen_state": dispatch_pb2.ACKNOWLEDGED}
        for method, more in (
            ("Reject", {"reason": "no car"}),
            ("Progress", {"state": dispatch_pb2.DISPATCHED}),
            ("Close", {"cause": dispatch_pb2.FALSE_POSITION}),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await leg.desk.tell(method, **old, **more)
            assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION, method
            assert details(refused.value, error_details_pb2.ErrorInfo).reason == "MOVED_ON", method
            code, text = await refusal(leg.desk.tell(method, **(of | {"seen_state": 99}), **more))
            assert code is grpc.StatusCode.INVALID_ARGUMENT and text.startswith("seen_state:"), method
        told = (await leg.desk.tell("Progress", **now, state=dispatch_pb2.DISPATCHED)).assignment
        assert (told.state, told.offer_number) == (dispatch_pb2.DISPATCHED, seen.offer_number)


async def test_a_unit_in_another_incident_is_asked_where_nobody_is_free_and_one_that_goes_is_replaced(
    bus: Bus, police: DispatchSettings
) -> None:
    async with running(police) as leg, leg.desk.subscription() as steps:
        await put(leg.desk, [office()], [unit("pair")])
        await publish(bus, alert(5), alert(6, incident="incident-2"))
        first, second = [(await steps.next(OFFERED)).step.assignment for _ in range(2)]
        assert (first.choice.unit_id, first.choice.busy_in_incident_id) == ("pair", "")
        assert (second.choice.unit_id, second.choice.busy_in_incident_id) == ("pair", "incident-1")
        await leg.desk.acknowledge(first.assignment_id)
        await leg.desk.tell("PutUnits", units=[unit("pair", version=2, removed=True), unit("car")])
        moved = [(await steps.next(ESCALATED)).step.assignment for _ in range(2)]
    assert {one.incident_id for one in moved} == {"incident-1", "incident-2"}
    assert {one.escalation_reason for one in moved} == {dispatch_pb2.UNIT_GONE}
    assert {(one.choice.unit_id, one.choice.busy_in_incident_id) for one in moved} == {
        ("car", ""),
        ("car", moved[0].incident_id),
    }


async def test_nobody_available_is_said_to_both_desks_at_once_and_the_other_learns_no_more_than_it_must(
    bus: Bus, nats: TestServer, police: DispatchSettings, tmp_path: Path
) -> None:
    async with running(police) as leg, running(settings("probation", nats, tmp_path)) as probation:
        await put(leg.desk, [office()])
        async with (
            leg.desk.subscription() as steps,
            probation.desk.subscription(others=True) as theirs,
            probation.desk.subscription() as own,
        ):
            await publish(bus, alert(4, incident="incident-0", protected=()))
            await own.next(OFFERED)
            await theirs.next(OFFERED)  # it follows from here on
            await publish(bus, alert(5))
            said = (await steps.next(NOBODY_AVAILABLE)).step.assignment
            up = (await steps.next(ESCALATED)).step.assignment
            assert said.HasField("nobody_available_at")
            assert (up.choice.desk, up.choice.level) == ("supervisor-a", dispatch_pb2.SUPERVISOR)
            seen: list[dispatch_pb2.Assignment] = []
            while not seen or seen[-1].state != ESCALATED:
                told = await theirs.next_of_any()
                if told.HasField("other"):
                    seen.append(told.other)
            assert NOBODY_AVAILABLE in [one.state for one in seen]
            await leg.desk.tell("PutUnits", units=[unit("a1")])
            await leg.desk.tell(
                "Reject", assignment_id=up.assignment_id, offer_number=up.offer_number, reason="she lives at 5"
            )
            await leg.desk.acknowledge(up.assignment_id)
            await publish(bus, alert(7, geometry_pb2.RECORD, protected=(), ends=True))
            over = (await steps.next(STOOD_DOWN)).step.assignment
            assert over.stood_down_kind == alert(7, ends=True).kind
            await leg.desk.tell("Close", assignment_id=up.assignment_id, cause=dispatch_pb2.OTHER, note="at 5")
            while seen[-1].state != CLOSED:
                told = await theirs.next_of_any()
                if told.HasField("other"):
                    seen.append(told.other)
    for step in await stored_steps(bus, "police", "incident-1", 7):
        written = step.SerializeToString()
        assert not any(secret in written for secret in (b"at 5", b"supervisor-a", b"national", b"pair"))
    assert {ACKNOWLEDGED, STOOD_DOWN, CLOSED} <= {one.state for one in seen}
    assert seen[-1].close_cause == dispatch_pb2.OTHER
    for one in seen:
        told_fields = {field.name for field, _ in one.choice.ListFields()}
        assert told_fields <= {"level", "unit_class"}
        assert not one.rejected_reason and not one.close_note and not one.HasField("cause")
        assert not one.kind and not one.stood_down_kind
