"""Evaluators in the process of a test: started, stopped, and compared with an offline fold."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from prometheus_client import CollectorRegistry

from services.common.messaging import pull, streams
from services.common.messaging.bus import Bus
from services.common.priority import PriorityGate
from services.geofence import translate
from services.geofence.consumer import Evaluator
from services.geofence.domain import fold
from services.geofence.domain.alerts import Alert, Request
from services.geofence.domain.entries import Entry
from services.geofence.domain.state import State
from services.geofence.metrics import GeofenceMetrics
from services.geofence.settings import GeofenceSettings
from services.geofence.store import CheckpointStore
from tandem.common.v1 import alert_pb2, log_pb2
from tests.support.geofence import log


async def make_evaluator(
    bus: Bus, folder: Path, replica: int = 0, checkpoint_every: int = 10, tick_after_s: float = 0.5
) -> Evaluator:
    settings = GeofenceSettings(
        port=0, replica=replica, checkpoint_every=checkpoint_every, tick_after_s=tick_after_s, allow_async_store=True
    )
    return Evaluator(
        bus,
        CheckpointStore(folder / str(replica)),
        settings,
        log_meta=await streams.read_log_meta(bus),
        partition=0,
        metrics=GeofenceMetrics(CollectorRegistry()),
        gate=PriorityGate(),
    )


async def publish(bus: Bus, entry: log_pb2.LogEntry, msg_id: str | None = None) -> None:
    await bus.publish_until_stored(log.subject_of(entry), entry.SerializeToString(), msg_id=msg_id)


async def approach(bus: Bus, case: str = "1", steps: int = 30) -> None:
    """Publishes a wearer who comes from 3 km to 50 m and goes back: a report every few milliseconds, with fix times 5 s apart."""
    now_ms = int(time.time() * 1000)
    start_ms = now_ms - steps * 5_000
    await publish(bus, log.case_entry(case, from_ms=start_ms - 1000), f"case-{case}")
    for i in range(steps):
        at_ms = start_ms + i * 5_000
        north_m = 50 + 2950 * abs(1 - 2 * i / (steps - 1))
        entry = log.positions_entry(log.position(f"d{case}", at_ms, 0), log.position(f"t{case}", at_ms, north_m))
        await publish(bus, entry, f"{case}-{i}")


async def alerts_of(bus: Bus) -> list[alert_pb2.Alert]:
    """All stored alerts, in the order of the stream."""
    last = (await bus.bounds_of("ALERTS")).last
    alerts: list[alert_pb2.Alert] = []
    if last:
        async for messages in pull.read(bus, "ALERTS", 1):
            alerts += [alert_pb2.Alert.FromString(message.data) for message in messages]
            if messages[-1].sequence >= last:
                break
    return alerts


async def offline(bus: Bus) -> list[bytes]:
    """Serialized alerts of an offline fold of the stored log (I2)."""
    log_meta = await streams.read_log_meta(bus)
    state = State(0, log_meta.log_id, clock_rate=log_meta.clock.rate, clock_anchor_ms=log_meta.clock.anchor_ms)
    alerts = []
    last = (await bus.bounds_of("LOG_0")).last
    async for messages in pull.read(bus, "LOG_0", 1):
        for message in messages:
            entry = Entry(message.sequence, message.stamp_ms, translate.entry_body(message.data))
            for output in fold.step(state, entry):
                if isinstance(output, Request):
                    continue
                assert isinstance(output, Alert)
                alerts.append(translate.alert_to_proto(output, 0).SerializeToString())
        if messages[-1].sequence >= last:
            return alerts
    return alerts


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not await condition():  # noqa: ASYNC110  # the condition is another process's
            await asyncio.sleep(0.05)


async def caught_up(bus: Bus, *running: Evaluator) -> None:
    last = (await bus.bounds_of("LOG_0")).last

    async def all_there() -> bool:
        return all(evaluator.state.sequence >= last for evaluator in running)

    await until(all_there)


async def checkpointed(folder: Path, after: int = 0) -> None:
    """Waits for a checkpoint beyond a sequence; a child process writes it."""

    async def written() -> bool:
        names = [path.name for path in folder.glob("checkpoint-*.json")]  # noqa: ASYNC240  # the folder is small
        return any(int(name.split("-")[2][1:]) > after for name in names)

    await until(written)


async def stop(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
    for task in tasks:
        with suppress(asyncio.CancelledError):
            await task


def start(evaluator: Evaluator) -> asyncio.Task[None]:
    return asyncio.create_task(evaluator.run(lambda: None))
