"""Unusable messages become dead letters or are passed over, are counted, and end no reader, neither at run time nor at its start."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from services.common.clock import MeshClock
from services.common.errors import Conflict
from services.common.evidence.collector import collect
from services.common.messaging import flow, pull, streams
from services.common.messaging.bus import Bus
from services.ingest.admission.routes import Routes
from services.ingest.commands.service import Commands
from services.ingest.log import LastReports
from services.ingest.metrics import IngestMetrics
from tandem.common.v1 import alert_pb2, command_pb2, geometry_pb2, log_pb2
from tandem.dispatch.v1 import dispatch_pb2, following_pb2
from tandem.dispatch.v1.dispatch_pb2 import OFFERED
from tests.support.common.nats import TestServer
from tests.support.dispatch import dispatch
from tests.support.dispatch import warning as warned
from tests.support.dispatch.dispatch import RunningLeg, alert, publish, running, settings
from tests.support.dispatch.warning import FakeDevice
from tests.support.geofence.evaluators import Evaluators, approach, connected, running_evaluators
from tests.support.registry import records
from tests.support.registry.registry import WITHIN_S, RegistryMesh, running_registry
from tests.support.registry.traces import trace_of

GARBAGE = (b"{}", b"", b"\xff\xff", b"\x0a\x02\xff\xfe")


def unusable(counted: Bus | RunningLeg, stream: str, reader: str, *, outcome: str = "dead_letter") -> float:
    """Number of messages that a reader over this bus, or of this leg, couldn't use."""
    registry = counted.metrics.registry if isinstance(counted, Bus) else counted.registry
    labels = {"stream": stream, "reader": reader, "outcome": outcome}
    return registry.get_sample_value("tandem_unusable_messages_total", labels) or 0.0


async def dead_letters(bus: Bus, count: int) -> list[alert_pb2.DeadLetter]:
    """The dead letters, once there are at least `count`."""
    letters: list[alert_pb2.DeadLetter] = []
    async with asyncio.timeout(dispatch.PATIENCE_S):
        async for messages in pull.read(bus, flow.DEAD_LETTERS.name, 1):
            letters += [alert_pb2.DeadLetter.FromString(message.data) for message in messages]
            if len(letters) >= count:
                break
    return letters


def a_step(name_of_leg: str, **changes: Any) -> bytes:
    """A valid step of a leg with some changed fields of its assignment."""
    assignment = dispatch_pb2.Assignment(
        assignment_id="a-1", incident_id="x", leg=alert_pb2.Leg.Value(name_of_leg.upper())
    )
    step = dispatch_pb2.Step(step_id="s-1", number=1, assignment=assignment)
    for name, value in changes.items():
        setattr(step.assignment, name, value)
    return step.SerializeToString()


@pytest.mark.parametrize("leg", flow.LEGS)
async def test_a_leg_starts_despite_its_own_unreadable_steps(
    bus: Bus, nats: TestServer, tmp_path: Path, leg: str
) -> None:
    wrong = [*GARBAGE, a_step(leg, incident_id="other"), a_step(leg, leg=0), a_step(leg, assignment_id="\0")]
    for payload in wrong:
        await bus.publish(flow.incident_subject(leg, "x"), payload)
    counted = 0.0
    for start in (1, 2):
        async with running(settings(leg, nats, tmp_path)) as started, started.desk.subscription() as offers:
            await publish(bus, alert(4 + start, incident=f"incident-{start}"))
            while (await offers.next(OFFERED)).step.assignment.incident_id != f"incident-{start}":
                pass
            own = [
                dead_letter for dead_letter in await dead_letters(bus, len(wrong)) if dead_letter.by == f"{leg}-steps"
            ]
            assert [(letter.stream, letter.sequence) for letter in own] == [
                (flow.INCIDENTS.name, n) for n in range(1, len(wrong) + 1)
            ]
            assert all(letter.reason for letter in own)
            counted += unusable(started, flow.INCIDENTS.name, f"{leg}-steps")
    assert counted >= len(wrong)


async def test_an_alert_under_the_subject_of_another_becomes_a_dead_letter(
    bus: Bus, nats: TestServer, tmp_path: Path
) -> None:
    async with running(settings("police", nats, tmp_path)) as leg, leg.desk.subscription() as offers:
        forged = alert(5)
        await bus.publish(flow.alert_subject(0, "another"), forged.SerializeToString())
        await publish(bus, alert(6, incident="incident-2"))
        assert (await offers.next(OFFERED)).step.assignment.incident_id == "incident-2"
        (letter,) = await dead_letters(bus, 1)
        assert (letter.by, letter.sequence) == (flow.alerts_reader("police"), 1) and "subject" in letter.reason


