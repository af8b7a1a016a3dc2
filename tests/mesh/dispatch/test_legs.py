"""Legs over a real nats-server, real gRPC and real SQLite: from an alert to the desks and to INCIDENTS."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, closing
from pathlib import Path

import grpc
import pytest

from services.common.messaging import flow, positions
from services.common.messaging.bus import Bus
from services.dispatch.leg import feed, translate
from services.dispatch.settings import DispatchSettings
from services.geofence.translate import alert_to_proto
from tandem.common.v1 import alert_pb2, geometry_pb2
from tandem.dispatch.v1 import dispatch_pb2
from tandem.dispatch.v1.dispatch_pb2 import ACKNOWLEDGED, ESCALATED, NOTIFIED, OFFERED, STOOD_DOWN
from tests.support.common.nats import TestServer
from tests.support.dispatch.dispatch import (
    DESKS,
    PATIENCE_S,
    RunningLeg,
    alert,
    publish,
    running,
    settings,
    stored_steps,
)
from tests.support.dispatch.leg_state import position_of, refused, timeless
from tests.support.full_stream import full
from tests.support.geofence.stories import Story


@pytest.fixture
async def legs(nats: TestServer, bus: Bus, tmp_path: Path) -> AsyncIterator[dict[str, RunningLeg]]:
    """Runs all three legs."""
    async with AsyncExitStack() as stack:
        yield {leg: await stack.enter_async_context(running(settings(leg, nats, tmp_path))) for leg in flow.LEGS}


def _is_answered_and_measured(incident: dispatch_pb2.Incident) -> bool:
    """Whether all three legs have answered and the own offer's latency is known, which is slightly after its publication."""
    states = [assignment.state for assignment in incident.assignments]
    return states == 3 * [ACKNOWLEDGED] and incident.assignments[0].report_to_published_ms > 0


async def test_an_alert_reaches_each_desk_and_each_leg_sees_the_others(bus: Bus, legs: dict[str, RunningLeg]) -> None:
    ids = {}
    for leg, running_leg in legs.items():
        async with running_leg.desk.subscription() as subscription:
            if leg == "probation":
                await publish(bus, alert(5))
            offer = (await subscription.next(OFFERED)).step.assignment
            assert offer.subject_id == ("w1" if leg == "probation" else "p1")
            assert translate.leg_of(offer.leg) == leg and list(offer.order_ids) == ["order-1"]
            ids[leg] = offer.assignment_id
            acknowledged = await running_leg.desk.acknowledge(offer.assignment_id)
            assert acknowledged.acknowledged_by == DESKS[leg] and acknowledged.HasField("acknowledged_at")
            assert (
                await subscription.next(ACKNOWLEDGED)
            ).step.assignment.acknowledged_at == acknowledged.acknowledged_at
    assert len(set(ids.values())) == 3
    for leg, running_leg in legs.items():
        steps = await stored_steps(bus, leg, "incident-1", count=2)
        assert [(step.number, step.assignment.state) for step in steps] == [(1, OFFERED), (2, ACKNOWLEDGED)]
        incident = await running_leg.desk.incident_when(_is_answered_and_measured)
        own = incident.assignments[0]
        assert {assignment.assignment_id for assignment in incident.assignments} == set(ids.values())
        assert own.assignment_id == ids[leg] and own.report_to_published_ms > 0
        assert own.cause.report_id == "r-5"


async def test_an_alert_reaches_only_the_legs_that_it_demands(bus: Bus, legs: dict[str, RunningLeg]) -> None:
    await publish(bus, alert(5, geometry_pb2.WARN), alert(6, geometry_pb2.NOTIFY, incident="incident-2"))
    async with legs["warning"].desk.subscription() as subscription:
        assert (await subscription.next(OFFERED)).step.assignment.incident_id == "incident-1"
        assert (await subscription.next(OFFERED)).step.assignment.incident_id == "incident-2"
    async with legs["police"].desk.subscription() as subscription:
        notice = (await subscription.next(NOTIFIED)).step.assignment
        assert notice.incident_id == "incident-2" and not notice.HasField("offered_at")
    await refused(legs["police"].desk.acknowledge(notice.assignment_id), grpc.StatusCode.FAILED_PRECONDITION)


