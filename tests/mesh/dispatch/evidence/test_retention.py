"""Evidence retention of a running leg: it never delays offers, and retries a failed copy."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from services.common.clock import MeshClock
from services.common.evidence.collector import CopyMoment, EvidenceFiles
from services.common.messaging import bus as buses
from services.common.messaging import flow, streams
from services.common.messaging.bus import Bus
from services.common.retrying import Backoff, every
from services.dispatch.evidence import retention
from tandem.common.v1 import alert_pb2, geometry_pb2
from tandem.dispatch.v1 import dispatch_pb2
from tests.support.common.nats import TestServer, running_server
from tests.support.dispatch.dispatch import PATIENCE_S, RunningLeg, alert, publish, running, settings
from tests.support.geofence import log


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "CHECK_INTERVAL_S", 0.1)
    monkeypatch.setattr(retention, "QUIET_S", 0.2)
    monkeypatch.setattr(retention, "COPY_WITHIN_MS", 300)
    monkeypatch.setattr(retention, "OPEN_COPY_WITHIN_MS", 300)
    monkeypatch.setattr(retention, "RETRY", Backoff(0.2, 300.0))


async def publish_alert(bus: Bus, *, ends: bool = False) -> None:
    """Publishes an alert of incident-1, and the entry that caused it."""
    entry = log.positions_entry(log.position("t1", 1_000, 0), log.position("d1", 1_000, 0))
    ack = await bus.publish(flow.log_subject(0, "report"), entry.SerializeToString())
    await publish(bus, alert(ack.seq, incident="incident-1", ends=ends))


async def until_kept(files: EvidenceFiles, moment: CopyMoment) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not files.has("incident-1", moment):  # noqa: ASYNC110  # retention is another task
            await asyncio.sleep(0.05)


def failures(leg: RunningLeg) -> float:
    return leg.registry.get_sample_value("tandem_evidence_failed_total") or 0.0


@pytest.mark.parametrize("leg", ["probation", "police"])
async def test_an_incident_is_copied_when_it_opens_and_when_it_ends(
    bus: Bus, nats: TestServer, tmp_path: Path, leg: str
) -> None:
    await bus.publish(flow.log_subject(0, "case"), log.case_entry("1").SerializeToString())
    given = settings(leg, nats, tmp_path)
    files = EvidenceFiles(given.evidence)
    async with running(given):
        await publish_alert(bus)
        await until_kept(files, CopyMoment.OPENED)
        assert not files.has("incident-1", CopyMoment.CLOSED)
        await publish_alert(bus, ends=True)
        await until_kept(files, CopyMoment.CLOSED)
    opened, closed = files.load("incident-1")
    assert (opened.ended, closed.ended) == (False, True)
    assert len(closed.of("LOG_0")) == 3 and len(closed.of("ALERTS")) == 2
    reports = [record for record in closed.of("LOG_0") if record.subject.endswith(".report")]
    assert all(report.cut == (leg == "probation") and (b"d1" in report.data) == (leg == "police") for report in reports)


async def publish_amendment(bus: Bus) -> alert_pb2.Alert:
    """Publishes an alert that amends an account of incident-1 after its end, and the entry of the late report that caused it."""
    entry = log.positions_entry(log.position("t1", 500, 0))
    ack = await bus.publish(flow.log_subject(0, "report"), entry.SerializeToString())
    message = alert(ack.seq, geometry_pb2.RECORD, incident="incident-1")
    message.kind, message.amends = alert_pb2.ACCOUNT_AMENDED, "alert-incident-1-1"
    del message.destinations[-1]  # an amendment causes no warning
    await publish(bus, message)
    return message


@pytest.mark.parametrize("leg", ["probation", "police"])
async def test_an_account_that_is_amended_after_the_end_gets_a_separate_copy(
    bus: Bus, nats: TestServer, tmp_path: Path, leg: str
) -> None:
    await bus.publish(flow.log_subject(0, "case"), log.case_entry("1").SerializeToString())
    given = settings(leg, nats, tmp_path)
    files = EvidenceFiles(given.evidence)
    async with running(given):
        await publish_alert(bus)
        await publish_alert(bus, ends=True)
        await until_kept(files, CopyMoment.CLOSED)
        assert not files.has("incident-1", CopyMoment.AMENDED)
        first = await publish_amendment(bus)
        await until_kept(files, CopyMoment.AMENDED)
    evidence = files.load("incident-1")[-1]
    assert evidence.ended and files.has_alert("incident-1", CopyMoment.AMENDED, first.alert_id)
    assert len(evidence.of("LOG_0")) == 4 and len(evidence.of("ALERTS")) == 3
    second = await publish_amendment(bus)  # while the leg is away
    async with running(given), asyncio.timeout(PATIENCE_S):
        while not files.has_alert("incident-1", CopyMoment.AMENDED, second.alert_id):  # noqa: ASYNC110  # retention is another task
            await asyncio.sleep(0.05)


async def test_a_failed_copy_raises_an_alarm_and_is_retried_while_offers_go_on(
    bus: Bus, nats: TestServer, tmp_path: Path
) -> None:
    given = settings("police", nats, tmp_path)
    given.evidence.write_text("in the way")  # a file where the folder should be, so copies fail
    async with running(given) as leg, leg.desk.subscription() as desk:
        await publish_alert(bus)
        offered = (await desk.next(dispatch_pb2.OFFERED)).step.assignment
        async with asyncio.timeout(PATIENCE_S):
            while failures(leg) < 2:  # noqa: ASYNC110  # retention is another task
                await asyncio.sleep(0.05)
        await leg.desk.acknowledge(offered.assignment_id)
        given.evidence.unlink()
        await until_kept(EvidenceFiles(given.evidence), CopyMoment.OPENED)


async def test_a_restarted_leg_copies_the_incidents_that_it_missed(bus: Bus, nats: TestServer, tmp_path: Path) -> None:
    given = settings("police", nats, tmp_path)
    async with running(given) as leg, leg.desk.subscription() as desk:
        await publish_alert(bus)
        await desk.next(dispatch_pb2.OFFERED)
    files = EvidenceFiles(given.evidence)
    async with running(given):
        await until_kept(files, CopyMoment.OPENED)
        await publish_alert(bus, ends=True)
        await until_kept(files, CopyMoment.CLOSED)


async def test_a_damaged_copy_raises_an_alarm_and_doesnt_end_the_leg(
    bus: Bus, nats: TestServer, tmp_path: Path
) -> None:
    given = settings("police", nats, tmp_path)
    files = EvidenceFiles(given.evidence)
    async with running(given):
        await publish_alert(bus)
        await publish_alert(bus, ends=True)
        await until_kept(files, CopyMoment.CLOSED)
        await publish_amendment(bus)
        await until_kept(files, CopyMoment.AMENDED)
    (copy,) = given.evidence.glob(f"*.{CopyMoment.AMENDED}.*")
    copy.write_bytes(copy.read_bytes()[:-20])
    async with running(given) as leg, leg.desk.subscription(new_only=True) as desk:
        async with asyncio.timeout(PATIENCE_S):
            while not failures(leg):  # noqa: ASYNC110  # retention is another task
                await asyncio.sleep(0.05)
        await publish(bus, alert(99, incident="incident-2"))
        assert (await desk.next(dispatch_pb2.OFFERED)).step.assignment.incident_id == "incident-2"


async def test_a_copy_is_given_up_once_the_alerts_are_gone_for_good(
    bus: Bus, nats: TestServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = settings("police", nats, tmp_path)
    async with running(given):
        await publish_alert(bus)
        await publish_alert(bus, ends=True)
        await until_kept(EvidenceFiles(given.evidence), CopyMoment.CLOSED)
    for copy in given.evidence.iterdir():
        copy.unlink()
    monkeypatch.setattr(retention, "RETRY", every(0.05))
    with running_server(tmp_path / "other") as other:
        async with buses.connect(other.url, "test") as connection:
            await streams.create(connection, 1, MeshClock(), max_bytes=64 << 20)
        with capture_logs() as logs:
            async with running(settings("police", other, tmp_path)) as leg, asyncio.timeout(PATIENCE_S):
                while not any(line["event"] == "evidence_lost" for line in logs):  # noqa: ASYNC110  # another task
                    await asyncio.sleep(0.05)
                assert failures(leg) == retention.MISSING_TRIES