async def test_the_warning_leg_keeps_unusable_messages_of_each_stream_as_dead_letters(
    bus: Bus, nats: TestServer, tmp_path: Path
) -> None:
    configured = warned.settings(nats, tmp_path)
    twice = log_pb2.ProtectedTarget(person_id="p9")
    case = log_pb2.CaseSnapshot(case_id="case-9", version=1, persons=[twice, twice], valid_until_ms=1 << 45)
    advice = following_pb2.AdviceGiven(
        advice_id="a", incident_id="x", order_ids=["o"], subject_id="p", sequence=1 << 63
    )
    device = FakeDevice(bus)

    async def litter() -> None:
        for payload in GARBAGE:
            await bus.publish(flow.command_step_subject("c-1", "RECEIVED"), payload)
            await bus.publish(flow.advice_subject("x"), payload)
            await bus.publish(flow.log_subject(0, "case"), payload)
        await bus.publish(flow.advice_subject("x"), advice.SerializeToString())
        await bus.publish(flow.log_subject(0, "case"), log_pb2.LogEntry(case=case).SerializeToString())

    kept: list[alert_pb2.DeadLetter] = []
    await litter()
    await warned.put_case(bus, configured, device.device_id, handle="")
    for start in (1, 2):
        async with running(configured) as leg:
            await litter()
            demand, ring_m = ((geometry_pb2.WARN, 1000.0), (geometry_pb2.RESPOND, 100.0))[start - 1]
            await publish(bus, warned.ring(4 + start, ring_m, demand, incident=f"incident-{start}"))
            warning_id, _ = await device.shown(start)
            await device.arrived(warning_id)
            kept = await dead_letters(bus, (start + 1) * 9)
            # Only the evaluators keep dead letters of the log, so that there is one for each message.
            assert unusable(leg, "LOG_0", "warning-log_0", outcome="passed_over") >= 1
    by = [letter.by for letter in kept]
    assert by.count("warning-commands") == 3 * 4 and by.count("warning-advice") == 3 * 5


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[RegistryMesh]:
    with running_registry(tmp_path, 1) as started:
        yield started


async def test_traces_and_the_ledger_continue_after_unusable_messages(registry: RegistryMesh) -> None:
    async with registry.connected() as client:
        bus = client.bus
        for payload in GARBAGE:
            await bus.publish(flow.incident_subject("police", "x"), payload)
            await bus.publish(flow.alert_subject(0, "junk"), payload)
            await bus.publish(flow.disclosure_subject("geofence", "junk"), payload)
        nowhere = alert(7)
        never = alert(8)
        no_log = alert(9)
        nowhere.sequence = 0
        never.decided_at.seconds = 253_402_300_799
        no_log.partition = 3
        for message in (nowhere, never, no_log):
            subject = flow.alert_subject(message.partition, message.alert_id)
            await bus.publish(subject, message.SerializeToString())
        await publish(bus, alert(10))
        assert {span.name for span in await trace_of(registry, 3)} >= {"alert"}
        kept = [dead_letter for dead_letter in await dead_letters(bus, 4) if dead_letter.by == flow.DISCLOSURES_DURABLE]
        assert [letter.sequence for letter in kept] == [1, 2, 3, 4]
        assert await client.put(records.wearer()) == ["STORED"]
        log = registry.service.log()
        assert "Traceback" not in log and "traces_restarted" not in log and registry.service.runs


@pytest.fixture(scope="module")
def evaluators(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Evaluators]:
    with running_evaluators(tmp_path_factory.mktemp("one"), 1) as running:
        yield running


async def test_watch_alerts_continues_after_unreadable_alerts(evaluators: Evaluators) -> None:
    async with connected(evaluators) as (bus, (client, *_)):
        for payload in GARBAGE:
            await bus.publish(flow.alert_subject(0, "junk"), payload)
        await approach(bus, "1", 0)
        async with asyncio.timeout(WITHIN_S):
            seen = [answer async for answer in first_of(client.alerts(0), 2)]
        assert all(answer.alert.alert_id and answer.HasField("measure") for answer in seen)


async def first_of(answers: Any, count: int) -> Any:
    """The first `count` answers of a stream."""
    async for answer in answers:
        yield answer
        count -= 1
        if not count:
            return


