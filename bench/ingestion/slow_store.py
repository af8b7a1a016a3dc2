"""A store that takes less than is offered: what ingest keeps in memory meanwhile, and whether all that it acknowledged is there.

A relay between ingest and nats-server lets through only so many bytes a second. The producer's reports come due ten times as fast.
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

from bench.ingestion.endpoint import Door
from bench.ingestion.reports import Reports, device_number, report_id
from bench.mesh import machine
from services.cli.simulate.load_generator import METHOD
from services.cli.stack.mesh import Metadata
from services.common.messaging import flow, pull
from services.common.messaging.bus import Bus
from services.common.rpc import server as rpc
from tandem.common.v1 import log_pb2
from tandem.ingest.v1 import ingest_pb2

STORE_BYTES_PER_S = 1_000_000
"""With what stands around it a report takes about 43 bytes in the log, so these are 23,000 reports/s."""
DUE_PER_S = 250_000
STREAMS = 8
CHUNK = 8_192
RETRY_AFTER_S = 1.0
ANSWERED_WITHIN_S = 120.0
LATER = (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE)


@asynccontextmanager
async def relay(port: int) -> AsyncIterator[int]:
    """A port on which the server at `port` takes STORE_BYTES_PER_S from each connection; what it says itself isn't slowed."""
    carrying: set[asyncio.Task[None]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", port)
        for one in (_copy(server_reader, writer, None), _copy(reader, server_writer, STORE_BYTES_PER_S)):
            carrying.add(asyncio.create_task(one))

    # Little may wait on the way: what the sender has got rid of would no longer be in its memory.
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * CHUNK)
    listener.bind(("127.0.0.1", 0))
    server = await asyncio.start_server(accept, sock=listener, limit=CHUNK)
    try:
        yield listener.getsockname()[1]
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
        pass  # one side broke off: the other is told by the end of its connection
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


@dataclass(slots=True)
class Held:
    """What came of it."""

    took_s: float = 0.0
    """Until all that was sent was answered."""
    resident_mib: list[float] = field(default_factory=list)
    """Of ingest, each second."""
    acknowledged: set[int] = field(default_factory=set)
    """Batches, by their number."""
    refused: list[str] = field(default_factory=list)
    """Reports that were refused for good: there should be none."""
    pushed_back: float = 0.0
    """Part of the time that the writers waited until they could write, 0 to 1."""
    sent_again: int = 0
    """Streams that ended with RESOURCE_EXHAUSTED or UNAVAILABLE and were opened anew."""
    lost: int = 0
    """Reports that were acknowledged and aren't in the log."""


async def hold(door: Door, reports: Reports, seconds: float) -> Held:
    """Offers more than the store takes for so long, and looks for what was acknowledged."""
    held, began = Held(), time.monotonic()
    async with rpc.channel(door.address) as channel, asyncio.timeout(seconds + ANSWERED_WITHIN_S):
        sampling = asyncio.create_task(_sample(door.pids["ingest"], held))
        try:
            producers = [_Producer(channel, door.identity, reports, held, began + seconds) for _ in range(STREAMS)]
            await asyncio.gather(*(producer.run() for producer in producers))
        finally:
            sampling.cancel()
    held.took_s = time.monotonic() - began
    held.pushed_back = sum(producer.waited_s for producer in producers) / (STREAMS * seconds)
    held.lost = await lost(door.bus, held.acknowledged, reports.size)
    return held


async def _sample(pid: int, held: Held) -> None:
    while (mib := machine.resident_mib(pid)) is not None:
        held.resident_mib.append(mib)
        await asyncio.sleep(1)


class _Producer:
    """One stream, opened anew when it ends early, with what wasn't answered before what is new."""

    def __init__(
        self, channel: grpc.aio.Channel, identity: Metadata, reports: Reports, held: Held, ends: float
    ) -> None:
        self._method: Any = channel.stream_stream(METHOD, None, ingest_pb2.ReportResponse.FromString)
        self._identity, self._reports, self._held, self._ends = identity, reports, held, ends
        self._unanswered: dict[int, bytes] = {}
        self.waited_s = 0.0
        self._every_s = reports.size * STREAMS / DUE_PER_S

    async def run(self) -> None:
        """Until the time is over and all is answered."""
        while time.monotonic() < self._ends or self._unanswered:
            call = self._method(metadata=self._identity, wait_for_ready=True)
            writing = asyncio.create_task(self._write(call))
            try:
                async for answer in call:
                    self._answered(answer)
                await writing
            except grpc.aio.AioRpcError as error:
                if error.code() not in LATER:
                    raise
                self._held.sent_again += 1
                await asyncio.sleep(RETRY_AFTER_S)
            finally:
                writing.cancel()
                await asyncio.gather(writing, return_exceptions=True)

    async def _write(self, call: Any) -> None:
        for message in list(self._unanswered.values()):
            await self._write_one(call, message)
        due = time.monotonic()
        while time.monotonic() < self._ends:
            due += self._every_s
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
        self._held.acknowledged.add(answer.batch)
        self._held.refused += [f"{refusal.field}: {refusal.reason}" for refusal in answer.refusals]


async def lost(bus: Bus, acknowledged: set[int], size: int) -> int:
    """How many reports of these batches the log lacks."""
    stored = await _stored(bus, size)
    return sum(size - stored.get(report_id(number), 0).bit_count() for number in acknowledged)


async def _stored(bus: Bus, size: int) -> dict[str, int]:
    """By report id, a bit for each of a batch's devices of which the log holds that report, however often it does."""
    bounds = await bus.bounds_of(flow.log_stream(0))
    found: dict[str, int] = {}
    if bounds.first > bounds.last:
        return found
    async for messages in pull.read(bus, flow.log_stream(0), bounds.first):
        for message in messages:
            positions = log_pb2.LogEntry.FromString(message.data).positions
            for report, device_id in zip(positions.report_id, positions.device_id, strict=True):
                found[report] = found.get(report, 0) | 1 << device_number(device_id) % size
        if messages[-1].sequence >= bounds.last:
            break
    return found
