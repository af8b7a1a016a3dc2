"""Redaction of entries that hold reports of several wearers: each evidence holds one wearer's, and replays to the same decision."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from services.common.evidence.collector import EvidenceCollector, collect
from services.common.evidence.incidents import LOOK_BACK_MS
from services.common.evidence.model import MARK_SUBJECT, of_bytes
from services.common.messaging import flow, pull, streams
from services.common.messaging.bus import Bus
from services.common.priority import PriorityGate
from services.court.evidence import bundle
from services.court.evidence.bundle import replay
from services.geofence import translate
from services.geofence.consumer import Evaluator
from services.geofence.domain import fold
from services.geofence.domain.alerts import Alert
from services.geofence.domain.entries import Entry
from services.geofence.domain.state import State
from services.geofence.metrics import GeofenceMetrics
from services.geofence.settings import GeofenceSettings
from services.geofence.store import CheckpointStore
from tandem.common.v1 import alert_pb2, log_pb2
from tests.support.geofence import log

WEARERS = ("wone", "wtwo")
STEPS = 30
GAP_MS = 100
"""Time between the cases and the first report, milliseconds."""


async def publish_approaches(bus: Bus) -> None:
    """Publishes the approaches of two wearers from 3 km to 50 m and back, in common batches. The second is 20 m behind."""
    start_ms = int(time.time() * 1000) - STEPS * 5_000
    for case in ("one", "two"):
        entry = log.case_entry(case, from_ms=start_ms - 1000, place=True)
        await bus.publish(flow.log_subject(0, "case"), entry.SerializeToString())
    await asyncio.sleep(GAP_MS / 1000)
    for i in range(STEPS):
        at_ms = start_ms + i * 5_000
        north_m = 50 + 2950 * abs(1 - 2 * i / (STEPS - 1))
        batch = log.positions_entry(
            log.position("dtwo", at_ms, 0),
            log.position("ttwo", at_ms, north_m + 20),
            log.position("done", at_ms, 0),
            log.position("tone", at_ms, north_m),
        )
        await bus.publish(flow.log_subject(0, "report"), batch.SerializeToString())
        if i % 7 == 0:
            only_theirs = log.positions_entry(log.position("ttwo", at_ms + 1_000, north_m))
            await bus.publish(flow.log_subject(0, "report"), only_theirs.SerializeToString())


async def evaluated(bus: Bus, folder: Path) -> list[alert_pb2.Alert]:
    """Runs an evaluator until the measures of all alerts are stored, and returns the alerts."""
    settings = GeofenceSettings(port=0, replica=0, checkpoint_every=1_000_000, tick_after_s=60, allow_async_store=True)
    log_meta = await streams.read_log_meta(bus)
    evaluator = Evaluator(
        bus,
        CheckpointStore(folder),
        settings,
        log_meta=log_meta,
        partition=0,
        metrics=GeofenceMetrics(CollectorRegistry()),
        gate=PriorityGate(),
    )
    task = asyncio.create_task(evaluator.run(lambda: None))
    try:
        last = (await bus.bounds_of("LOG_0")).last
        async with asyncio.timeout(30):
            expected = sum(isinstance(output, Alert) for output in await folded(bus, last))
            while (await bus.bounds_of("MEASURES")).last < expected:  # noqa: ASYNC110  # measures follow their alerts
                await asyncio.sleep(0.1)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    alerts: list[alert_pb2.Alert] = []
    async for messages in pull.read(bus, "ALERTS", 1):
        alerts += [alert_pb2.Alert.FromString(message.data) for message in messages]
        if messages[-1].pending == 0:
            return alerts
    raise AssertionError


async def folded(bus: Bus, last: int) -> list[object]:
    """Folds the log up to a sequence, and returns the outputs."""
    log_meta = await streams.read_log_meta(bus)
    state = State(0, log_meta.log_id)
    outputs: list[object] = []
    async for messages in pull.read(bus, "LOG_0", 1):
        for message in messages:
            outputs += fold.step(state, Entry(message.sequence, message.stamp_ms, translate.entry_body(message.data)))
        if messages[-1].sequence >= last:
            break
    return outputs


@pytest.mark.parametrize("wearer", ["one", "two"])
async def test_redacted_entries_replay_to_the_same_alerts(bus: Bus, tmp_path: Path, wearer: str) -> None:
    await publish_approaches(bus)
    alerts = [
        alert for alert in await evaluated(bus, tmp_path) if alert.wearer_id == f"w{wearer}" and alert.incident_id
    ]
    assert any(alert.ordinal > 0 for alert in alerts)
    log_meta = await streams.read_log_meta(bus)
    found = await collect(bus, log_meta, [alerts[0].alert_id], leg="police", may_locate_person=True)
    replayed = replay(bundle.ground_of(found, log_meta), found.records)
    assert set(replayed.results) == {alert.alert_id for alert in alerts} and replayed.differences == []
    other = "two" if wearer == "one" else "one"
    entries = [log_pb2.LogEntry.FromString(record.data) for record in found.of("LOG_0")]
    assert {id_ for entry in entries for id_ in entry.positions.device_id} == {f"t{wearer}", f"d{wearer}"}
    assert {entry.case.wearer_id for entry in entries if entry.HasField("case")} == {f"w{wearer}"}
    for record in found.records:
        for stranger in (f"t{other}", f"d{other}", f"w{other}", f"p{other}"):
            assert stranger.encode() not in record.data
    redacted = [record for record in found.of("LOG_0") if record.cut]
    assert redacted and all(record.sha256 == "" for record in redacted)
    assert of_bytes(found.to_bytes()) == found


async def test_incidents_collected_in_one_pass_equal_those_collected_separately(bus: Bus, tmp_path: Path) -> None:
    await publish_approaches(bus)
    alerts = await evaluated(bus, tmp_path)
    alert_ids = {
        name: [alert.alert_id for alert in alerts if alert.incident_id and alert.wearer_id == name] for name in WEARERS
    }
    log_meta = await streams.read_log_meta(bus)
    report = next(alert for alert in alerts if alert.incident_id).decided_at.ToMilliseconds()
    for leg in ("probation", "police"):
        for back_ms in (None, LOOK_BACK_MS, int(time.time() * 1000) - report):
            together = await EvidenceCollector(
                bus, log_meta, leg, may_locate_person=leg == "police", back_ms=back_ms
            ).of(alert_ids | {"gone": ["no-such-alert"]})
            assert together == {
                name: await collect(
                    bus, log_meta, alert_ids[name], leg=leg, may_locate_person=leg == "police", back_ms=back_ms
                )
                for name in WEARERS
            }


async def test_cases_from_before_the_window_are_folded_when_it_begins(bus: Bus, tmp_path: Path) -> None:
    await publish_approaches(bus)
    alerts = [alert for alert in await evaluated(bus, tmp_path) if alert.wearer_id == "wone" and alert.incident_id]
    log_meta = await streams.read_log_meta(bus)
    whole = (await collect(bus, log_meta, [alerts[0].alert_id], leg="police", may_locate_person=True, back_ms=None)).of(
        "LOG_0"
    )
    opening = next(record for record in whole if record.sequence == alerts[0].sequence)
    first = next(record for record in whole if record.subject == "log.0.report")
    back_ms = opening.stamp_ms - first.stamp_ms + GAP_MS // 2
    found = await collect(bus, log_meta, [alerts[0].alert_id], leg="police", may_locate_person=True, back_ms=back_ms)
    assert [record.subject for record in found.of("LOG_0") if record.premise] == ["log.0.case"]
    assert found.window_stamp_ms > next(record for record in whole if record.subject == "log.0.case").stamp_ms
    replayed = replay(bundle.ground_of(found, log_meta), found.records)
    assert set(replayed.results) == {alert.alert_id for alert in alerts} and replayed.differences == []


async def test_an_entry_about_others_that_caused_an_alert_is_kept_as_its_time_stamp(bus: Bus, tmp_path: Path) -> None:
    start_ms = int(time.time() * 1000) - 60_000
    case = log.case_entry("1", from_ms=start_ms)
    await bus.publish(flow.log_subject(0, "case"), case.SerializeToString())
    near = log.positions_entry(log.position("d1", start_ms, 0), log.position("t1", start_ms, 50))
    await bus.publish(flow.log_subject(0, "report"), near.SerializeToString())
    theirs = log.positions_entry(log.position("t9", start_ms, 0))
    sequence = (await bus.publish(flow.log_subject(0, "report"), theirs.SerializeToString())).seq
    alerts = await evaluated(bus, tmp_path)
    by_time = alert_pb2.Alert()
    by_time.CopyFrom(alerts[0])
    by_time.alert_id, by_time.sequence = "alert-by-time", sequence
    await bus.publish(flow.alert_subject(0, by_time.alert_id), by_time.SerializeToString(), expected_last=0)
    found = await collect(
        bus, await streams.read_log_meta(bus), [alerts[0].alert_id], leg="police", may_locate_person=True
    )
    mark = next(record for record in found.of("LOG_0") if record.sequence == sequence)
    assert (mark.subject, mark.data, mark.cut) == (MARK_SUBJECT, b"", True) and mark.stamp_ms


async def test_a_tag_that_changed_hands_gives_each_wearer_only_their_reports(bus: Bus, tmp_path: Path) -> None:
    async def log_entry(entry: log_pb2.LogEntry, kind: str = "report") -> None:
        await bus.publish(flow.log_subject(0, kind), entry.SerializeToString())
        await asyncio.sleep(0.02)

    def now_ms() -> int:
        return int(time.time() * 1000)

    start_ms = now_ms()
    first = log.case_entry("1")
    without = log.case_entry("1", version=2)
    second = log.case_entry("2")
    del without.case.tag_device_ids[:]
    second.case.tag_device_ids[:] = ["t1"]
    await log_entry(first, "case")
    await log_entry(log.positions_entry(log.position("d1", start_ms, 0), log.position("t1", start_ms, 50)))
    await log_entry(without, "case")
    await log_entry(second, "case")
    await log_entry(log.positions_entry(log.position("d2", now_ms(), 0)))
    late = log.position(
        "t1", start_ms + 1, 70, report_id="late"
    )  # about the time of the first wearer, so it belongs to nobody now
    await log_entry(log.positions_entry(log.position("t1", now_ms(), 90, report_id="seconds"), late))
    alerts = [alert for alert in await evaluated(bus, tmp_path) if alert.incident_id]
    log_meta = await streams.read_log_meta(bus)
    for wearer_id, reports in (("w1", {f"r{start_ms}"}), ("w2", {"seconds"})):
        mine = [alert for alert in alerts if alert.wearer_id == wearer_id]
        for leg in ("police", "probation"):
            found = await collect(bus, log_meta, [mine[0].alert_id], leg=leg, may_locate_person=leg == "police")
            batches = [log_pb2.LogEntry.FromString(record.data).positions for record in found.of("LOG_0")]
            pairs = [pair for batch in batches for pair in zip(batch.device_id, batch.report_id, strict=True)]
            assert {report_id for device_id, report_id in pairs if device_id == "t1"} == reports
            if leg == "police":
                replayed = replay(bundle.ground_of(found, log_meta), found.records)
                assert set(replayed.results) == {alert.alert_id for alert in mine} and replayed.differences == []