async def test_each_protected_person_of_an_alert_has_an_offer(bus: Bus, police: DispatchSettings) -> None:
    offered: set[str] = set()
    async with running(police) as leg, leg.desk.subscription() as steps:
        await publish(bus, alert(5, protected=("p1", "p2")))
        while len(offered) < 2:
            offered.add((await steps.next(OFFERED)).step.assignment.subject_id)
    assert offered == {"p1", "p2"}


async def test_a_device_notice_reaches_the_desks_that_it_concerns_and_is_stood_down(
    bus: Bus, legs: dict[str, RunningLeg]
) -> None:
    story = Story()
    story.case()
    story.says(5, "phone", "DEVICE_REFUSED")
    story.says(10, "tag", "SHUTDOWN")
    refused_id, off_id = (decided.incident_id for decided in story.alerts)
    states_by_leg = {}
    async with AsyncExitStack() as stack:
        # Who subscribes later doesn't see all steps of what is over already.
        subscribed = {
            leg: await stack.enter_async_context(running_leg.desk.subscription()) for leg, running_leg in legs.items()
        }
        await publish(bus, *(alert_to_proto(decided, 0) for decided in story.alerts))
        await publish(bus, alert(story.state.sequence + 1))  # the alert for which each leg waits
        for leg, steps in subscribed.items():
            seen: list[dispatch_pb2.Assignment] = []
            while not seen or seen[-1].state != OFFERED:
                seen.append((await steps.next_of_any()).step.assignment)
            states_by_leg[leg] = [
                (assignment.incident_id, assignment.subject_id, assignment.state) for assignment in seen[:-1]
            ]
    over = [(refused_id, "p", NOTIFIED), (refused_id, "p", STOOD_DOWN)]
    assert states_by_leg["police"] == [*over, (off_id, "p", NOTIFIED), (off_id, "p", STOOD_DOWN)]
    assert states_by_leg["probation"] == [(off_id, "w", NOTIFIED), (off_id, "w", STOOD_DOWN)]
    assert states_by_leg["warning"] == []


async def test_an_unanswered_offer_is_escalated_until_it_is_acknowledged(bus: Bus, police: DispatchSettings) -> None:
    async with (
        running(police.model_copy(update={"acknowledge_within_s": 0.2})) as leg,
        leg.desk.subscription() as steps,
    ):
        await publish(bus, alert(5))
        offer = await steps.next(OFFERED)
        first, second = await steps.next(ESCALATED), await steps.next(ESCALATED)
        assert offer.sequence < first.sequence < second.sequence
        assert first.step.assignment.assignment_id == offer.step.assignment.assignment_id
        await leg.desk.acknowledge(offer.step.assignment.assignment_id)
        acknowledged = await steps.next(ACKNOWLEDGED)
        stored = await stored_steps(bus, "police", "incident-1", count=acknowledged.step.number)
    states = [step.assignment.state for step in stored]
    assert states[0] == OFFERED and states[1] == ESCALATED and states.index(ACKNOWLEDGED) == len(states) - 1


async def test_an_unanswered_offer_is_repeated_to_each_desk(
    bus: Bus, police: DispatchSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "REPEAT_S", 0.1)
    async with running(police) as leg:
        async with leg.desk.subscription() as first_desk, leg.desk.subscription() as second_desk:
            await publish(bus, alert(5))
            first, second = await first_desk.next(OFFERED), await second_desk.next(OFFERED)
            assert first.sequence == second.sequence > 0 and first.step.step_id == second.step.step_id
            for steps in (first_desk, second_desk):
                for _ in range(2):
                    repeated = await steps.next(OFFERED)
                    assert repeated.sequence == 0 and repeated.step.step_id == first.step.step_id
        async with leg.desk.subscription(after_sequence=first.sequence) as late:
            assert (await late.next(OFFERED)).sequence == 0
            await leg.desk.acknowledge(first.step.assignment.assignment_id)
            acknowledged = await late.next(ACKNOWLEDGED)
        async with leg.desk.subscription(after_sequence=first.sequence) as later:
            assert await later.next(ACKNOWLEDGED) == acknowledged


