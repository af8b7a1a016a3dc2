"""Evaluators on streams that go back: checkpoints with a lost footing, and alerts and rules that are lost after they were stored."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from services.common.errors import Unavailable
from services.common.messaging import cursors, flow, pull, streams
from services.common.messaging.bus import Bus
from services.common.messaging.cursors import StreamCursor
from services.common.priority import PriorityGate
from services.geofence import translate
from services.geofence.consumer import Evaluator
from services.geofence.domain import codec
from services.geofence.domain.entries import Rules
from services.geofence.domain.state import State
from services.geofence.metrics import GeofenceMetrics
from services.geofence.settings import GeofenceSettings
from services.geofence.store import CheckpointStore, Footing
from tandem.common.v1 import log_pb2
from tests.support import torn
from tests.support.common.nats import TestServer
from tests.support.geofence import log
from tests.support.geofence.evaluator_mesh import offline

WITHIN_S = 30.0


def footing(sequence: int) -> Footing:
    return Footing(StreamCursor(sequence, 1, "0" * 16), None, None)


def store_of(folder: Path) -> CheckpointStore:
    return CheckpointStore(folder / "checkpoints")


async def make_evaluator(bus: Bus, folder: Path, checkpoint_every: int = 1_000) -> Evaluator:
    settings = GeofenceSettings(port=0, checkpoint_every=checkpoint_every, tick_after_s=0.5, allow_async_store=True)
    return Evaluator(
        bus,
        store_of(folder),
        settings,
        log_meta=await streams.read_log_meta(bus),
        partition=0,
        metrics=GeofenceMetrics(CollectorRegistry()),
        gate=PriorityGate(),
    )


@asynccontextmanager
async def running(evaluator: Evaluator) -> AsyncIterator[None]:
    task = asyncio.create_task(evaluator.run(lambda: None))
    try:
        yield
        assert not task.done()
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def approach(bus: Bus, case: str = "1") -> None:
    """Publishes a wearer who comes to 50 m in four reports."""
    now_ms = time.time_ns() // 1_000_000
    await bus.publish_until_stored(*entry_of(log.case_entry(case)))
    for north_m in (3000, 1500, 800, 50):
        now_ms += 5_000
        batch = log.positions_entry(log.position(f"d{case}", now_ms, 0), log.position(f"t{case}", now_ms, north_m))
        await bus.publish_until_stored(*entry_of(batch))


def entry_of(entry: log_pb2.LogEntry) -> tuple[str, bytes]:
    return log.subject_of(entry), entry.SerializeToString()


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(WITHIN_S):
        while not await condition():  # noqa: ASYNC110  # the condition is another process's
            await asyncio.sleep(0.05)


async def alerts(bus: Bus) -> list[bytes]:
    """All messages of ALERTS, in order."""
    last = (await bus.bounds_of(flow.ALERTS.name)).last
    return [message.data async for message in pull.between(bus, flow.ALERTS.name, 1, last=last)]


async def all_decided(bus: Bus) -> bool:
    """Whether ALERTS holds all alerts of an offline fold of the log."""
    expected, _ = await offline(bus, (await bus.bounds_of(flow.log_stream(0))).last)
    return bool(expected) and set(expected) <= set(await alerts(bus))


async def test_a_checkpoint_ahead_of_the_log_is_dropped(bus: Bus, tmp_path: Path) -> None:
    await approach(bus)
    state = State(0, log_id=(await streams.read_log_meta(bus)).log_id, sequence=1000)
    store = store_of(tmp_path)
    store.save(0, footing(1000), codec.encode(state))
    evaluator = await make_evaluator(bus, tmp_path)
    await evaluator.restore()
    assert evaluator.state.sequence == 0 and not store.found(0)


async def test_a_checkpoint_whose_last_entry_was_replaced_is_dropped(bus: Bus, tmp_path: Path) -> None:
    await approach(bus)
    log_id = (await streams.read_log_meta(bus)).log_id
    store = store_of(tmp_path)
    second = await cursors.at(bus, "LOG_0", 2)
    assert second
    store.save(0, Footing(second, None, None), codec.encode(State(0, log_id=log_id, sequence=2)))
    store.save(0, footing(3), codec.encode(State(0, log_id=log_id, sequence=3)))
    evaluator = await make_evaluator(bus, tmp_path)
    await evaluator.restore()
    assert evaluator.state.sequence == 2 and [checkpoint.footing.entry for checkpoint in store.found(0)] == [second]


def test_one_older_checkpoint_is_kept_for_the_hour_and_one_for_the_day(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for hours in range(100, 0, -1):
        store.save(0, footing(1000 - hours), codec.encode(State(0)))
        for checkpoint in store.found(0):
            age_s = (1000 - hours - checkpoint.footing.entry.sequence) * 1800
            os.utime(checkpoint.path, (time.time() - age_s,) * 2)
    ages_h = [(999 - checkpoint.footing.entry.sequence) / 2 for checkpoint in store.found(0)]
    assert len(ages_h) <= 4 and ages_h[:2] == [0, 0.5]
    assert 1 <= ages_h[-1] < 24


@pytest.mark.parametrize("stream", [flow.ALERTS, flow.MEASURES], ids=lambda stream: stream.name)
@pytest.mark.parametrize("checkpoint_every", [1_000, 2])
async def test_an_alert_that_is_lost_after_it_was_stored_is_republished(
    nats: TestServer, bus: Bus, tmp_path: Path, stream: flow.Stream, checkpoint_every: int
) -> None:
    evaluator = await make_evaluator(bus, tmp_path, checkpoint_every)
    async with running(evaluator):
        await approach(bus)
        await until(lambda: all_decided(bus))
        count = len(await alerts(bus))

        async def all_measured() -> bool:
            return (await bus.bounds_of(flow.MEASURES.name)).last >= count

        await until(all_measured)
        lost = await cursors.at(bus, stream.name, count)
        nats.kill()
        torn.overwrite_tail(tmp_path / "nats", stream.name, random.Random(1))
        nats.start()
        assert await replaced(bus, stream.name, count, lost)
        await approach(bus, "2")
        await until(lambda: all_decided(bus))
        count = len(await alerts(bus))
        await until(all_measured)


async def replaced(bus: Bus, stream: str, sequence: int, lost: StreamCursor | None) -> bool:
    """Waits until another message has the sequence of a lost one; True then."""
    async with asyncio.timeout(WITHIN_S):
        while True:
            with suppress(Unavailable):
                cursor = await cursors.at(bus, stream, sequence)
                if cursor and cursor != lost:
                    return True
            await asyncio.sleep(0.05)


async def test_rules_that_the_log_lost_are_written_back(nats: TestServer, bus: Bus, tmp_path: Path) -> None:
    evaluator = await make_evaluator(bus, tmp_path)
    rules = translate.rules_entry(replace(Rules(), foot_mps=3)).SerializeToString()
    async with running(evaluator):
        await approach(bus)
        await until(lambda: all_decided(bus))
        nats.kill()
        torn.copy_of(tmp_path / "nats", flow.log_stream(0), tmp_path / "copy")
        nats.start()
        ack = await bus.publish_until_stored("log.0.rules", rules)
        assert ack

        async def in_force() -> bool:
            return evaluator.state.rules.foot_mps == 3

        await until(in_force)
        nats.kill()
        torn.put_back(tmp_path / "nats", flow.log_stream(0), tmp_path / "copy")
        nats.start()

        async def stored() -> bool:
            with suppress(Unavailable):
                return await bus.last_of(flow.log_stream(0), "log.0.rules") == rules
            return False

        async def dropped() -> bool:
            return not await in_force()

        await until(dropped)
        await until(stored)
        await until(in_force)
