"""Open-loop load generator: sends reports at moments fixed beforehand, whether or not the mesh keeps up.

A client that awaits each answer stops measuring when the mesh is slow (coordinated omission). Here a latency counts from the moment
when a report was due, so it includes the time in which the report waited to be sent.
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

from services.client.calls import RETRY, may_succeed_later
from services.common.failure import CommandFailed
from services.common.rpc.server import Metadata
from tandem.ingest.v1 import ingest_pb2

LATE_S = 0.005
"""A request sent this long after it was due counts as late, seconds."""
ANSWERED_WITHIN_S = 60.0
"""Maximum wait for the last answers, seconds."""
PREPARED_PER_S = 60_000
"""Lower bound of the reports that can be prepared in a second."""
METHOD = f"/{ingest_pb2.DESCRIPTOR.services_by_name['IngestService'].full_name}/Report"


@dataclass(frozen=True, slots=True)
class DueRequest:
    """A serialized batch of reports, and when to send it."""

    due_s: float
    """Seconds after the start of the load."""
    reports: int
    message: bytes


@dataclass(slots=True)
class LoadOutcome:
    """Figures of a load, as measured by its senders."""

    started: float = 0.0
    """Time of the start, as time.monotonic gives it."""
    late: int = 0
    """Number of requests that were sent more than 5 ms after they were due."""
    latest_s: float = 0.0
    """The longest delay of a request after it was due, seconds."""
    broken: int = 0
    """Number of times a stream broke and its unanswered requests were resent."""
    accepted: int = 0
    """Number of reports that are durable in the log."""
    unanswered: int = 0
    """Number of reports without an answer ANSWERED_WITHIN_S after the last one was due."""
    last_answer: float = 0.0
    """Time of the last answer, as time.monotonic gives it."""
    answered_after_s: list[float] = field(default_factory=list)
    """Time from due to answer of each request, seconds, in the order of the answers."""
    answered_due_s: list[float] = field(default_factory=list)
    """Due time of each answered request, seconds after the start, in the order of the answers."""
    refused: Counter[str] = field(default_factory=Counter)
    """Refused reports, by field and reason."""

    @property
    def took_s(self) -> float:
        """Time from the start to the last answer, seconds."""
        return max(self.last_answer - self.started, 0.0)


def starts_at_ms(reports: int) -> int:
    """A wall time by which this many reports are surely prepared, milliseconds since 1970 UTC."""
    return time.time_ns() // 1_000_000 + 1000 + reports * 1000 // PREPARED_PER_S


def moments_s(drawn: random.Random, count: int, seconds: float) -> list[float]:
    """Random due times of this many requests, ascending, seconds after the start.

    They are independent of one another, like the reports of many uncoordinated senders, not evenly spaced.
    """
    return sorted(drawn.uniform(0, seconds) for _ in range(count))


async def send(
    opening: AbstractAsyncContextManager[grpc.aio.Channel],
    identity: Metadata,
    starts_at_ms: int,
    *,
    requests: Sequence[DueRequest],
    streams: int,
) -> LoadOutcome:
    """Sends each request when it is due, over this many streams. Returns when all are answered or have timed out.

    `starts_at_ms` is wall time. Requests unanswered when a stream broke are resent on the next. Raises CommandFailed if the start
    has passed already.
    """
    wait_s = starts_at_ms / 1000 - time.time()
    if wait_s < 0:
        raise CommandFailed(
            "this machine is too busy: the load wasn't prepared by its start; use fewer or larger batches"
        )
    sent = LoadOutcome(started=time.monotonic() + wait_s)
    stopped = threading.Event()
    # Exclude the prepared requests from garbage collection: pauses to scan them would count as latencies.
    gc.collect()
    gc.freeze()
    async with opening as channel:
        # Messages are serialized beforehand, so the request serializer is None.
        method: Any = channel.stream_stream(METHOD, None, ingest_pb2.ReportResponse.FromString)
        lanes = [
            _Lane(method=method, identity=identity, requests=requests[i::streams], sent=sent) for i in range(streams)
        ]
        releasing = asyncio.to_thread(
            _release, requests, sent.started, lanes, loop=asyncio.get_running_loop(), stopped=stopped
        )
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
    *,
    loop: asyncio.AbstractEventLoop,
    stopped: threading.Event,
) -> None:
    """Releases each request to its lane when it is due. Runs in a thread, as event loop timers are as coarse as 1 ms."""
    for i, request in enumerate(requests):
        if stopped.wait(max(started + request.due_s - time.monotonic(), 0)):
            return
        loop.call_soon_threadsafe(lanes[i % len(lanes)].release)


class _Lane:
    """The requests of one stream, and of its successors if the stream breaks. Answers come in the order of the requests."""

    def __init__(self, method: Any, identity: Metadata, requests: Sequence[DueRequest], *, sent: LoadOutcome) -> None:
        self._method = method
        self._identity = identity
        self._requests = requests
        self._sent = sent
        # Numbers of requests, counted from the first, that are due, written and answered.
        self._due = self._written = self._answered = 0
        self._more_due = asyncio.Event()

    @property
    def unanswered(self) -> int:
        """Number of reports without an answer."""
        return sum(request.reports for request in self._requests[self._answered :])

    def release(self) -> None:
        """Marks the next request as due."""
        self._due += 1
        self._more_due.set()

    async def run(self) -> None:
        """Sends all requests as they are released. Returns once every one is answered."""
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
                for task in both:
                    task.cancel()
                await asyncio.gather(*both, return_exceptions=True)
                call.cancel()
            if self._answered < len(self._requests):
                self._sent.broken += 1
                await asyncio.sleep(RETRY.first_s)

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
                continue  # simulated devices follow no commands
            sent = self._sent
            sent.last_answer = time.monotonic()
            # One answer may cover several batches.
            for request in self._requests[self._answered : self._answered + answer.batches]:
                sent.answered_after_s.append(sent.last_answer - sent.started - request.due_s)
                sent.answered_due_s.append(request.due_s)
            self._answered += answer.batches
            sent.accepted += len(answer.outcomes) - len(answer.refusals)
            sent.refused.update(f"{refusal.field.rpartition('.')[2]}: {refusal.reason}" for refusal in answer.refusals)