# ── ingest ───────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_an_unreadable_route_keeps_the_devices_last_route(bus: Bus) -> None:
    subject = f"$KV.{flow.DEVICES_BUCKET}.tag-1"
    good = log_pb2.DeviceRoute(partitions=[0], vendor_id="v", subject_id="w1")
    await bus.publish(subject, good.SerializeToString())
    routes = Routes(bus, MeshClock(), 1)
    following = asyncio.create_task(routes.follow(lambda _, __: None))
    try:
        for payload in (*GARBAGE, log_pb2.DeviceRoute(partitions=[5], vendor_id="v").SerializeToString()):
            await bus.publish(subject, payload)
        async with asyncio.timeout(WITHIN_S):
            while unusable(bus, "KV_devices", "ingest-routes", outcome="passed_over") < 1:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert routes.partitions("tag-1") in ((0,), ()) and not following.done()
    finally:
        following.cancel()
    fresh = Routes(bus, MeshClock(), 1)
    await fresh.load()
    assert fresh.registration("tag-1") is None, "the bucket holds only the last value, which is for another log"


async def test_unreadable_commands_are_passed_over_and_a_used_id_is_a_conflict(bus: Bus) -> None:
    commands = Commands(bus, Routes(bus, MeshClock()), MeshClock(), metrics=IngestMetrics(CollectorRegistry()))
    vibrate = command_pb2.Instruction(vibrate=command_pb2.Vibrate(duration_s=1))
    good = command_pb2.Command(
        command_id="c-1", device_id="d-1", issued_at_ms=1, expires_at_ms=1 << 42, instruction=vibrate
    )
    await bus.publish(flow.command_subject("ingest", "c-1"), good.SerializeToString())
    for payload in GARBAGE:
        await bus.publish(flow.command_subject("ingest", "c-2"), payload)
        await bus.publish(flow.command_step_subject("c-1", "SENT"), payload)
    other = command_pb2.Command(command_id="c-1", device_id="d-2", expires_at_ms=1 << 42)
    await bus.publish(flow.command_subject("ingest", "c-3"), other.SerializeToString())
    unknown = command_pb2.CommandStep(command_id="c-1", state=77)  # type: ignore[arg-type]
    await bus.publish(flow.command_step_subject("c-1", "77"), unknown.SerializeToString())
    await commands.load()
    assert [status.command.device_id for status in commands.of_device("d-1")] == ["d-1"]
    assert commands.of_device("d-1")[0].state == command_pb2.COMMAND_STATE_WAITING and not commands.of_device("d-2")
    with pytest.raises(Conflict):
        await commands.command(command_pb2.Command(command_id="c-2", device_id="d-1"))


async def test_ingest_starts_despite_an_entry_with_columns_of_unequal_length(nats: TestServer) -> None:
    async with nats.bus_as("tester") as bus:
        await streams.create(bus, 2, MeshClock(), max_bytes=64 << 20)
        broken = log_pb2.LogEntry(positions=log_pb2.PositionBatch(device_id=["d-1"]))
        for payload in (*GARBAGE, broken.SerializeToString()):
            await bus.publish(flow.log_subject(0, "report"), payload)
        writers: Any = {0: None, 1: None}
        await LastReports(Routes(bus, MeshClock()), writers).read_tail(bus)


# ── evidence and log metadata ─────────────────────────────────────────────────────────────────────────────────────────────────


async def test_evidence_is_gathered_despite_unreadable_messages(bus: Bus) -> None:
    log_meta = await streams.read_log_meta(bus)
    for payload in GARBAGE:
        await bus.publish(flow.alert_subject(0, "junk"), payload)
        await bus.publish(flow.dead_letter_subject("fold", "LOG_0", 1), payload)
    tick = log_pb2.LogEntry(tick=log_pb2.Tick()).SerializeToString()
    ack = await bus.publish(flow.log_subject(0, "tick"), tick)
    opening = alert(ack.seq, ends=True)
    await publish(bus, opening)
    gathered = await collect(bus, log_meta, ["junk", opening.alert_id], leg="police", may_locate_person=True)
    assert gathered.incident_id == "incident-1"


async def test_unreadable_log_metadata_raises_an_alarm_and_keeps_waiting(nats: TestServer, capsys: Any) -> None:
    async with nats.bus_as("tester") as bus:
        await bus.js.add_stream(name=flow.LOG_META.name, subjects=list(flow.LOG_META.subjects))
        await bus.publish(flow.LOG_META_SUBJECT, b"{}")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1.0):
                await streams.read_log_meta(bus)
