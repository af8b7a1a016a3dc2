"""Offices and units by real gRPC: stored and refused records, and the units that offers go to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2

from services.common import times
from services.common.clock import MeshClock
from services.common.messaging.bus import Bus
from services.common.rpc import server
from services.common.rpc.identity import FIELD
from services.dispatch.settings import DispatchSettings
from tandem.common.v1 import geometry_pb2
from tandem.dispatch.v1 import dispatch_pb2, unit_duty_pb2, unit_duty_pb2_grpc
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
from tests.support.dispatch.dispatch import DESKS, SECRET, alert, publish, running, settings, stored_steps
from tests.support.dispatch.roster_records import office, put, unit
from tests.support.ingest.ingest import details


async def refusal(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details() or ""


async def test_records_are_stored_by_version_and_survive_a_restart(bus: Bus, police: DispatchSettings) -> None:
    second = office("b", version=2, next_office_id="a", subject_ids=["order-1/home", "p1"])
    second.circle.CopyFrom(geometry_pb2.Circle(lat_deg=37.5, lon_deg=127, radius_m=3_000))
    async with running(police) as leg:
        responses = [await leg.desk.call("PutOffices", offices=[office(), second]) for _ in range(2)]
        assert [list(response.outcomes) for response in responses] == [[STORED, STORED], [UNCHANGED, UNCHANGED]]
        older = await leg.desk.call("PutOffices", offices=[office("b")])
        assert list(older.outcomes) == [SUPERSEDED]
        other = leg.desk.call("PutOffices", offices=[office("c"), office(next_office_id="b")])
        assert (await refusal(other))[0] is grpc.StatusCode.ABORTED
        await leg.desk.call("PutUnits", units=[unit("a1"), unit("b1", "b", skills=["x"])])
        now = times.to_timestamp(MeshClock().now_ms())
        where = geometry_pb2.Point(lat_deg=37.5, lon_deg=127)
        report = {"unit_id": "a1", "status": AVAILABLE, "position": where, "at": now}
        outcomes = [(await leg.desk.call("ReportUnit", **report)).outcome for _ in range(2)]
        assert outcomes == [STORED, UNCHANGED]
        earlier = times.to_timestamp(MeshClock().now_ms() - 60_000)
        late = await leg.desk.call("ReportUnit", unit_id="a1", status=OFF, at=earlier)
        assert late.outcome == SUPERSEDED
    async with running(police) as leg:
        known = await leg.desk.call("ListUnits")
        assert list(known.offices) == [office(), second], "no refused office is stored"
        first, other = known.units
        assert (first.unit.unit_id, first.status, first.position, first.reported_at) == ("a1", AVAILABLE, where, now)
        assert other.unit.unit_id == "b1" and not other.HasField("position") and not other.unit.contact_key
        assert [listed.unit.unit_id for listed in (await leg.desk.call("ListUnits", office_id="b")).units] == ["b1"]


async def test_invalid_records_are_refused_with_their_field_and_none_is_stored(
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
            code, text = await refusal(leg.desk.call(method, **request))
            assert code is grpc.StatusCode.INVALID_ARGUMENT and text.startswith(field + ":"), (method, field, text)
        nobody = leg.desk.call("ReportUnit", unit_id="a1", status=OFF, at=times.to_timestamp(now_ms))
        assert (await refusal(nobody))[0] is grpc.StatusCode.NOT_FOUND
        for stranger in (DESKS["probation"], DESKS["warning"], "spiffe://npa/records"):
            for method in ("PutOffices", "PutUnits", "ReportUnit", "ListUnits"):
                code, _ = await refusal(leg.caller(stranger).call(method))
                assert code is grpc.StatusCode.PERMISSION_DENIED
        assert not (await leg.desk.call("ListUnits")).offices


async def test_an_incident_from_the_offer_to_the_cause_of_its_closing(bus: Bus, police: DispatchSettings) -> None:
    async with running(police) as leg, leg.desk.subscription() as steps:
        await put(leg.desk, [office()], [unit("a1")])
        await publish(bus, alert(5))
        offer = (await steps.next(OFFERED)).step.assignment
        id_, number = offer.assignment_id, offer.offer_number
        assert (offer.choice.unit_id, offer.choice.candidates) == ("a1", 1)
        assert (await leg.desk.call("ListUnits")).units[0].incident_id == "incident-1"
        early = leg.desk.call("Progress", assignment_id=id_, state=DISPATCHED)
        assert await refusal(early) == (
            grpc.StatusCode.FAILED_PRECONDITION,
            "the assignment is OFFERED: nobody has it who could go on",
        )
        receipt = {"assignment_id": id_, "offer_number": number}
        received, repeated = [(await leg.desk.call("Receive", **receipt)).assignment for _ in range(2)]
        assert (
            received.received_at == repeated.received_at
            and received.HasField("received_at")
            and received.state == OFFERED
        )
        assert (received.due_at.ToMilliseconds() - offer.offered_at.ToMilliseconds()) == 10_000
        [open_offer] = received.unit_offers
        assert (open_offer.open_until.ToMilliseconds() - offer.offered_at.ToMilliseconds()) == 30_000
        acknowledged = await leg.desk.acknowledge(id_, "a1")
        assert acknowledged.due_at.ToMilliseconds() - acknowledged.acknowledged_at.ToMilliseconds() == 60_000
        for state in (DISPATCHED, dispatch_pb2.EN_ROUTE, ON_SCENE, dispatch_pb2.APPREHENDED):
            assert (await leg.desk.call("Progress", assignment_id=id_, state=state)).assignment.state == state
        for request, field in (
            ({"cause": 0}, "cause"),
            ({"cause": 99}, "cause"),
            ({"cause": dispatch_pb2.OTHER}, "note"),
            ({"cause": dispatch_pb2.OTHER, "note": "x" * 501}, "note"),
        ):
            code, text = await refusal(leg.desk.call("Close", assignment_id=id_, **request))
            assert code is grpc.StatusCode.INVALID_ARGUMENT and text.startswith(field + ":")
        cause = dispatch_pb2.BREACH_CONFIRMED
        closed = (await leg.desk.call("Close", assignment_id=id_, cause=cause, note="at the door")).assignment
        assert (closed.state, closed.close_cause, closed.close_note) == (CLOSED, cause, "at the door")
        assert (await refusal(leg.desk.acknowledge(id_)))[0] is grpc.StatusCode.FAILED_PRECONDITION
        assert (await leg.desk.call("ListUnits")).units[0].incident_id == ""
        for method, request in (("Receive", {}), ("Reject", {"offer_number": 1}), ("Progress", {}), ("Close", {})):
            code, _ = await refusal(leg.desk.call(method, assignment_id=id_, **request))
            assert code is grpc.StatusCode.INVALID_ARGUMENT, method
            code, _ = await refusal(leg.caller(DESKS["probation"]).call(method, assignment_id=id_, **request))
            assert code is grpc.StatusCode.PERMISSION_DENIED, method


async def test_an_offer_that_nobody_receives_goes_through_all_escalation_levels(
    bus: Bus, police: DispatchSettings
) -> None:
    brief = police.model_copy(update={"acknowledge_within_s": 0.2, "receive_within_s": 0.1})
    async with running(brief) as leg, leg.desk.subscription() as steps:
        await put(leg.desk, [office(next_office_id="b"), office("b", subject_ids=["x"])], [unit("a1"), unit("b1", "b")])
        await publish(bus, alert(5))
        assert (await steps.next(OFFERED)).step.assignment.choice.unit_id == "a1"
        escalated = [(await steps.next(ESCALATED)).step.assignment for _ in range(4)]
    assert [
        (assignment.choice.unit_id or assignment.choice.desk, assignment.escalation_reason) for assignment in escalated
    ] == [
        ("b1", dispatch_pb2.NOT_RECEIVED),
        ("supervisor-a", dispatch_pb2.NOT_RECEIVED),
        ("national", dispatch_pb2.NOT_RECEIVED),
        ("national", dispatch_pb2.NOT_RECEIVED),
    ]


async def test_a_rejection_escalates_at_once_and_a_late_rejection_is_refused(
    bus: Bus, police: DispatchSettings
) -> None:
    async with running(police) as leg, leg.desk.subscription() as steps:
        await put(leg.desk, [office()], [unit("a1"), unit("a2")])
        await publish(bus, alert(5))
        offer = (await steps.next(OFFERED)).step.assignment
        answer = {"assignment_id": offer.assignment_id, "offer_number": offer.offer_number, "reason": "no car"}
        code, text = await refusal(leg.desk.call("Reject", **(answer | {"reason": " "})))
        assert code is grpc.StatusCode.INVALID_ARGUMENT and text.startswith("reason:")
        rejected = (await leg.desk.call("Reject", **answer)).assignment
        assert (rejected.state, rejected.choice.unit_id, rejected.rejected_reason) == (ESCALATED, "a2", "no car")
        assert (await steps.next(REJECTED)).step.assignment.choice.unit_id == "a1"
        code, text = await refusal(leg.desk.call("Reject", **answer))
        assert code is grpc.StatusCode.FAILED_PRECONDITION and "offered on since" in text


async def test_an_answer_that_saw_another_state_is_refused_with_a_code_and_changes_nothing(
    bus: Bus, police: DispatchSettings
) -> None:
    async with running(police) as leg, leg.desk.subscription() as steps:
        await put(leg.desk, [office()], [unit("a1"), unit("a2")])
        await publish(bus, alert(5))
        seen = (await steps.next(OFFERED)).step.assignment
        await leg.desk.acknowledge(seen.assignment_id, "a1")
        of = {"assignment_id": seen.assignment_id, "offer_number": seen.offer_number}
        old, now = of | {"seen_state": OFFERED}, of | {"seen_state": dispatch_pb2.ACKNOWLEDGED}
        for method, more in (
            ("Reject", {"reason": "no car"}),
            ("Progress", {"state": dispatch_pb2.DISPATCHED}),
            ("Close", {"cause": dispatch_pb2.FALSE_POSITION}),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await leg.desk.call(method, **old, **more)
            assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION, method
            assert details(refused.value, error_details_pb2.ErrorInfo).reason == "MOVED_ON", method
            code, text = await refusal(leg.desk.call(method, **(of | {"seen_state": 99}), **more))
            assert code is grpc.StatusCode.INVALID_ARGUMENT and text.startswith("seen_state:"), method
        dispatched = (await leg.desk.call("Progress", **now, state=dispatch_pb2.DISPATCHED)).assignment
        assert (dispatched.state, dispatched.offer_number) == (dispatch_pb2.DISPATCHED, seen.offer_number)


async def test_a_busy_unit_is_offered_if_none_is_free_and_a_removed_unit_is_replaced(
    bus: Bus, police: DispatchSettings
) -> None:
    async with running(police) as leg, leg.desk.subscription() as steps:
        await put(leg.desk, [office()], [unit("pair")])
        await publish(bus, alert(5), alert(6, incident="incident-2"))
        first, second = [(await steps.next(OFFERED)).step.assignment for _ in range(2)]
        assert (first.choice.unit_id, first.choice.busy_in_incident_id) == ("pair", "")
        assert (second.choice.unit_id, second.choice.busy_in_incident_id) == ("pair", "incident-1")
        await leg.desk.acknowledge(first.assignment_id, "pair")
        await leg.desk.call("PutUnits", units=[unit("pair", version=2, removed=True), unit("car")])
        moved = [(await steps.next(ESCALATED)).step.assignment for _ in range(2)]
    assert {assignment.incident_id for assignment in moved} == {"incident-1", "incident-2"}
    assert {assignment.escalation_reason for assignment in moved} == {dispatch_pb2.UNIT_GONE}
    assert {(assignment.choice.unit_id, assignment.choice.busy_in_incident_id) for assignment in moved} == {
        ("car", ""),
        ("car", moved[0].incident_id),
    }


async def test_nobody_available_reaches_both_desks_at_once_and_the_other_gets_no_details(
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
            await theirs.next(OFFERED)  # from here on it gets the steps of the police
            await publish(bus, alert(5))
            unavailable = (await steps.next(NOBODY_AVAILABLE)).step.assignment
            up = (await steps.next(ESCALATED)).step.assignment
            assert unavailable.HasField("nobody_available_at")
            assert (up.choice.desk, up.choice.level) == ("supervisor-a", dispatch_pb2.SUPERVISOR)
            seen: list[dispatch_pb2.Assignment] = []
            while not seen or seen[-1].state != ESCALATED:
                response = await theirs.next_of_any()
                if response.HasField("other"):
                    seen.append(response.other)
            assert NOBODY_AVAILABLE in [assignment.state for assignment in seen]
            await leg.desk.call("PutUnits", units=[unit("a1")])
            await leg.desk.call(
                "Reject", assignment_id=up.assignment_id, offer_number=up.offer_number, reason="she lives at 5"
            )
            await leg.desk.acknowledge(up.assignment_id)
            await publish(bus, alert(7, geometry_pb2.RECORD, protected=(), ends=True))
            over = (await steps.next(STOOD_DOWN)).step.assignment
            assert over.stood_down_kind == alert(7, ends=True).kind
            await leg.desk.call("Close", assignment_id=up.assignment_id, cause=dispatch_pb2.OTHER, note="at 5")
            while seen[-1].state != CLOSED:
                response = await theirs.next_of_any()
                if response.HasField("other"):
                    seen.append(response.other)
    for step in await stored_steps(bus, "police", "incident-1", count=7):
        written = step.SerializeToString()
        assert not any(secret in written for secret in (b"at 5", b"supervisor-a", b"national", b"pair"))
    assert {ACKNOWLEDGED, STOOD_DOWN, CLOSED} <= {assignment.state for assignment in seen}
    assert seen[-1].close_cause == dispatch_pb2.OTHER
    for assignment in seen:
        shared_fields = {field.name for field, _ in assignment.choice.ListFields()}
        assert shared_fields <= {"level", "unit_class"}
        assert not assignment.rejected_reason and not assignment.close_note and not assignment.HasField("cause")
        assert not assignment.kind and not assignment.stood_down_kind


async def test_a_call_for_help_ends_in_an_incident_that_is_over(bus: Bus, police: DispatchSettings) -> None:
    desk, page = server.bearer(DESKS["police"], SECRET), server.bearer(FIELD, SECRET)
    async with running(police) as leg, leg.desk.subscription() as steps:
        duty = unit_duty_pb2_grpc.UnitDutyServiceStub(leg.channel)
        await put(leg.desk, [office()], [unit("a1")])
        link = await duty.IssueUnitLink(unit_duty_pb2.IssueUnitLinkRequest(unit_id="a1"), metadata=desk)
        signed_in = await duty.SignInUnit(unit_duty_pb2.SignInUnitRequest(code=link.code), metadata=page)
        await publish(bus, alert(1))
        await leg.desk.acknowledge((await steps.next(OFFERED)).step.assignment.assignment_id)
        await duty.RaiseDistress(unit_duty_pb2.RaiseDistressRequest(token=signed_in.token), metadata=page)
        await publish(bus, alert(2, ends=True))
        assert (await steps.next(STOOD_DOWN)).step.assignment.HasField("distress_at")
        await duty.EndDistress(unit_duty_pb2.EndDistressRequest(unit_id="a1"), metadata=desk)
        (incident,) = (await leg.desk.list()).incidents
        assert incident.HasField("ended_at")
        assert not any(assignment.HasField("distress_at") for assignment in incident.assignments)
        (listed,) = (await leg.desk.call("ListUnits")).units
        assert not listed.HasField("distress_at")