async def test_the_desk_is_served_while_nats_is_away(bus: Bus, nats: TestServer, police: DispatchSettings) -> None:
    brief = police.model_copy(update={"acknowledge_within_s": 1.0})
    async with running(brief) as leg, leg.desk.subscription() as steps:
        await publish(bus, alert(5))
        offer = await steps.next(OFFERED)
        nats.kill()
        await steps.next(ESCALATED)
        await leg.desk.acknowledge(offer.step.assignment.assignment_id)
        acknowledged = await steps.next(ACKNOWLEDGED)
    async with running(brief) as leg, leg.desk.subscription() as steps:  # even a restart needs no NATS
        await steps.next(ACKNOWLEDGED)
        assert (await leg.desk.list()).incidents[0].assignments[0].state == ACKNOWLEDGED
        nats.start()
        await publish(bus, alert(6, incident="incident-2"))  # waits for the server
        published = await stored_steps(bus, "police", "incident-1", count=acknowledged.step.number)
    assert [step.number for step in published] == list(range(1, acknowledged.step.number + 1))
    assert published[-1].assignment.state == ACKNOWLEDGED


async def test_a_step_that_a_full_stream_refuses_is_published_once_there_is_space(
    bus: Bus, police: DispatchSettings
) -> None:
    attempts = await bus.client.subscribe(flow.incident_subject("police", "incident-1"))
    async with running(police) as leg, leg.desk.subscription() as steps:
        async with full(bus, flow.INCIDENTS.name):
            await publish(bus, alert(5))
            offer = (await steps.next(OFFERED)).step
            for _ in range(2):
                await attempts.next_msg(timeout=PATIENCE_S)
            (incident,) = (await leg.desk.list()).incidents
            assert not incident.assignments[0].report_to_published_ms, "a refused step counts as published"
        (published,) = await stored_steps(bus, "police", "incident-1", count=1)
    assert published.assignment.assignment_id == offer.assignment.assignment_id


async def test_only_the_legs_own_desk_is_served(bus: Bus, police: DispatchSettings) -> None:
    async with running(police) as leg, leg.desk.subscription() as steps:
        await publish(bus, alert(5))
        offer = (await steps.next(OFFERED)).step.assignment
        for stranger in (DESKS["probation"], DESKS["warning"], "spiffe://tandem/reviewer/a", "spiffe://vendor/a"):
            caller = leg.caller(stranger)
            await refused(caller.acknowledge(offer.assignment_id), grpc.StatusCode.PERMISSION_DENIED)
            async with caller.subscription() as other:
                await refused(other.next(OFFERED), grpc.StatusCode.PERMISSION_DENIED)
        for stranger in (DESKS["probation"], DESKS["warning"], "spiffe://vendor/a"):
            await refused(leg.caller(stranger).list(), grpc.StatusCode.PERMISSION_DENIED)
        assert len((await leg.caller("spiffe://tandem/reviewer/a").list()).incidents) == 1
        assert (await leg.desk.list()).incidents[0].assignments[0].state == OFFERED


async def test_invalid_requests_are_refused(bus: Bus, police: DispatchSettings) -> None:
    async with running(police) as leg:
        await refused(leg.desk.acknowledge("assign-none"), grpc.StatusCode.NOT_FOUND)
        await refused(leg.desk.acknowledge(""), grpc.StatusCode.INVALID_ARGUMENT, "assignment_id")
        await refused(leg.desk.list(page_token="incident-9"), grpc.StatusCode.INVALID_ARGUMENT, "page_token")
        await refused(leg.desk.list(page_token="\n"), grpc.StatusCode.INVALID_ARGUMENT, "page_token")
        await refused(leg.desk.list(incident_id="a b"), grpc.StatusCode.INVALID_ARGUMENT, "incident_id")
        for point in ("9", "-", "x-", "x-²", "a b-1", "x-" + "9" * 40):
            await refused(leg.desk.list(changed_after=point), grpc.StatusCode.INVALID_ARGUMENT, "changed_after")
        point = (await leg.desk.list()).changes
        for other in ({"page_token": "incident-1"}, {"incident_id": "incident-1"}, {"only_open": True}):
            await refused(
                leg.desk.list(changed_after=point, **other), grpc.StatusCode.INVALID_ARGUMENT, "changed_after"
            )
        async with leg.desk.subscription(after_sequence=99) as steps:
            await refused(steps.next(OFFERED), grpc.StatusCode.INVALID_ARGUMENT, "after_sequence")


