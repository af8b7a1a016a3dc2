"""Evaluators on a real log: equal alerts from one or both, across kills and restarts; no checkpoint skips an unpublished alert."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from services.common.errors import OutdatedFold
from services.common.messaging import bus as buses
from services.common.messaging import cursors, flow, streams
from services.common.messaging.bus import Bus
from services.common.messaging.cursors import StreamCursor
from services.common.service import why_not
from services.geofence import consumer
from services.geofence.domain import codec
from services.geofence.domain.entries import FOLD_VERSION
from services.geofence.domain.state import State
from services.geofence.store import CheckpointStore, Footing
from tandem.common.v1 import alert_pb2, geometry_pb2, log_pb2
from tests.support.common.nats import TestServer
from tests.support.geofence import log
from tests.support.geofence.running_evaluators import (
    alerts_of,
    approach,
    caught_up,
    checkpointed,
    make_evaluator,
    offline,
    publish,
    start,
    stop,
    until,
)


async def test_two_evaluators_publish_each_alert_once_and_equal_to_an_offline_fold(bus: Bus, tmp_path: Path) -> None:
    both = [await make_evaluator(bus, tmp_path, replica) for replica in (0, 1)]
    tasks = [start(evaluator) for evaluator in both]
    await approach(bus)
    await caught_up(bus, *both)
    expected = await offline(bus)

    async def all_published() -> bool:
        return len(await alerts_of(bus)) >= len(expected)

    await until(all_published)
    await stop(*tasks)
    alerts = await alerts_of(bus)
    assert [alert.SerializeToString() for alert in alerts] == expected
    entered = [alert.ring_m for alert in alerts if alert.kind == alert_pb2.RING_ENTERED]
    assert entered == [2000, 1000, 100]
    assert len({alert.incident_id for alert in alerts}) == 1
    assert codec.encode(both[0].state) == codec.encode(both[1].state)


async def test_an_alert_of_a_backlog_is_published_before_more_entries_are_folded(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await approach(bus)
    evaluator = await make_evaluator(bus, tmp_path)
    states_at_publish: list[tuple[int, int]] = []
    """Sequence of the state when an alert was published, and sequence of the alert's entry."""
    stored = bus.publish_until_stored

    async def recording(subject: str, payload: bytes, **options: object) -> object:
        if subject.startswith("alert."):
            states_at_publish.append((evaluator.state.sequence, alert_pb2.Alert.FromString(payload).sequence))
        return await stored(subject, payload, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(bus, "publish_until_stored", recording)
    task = start(evaluator)
    await caught_up(bus, evaluator)
    await stop(task)
    assert states_at_publish[0][0] == states_at_publish[0][1] < evaluator.state.sequence


async def test_the_gravest_alert_of_an_entry_is_published_first(bus: Bus, tmp_path: Path) -> None:
    now_ms = int(time.time() * 1000)
    task = start(await make_evaluator(bus, tmp_path))
    await publish(bus, log.case_entry("1", from_ms=now_ms - 5_000))
    await publish(bus, log.positions_entry(log.position("d1", now_ms, 0), log.position("t1", now_ms, 50)))
    while len(alerts := await alerts_of(bus)) < 3:
        assert not task.done()
        await asyncio.sleep(0.05)
    assert [(a.demand, a.ordinal) for a in alerts] == [
        (geometry_pb2.RESPOND, 2),
        (geometry_pb2.NOTIFY, 1),
        (geometry_pb2.WARN, 0),
    ]
    await stop(task)


async def test_alerts_are_the_same_when_one_evaluator_dies_for_good(bus: Bus, tmp_path: Path) -> None:
    both = [await make_evaluator(bus, tmp_path, replica) for replica in (0, 1)]
    tasks = [start(evaluator) for evaluator in both]
    await approach(bus, "1")
    await caught_up(bus, *both)
    await stop(tasks[0])
    await approach(bus, "2")
    await approach(bus, "3")
    await caught_up(bus, both[1])
    expected = await offline(bus)

    async def all_published() -> bool:
        return len(await alerts_of(bus)) >= len(expected)

    await until(all_published)
    await stop(tasks[1])
    assert [alert.SerializeToString() for alert in await alerts_of(bus)] == expected
    assert len({alert.incident_id for alert in await alerts_of(bus)}) == 3


async def test_alerts_do_not_depend_on_read_batches_or_checkpoint_positions(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for case in ("1", "2", "3"):
        await approach(bus, case)
    expected = await offline(bus)
    states = set()
    for replica, batch, every in ((0, 1, 1), (1, 7, 3), (0, 1_000, 1_000)):
        monkeypatch.setattr(consumer, "READ_BATCH", batch)
        evaluator = await make_evaluator(bus, tmp_path / str(batch), replica, checkpoint_every=every, tick_after_s=3600)
        task = start(evaluator)
        await caught_up(bus, evaluator)

        async def all_published() -> bool:
            return len(await alerts_of(bus)) >= len(expected)

        await until(all_published)
        await stop(task)
        states.add(codec.encode(evaluator.state))
    # Each alert's subject accepts only one message. So a different alert from any of the three runs would be an extra message.
    assert [alert.SerializeToString() for alert in await alerts_of(bus)] == expected
    assert len(states) == 1


async def test_the_figures_of_each_alert_are_stored_in_another_stream(bus: Bus, tmp_path: Path) -> None:
    evaluator = await make_evaluator(bus, tmp_path)
    task = start(evaluator)
    await approach(bus)
    await caught_up(bus, evaluator)

    async def all_measured() -> bool:
        return (await bus.bounds_of("MEASURES")).last == len(await offline(bus))

    await until(all_measured)
    await stop(task)
    alert = (await alerts_of(bus))[0]
    figures = await bus.last_of("MEASURES", flow.measure_subject(0, alert.alert_id))
    assert figures and alert_pb2.Measure.FromString(figures).distance_m == pytest.approx(2000, abs=0.03)
    assert "distance" not in str(alert_pb2.Alert.DESCRIPTOR.fields_by_name.keys())


async def test_restarts_from_a_checkpoint_give_the_state_and_alerts_of_a_full_replay(bus: Bus, tmp_path: Path) -> None:
    for number in range(4):
        evaluator = await make_evaluator(bus, tmp_path, checkpoint_every=7)
        task = start(evaluator)
        await approach(bus, str(number))
        await caught_up(bus, evaluator)
        await checkpointed(tmp_path / "0", after=number * 30)
        await stop(task)
    restarted = await make_evaluator(bus, tmp_path)
    await restarted.restore()
    assert restarted.state.sequence > 30, "a checkpoint was loaded"
    task = start(restarted)
    await caught_up(bus, restarted)

    fresh = await make_evaluator(bus, tmp_path / "elsewhere")
    fresh_task = start(fresh)
    await caught_up(bus, fresh)
    expected = await offline(bus)

    async def all_published() -> bool:
        return len(await alerts_of(bus)) >= len(expected)

    await until(all_published)
    await caught_up(bus, restarted, fresh)
    await stop(task, fresh_task)
    if restarted.state.sequence == fresh.state.sequence:  # a tick may have come between the two stops
        assert codec.encode(restarted.state) == codec.encode(fresh.state)
    assert [alert.SerializeToString() for alert in await alerts_of(bus)] == expected


async def test_no_checkpoint_passes_an_alert_that_was_not_published(
    nats: TestServer, bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluator = await make_evaluator(bus, tmp_path, checkpoint_every=5)
    published = bus.publish_until_stored

    async def never_for_alerts(subject: str, *args: object, **kwargs: object) -> object:
        if subject.startswith("alert."):
            await asyncio.Event().wait()
        return await published(subject, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(bus, "publish_until_stored", never_for_alerts)
    task = start(evaluator)
    monkeypatch.undo()
    monkeypatch.setattr(evaluator._bus, "publish_until_stored", never_for_alerts)
    async with buses.connect(nats.url, "sender") as sender:
        await approach(sender)
    await caught_up(bus, evaluator)
    await checkpointed(tmp_path / "0")
    await stop(task)
    first_alert = next(i for i, _ in enumerate(await alerts_of(bus))) if await alerts_of(bus) else None
    assert first_alert is None
    store = CheckpointStore(tmp_path / "0")
    state = store.read(store.found(0)[0], evaluator.state.log_id)
    assert state is not None and not state.incidents, "the checkpoint is from before the first ring was entered"


async def test_a_case_begins_at_its_time_without_a_new_report(bus: Bus, tmp_path: Path) -> None:
    evaluator = await make_evaluator(bus, tmp_path)
    task = start(evaluator)
    now_ms = int(time.time() * 1000)
    await publish(bus, log.positions_entry(log.position("d1", now_ms, 0), log.position("t1", now_ms, 80)))
    from_ms = int(time.time() * 1000) + 1500
    await publish(bus, log.case_entry(from_ms=from_ms))
    stored = await bus.js.get_last_msg("LOG_0", "log.0.case")
    assert stored.time

    async def entered() -> bool:
        return len(await alerts_of(bus)) == 3

    await until(entered)
    await stop(task)
    # A case that is stored after its start time begins with its entry.
    began_ms = max(from_ms, int(stored.time.timestamp() * 1000))
    assert {alert.at.ToMilliseconds() for alert in await alerts_of(bus)} == {began_ms}


async def test_an_unreadable_entry_becomes_a_dead_letter_and_the_fold_continues(bus: Bus, tmp_path: Path) -> None:
    both = [await make_evaluator(bus, tmp_path, replica) for replica in (0, 1)]
    tasks = [start(evaluator) for evaluator in both]
    await bus.publish("log.0.report", b"\xff\xff\xff")
    await bus.publish("log.0.report", b"")
    # The publisher of reports may not publish a case.
    await bus.publish("log.0.report", log.case_entry("forged").SerializeToString())
    await approach(bus)
    await caught_up(bus, *both)

    async def dead_letters_and_alerts() -> bool:
        return (await bus.bounds_of("DEAD_LETTERS")).last == 3 and len(await alerts_of(bus)) >= 3

    await until(dead_letters_and_alerts)
    await stop(*tasks)


async def test_equipment_events_and_heard_batches_pass_both_evaluators(bus: Bus, tmp_path: Path) -> None:
    both = [await make_evaluator(bus, tmp_path, replica) for replica in (0, 1)]
    tasks = [start(evaluator) for evaluator in both]
    await publish(bus, log.case_entry(place=True))
    heard = log_pb2.HeardBatch(device_id=["t1", "d1", "t9"], report_id=["h1", "h2", "h3"], received_wall_us=1)
    await publish(bus, log_pb2.LogEntry(heard=heard))
    kinds = [kind for kind in log_pb2.EquipmentKind.values() if kind]
    of_persons = {log_pb2.PANIC_BUTTON, log_pb2.PANIC_CANCELLED, log_pb2.DEVICE_REFUSED, log_pb2.DEVICE_ACCEPTED}
    for kind in kinds:
        report = log_pb2.EquipmentReport(
            device_id="d1" if kind in of_persons else "t1",
            report_id=f"e{kind}",
            event=kind,
            event_time_ms=int(time.time() * 1000),
            received_wall_us=1,
        )
        await publish(bus, log_pb2.LogEntry(equipment=report))
    await caught_up(bus, *both)
    expected = await offline(bus)

    async def all_published() -> bool:
        return len(await alerts_of(bus)) >= len(expected)

    await until(all_published)
    await stop(*tasks)
    alerts = await alerts_of(bus)
    assert [alert.SerializeToString() for alert in alerts] == expected
    notices = [alert for alert in alerts if alert.demand == geometry_pb2.NOTIFY]
    assert [alert.kind for alert in notices] == [
        alert_pb2.JAMMED,
        alert_pb2.DEVICE_OFF,
        alert_pb2.PROTECTED_DEVICE_LOST,
    ]
    assert (await bus.bounds_of("DEAD_LETTERS")).last == 0
    assert both[0].state.heard_at_ms.keys() == {"t1", "d1", "t9"}
    assert codec.encode(both[0].state) == codec.encode(both[1].state)


async def test_an_older_fold_stops_at_the_entry_of_a_newer_one(bus: Bus, tmp_path: Path) -> None:
    task = start(await make_evaluator(bus, tmp_path))
    entry = log_pb2.LogEntry(fold_version=log_pb2.FoldVersion(version=FOLD_VERSION + 1))
    await bus.publish("log.0.fold", entry.SerializeToString())
    with pytest.raises(ExceptionGroup) as stopped:
        await asyncio.wait_for(task, 10)
    assert stopped.value.subgroup(OutdatedFold)


async def test_a_log_of_a_newer_fold_is_refused_before_anything_of_it_is_decided_and_is_left_as_it_is(
    bus: Bus, tmp_path: Path
) -> None:
    await approach(bus)
    entry = log_pb2.LogEntry(fold_version=log_pb2.FoldVersion(version=FOLD_VERSION + 1))
    last = (await bus.publish("log.0.fold", entry.SerializeToString())).seq
    end = await cursors.at(bus, "LOG_0", last)
    assert end
    of_newer = f'"fold_version":{FOLD_VERSION + 1}'.encode()
    checkpoint = codec.encode(State(0)).replace(f'"fold_version":{FOLD_VERSION}'.encode(), of_newer)
    store = CheckpointStore(tmp_path / "0")
    store.save(0, Footing(end, None, None), checkpoint)
    with pytest.raises(ExceptionGroup) as stopped:
        await asyncio.wait_for(start(await make_evaluator(bus, tmp_path)), 10)
    assert why_not(stopped.value, None) == (
        f"the log demands fold version {FOLD_VERSION + 1}, this is {FOLD_VERSION}: use a release with that version, or begin a new log "
        "(the runbook: evaluator-down)"
    )
    assert (await bus.bounds_of("LOG_0")).last == last
    assert await alerts_of(bus) == []
    assert [found.path.read_bytes() for found in store.found(0)] == [checkpoint]


async def test_an_evaluator_with_a_checkpoint_of_the_logs_end_serves_and_ticks(bus: Bus, tmp_path: Path) -> None:
    await approach(bus, steps=4)
    evaluator = await make_evaluator(bus, tmp_path, checkpoint_every=1_000_000, tick_after_s=3600)
    task = start(evaluator)
    await caught_up(bus, evaluator)
    await stop(task)
    last = (await bus.bounds_of("LOG_0")).last
    end = await cursors.at(bus, "LOG_0", last)
    assert end and evaluator.state.sequence == last
    CheckpointStore(tmp_path / "0").save(0, Footing(end, None, None), codec.encode(evaluator.state))
    restarted = await make_evaluator(bus, tmp_path)
    await restarted.restore()
    assert restarted.state.sequence == last
    serving = asyncio.Event()
    task = asyncio.create_task(restarted.run(serving.set))
    try:
        async with asyncio.timeout(20):
            await serving.wait()

        async def ticked() -> bool:
            return (await bus.bounds_of("LOG_0")).last > last

        await until(ticked)
    finally:
        await stop(task)


async def test_a_checkpoint_of_another_log_is_skipped(bus: Bus, tmp_path: Path) -> None:
    CheckpointStore(tmp_path / "0").save(0, footing(1), codec.encode(State(0, log_id="another")))
    evaluator = await make_evaluator(bus, tmp_path)
    await evaluator.restore()
    assert evaluator.state.log_id == (await streams.read_log_meta(bus)).log_id


def footing(sequence: int) -> Footing:
    return Footing(StreamCursor(sequence, 1, "0" * 16), None, None)


def test_a_damaged_checkpoint_is_skipped(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save(0, footing(10), codec.encode(State(0, sequence=10)))
    store.save(0, footing(20), codec.encode(State(0, sequence=20)))
    newest, older = store.found(0)
    newest.path.write_bytes(newest.path.read_bytes().replace(b"20", b"21"))
    assert store.read(newest, "") is None
    loaded = store.read(older, "")
    assert loaded is not None and loaded.sequence == 10
