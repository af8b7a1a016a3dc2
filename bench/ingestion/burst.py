"""Burst of bench.ingest: devices return together after an hour offline. Measures the time to store all, and the live reports' delay."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import grpc.aio

from bench.ingestion import reports
from bench.ingestion.endpoint import BURST_DEVICES, IngestEndpoint, burst_device_id
from bench.ingestion.reports import Reports
from bench.mesh import load
from bench.mesh.load import Shape
from services.client.load_generator import METHOD, LoadOutcome
from services.common import times
from services.common.failure import CommandFailed
from services.common.rpc import server
from services.common.rpc.server import Metadata
from tandem.ingest.v1 import ingest_pb2

REPORT_INTERVAL_S = 15
REPORTS_EACH = 3600 // REPORT_INTERVAL_S
"""Reports of a device in an hour."""
LIVE = Shape("live", reports_per_s=2_667, batch=1, streams=8)
"""40,000 devices that report every 15 s."""
LIVE_FOR_S = 45.0
BEGINS_AFTER_S = 3.0
STREAMS = 4
WINDOW = 4


@dataclass(frozen=True, slots=True)
class Burst:
    """Results of the burst."""

    drained_s: float
    stored: int
    """Number of durable reports of the hour offline."""
    live: LoadOutcome
    before_ms: list[float]
    """Latencies from due to answered, of live reports that were due before the burst."""
    during_ms: list[float]
    """Latencies from due to answered, of live reports that were due while the burst drained."""


async def run(ingest: IngestEndpoint, singles: Reports) -> Burst:
    """Sends live reports one by one, and the burst among them."""
    now_ms = time.time_ns() // 1_000_000
    hours = [
        hour_of(device, burst_device_id(device), reports.place(device), now_ms=now_ms)
        for device in range(BURST_DEVICES)
    ]
    plan = reports.plan(singles, LIVE, LIVE_FOR_S, seed=1)
    live = asyncio.create_task(load.send(ingest.address, ingest.identity, plan, streams=LIVE.streams))
    began_s = BEGINS_AFTER_S
    try:
        await asyncio.sleep(max(plan.starts_at_ms / 1000 + began_s - time.time(), 0))
        if live.done():
            live.result()  # raises the error that ended it early
        began = time.monotonic()
        stored = await send(ingest.address, ingest.identity, hours)
        drained_s = time.monotonic() - began
        print(f"burst: {stored} reports stored in {drained_s:.1f} s", file=sys.stderr)
        sent = await live
    finally:
        live.cancel()
    answers = list(zip(sent.answered_due_s, sent.answered_after_s, strict=True))
    return Burst(
        drained_s=drained_s,
        stored=stored,
        live=sent,
        before_ms=[1000 * after_s for due_s, after_s in answers if due_s < began_s],
        during_ms=[1000 * after_s for due_s, after_s in answers if began_s <= due_s < began_s + drained_s],
    )


async def send(address: str, identity: Metadata, hours: Sequence[bytes]) -> int:
    """Sends the requests over some streams; returns the number of stored reports. Raises CommandFailed if one is refused."""
    left = iter(hours)
    async with server.channel(address) as channel:
        method: Any = channel.stream_stream(METHOD, None, ingest_pb2.ReportResponse.FromString)
        return sum(await asyncio.gather(*(_stream(method(metadata=identity), left) for _ in range(STREAMS))))


async def _stream(call: Any, left: Iterator[bytes]) -> int:
    """Sends with WINDOW batches in flight, as a head-end with a backlog does; returns the number of stored reports."""
    stored = waiting = 0
    for message in left:
        await call.write(message)
        waiting += 1
        if waiting == WINDOW:
            stored += _accepted(await call.read())
            waiting -= 1
    await call.done_writing()
    while (answer := await call.read()) is not grpc.aio.EOF:
        stored += _accepted(answer)
    return stored


def _accepted(answer: ingest_pb2.ReportResponse) -> int:
    if answer.refusals:
        raise CommandFailed(
            f"a report of the burst was refused: {answer.refusals[0].field} {answer.refusals[0].reason}"
        )
    return len(answer.outcomes)


def hour_of(number: int, device_id: str, place: tuple[float, float], *, now_ms: int) -> bytes:
    """Request with all reports that a device kept in an hour offline, with this batch number."""
    lat_deg, lon_deg = place
    return ingest_pb2.ReportRequest(
        batch=number,
        backfill=True,
        positions=[
            ingest_pb2.Position(
                device_id=device_id,
                report_id=f"kept-{n:03d}",
                fix_time=times.to_timestamp(now_ms - (REPORTS_EACH - n) * REPORT_INTERVAL_S * 1000),
                lat_deg=lat_deg + n * 1e-5,
                lon_deg=lon_deg,
                accuracy_m=reports.ACCURACY_M,
            )
            for n in range(REPORTS_EACH)
        ],
    ).SerializeToString()
