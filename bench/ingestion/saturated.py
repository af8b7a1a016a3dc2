"""Closed-loop measurement of a system's maximum rate: a fixed number of requests is always in flight."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc.aio

from bench.ingestion.reports import Reports
from bench.mesh import machine
from bench.mesh.machine import Usage
from services.client.load_generator import METHOD
from services.common.failure import CommandFailed
from services.common.rpc.server import Metadata
from tandem.ingest.v1 import ingest_pb2

WARM_UP_S = 1.0


@dataclass(slots=True)
class Tally:
    """Shared state of the workers: their count of reports, and whether they must stop."""

    reports: int = 0
    """Number of reports acknowledged as durable."""
    over: bool = False


@dataclass(frozen=True, slots=True)
class Saturated:
    """Result of one turn."""

    reports_per_s: float
    seconds: float
    used: Usage


Work: TypeAlias = Coroutine[Any, Any, None]


async def measure(tally: Tally, work: Sequence[Work], seconds: float, *, pids: Mapping[str, int]) -> Saturated:
    """Runs the workers, which count into `tally`, for a warm-up and `seconds` more. The warm-up isn't part of the result."""

    async def watch() -> Saturated:
        await asyncio.sleep(WARM_UP_S)
        began = time.monotonic()
        before = machine.usage(pids)
        done_before = tally.reports
        await asyncio.sleep(seconds)
        took_s = time.monotonic() - began
        used = machine.usage(pids).since(before)
        done = tally.reports - done_before
        tally.over = True
        return Saturated(done / took_s, took_s, used)

    watching = asyncio.create_task(watch())
    await asyncio.gather(watching, *work)
    return watching.result()


async def stream(channel: grpc.aio.Channel, identity: Metadata, reports: Reports, *, window: int, tally: Tally) -> None:
    """Sends on one stream into ingest, with `window` requests in flight, until the tally is over."""
    method: Any = channel.stream_stream(METHOD, None, ingest_pb2.ReportResponse.FromString)
    call = method(metadata=identity)
    for _ in range(window):
        await call.write(reports.next())
    while not tally.over:
        answer = await call.read()
        count(answer, tally)
        for _ in range(answer.batches):
            await call.write(reports.next())
    await call.done_writing()
    while (answer := await call.read()) is not grpc.aio.EOF:
        count(answer, tally)


def count(answer: ingest_pb2.ReportResponse, tally: Tally) -> None:
    """Counts the accepted reports of an answer. Raises CommandFailed where a report was rejected."""
    if answer.refusals:
        refusal = answer.refusals[0]
        raise CommandFailed(f"{len(answer.refusals)} reports refused: {refusal.field} {refusal.reason}")
    tally.reports += len(answer.outcomes)
