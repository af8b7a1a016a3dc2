"""I1: every acknowledged report is in the log and counts once, after kills of ingest and nats-server, and after a full log."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2

from services.common.messaging.bus import Bus
from services.geofence.domain import codec
from services.ingest.translate import equipment_entry, parse_equipment
from tandem.common.v1 import log_pb2
from tandem.ingest.v1 import ingest_pb2
from tests.support.geofence import log
from tests.support.geofence.folding import Stored, folded
from tests.support.ingest.ingest import (
    WITHIN_S,
    Client,
    IngestMesh,
    details,
    event,
    ingest_on_its_own_server,
    load,
    now_ms,
    position,
    request,
    under_load,
)


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[IngestMesh]:
    with ingest_on_its_own_server(tmp_path) as running:
        yield running


@pytest.fixture
async def client(mesh: IngestMesh) -> AsyncIterator[Client]:
    async with mesh.connected() as connected:
        await connected.route("tag", "app")
        yield connected


async def until_more_than(count: int, acknowledged: set[str]) -> None:
    """Returns once more than `count` reports are acknowledged. The time depends on the machine."""
    async with asyncio.timeout(WITHIN_S):
        while len(acknowledged) <= count:  # noqa: ASYNC110  # the head-ends add to it
            await asyncio.sleep(0.05)


async def test_nothing_acknowledged_is_lost_when_ingest_is_killed(mesh: IngestMesh, client: Client) -> None:
    moments = random.Random(20260706)

    async def kill_now_and_then() -> None:
        for _ in range(2):
            await asyncio.sleep(moments.uniform(0.05, 0.6))
            mesh.service.kill()
            mesh.service.start()
            await mesh.service.ready(mesh.address)
        await until_more_than(1000, acknowledged)

    acknowledged: set[str] = set()
    streams = await under_load(client, acknowledged, kill_now_and_then)
    assert streams > 3, "a kill broke a stream"
    assert acknowledged - set(await client.stored()) == set()


async def test_nothing_is_acknowledged_that_both_killed_at_once_would_lose(mesh: IngestMesh, client: Client) -> None:
    async def freeze_and_kill() -> None:
        for _ in range(2):
            await asyncio.sleep(0.3)
            mesh.nats.freeze()
            await asyncio.sleep(0.3)  # reports that arrive now can't be stored, so they must not be acknowledged
            mesh.service.kill()
            mesh.nats.kill()
            mesh.nats.start()
            mesh.service.start()
            await mesh.service.ready(mesh.address)
        await until_more_than(500, acknowledged)

    acknowledged: set[str] = set()
    streams = await under_load(client, acknowledged, freeze_and_kill)
    assert streams > 3
    assert acknowledged - set(await client.stored()) == set()


async def test_nothing_acknowledged_is_lost_when_nats_is_killed(mesh: IngestMesh, client: Client) -> None:
    async def kill_now_and_then() -> None:
        for down_s in (0.1, 1.0):
            await asyncio.sleep(0.4)
            await mesh.nats.restart_after(down_s)
        await until_more_than(1000, acknowledged)

    acknowledged: set[str] = set()
    await under_load(client, acknowledged, kill_now_and_then)
    stored = await client.stored()
    assert acknowledged - set(stored) == set()
    assert max(stored.values()) == 1, "ingest publishes a retry under the same id"


async def resize(bus: Bus, max_bytes: int) -> None:
    info = await bus.js.stream_info("LOG_0")
    info.config.max_bytes = max_bytes
    await bus.js.update_stream(info.config)


async def test_a_full_log_is_resource_exhausted_with_a_delay_and_accepts_more_once_there_is_space(
    client: Client,
) -> None:
    await client.send(request(1, position("tag", "before")))
    full_size = (await client.bus.js.stream_info("LOG_0")).config.max_bytes
    assert full_size
    await resize(client.bus, 64 << 10)
    acknowledged = {"before"}
    with pytest.raises(grpc.aio.AioRpcError) as full:
        for n in range(100):
            for answer in await client.send(*load("tag", f"filling-{n}", batches=2)):
                acknowledged |= {f"filling-{n}-{answer.batch}-{i}" for i in range(20)}
    assert full.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert details(full.value, error_details_pb2.RetryInfo).retry_delay.ToMilliseconds() > 0
    error = await client.refusal(request(1, event("tag", "too-much", log_pb2.STRAP_OPEN), *_large_batch()))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED

    await resize(client.bus, full_size)
    await client.deliver([request(1, *_large_batch())], acknowledged)
    assert acknowledged - set(await client.stored()) == set()


def _large_batch() -> list[ingest_pb2.Position]:
    return [position("tag", f"large-{i}") for i in range(900)]


# ── counts once ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_report_counts_once_however_often_it_was_sent(client: Client) -> None:
    """The log with repetitions folds to the same state and alerts as the log without them."""
    start_ms = now_ms() - 600_000
    await client.bus.publish("log.0.case", log.case_entry(from_ms=start_ms - 1000).SerializeToString())
    await client.route("t1", "d1")
    once = [
        request(
            i + 1,
            position("d1", f"d-{i}", start_ms + 20_000 * i),
            position("t1", f"t-{i}", start_ms + 20_000 * i + 7_000, lat_deg=37.5 + 0.0009 * abs(12 - i)),
            event("t1", f"e-{i}", log_pb2.STRAP_CLOSED if i % 2 else log_pb2.STRAP_OPEN, time_ms=start_ms + 20_000 * i),
        )
        for i in range(25)
    ]
    choices = random.Random(1)
    for i, batch in enumerate(once):
        # Each batch is followed by itself and a few of those before it, as after a broken stream.
        await client.send(batch, batch, *choices.sample(once[max(0, i - 8) : i + 1], k=min(i, 2)))
        # The server drops a repeated event for ten minutes; later only the fold does.
        late = equipment_entry(parse_equipment(once[max(0, i - 4)].equipment[0]), 0)
        await client.bus.publish("log.0.report", late.SerializeToString())
    stored = await client.stored()
    assert all(stored[f"{kind}-{i}"] >= 2 for kind in "dte" for i in range(20))

    entries = [(message.sequence, message.stamp_ms, entry) for message, entry in await client.entries()]
    state, alerts = folded(entries)
    state_once, alerts_once = folded(without_repetitions(entries))
    rings_mm = [alert.ring_mm for alert in alerts_once if alert.kind.value == "RING_ENTERED"]
    assert rings_mm == [2_000_000, 1_000_000, 100_000]
    assert sum(alert.kind.value == "TAMPERED" for alert in alerts_once) > 0
    assert alerts == alerts_once
    state_once.heard_at_ms = state.heard_at_ms  # a resent report still counts as contact
    assert codec.encode(state) == codec.encode(state_once)


async def test_a_report_whose_clock_is_ahead_counts_once_too(client: Client) -> None:
    ahead = request(1, position("tag", "ahead", now_ms() + 60_000))
    for _ in range(3):
        await client.send(ahead)
        await asyncio.sleep(0.01)
    state, _ = folded((message.sequence, message.stamp_ms, entry) for message, entry in await client.entries())
    assert [fix.report_id for fix in state.tracks["tag"].fixes] == ["ahead"]


def without_repetitions(entries: Iterable[Stored]) -> Iterator[Stored]:
    """Yields the entries at the same times, with only the first copy of each report."""
    seen: set[tuple[str, str]] = set()
    for sequence, stamp_ms, entry in entries:
        if entry.HasField("positions"):
            batch, kept = entry.positions, log_pb2.PositionBatch(received_wall_us=entry.positions.received_wall_us)
            for i, key in enumerate(zip(batch.device_id, batch.report_id, strict=True)):
                if key not in seen:
                    seen.add(key)
                    kept.device_id.append(batch.device_id[i])
                    kept.report_id.append(batch.report_id[i])
                    kept.fix_time_ms.append(batch.fix_time_ms[i])
                    kept.lat_e7.append(batch.lat_e7[i])
                    kept.lon_e7.append(batch.lon_e7[i])
                    kept.accuracy_mm.append(batch.accuracy_mm[i])
            yield sequence, stamp_ms, log_pb2.LogEntry(positions=kept)
        elif entry.HasField("equipment") and (entry.equipment.device_id, entry.equipment.report_id) in seen:
            yield sequence, stamp_ms, log_pb2.LogEntry(tick=log_pb2.Tick())
        else:
            seen.add((entry.equipment.device_id, entry.equipment.report_id))
            yield sequence, stamp_ms, entry


async def test_pending_batches_are_answered_at_a_stop(mesh: IngestMesh) -> None:
    async with mesh.connected() as client:
        await client.route("tag")
        call = client.open()
        async with asyncio.timeout(WITHIN_S):
            first, *others = load("tag", "stop", batches=50)
            await call.write(first)
            answer: Any = await call.read()  # from here on the service has the stream
            assert answer.batch == 1
            for other in others:
                await call.write(other)
            stopping = asyncio.create_task(asyncio.to_thread(mesh.service.stop))
            for batch in range(2, 51):
                answer = await call.read()
                assert answer.batch == batch
            await call.done_writing()
            assert await stopping == 0
