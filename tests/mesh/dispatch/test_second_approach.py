"""A wearer returns during an incident: a leg that acknowledged the first approach gets a second offer."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

from services.common.messaging.bus import Bus
from services.common.storage.db import open_database
from services.dispatch.__main__ import MIGRATIONS
from services.dispatch.leg.store import Store
from services.geofence.translate import alert_to_proto
from tandem.common.v1 import alert_pb2, geometry_pb2
from tandem.dispatch.v1 import dispatch_pb2
from tandem.dispatch.v1.dispatch_pb2 import ACKNOWLEDGED, NOTIFIED, OFFERED
from tests.support.common.nats import TestServer
from tests.support.dispatch.dispatch import (
    PATIENCE_S,
    RunningLeg,
    alert,
    client,
    process,
    publish,
    running,
    settings,
    stored_steps,
)
from tests.support.dispatch.leg_chain import first_broken_event
from tests.support.geofence.stories import Story


def two_approaches() -> tuple[list[alert_pb2.Alert], list[alert_pb2.Alert], list[alert_pb2.Alert]]:
    """Returns the alerts about a wearer who lives within 2 km: of the first approach, the way home, and the second approach."""
    story = Story()
    story.case()
    parts: list[list[alert_pb2.Alert]] = []
    for begin_s, north_m in ((10, 50.0), (100, 1500.0), (400, 60.0)):
        known = len(story.alerts)
        for at_s in range(begin_s, begin_s + 200 if north_m > 100 else begin_s + 1, 20):
            story.at(at_s, "phone", 0)
            story.at(at_s + 0.5, "tag", north_m)
        parts.append([alert_to_proto(alert, 0) for alert in story.alerts[known:]])
    first, home, second = parts
    return first, home, second


def police_of(incident: dispatch_pb2.Incident) -> dispatch_pb2.Assignment:
    (police_assignment,) = (assignment for assignment in incident.assignments if assignment.leg == alert_pb2.POLICE)
    return police_assignment


async def seen_by_probation(probation: RunningLeg, state: dispatch_pb2.AssignmentState.ValueType) -> None:
    """Waits until the probation desk sees the police's assignment in a state."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            (incident,) = (await probation.desk.list()).incidents
            theirs = [assignment for assignment in incident.assignments if assignment.leg == alert_pb2.POLICE]
            if [assignment.state for assignment in theirs] == [state]:
                break
            await asyncio.sleep(0.05)
    assert theirs[0].kind == alert_pb2.ALERT_KIND_UNSPECIFIED
    assert theirs[0].HasField("acknowledged_at") == (state == ACKNOWLEDGED)


async def test_the_second_approach_of_one_incident_gets_a_new_offer(bus: Bus, nats: TestServer, tmp_path: Path) -> None:
    first, home, second = two_approaches()
    incident_id = first[0].incident_id
    assert {message.incident_id for message in (*first, *home, *second)} == {incident_id}
    cleared = [message.ring_m for message in home if message.kind == alert_pb2.RING_CLEARED]
    assert cleared == [100, 1000] and not any(message.demand == geometry_pb2.RESPOND for message in home)
    police = settings("police", nats, tmp_path)
    async with running(settings("probation", nats, tmp_path)) as probation:
        async with process(police), client(police) as leg, leg.desk.subscription() as steps:
            await publish(bus, *first)
            offer = (await steps.next(OFFERED)).step.assignment
            assert offer.kind == alert_pb2.RING_ENTERED
            await leg.desk.acknowledge(offer.assignment_id)
            await seen_by_probation(probation, ACKNOWLEDGED)
            await publish(bus, *home)
        # Killed while it reads the clearing of the ring: after the restart it reads the rest.
        async with process(police), client(police) as leg:
            incident = (await leg.desk.list()).incidents[0]
            assert police_of(incident).state == ACKNOWLEDGED, "a clearing sends nobody"
            async with leg.desk.subscription() as steps:
                await steps.next(ACKNOWLEDGED)
                await publish(bus, *second)
                reoffered = (await steps.next(OFFERED)).step
                assert reoffered.assignment.assignment_id == offer.assignment_id
                assert reoffered.assignment.cause.report_id == second[-1].cause.report_id != offer.cause.report_id
                assert reoffered.assignment.kind == alert_pb2.RING_ENTERED
                assert not reoffered.assignment.acknowledged_by and not reoffered.assignment.HasField("acknowledged_at")
                await seen_by_probation(probation, OFFERED)
                await leg.desk.acknowledge(offer.assignment_id)
                await steps.next(ACKNOWLEDGED)
                await seen_by_probation(probation, ACKNOWLEDGED)
    with closing(sqlite3.connect(police.database)) as database, database:
        assert database.execute("DELETE FROM positions").rowcount == 2
    async with process(police), client(police) as leg, leg.desk.subscription() as steps:  # reads all alerts again
        await publish(bus, alert(1_000, incident="incident-2"))
        while (await steps.next(OFFERED)).step.assignment.incident_id != "incident-2":
            pass
        (incident,) = (await leg.desk.list(incident_id=incident_id)).incidents
        assert police_of(incident).state == ACKNOWLEDGED
        published = await stored_steps(bus, "police", incident_id, count=4)
        # If the NOTIFY alert was folded before the RESPOND alert arrived, it has a separate step.
        if published[0].assignment.state == NOTIFIED:
            published = await stored_steps(bus, "police", incident_id, count=5)
    states = [step.assignment.state for step in published]
    assert states[-4:] == [OFFERED, ACKNOWLEDGED, OFFERED, ACKNOWLEDGED]
    numbers = [step.number for step in published]  # gaps are steps that the leg doesn't publish
    assert numbers == sorted(set(numbers))
    async with open_database(police.database, MIGRATIONS) as opened:
        assert await first_broken_event(Store(opened)) is None


async def test_an_unanswered_second_offer_is_escalated(bus: Bus, nats: TestServer, tmp_path: Path) -> None:
    first, home, second = two_approaches()
    police = settings("police", nats, tmp_path, acknowledge_within_s=2.0)
    async with running(police) as leg, leg.desk.subscription() as steps:
        await publish(bus, *first)
        await leg.desk.acknowledge((await steps.next(OFFERED)).step.assignment.assignment_id)
        await steps.next(ACKNOWLEDGED)
        await publish(bus, *home, *second)
        reoffered = (await steps.next(OFFERED)).step
        escalated = (await steps.next(dispatch_pb2.ESCALATED)).step
    assert escalated.number > reoffered.number
    assert escalated.assignment.cause == reoffered.assignment.cause
