"""Reports sent at moments that were fixed beforehand, whether or not the mesh keeps up (an open loop).

Whoever waits for an answer before the next report stops measuring just when the mesh is slow. Here a latency counts from
the moment at which a report was due, so a report that had to wait for its turn is as late as it is to those who wait for it.
"""

from __future__ import annotations

import asyncio
import gc
import random
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any

import grpc.aio

from services.cli.calls import FIRST_DELAY_S, may_succeed_later
from services.cli.failure import CommandFailed
from services.cli.stack.mesh import Metadata
from tandem.ingest.v1 import ingest_pb2

LATE_S = 0.005
"""A request that was sent so long after it was due counts as late."""
ANSWERED_WITHIN_S = 60.0
"""How long the last answers are awaited."""
PREPARED_PER_S = 60_000
"""How many reports can be prepared in a second, at the least."""
METHOD = f"/{ingest_pb2.DESCRIPTOR.services_by_name['IngestService'].full_name}/Report"


@dataclass(frozen=True, slots=True)
class DueRequest:
    """A batch on the wire, and when it is due."""

    due_s: float
    """After the load's start."""
    reports: int
    message: bytes


@dataclass(slots=True)
class LoadOutcome:
    """What came of a load on the side of those who report."""

    started: float = 0.0
    """Monotonic time of the start, as time.monotonic gives it."""
    late: int = 0
    """Requests that were sent more than 5 ms after they were due."""
    latest_s: float = 0.0
    """The most that one was sent after it was due."""
    broken: int = 0
    """Times that a stream broke and what it hadn't answered was sent again."""
    accepted: int = 0
    """Reports that are durable in the log."""
    unanswered: int = 0
    """Reports that nobody answered for, however long that was waited."""
    last_answer: float = 0.0
    """Monotonic time of the last answer."""
    answered_after_s: list[float] = field(default_factory=list)
    """For each request, in the order of the answers: from the moment when it was due to its answer."""
    answered_due_s: list[float] = field(default_factory=list)
    """For each of these, when it was due."""
    refused: Counter[str] = field(default_factory=Counter)
    """Reports that weren't taken, by field and reason."""

    @property
    def took_s(self) -> float:
        """From the start to the last answer."""
        return max(self.last_answer - self.started, 0.0)


def starts_at_ms(reports: int) -> int:
    """A wall time at which so many reports are surely prepared, milliseconds since 1970 UTC."""
    return time.time_ns() // 1_000_000 + 1000 + reports * 1000 // PREPARED_PER_S


def moments_s(drawn: random.Random, count: int, seconds: float) -> list[float]:
    """When that many requests are due, in their order, seconds after the start.

    They come like those of many senders who don't know of each other: independent of one another, not in even steps.
    """
    return sorted(drawn.uniform(0, seconds) for _ in range(count))


async def send(
    opening: AbstractAsyncContextManager[grpc.aio.Channel],
    identity: Metadata,
    starts_at_ms: int,
    requests: Sequence[DueRequest],
    streams: int,
) -> LoadOutcome:
    """Sends each request when it is due, over so many streams, and returns when all are answered or that took too long.

    `starts_at_ms` is wall time. What wasn't answered when a stream broke is sent again on the next. Raises CommandFailed where
    the start is over already.
    """
    wait_s = starts_at_ms / 1000 - time.time()
    if wait_s < 0:
        raise CommandFailed("this machine is too busy: the load wasn't prepared when it was due to start")
    sent = LoadOutcome(started=time.monotonic() + wait_s)
    stopped = threading.Event()
    # What was prepared stays: pauses in which this process looks through it for garbage would count as latencies.
    gc.collect()
    gc.freeze()
    async with opening as channel:
        # Messages are made beforehand; while the load runs they only pass through.
        method: Any = channel.stream_stream(METHOD, None, ingest_pb2.ReportResponse.FromString)
        lanes = [_Lane(method, identity, requests[i::streams], sent) for i in range(streams)]
        releasing = asyncio.to_thread(_release, requests, sent.started, lanes, asyncio.get_running_loop(), stopped)
        try:
            async with asyncio.timeout(wait_s + requests[-1].due_s + ANSWERED_WITHIN_S):
                await asyncio.gather(releasing, *(lane.run() for lane in lanes))
        except TimeoutError:
            sent.unanswered = sum(lane.unanswered for lane in lanes)
        finally:
            stopped.set()
            gc.unfreeze()
    return sent


def _release(
    requests: Sequence[DueRequest],
    started: float,
    lanes: Sequence[_Lane],
    loop: asyncio.AbstractEventLoop,
    stopped: threading.Event,
) -> None:
    """Tells each request's lane when it is due. In a thread: the event loop's timers are as coarse as a millisecond."""
    for i, request in enumerate(requests):
        if stopped.wait(max(started + request.due_s - time.monotonic(), 0)):
            return
        loop.call_soon_threadsafe(lanes[i % len(lanes)].release)


class _Lane:
    """The requests of one stream, and of the streams after it where it breaks. They are answered in their order."""

    def __init__(self, method: Any, identity: Metadata, requests: Sequence[DueRequest], sent: LoadOutcome) -> None:
        self._method, self._identity, self._requests, self._sent = method, identity, requests, sent
        # How many of the requests, from the first on, are that far.
        self._due = self._written = self._answered = 0
        self._more_due = asyncio.Event()

    @property
    def unanswered(self) -> int:
        """Reports that aren't answered."""
        return sum(request.reports for request in self._requests[self._answered :])

    def release(self) -> None:
        """One more request is due."""
        self._due += 1
        self._more_due.set()

    async def run(self) -> None:
        """Returns once everything is answered."""
        while self._answered < len(self._requests):
            call = self._method(metadata=self._identity)
            both = asyncio.create_task(self._write(call)), asyncio.create_task(self._read(call))
            try:
                await asyncio.gather(*both)
            except asyncio.InvalidStateError:
                pass  # the stream ended before everything was written
            except grpc.aio.AioRpcError as error:
                if not may_succeed_later(error):
                    raise
            finally:
                for one in both:
                    one.cancel()
                await asyncio.gather(*both, return_exceptions=True)
                call.cancel()
            if self._answered < len(self._requests):
                self._sent.broken += 1
                await asyncio.sleep(FIRST_DELAY_S)

    async def _write(self, call: Any) -> None:
        for i in range(self._answered, len(self._requests)):
            while i >= self._due:
                self._more_due.clear()
                await self._more_due.wait()
            request = self._requests[i]
            if i == self._written:
                late_s = time.monotonic() - self._sent.started - request.due_s
                self._sent.late += late_s > LATE_S
                self._sent.latest_s = max(self._sent.latest_s, late_s)
                self._written += 1
            await call.write(request.message)
        await call.done_writing()

    async def _read(self, call: Any) -> None:
        async for answer in call:
            if answer.commands:
                continue  # nobody carries these devices
            sent = self._sent
            sent.last_answer = time.monotonic()
            # Several may be answered at once.
            for request in self._requests[self._answered : self._answered + answer.batches]:
                sent.answered_after_s.append(sent.last_answer - sent.started - request.due_s)
                sent.answered_due_s.append(request.due_s)
            self._answered += answer.batches
            sent.accepted += len(answer.outcomes) - len(answer.refusals)
            sent.refused.update(f"{refusal.field.rpartition('.')[2]}: {refusal.reason}" for refusal in answer.refusals)