async def test_a_step_says_when_its_incident_began_and_ended(bus: Bus, police: DispatchSettings) -> None:
    async with running(police) as leg, leg.desk.subscription() as subscription:
        await publish(bus, alert(5))
        offer = await subscription.next(OFFERED)
        assert offer.incident_opened_at == offer.step.at and not offer.HasField("incident_ended_at")
        await leg.desk.acknowledge(offer.step.assignment.assignment_id)
        acknowledged = await subscription.next(ACKNOWLEDGED)
        assert acknowledged.incident_opened_at == offer.step.at and not acknowledged.HasField("incident_ended_at")
        await publish(bus, alert(6, geometry_pb2.RECORD, ends=True))
        ended = await subscription.next(STOOD_DOWN)
        (listed,) = (await leg.desk.list()).incidents
        assert (ended.incident_opened_at, ended.incident_ended_at) == (listed.opened_at, listed.ended_at)


async def test_the_end_stands_down_and_ends_the_incident_in_any_order(bus: Bus, police: DispatchSettings) -> None:
    async with running(police) as leg, leg.desk.subscription() as steps:
        await publish(bus, alert(5))
        offer = (await steps.next(OFFERED)).step.assignment
        await leg.desk.acknowledge(offer.assignment_id)
        await publish(bus, alert(6, geometry_pb2.RECORD, protected=(), ends=True))
        over = (await steps.next(STOOD_DOWN)).step.assignment
        assert over.HasField("acknowledged_at")
        await refused(leg.desk.acknowledge(offer.assignment_id), grpc.StatusCode.FAILED_PRECONDITION, "STOOD_DOWN")
        await publish(bus, alert(9, geometry_pb2.RECORD, incident="incident-2", protected=(), ends=True))
        await bus.client.flush()
        await asyncio.sleep(0.2)  # so that the end is folded alone
        await publish(bus, alert(8, incident="incident-2"))
        assert (await steps.next(STOOD_DOWN)).step.assignment.incident_id == "incident-2"
        listed = (await leg.desk.list()).incidents
    assert [incident.incident_id for incident in listed] == ["incident-2", "incident-1"]
    assert all(incident.HasField("ended_at") for incident in listed)


async def test_a_desk_that_reads_nothing_delays_no_other_desk(bus: Bus, police: DispatchSettings) -> None:
    names = [f"incident-{n}" for n in range(30)]
    async with (
        running(police) as leg,
        leg.desk.subscription() as steps,
        leg.caller("spiffe://npa/desk/busan").subscription() as unread,
    ):
        await publish(bus, *(alert(n, incident=name) for n, name in enumerate(names, 1)))
        offered = {(await steps.next(OFFERED)).step.assignment.incident_id for _ in names}
        assert offered == set(names)
        late = {(await unread.next(OFFERED)).step.assignment.incident_id for _ in names}
        assert late == set(names)


async def test_incidents_are_listed_in_pages(bus: Bus, police: DispatchSettings) -> None:
    names = [f"incident-{n}" for n in range(5)]
    async with running(police) as leg, leg.desk.subscription() as steps:
        await publish(bus, *(alert(n, incident=name) for n, name in enumerate(names, 1)))
        for _ in names:
            await steps.next(OFFERED)
        assert (
            len((await leg.desk.list(page_size=1_000_000)).incidents) == 5
        )  # a larger page than allowed is a page of the maximum
        seen: list[str] = []
        token = ""
        for size in (2, 2, 1):
            page = await leg.desk.list(page_size=2, page_token=token)
            assert len(page.incidents) == size
            seen += [incident.incident_id for incident in page.incidents]
            token = page.next_page_token
        assert token == "" and seen == names[::-1]
        (incident,) = (await leg.desk.list(incident_id="incident-3")).incidents
        assert incident.incident_id == "incident-3"
        assert not (await leg.desk.list(incident_id="incident-77")).incidents


