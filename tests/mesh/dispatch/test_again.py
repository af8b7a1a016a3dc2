"""The wearer comes back while the incident lasts: a leg that took the first approach is asked again."""

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
from tests.support.geofence.stories import Story


def two_approaches() -> tuple[list[alert_pb2.Alert], list[alert_pb2.Alert], list[alert_pb2.Alert]]:
    """What the fold says of a wearer who lives within 2 km: the first approach, going home, the second approach."""
    story = Story()
    story.case()
    told: list[list[alert_pb2.Alert]] = []
    for begin_s, north_m in ((10, 50.0), (100, 1500.0), (400, 60.0)):
        known = len(story.alerts)
        for at_s in range(begin_s, begin_s + 200 if north_m > 100 else begin_s + 1, 20):
            story.at(at_s, "phone", 0)
            story.at(at_s + 0.5, "tag", north_m)
        told.append([alert_to_proto(one, 0) for one in story.alerts[known:]])
    first, home, second = told
    return first, home, second


def police_of(incident: dispatch_pb2.Incident) -> dispatch_pb2.Assignment:
    (one,) = (assignment for assignment in incident.assignments if assignment.leg == alert_pb2.POLICE)
    return one


async def seen_by_probation(probation: RunningLeg, state: dispatch_pb2.AssignmentState.ValueType) -> None:
    """Waits until probation's desk sees the police's assignment in a state."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            (incident,) = (await probation.desk.list()).incidents
            theirs = [assignment for assignment in incident.assignments if assignment.leg == alert_pb2.POLICE]
            if [one.state for one in theirs] == [state]:
                break
            await asyncio.sleep(0.05)
    assert theirs[0].kind == alert_pb2.ALERT_KIND_UNSPECIFIED
    assert theirs[0].HasField("acknowledged_at") == (state == ACKNOWLEDGED)


async def test_the_second_approach_of_one_incident_is_offered_again(bus: Bus, nats: TestServer, tmp_path: Path) -> None:
    first, home, second = two_approaches()
    incident_id = first[0].incident_id
    assert {one.incident_id for one in (*first, *home, *second)} == {incident_id}
    cleared = [one.ring_m for one in home if one.kind == alert_pb2.RING_CLEARED]
    assert cleared == [100, 1000] and not any(one.demand == geometry_pb2.RESPOND for one in home)
    police = settings("police", nats, tmp_path)
    async with running(settings("probation", nats, tmp_path)) as probation:
        async with process(police), client(police) as leg, leg.desk.subscription() as steps:
            await publish(bus, *first)
            offer = (await steps.next(OFFERED)).step.assignment
            assert offer.kind == alert_pb2.RING_ENTERED
            await leg.desk.acknowledge(offer.assignment_id)
            await seen_by_probation(probation, ACKNOWLEDGED)
            await publish(bus, *home)
        # Killed while it takes in that the ring was cleared: what it lacks comes again.
        async with process(police), client(police) as leg:
            taken = (await leg.desk.list()).incidents[0]
            assert police_of(taken).state == ACKNOWLEDGED, "a clearing sends nobody"
            async with leg.desk.subscription() as steps:
                await steps.next(ACKNOWLEDGED)
                await publish(bus, *second)
                again = (await steps.next(OFFERED)).step
                assert again.assignment.assignment_id == offer.assignment_id
                assert again.assignment.cause.report_id == second[-1].cause.report_id != offer.cause.report_id
                assert again.assignment.kind == alert_pb2.RING_ENTERED
                assert not again.assignment.acknowledged_by and not again.assignment.HasField("acknowledged_at")
                await seen_by_probation(probation, OFFERED)
                await leg.desk.acknowledge(offer.assignment_id)
                await steps.next(ACKNOWLEDGED)
                await seen_by_probation(probation, ACKNOWLEDGED)
    with closing(sqlite3.connect(police.database)) as database, database:
        assert database.execute("DELETE FROM positions").rowcount == 2
    async with process(police), client(police) as leg, leg.desk.subscription() as steps:  # all alerts come again
        await publish(bus, alert(1_000, incident="incident-2"))
        while (await steps.next(OFFERED)).step.assignment.incident_id != "incident-2":
            pass
        (incident,) = (await leg.desk.list(incident_id=incident_id)).incidents
        assert police_of(incident).state == ACKNOWLEDGED
        published = await stored_steps(bus, "police", incident_id, 4)
        # Where the lesser alert came by itself, before the one that sends somebody, it has a step of its own.
        if published[0].assignment.state == NOTIFIED:
            published = await stored_steps(bus, "police", incident_id, 5)
    states = [step.assignment.state for step in published]
    assert states[-4:] == [OFFERED, ACKNOWLEDGED, OFFERED, ACKNOWLEDGED]
    numbers = [step.number for step in published]  # with gaps, where a step stays with the leg
    assert numbers == sorted(set(numbers))
    async with open_database(police.database, MIGRATIONS) as opened:
        assert await Store(opened).first_broken_event() is None


async def test_nobody_answers_the_second_offer(bus: Bus, nats: TestServer, tmp_path: Path) -> None:
    first, home, second = two_approaches()
    police = settings("police", nats, tmp_path, acknowledge_within_s=2.0)
    async with running(police) as leg, leg.desk.subscription() as steps:
        await publish(bus, *first)
        await leg.desk.acknowledge((await steps.next(OFFERED)).step.assignment.assignment_id)
        await steps.next(ACKNOWLEDGED)
        await publish(bus, *home, *second)
        again = (await steps.next(OFFERED)).step
        escalated = (await steps.next(dispatch_pb2.ESCALATED)).step
    assert escalated.number > again.number
    assert escalated.assignment.cause == again.assignment.cause
