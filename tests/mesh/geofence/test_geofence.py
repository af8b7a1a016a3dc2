"""Evaluators on a real log: the same alerts from either, from both, across kills and restarts; nothing past an unpublished alert."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest

from services.common.messaging import bus as buses
from services.common.messaging import cursors, flow, pull, streams
from services.common.messaging.bus import Bus
from services.common.messaging.cursors import StreamCursor
from services.common.rpc.errors import OutdatedFold
from services.geofence import consumer, translate
from services.geofence.consumer import Evaluator
from services.geofence.domain import codec, fold
from services.geofence.domain.alerts import Alert
from services.geofence.domain.entries import Entry
from services.geofence.domain.state import State
from services.geofence.domain.version import VERSION
from services.geofence.settings import GeofenceSettings
from services.geofence.store import CheckpointStore, Footing
from tandem.common.v1 import alert_pb2, geometry_pb2, log_pb2
from tests.support.common.nats import TestServer
from tests.support.geofence import log


async def evaluator(
    bus: Bus, folder: Path, replica: int = 0, checkpoint_every: int = 10, tick_after_s: float = 0.5
) -> Evaluator:
    settings = GeofenceSettings(
        port=0, replica=replica, checkpoint_every=checkpoint_every, tick_after_s=tick_after_s, allow_async_store=True
    )
    return Evaluator(
        bus,
        CheckpointStore(folder / str(replica)),
        settings,
        await streams.read_log_meta(bus),
        0,
    )


async def publish(bus: Bus, entry: log_pb2.LogEntry, msg_id: str | None = None) -> None:
    await bus.publish_until_stored(log.subject_of(entry), entry.SerializeToString(), msg_id=msg_id)


async def approach(bus: Bus, case: str = "1", steps: int = 30) -> None:
    """The wearer comes from 3 km to 50 m, a report every few milliseconds with fix times 5 s apart, and goes back."""
    now_ms = int(time.time() * 1000)
    start_ms = now_ms - steps * 5_000
    await publish(bus, log.case_entry(case, from_ms=start_ms - 1000), f"case-{case}")
    for i in range(steps):
        at_ms = start_ms + i * 5_000
        north_m = 50 + 2950 * abs(1 - 2 * i / (steps - 1))
        entry = log.positions_entry(log.position(f"d{case}", at_ms, 0), log.position(f"t{case}", at_ms, north_m))
        await publish(bus, entry, f"{case}-{i}")


async def alerts_of(bus: Bus) -> list[alert_pb2.Alert]:
    """All alerts stored, in order of the stream."""
    last = (await bus.bounds_of("ALERTS")).last
    found: list[alert_pb2.Alert] = []
    if last:
        async for messages in pull.read(bus, "ALERTS", 1):
            found += [alert_pb2.Alert.FromString(message.data) for message in messages]
            if messages[-1].sequence >= last:
                break
    return found


async def offline(bus: Bus) -> list[bytes]:
    """I2: what a fold over the stored log gives, from nothing."""
    log_meta = await streams.read_log_meta(bus)
    state = State(0, log_meta.log_id, clock_rate=log_meta.clock.rate, clock_anchor_ms=log_meta.clock.anchor_ms)
    found = []
    last = (await bus.bounds_of("LOG_0")).last
    async for messages in pull.read(bus, "LOG_0", 1):
        for message in messages:
            for one in fold.step(state, Entry(message.sequence, message.stamp_ms, translate.entry_body(message.data))):
                assert isinstance(one, Alert)
                found.append(translate.alert_to_proto(one, 0).SerializeToString())
        if messages[-1].sequence >= last:
            return found
    return found


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not await condition():  # noqa: ASYNC110  # the condition is another process's
            await asyncio.sleep(0.05)


async def caught_up(bus: Bus, *running: Evaluator) -> None:
    last = (await bus.bounds_of("LOG_0")).last

    async def all_there() -> bool:
        return all(one.state.sequence >= last for one in running)

    await until(all_there)


async def checkpointed(folder: Path, after: int = 0) -> None:
    """Waits for a checkpoint beyond a sequence; each is written by a process of its own."""

    async def written() -> bool:
        names = [one.name for one in folder.glob("checkpoint-*.json")]  # noqa: ASYNC240  # a look at a small folder
        return any(int(name.split("-")[2][1:]) > after for name in names)

    await until(written)


async def stop(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
    for task in tasks:
        with suppress(asyncio.CancelledError):
            await task


def start(one: Evaluator) -> asyncio.Task[None]:
    return asyncio.create_task(one.run(lambda: None))


async def test_two_evaluators_publish_each_alert_once_and_as_an_offline_fold_would(bus: Bus, tmp_path: Path) -> None:
    both = [await evaluator(bus, tmp_path, replica) for replica in (0, 1)]
    tasks = [start(one) for one in both]
    await approach(bus)
    await caught_up(bus, *both)
    expected = await offline(bus)

    async def all_published() -> bool:
        return len(await alerts_of(bus)) >= len(expected)

    await until(all_published)
    await stop(*tasks)
    found = await alerts_of(bus)
    assert [alert.SerializeToString() for alert in found] == expected
    entered = [alert.ring_m for alert in found if alert.kind == alert_pb2.RING_ENTERED]
    assert entered == [2000, 1000, 100]
    assert len({alert.incident_id for alert in found}) == 1
    assert codec.encode(both[0].state) == codec.encode(both[1].state)


async def test_the_alert_of_a_backlog_leaves_before_more_of_it_is_folded(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await approach(bus)
    one = await evaluator(bus, tmp_path)
    stood: list[tuple[int, int]] = []
    """Where the state stood when an alert was published, and of which entry it was."""
    stored = bus.publish_until_stored

    async def noting(subject: str, payload: bytes, **options: object) -> object:
        if subject.startswith("alert."):
            stood.append((one.state.sequence, alert_pb2.Alert.FromString(payload).sequence))
        return await stored(subject, payload, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(bus, "publish_until_stored", noting)
    task = start(one)
    await caught_up(bus, one)
    await stop(task)
    assert stood[0][0] == stood[0][1] < one.state.sequence


async def test_of_one_entry_the_gravest_alert_is_published_first(bus: Bus, tmp_path: Path) -> None:
    now_ms = int(time.time() * 1000)
    one = start(await evaluator(bus, tmp_path))
    await publish(bus, log.case_entry("1", from_ms=now_ms - 5_000))
    await publish(bus, log.positions_entry(log.position("d1", now_ms, 0), log.position("t1", now_ms, 50)))
    while len(alerts := await alerts_of(bus)) < 3:
        assert not one.done()
        await asyncio.sleep(0.05)
    assert [(a.demand, a.ordinal) for a in alerts] == [
        (geometry_pb2.RESPOND, 2),
        (geometry_pb2.NOTIFY, 1),
        (geometry_pb2.WARN, 0),
    ]
    await stop(one)


async def test_with_one_evaluator_killed_for_good_in_the_middle_the_alerts_are_the_same(
    bus: Bus, tmp_path: Path
) -> None:
    both = [await evaluator(bus, tmp_path, replica) for replica in (0, 1)]
    tasks = [start(one) for one in both]
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


async def test_whatever_is_read_at_once_and_wherever_checkpoints_lie_the_alerts_are_the_same(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for case in ("1", "2", "3"):
        await approach(bus, case)
    expected = await offline(bus)
    states = set()
    for replica, at_once, every in ((0, 1, 1), (1, 7, 3), (0, 1_000, 1_000)):
        monkeypatch.setattr(consumer, "READ_BATCH", at_once)
        one = await evaluator(bus, tmp_path / str(at_once), replica, checkpoint_every=every, tick_after_s=3600)
        task = start(one)
        await caught_up(bus, one)

        async def all_published() -> bool:
            return len(await alerts_of(bus)) >= len(expected)

        await until(all_published)
        await stop(task)
        states.add(codec.encode(one.state))
    # Each alert's subject takes one message for ever: any other alert of one of the three would be one more.
    assert [alert.SerializeToString() for alert in await alerts_of(bus)] == expected
    assert len(states) == 1


async def test_the_figures_of_each_alert_are_stored_apart(bus: Bus, tmp_path: Path) -> None:
    one = await evaluator(bus, tmp_path)
    task = start(one)
    await approach(bus)
    await caught_up(bus, one)

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
        one = await evaluator(bus, tmp_path, checkpoint_every=7)
        task = start(one)
        await approach(bus, str(number))
        await caught_up(bus, one)
        await checkpointed(tmp_path / "0", after=number * 30)
        await stop(task)
    again = await evaluator(bus, tmp_path)
    await again.restore()
    assert again.state.sequence > 30, "a checkpoint was loaded"
    task = start(again)
    await caught_up(bus, again)

    fresh = await evaluator(bus, tmp_path / "elsewhere")
    fresh_task = start(fresh)
    await caught_up(bus, fresh)
    expected = await offline(bus)

    async def all_published() -> bool:
        return len(await alerts_of(bus)) >= len(expected)

    await until(all_published)
    await caught_up(bus, again, fresh)
    await stop(task, fresh_task)
    if again.state.sequence == fresh.state.sequence:  # a tick may have come between the two
        assert codec.encode(again.state) == codec.encode(fresh.state)
    assert [alert.SerializeToString() for alert in await alerts_of(bus)] == expected


async def test_no_checkpoint_passes_an_alert_that_was_not_published(
    nats: TestServer, bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = await evaluator(bus, tmp_path, checkpoint_every=5)
    published = bus.publish_until_stored

    async def never_for_alerts(subject: str, *args: object, **kwargs: object) -> object:
        if subject.startswith("alert."):
            await asyncio.Event().wait()
        return await published(subject, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(bus, "publish_until_stored", never_for_alerts)
    task = start(one)
    monkeypatch.undo()
    monkeypatch.setattr(one._bus, "publish_until_stored", never_for_alerts)
    async with buses.connect(nats.url, "sender") as sender:
        await approach(sender)
    await caught_up(bus, one)
    await checkpointed(tmp_path / "0")
    await stop(task)
    first_alert = next(i for i, _ in enumerate(await alerts_of(bus))) if await alerts_of(bus) else None
    assert first_alert is None
    store = CheckpointStore(tmp_path / "0")
    state = store.read(store.found(0)[0], one.state.log_id)
    assert state is not None and not state.incidents, "it stands before the first ring was entered"


async def test_time_alone_begins_a_case_without_a_new_report(bus: Bus, tmp_path: Path) -> None:
    one = await evaluator(bus, tmp_path)
    task = start(one)
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
    # A case that is stored after it has begun begins with its entry.
    began_ms = max(from_ms, int(stored.time.timestamp() * 1000))
    assert {alert.at.ToMilliseconds() for alert in await alerts_of(bus)} == {began_ms}


async def test_rubbish_in_the_log_is_parked_by_its_sequence_and_the_rest_goes_on(bus: Bus, tmp_path: Path) -> None:
    both = [await evaluator(bus, tmp_path, replica) for replica in (0, 1)]
    tasks = [start(one) for one in both]
    await bus.publish("log.0.report", b"\xff\xff\xff")
    await bus.publish("log.0.report", b"")
    # Who may report may not say what is ordered.
    await bus.publish("log.0.report", log.case_entry("forged").SerializeToString())
    await approach(bus)
    await caught_up(bus, *both)

    async def parked_and_alerted() -> bool:
        return (await bus.bounds_of("DEAD_LETTERS")).last == 3 and len(await alerts_of(bus)) >= 3

    await until(parked_and_alerted)
    await stop(*tasks)


async def test_what_devices_say_and_that_they_were_heard_passes_both_evaluators(bus: Bus, tmp_path: Path) -> None:
    both = [await evaluator(bus, tmp_path, replica) for replica in (0, 1)]
    tasks = [start(one) for one in both]
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
    found = await alerts_of(bus)
    assert [alert.SerializeToString() for alert in found] == expected
    notices = [alert for alert in found if alert.demand == geometry_pb2.NOTIFY]
    assert [alert.kind for alert in notices] == [
        alert_pb2.JAMMED,
        alert_pb2.DEVICE_OFF,
        alert_pb2.PROTECTED_DEVICE_LOST,
    ]
    assert (await bus.bounds_of("DEAD_LETTERS")).last == 0
    assert both[0].state.heard_at_ms.keys() == {"t1", "d1", "t9"}
    assert codec.encode(both[0].state) == codec.encode(both[1].state)


async def test_an_older_fold_stops_at_the_entry_of_a_newer_one(bus: Bus, tmp_path: Path) -> None:
    task = start(await evaluator(bus, tmp_path))
    entry = log_pb2.LogEntry(fold_version=log_pb2.FoldVersion(version=VERSION + 1))
    await bus.publish("log.0.fold", entry.SerializeToString())
    with pytest.raises(ExceptionGroup) as stopped:
        await asyncio.wait_for(task, 10)
    assert stopped.value.subgroup(OutdatedFold)


async def test_an_evaluator_whose_checkpoint_is_of_the_logs_end_serves_and_ticks(bus: Bus, tmp_path: Path) -> None:
    await approach(bus, steps=4)
    one = await evaluator(bus, tmp_path, checkpoint_every=1_000_000, tick_after_s=3600)
    task = start(one)
    await caught_up(bus, one)
    await stop(task)
    last = (await bus.bounds_of("LOG_0")).last
    end = await cursors.at(bus, "LOG_0", last)
    assert end and one.state.sequence == last
    CheckpointStore(tmp_path / "0").save(0, Footing(end, None, None), codec.encode(one.state))
    again = await evaluator(bus, tmp_path)
    await again.restore()
    assert again.state.sequence == last
    serving = asyncio.Event()
    task = asyncio.create_task(again.run(serving.set))
    try:
        async with asyncio.timeout(20):
            await serving.wait()

        async def ticked() -> bool:
            return (await bus.bounds_of("LOG_0")).last > last

        await until(ticked)
    finally:
        await stop(task)


async def test_a_checkpoint_of_another_log_is_passed_over(bus: Bus, tmp_path: Path) -> None:
    CheckpointStore(tmp_path / "0").save(0, footing(1), codec.encode(State(0, log_id="another")))
    one = await evaluator(bus, tmp_path)
    await one.restore()
    assert one.state.log_id == (await streams.read_log_meta(bus)).log_id


def footing(sequence: int) -> Footing:
    return Footing(StreamCursor(sequence, 1, "0" * 16), None, None)


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save(0, footing(10), codec.encode(State(0, sequence=10)))
    store.save(0, footing(20), codec.encode(State(0, sequence=20)))
    newest, older = store.found(0)
    newest.path.write_bytes(newest.path.read_bytes().replace(b"20", b"21"))
    assert store.read(newest, "") is None
    loaded = store.read(older, "")
    assert loaded is not None and loaded.sequence == 10