async def test_the_open_incidents_and_the_changed_ones_are_listed(bus: Bus, police: DispatchSettings) -> None:
    async with running(police) as leg, leg.desk.subscription() as steps:
        await publish(bus, *(alert(n, incident=f"incident-{n}") for n in (1, 2, 3)))
        offers = {}
        for _ in range(3):
            offer = (await steps.next(OFFERED)).step.assignment
            offers[offer.incident_id] = offer.assignment_id
        before = await leg.desk.list(page_size=1)
        await publish(bus, alert(4, geometry_pb2.RECORD, incident="incident-2", protected=(), ends=True))
        assert (await steps.next(STOOD_DOWN)).step.assignment.assignment_id == offers["incident-2"]
        open_ = await leg.desk.list(only_open=True)
        assert [incident.incident_id for incident in open_.incidents] == ["incident-3", "incident-1"]
        await leg.desk.acknowledge(offers["incident-1"])
        acknowledged = await leg.desk.list(only_open=True)
        assert [incident.incident_id for incident in acknowledged.incidents] == ["incident-3", "incident-1"]
        changed = await leg.desk.list(changed_after=before.changes)
        assert "incident-2" in {incident.incident_id for incident in changed.incidents}
        assert not changed.more_changes and not changed.changes_unknown
        later = await leg.desk.list(changed_after=open_.changes)
        assert not later.changes_unknown and later.changes
        earlier_start = f"0{before.changes}"
        unknown = await leg.desk.list(changed_after=earlier_start)
        assert unknown.changes_unknown and not unknown.incidents and not unknown.changes


async def test_unreadable_messages_become_dead_letters_and_delay_nothing(bus: Bus, police: DispatchSettings) -> None:
    nameless = alert(4)
    nameless.ClearField("order_id")
    await publish(bus, nameless)
    await bus.publish("alert.0.garbage", b"\xff\xff\xff")
    await bus.publish(flow.incident_subject("probation", "incident-1"), b"\xff\xff\xff")
    async with running(police) as leg, leg.desk.subscription() as steps:
        await publish(bus, alert(5))
        await steps.next(OFFERED)
        reasons: dict[str, str] = {}
        async with asyncio.timeout(PATIENCE_S):
            while len(reasons) < 3:
                await asyncio.sleep(0.05)
                info = await bus.js.stream_info(flow.DEAD_LETTERS.name, subjects_filter=">")
                for subject in info.state.subjects or {}:
                    message = await bus.js.get_last_msg(flow.DEAD_LETTERS.name, subject)
                    reasons[subject] = alert_pb2.DeadLetter.FromString(message.data or b"").reason
    assert reasons.keys() == {
        "dead_letter.dispatch-police.police-alerts.ALERTS.1",
        "dead_letter.dispatch-police.police-alerts.ALERTS.2",
        "dead_letter.dispatch-police.police-peers.INCIDENTS.1",
    }
    assert "order_id" in reasons["dead_letter.dispatch-police.police-alerts.ALERTS.1"]


async def test_a_replay_of_all_alerts_changes_nothing(bus: Bus, police: DispatchSettings) -> None:
    async with running(police) as leg, leg.desk.subscription() as steps:
        await publish(bus, alert(5), alert(6), alert(7, protected=("p2",)))
        await steps.next(OFFERED)
        await leg.desk.acknowledge((await steps.next(OFFERED)).step.assignment.assignment_id)
        before = timeless((await leg.desk.list()).incidents)
    with closing(sqlite3.connect(police.database)) as database, database:
        assert database.execute("DELETE FROM positions").rowcount == 1
    async with running(police) as leg, leg.desk.subscription() as steps:
        await publish(bus, alert(8, incident="incident-2"))
        while (await steps.next(OFFERED)).step.assignment.incident_id != "incident-2":
            pass
        assert timeless((await leg.desk.list(incident_id="incident-1")).incidents) == before
    assert len(await stored_steps(bus, "police", "incident-1", count=3)) == 3


async def test_alerts_for_other_legs_are_skipped_and_the_position_is_stored(
    bus: Bus, police: DispatchSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(positions, "STORE_INTERVAL_S", 0.1)
    async with running(police) as leg:
        await publish(bus, alert(5, geometry_pb2.WARN), alert(6, geometry_pb2.WARN))
        async with asyncio.timeout(PATIENCE_S):
            while position_of(police) < 2:  # noqa: ASYNC110  # the leg is another task
                await asyncio.sleep(0.05)
        assert not (await leg.desk.list()).incidents


async def test_probation_gets_no_ids_of_the_protected_persons_devices(bus: Bus, legs: dict[str, RunningLeg]) -> None:
    await publish(bus, alert(5, of_wearer=False))
    for leg, device_id in (("probation", ""), ("police", "phone-1")):
        async with legs[leg].desk.subscription() as subscription:
            cause = (await subscription.next(OFFERED)).step.assignment.cause
            assert cause.device_id == device_id and cause.received_wall_us > 0
