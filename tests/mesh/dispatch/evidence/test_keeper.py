"""The worker beside a leg that copies evidence: it stands in nobody's way, and what fails is tried again."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from services.common.messaging import flow
from services.common.messaging.bus import Bus
from services.dispatch.evidence import retention
from services.dispatch.evidence.retention import AMENDED, CLOSED, OPENED, EvidenceFiles
from tandem.common.v1 import alert_pb2, geometry_pb2
from tandem.dispatch.v1 import dispatch_pb2
from tests.support.common.nats import TestServer
from tests.support.dispatch.dispatch import PATIENCE_S, alert, publish, running, settings
from tests.support.geofence import log


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "CHECK_INTERVAL_S", 0.1)
    monkeypatch.setattr(retention, "SETTLES_S", 0.2)
    monkeypatch.setattr(retention, "RETRY_FIRST_S", 0.2)


async def told(bus: Bus, *, ends: bool = False) -> None:
    """An alert of incident-1, and the entry that decided it."""
    entry = log.positions_entry(log.position("t1", 1_000, 0), log.position("d1", 1_000, 0))
    ack = await bus.publish(flow.log_subject(0, "report"), entry.SerializeToString())
    await publish(bus, alert(ack.seq, incident="incident-1", ends=ends))


async def until_kept(files: EvidenceFiles, moment: str) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not files.has("incident-1", moment):  # noqa: ASYNC110  # the keeper is another task
            await asyncio.sleep(0.05)


def failures() -> float:
    return REGISTRY.get_sample_value("tandem_evidence_failed_total") or 0.0


@pytest.mark.parametrize("leg", ["probation", "police"])
async def test_an_incident_is_copied_when_it_opens_and_when_it_ends(
    bus: Bus, nats: TestServer, tmp_path: Path, leg: str
) -> None:
    await bus.publish(flow.log_subject(0, "case"), log.case_entry("1").SerializeToString())
    given = settings(leg, nats, tmp_path)
    files = EvidenceFiles(given.evidence)
    async with running(given):
        await told(bus)
        await until_kept(files, OPENED)
        assert not files.has("incident-1", CLOSED)
        await told(bus, ends=True)
        await until_kept(files, CLOSED)
    opened, closed = files.load("incident-1")
    assert (opened.ended, closed.ended) == (False, True)
    assert len(closed.of("LOG_0")) == 3 and len(closed.of("ALERTS")) == 2
    reports = [one for one in closed.of("LOG_0") if one.subject.endswith(".report")]
    assert all(report.cut == (leg == "probation") and (b"d1" in report.data) == (leg == "police") for report in reports)


async def amended(bus: Bus) -> alert_pb2.Alert:
    """An alert that amends an account of incident-1 after its end, and the entry of a late report before it."""
    entry = log.positions_entry(log.position("t1", 500, 0))
    ack = await bus.publish(flow.log_subject(0, "report"), entry.SerializeToString())
    message = alert(ack.seq, geometry_pb2.RECORD, incident="incident-1")
    message.kind, message.amends = alert_pb2.ACCOUNT_AMENDED, "alert-incident-1-1"
    del message.destinations[-1]  # nobody is warned of it
    await publish(bus, message)
    return message


@pytest.mark.parametrize("leg", ["probation", "police"])
async def test_an_account_that_is_amended_after_the_end_is_in_a_copy_of_its_own(
    bus: Bus, nats: TestServer, tmp_path: Path, leg: str
) -> None:
    await bus.publish(flow.log_subject(0, "case"), log.case_entry("1").SerializeToString())
    given = settings(leg, nats, tmp_path)
    files = EvidenceFiles(given.evidence)
    async with running(given):
        await told(bus)
        await told(bus, ends=True)
        await until_kept(files, CLOSED)
        assert not files.has("incident-1", AMENDED)
        first = await amended(bus)
        await until_kept(files, AMENDED)
    kept = files.load("incident-1")[-1]
    assert kept.ended and files.has_alert("incident-1", AMENDED, first.alert_id)
    assert len(kept.of("LOG_0")) == 4 and len(kept.of("ALERTS")) == 3
    second = await amended(bus)  # while the leg is away
    async with running(given), asyncio.timeout(PATIENCE_S):
        while not files.has_alert("incident-1", AMENDED, second.alert_id):  # noqa: ASYNC110  # the keeper is another task
            await asyncio.sleep(0.05)


async def test_what_fails_is_an_alarm_and_tried_again_and_offers_go_on(
    bus: Bus, nats: TestServer, tmp_path: Path
) -> None:
    given = settings("police", nats, tmp_path)
    given.evidence.write_text("in the way")  # nothing can be kept in it
    before = failures()
    async with running(given) as leg, leg.desk.subscription() as desk:
        await told(bus)
        offered = (await desk.next(dispatch_pb2.OFFERED)).step.assignment
        async with asyncio.timeout(PATIENCE_S):
            while failures() < before + 2:  # noqa: ASYNC110  # the keeper is another task
                await asyncio.sleep(0.05)
        await leg.desk.acknowledge(offered.assignment_id)
        given.evidence.unlink()
        await until_kept(EvidenceFiles(given.evidence), OPENED)


async def test_a_leg_that_was_away_copies_what_it_had_missed(bus: Bus, nats: TestServer, tmp_path: Path) -> None:
    given = settings("police", nats, tmp_path)
    async with running(given) as leg, leg.desk.subscription() as desk:
        await told(bus)
        await desk.next(dispatch_pb2.OFFERED)
    files = EvidenceFiles(given.evidence)
    async with running(given):
        await until_kept(files, OPENED)
        await told(bus, ends=True)
        await until_kept(files, CLOSED)
