"""Overload of bench.ingest: a store slower than the load. Measures the memory of ingest and the loss of acknowledged reports.

A relay between ingest and nats-server limits the bytes per second. The producers' reports come due ten times as fast.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import grpc.aio

from bench.ingestion.endpoint import IngestEndpoint
from bench.ingestion.reports import Reports, device_number, report_id
from bench.mesh import machine
from services.client.load_generator import METHOD
from services.common.messaging import flow, pull
from services.common.messaging.bus import Bus
from services.common.rpc import server as rpc
from services.common.rpc.server import Metadata
from tandem.common.v1 import log_pb2
from tandem.ingest.v1 import ingest_pb2

STORE_BYTES_PER_S = 1_000_000
"""Rate of the relay. A report takes about 43 bytes in the log, framing included, so this is 23,000 reports/s."""
DUE_PER_S = 250_000
STREAMS = 8
CHUNK = 8_192
RETRY_AFTER_S = 1.0
ANSWERED_WITHIN_S = 120.0
RETRIED_CODES = (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE)


@asynccontextmanager
async def relayed(url: str) -> AsyncIterator[str]:
    """Starts a relay to the local server of a URL; yields the URL by which the same user reaches the server through the relay.

    The relay limits each client to STORE_BYTES_PER_S, but not the server.
    """
    before_port, _, port = url.rpartition(":")
    carrying: set[asyncio.Task[None]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", port)
        for copying in (_copy(server_reader, writer, None), _copy(reader, server_writer, STORE_BYTES_PER_S)):
            carrying.add(asyncio.create_task(copying))

    # Small buffers, because buffered bytes would no longer count in the sender's memory.
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * CHUNK)
    listener.bind(("127.0.0.1", 0))
    server = await asyncio.start_server(accept, sock=listener, limit=CHUNK)
    try:
        yield f"{before_port}:{listener.getsockname()[1]}"
    finally:
        server.close()
        for task in carrying:
            task.cancel()
        await asyncio.gather(*carrying, return_exceptions=True)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, bytes_per_s: int | None) -> None:
    free_at = time.monotonic()
    try:
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()
            if bytes_per_s:
                free_at = max(free_at, time.monotonic() - 0.01) + len(data) / bytes_per_s
                await asyncio.sleep(free_at - time.monotonic())
    except OSError:
        pass  # one side disconnected; closing the other connection notifies the other side
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


@dataclass(slots=True)
class OverloadResult:
    """Result of a run with the slow store."""

    took_s: float = 0.0
    """Time until all sent reports were answered."""
    resident_mib: list[float] = field(default_factory=list)
    """Resident memory of ingest, each second."""
    acknowledged: set[int] = field(default_factory=set)
    """Numbers of the acknowledged batches."""
    refused: list[str] = field(default_factory=list)
    """Field and reason of each finally rejected report; should be empty."""
    pushed_back: float = 0.0
    """Fraction of the time (0 to 1) for which flow control blocked the writers."""
    reopened: int = 0
    """Number of streams that ended with RESOURCE_EXHAUSTED or UNAVAILABLE and were reopened."""
    lost: int = 0
    """Acknowledged reports that the log lacks."""


async def run(ingest: IngestEndpoint, reports: Reports, seconds: float) -> OverloadResult:
    """Sends more than the store accepts for `seconds`, then checks that the log holds all acknowledged reports."""
    result, began = OverloadResult(), time.monotonic()
    async with rpc.channel(ingest.address) as channel, asyncio.timeout(seconds + ANSWERED_WITHIN_S):
        sampling = asyncio.create_task(_sample(ingest.pids["ingest"], result))
        try:
            producers = [
                _Producer(
                    channel=channel, identity=ingest.identity, reports=reports, result=result, ends=began + seconds
                )
                for _ in range(STREAMS)
            ]
            await asyncio.gather(*(producer.run() for producer in producers))
        finally:
            sampling.cancel()
    result.took_s = time.monotonic() - began
    result.pushed_back = sum(producer.waited_s for producer in producers) / (STREAMS * seconds)
    result.lost = await lost(ingest.bus, result.acknowledged, reports.size)
    return result


async def _sample(pid: int, result: OverloadResult) -> None:
    while (mib := machine.resident_mib(pid)) is not None:
        result.resident_mib.append(mib)
        await asyncio.sleep(1)


class _Producer:
    """A producer on one stream. It reopens a stream that ends early, and resends unanswered requests before new ones."""

    def __init__(
        self, channel: grpc.aio.Channel, identity: Metadata, reports: Reports, *, result: OverloadResult, ends: float
    ) -> None:
        self._method: Any = channel.stream_stream(METHOD, None, ingest_pb2.ReportResponse.FromString)
        self._identity = identity
        self._reports = reports
        self._result = result
        self._ends = ends
        self._unanswered: dict[int, bytes] = {}
        self.waited_s = 0.0
        self._interval_s = reports.size * STREAMS / DUE_PER_S

    async def run(self) -> None:
        """Produces reports until the time is over and all requests are answered."""
        while time.monotonic() < self._ends or self._unanswered:
            call = self._method(metadata=self._identity, wait_for_ready=True)
            writing = asyncio.create_task(self._write(call))
            try:
                async for answer in call:
                    self._answered(answer)
                await writing
            except grpc.aio.AioRpcError as error:
                if error.code() not in RETRIED_CODES:
                    raise
                self._result.reopened += 1
                await asyncio.sleep(RETRY_AFTER_S)
            finally:
                writing.cancel()
                await asyncio.gather(writing, return_exceptions=True)

    async def _write(self, call: Any) -> None:
        for message in list(self._unanswered.values()):
            await self._write_one(call, message)
        due = time.monotonic()
        while time.monotonic() < self._ends:
            due += self._interval_s
            if due > time.monotonic():
                await asyncio.sleep(due - time.monotonic())
            number, message = self._reports.next_numbered()
            self._unanswered[number] = message
            await self._write_one(call, message)
        await call.done_writing()

    async def _write_one(self, call: Any, message: bytes) -> None:
        began = time.monotonic()
        await call.write(message)
        self.waited_s += time.monotonic() - began

    def _answered(self, answer: ingest_pb2.ReportResponse) -> None:
        del self._unanswered[answer.batch]
        self._result.acknowledged.add(answer.batch)
        self._result.refused += [f"{refusal.field}: {refusal.reason}" for refusal in answer.refusals]


async def lost(bus: Bus, acknowledged: set[int], size: int) -> int:
    """Number of reports of these batches that the log lacks."""
    stored = await _stored(bus, size)
    return sum(size - stored.get(report_id(number), 0).bit_count() for number in acknowledged)


async def _stored(bus: Bus, size: int) -> dict[str, int]:
    """Bitmask by report id: bit n is set where the log holds, at least once, the report of the n-th device of the batch."""
    bounds = await bus.bounds_of(flow.log_stream(0))
    devices_by_report: dict[str, int] = {}
    if bounds.first > bounds.last:
        return devices_by_report
    async for messages in pull.read(bus, flow.log_stream(0), bounds.first):
        for message in messages:
            positions = log_pb2.LogEntry.FromString(message.data).positions
            for report, device_id in zip(positions.report_id, positions.device_id, strict=True):
                devices_by_report[report] = devices_by_report.get(report, 0) | 1 << device_number(device_id) % size
        if messages[-1].sequence >= bounds.last:
            break
    return devices_by_report
