"""ReadEvidence answers with all that is known, although the copies are put off."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import pytest

from services.common import times
from services.common.clock import MeshClock
from services.common.evidence.collector import CopyMoment, EvidenceFiles
from services.common.messaging import flow
from services.common.messaging.bus import Bus
from services.common.rpc import server
from services.dispatch.evidence import api, retention
from services.dispatch.settings import DispatchSettings
from tandem.common.v1 import geometry_pb2
from tandem.dispatch.v1 import dispatch_pb2, evidence_pb2, evidence_pb2_grpc, roster_pb2
from tandem.registry.v1 import disclosure_pb2
from tests.support.common.nats import TestServer
from tests.support.dispatch.dispatch import DESKS, PATIENCE_S, SECRET, RunningLeg, alert, publish, running, settings
from tests.support.dispatch.roster_records import office, put, unit
from tests.support.geofence import log

INCIDENT = "incident-1"
GROUNDS = disclosure_pb2.Grounds(legal_basis="STALKING_9_1_3_2", purpose=disclosure_pb2.PURPOSE_AUDIT)


async def publish_alert(bus: Bus, *, ends: bool = False) -> None:
    """Publishes an alert of the incident, and the entry that caused it."""
    entry = log.positions_entry(log.position("t1", 1_000, 0), log.position("d1", 1_000, 0))
    ack = await bus.publish(flow.log_subject(0, "report"), entry.SerializeToString())
    await publish(bus, alert(ack.seq, incident=INCIDENT, ends=ends))


async def until_alerts(given: DispatchSettings, count: int) -> evidence_pb2.ReadEvidenceResponse:
    """Reads the evidence of the incident until it has a number of alerts."""
    request = evidence_pb2.ReadEvidenceRequest(incident_id=INCIDENT, grounds=GROUNDS)
    metadata = server.bearer(DESKS[given.leg], SECRET)
    async with server.channel(f"127.0.0.1:{given.port}") as channel, asyncio.timeout(PATIENCE_S):
        stub = evidence_pb2_grpc.EvidenceServiceStub(channel)
        while True:
            try:
                answer = await stub.ReadEvidence(request, metadata=metadata, timeout=server.UNARY_DEADLINE_S)
            except grpc.aio.AioRpcError as error:
                # The leg hasn't read the alert yet, or a loaded machine is slow and collecting goes on.
                if error.code() not in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNAVAILABLE):
                    raise
            else:
                if len(answer.alerts) >= count:
                    return answer
            await asyncio.sleep(0.05)


def metric(leg: RunningLeg, name: str) -> float:
    return leg.registry.get_sample_value(name) or 0.0


@pytest.mark.parametrize("name", ["probation", "police"])
async def test_an_incident_without_a_copy_is_read_from_the_streams(
    bus: Bus, nats: TestServer, tmp_path: Path, name: str
) -> None:
    await bus.publish(flow.log_subject(0, "case"), log.case_entry("1").SerializeToString())
    given = settings(name, nats, tmp_path)
    async with running(given) as leg:
        await publish_alert(bus)
        opened = await until_alerts(given, 1)
        assert not opened.ended and opened.whole and any(track.points for track in opened.tracks)
        await publish_alert(bus, ends=True)
        closed = await until_alerts(given, 2)
        assert closed.ended
        # Retention makes the final copy later, and says so.
        assert not EvidenceFiles(given.evidence).has(INCIDENT, CopyMoment.CLOSED)
        assert metric(leg, "tandem_evidence_put_off") == 1 and metric(leg, "tandem_evidence_put_off_age_seconds") > 0


async def test_a_read_has_the_way_of_a_unit_from_where_it_set_out_and_no_other_unit(
    bus: Bus, nats: TestServer, tmp_path: Path
) -> None:
    await bus.publish(flow.log_subject(0, "case"), log.case_entry("1").SerializeToString())
    given = settings("police", nats, tmp_path)
    async with running(given) as leg, leg.desk.subscription() as steps:
        await put(leg.desk, [office()], [unit("a1"), unit("a2")])

        async def move(unit_id: str, lat_deg: float) -> int:
            """Reports the position of a unit, and returns the time of the report."""
            at_ms = MeshClock().now_ms()
            where = geometry_pb2.Point(lat_deg=lat_deg, lon_deg=127)
            await leg.desk.call(
                "ReportUnit",
                unit_id=unit_id,
                status=roster_pb2.AVAILABLE,
                position=where,
                at=times.to_timestamp(at_ms),
            )
            return at_ms

        before = {unit_id: await move(unit_id, 37.4) for unit_id in ("a1", "a2")}
        await publish_alert(bus)
        chosen = (await steps.next(dispatch_pb2.OFFERED)).step.assignment.choice.unit_id
        (other,) = before.keys() - {chosen}
        moved = [await move(chosen, 37.45), await move(chosen, 37.5)]
        await move(other, 37.6)
        (track,) = (await until_alerts(given, 1)).units
        assert track.unit_id == chosen
        assert {point.time_ms: point.lat_deg for point in track.points} == {
            before[chosen]: 37.4,
            moved[0]: 37.45,
            moved[1]: 37.5,
        }
        await publish_alert(bus, ends=True)
        await steps.next(dispatch_pb2.STOOD_DOWN)
        await move(chosen, 37.7)  # the response is over, and where the unit goes from here is nobody's business
        assert list((await until_alerts(given, 2)).units) == [track]


async def test_a_copy_that_was_put_off_is_made_after_a_restart(
    bus: Bus, nats: TestServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = settings("police", nats, tmp_path)
    files = EvidenceFiles(given.evidence)
    async with running(given):
        await publish_alert(bus)
        await publish_alert(bus, ends=True)
        assert (await until_alerts(given, 2)).ended
    assert not files.has(INCIDENT, CopyMoment.CLOSED)
    monkeypatch.setattr(retention, "CHECK_INTERVAL_S", 0.1)
    monkeypatch.setattr(retention, "QUIET_S", 0.1)
    monkeypatch.setattr(retention, "COPY_WITHIN_MS", 100)
    async with running(given) as leg, asyncio.timeout(PATIENCE_S):
        while not files.has(INCIDENT, CopyMoment.CLOSED):  # noqa: ASYNC110  # retention is another task
            await asyncio.sleep(0.05)
        while metric(leg, "tandem_evidence_put_off"):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_a_collection_that_takes_long_goes_on_and_the_retry_gets_its_result(
    bus: Bus, nats: TestServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "COLLECTED_WITHIN_S", 0.0)
    given = settings("police", nats, tmp_path)
    async with running(given) as leg, leg.desk.subscription() as desk:
        await publish_alert(bus)
        await desk.next(dispatch_pb2.OFFERED)
        assert len((await until_alerts(given, 1)).alerts) == 1
