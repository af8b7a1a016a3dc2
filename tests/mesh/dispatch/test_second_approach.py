"""A wearer returns during an incident: a leg that acknowledged the first approach gets a second offer."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import grpc
import grpc.aio

from services.common.messaging import flow, pull
from services.common.messaging.bus import Bus
from services.common.rpc import server
from services.common.storage.db import open_database
from services.dispatch.__main__ import MIGRATIONS
from services.dispatch.leg.store import Store
from services.geofence.translate import alert_to_proto
from tandem.common.v1 import alert_pb2, command_pb2, geometry_pb2
from tandem.dispatch.v1 import dispatch_pb2
from tandem.dispatch.v1.dispatch_pb2 import ACKNOWLEDGED, NOTIFIED, OFFERED
from tandem.ingest.v1 import ingest_pb2, ingest_pb2_grpc
from tests.support.common.nats import TestServer
from tests.support.dispatch.dispatch import (
    DESKS,
    PATIENCE_S,
    SECRET,
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
from tests.support.ingest.ingest import IngestMesh, running_ingest


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


def _of_police(incident: dispatch_pb2.Incident) -> list[dispatch_pb2.Assignment]:
    return [assignment for assignment in incident.assignments if assignment.leg == alert_pb2.POLICE]


async def seen_by_probation(probation: RunningLeg, state: dispatch_pb2.AssignmentState.ValueType) -> None:
    """Waits until the probation desk sees the police's assignment in a state."""
    incident = await probation.desk.incident_when(
        lambda incident: [assignment.state for assignment in _of_police(incident)] == [state]
    )
    theirs = _of_police(incident)
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


async def until_registered(ingest: IngestMesh, device_id: str) -> None:
    """Waits until ingest knows a device."""
    async with server.channel(ingest.address) as channel, asyncio.timeout(PATIENCE_S):
        stub = ingest_pb2_grpc.CommandServiceStub(channel)
        while True:
            try:
                await stub.ListCommands(
                    ingest_pb2.ListCommandsRequest(device_id=device_id),
                    metadata=server.bearer(DESKS["probation"], SECRET),
                    timeout=server.UNARY_DEADLINE_S,
                )
                return
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.NOT_FOUND:
                    raise
            await asyncio.sleep(0.05)


async def pursuit_commands(bus: Bus, count: int) -> list[str | None]:
    """Waits until ingest has stored a number of the leg's commands for the incident, and returns what they instruct."""
    subjects, found = [flow.command_subject("ingest", "*")], list[str | None]()
    async with asyncio.timeout(PATIENCE_S):
        async for messages in pull.read(bus, flow.COMMANDS.name, 1, subjects=subjects):
            commands = [command_pb2.Command.FromString(message.data) for message in messages]
            found += [
                each.instruction.WhichOneof("kind") for each in commands if each.command_id.startswith("command-")
            ]
            if len(found) >= count:
                break
    return found


async def test_the_tag_reports_often_once_more_when_the_wearer_comes_back_soon(
    bus: Bus, nats: TestServer, tmp_path: Path
) -> None:
    with running_ingest(nats, tmp_path / "ingest.log", {"TANDEM_DEV_SECRET": SECRET}) as ingest:
        async with ingest.connected() as client:
            await client.route("tag-1", subject_id="w1")
            await until_registered(ingest, "tag-1")
        async with running(settings("probation", nats, tmp_path, ingest=f"ipv4:{ingest.address}")):
            expected: list[str | None] = []
            for sequence, ends in ((1, False), (2, True), (3, False)):
                await publish(bus, alert(sequence, ends=ends))
                expected.append("report_as_usual" if ends else "report_every")
                assert await pursuit_commands(bus, sequence) == expected
