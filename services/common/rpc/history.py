"""Budget of the calls that read the history, so that readers can't delay the response to incidents.

Methods with the option `reads_history` of the protos are read page by page: a unary call is a page, and so is each message of a
stream. All pages of a process share a part of a core, less while there is response work. The identity that used the least processor
time goes first, so a greedy reader delays itself. Beyond the bounds a call gets RESOURCE_EXHAUSTED with the time of a retry.
"""

from __future__ import annotations

import asyncio
import time
import types
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from services.common.errors import BudgetSpent
from services.common.priority import PriorityGate

MAX_CALLS = 64
"""Maximum number of unary calls that are read or wait, for all callers of a process together."""
MAX_CALLS_OF_IDENTITY = 8
"""Maximum number of unary calls that are read or wait for the same identity."""
PAGE_CONCURRENCY = 2
MAX_PAUSE_S = 1.0
"""Maximum pause after a page, seconds, so that a lone caller with expensive pages is slowed down, but not refused."""
MAX_WAIT_S = 2.0
"""Maximum wait of a call for its turn, seconds. It leaves time to answer within the deadline of unary calls, 5 s."""
BUSY_S = 1.0
"""Time after response work in which the smaller share applies, seconds."""
BUSY_SHARE, QUIET_SHARE = 0.1, 0.5
"""Part of a core for all pages of a process, with response work in the last second and without it."""
PAGE_OVERHEAD_S = 0.001
"""Processor time of a page outside its handler, seconds: gRPC, serialisation, and the database's thread."""

T = TypeVar("T")


@dataclass(eq=False, slots=True)
class _Reader:
    """An identity with pages that are read or wait, or that lately used more than its share."""

    used_s: float
    """Processor time of its pages, seconds. It starts at the level of the others: a newcomer doesn't go first for long."""
    pages: int = 0
    """Number of pages that are read or wait."""
    calls: int = 0
    """Number of unary calls among these pages."""
    waiting_calls: deque[asyncio.Future[None]] = field(default_factory=deque)
    waiting_streams: deque[asyncio.Future[None]] = field(default_factory=deque)

    @property
    def waiting(self) -> deque[asyncio.Future[None]]:
        """The pages of which one is next. Streams wait behind calls, so that a caller with many streams can list what it needs now."""
        return self.waiting_calls or self.waiting_streams


@dataclass(slots=True)
class _Cost:
    """Processor time of a page, seconds."""

    seconds: float = PAGE_OVERHEAD_S

    @types.coroutine
    def measured(self, work: Awaitable[T]) -> Generator[Any, Any, T]:
        """Runs `work` and adds the processor time of its steps on the event loop, without that of other tasks between them."""
        steps = work.__await__()
        step: Callable[[], Any] = partial(next, steps)
        while True:
            began_s = time.thread_time()
            try:
                awaited = step()
            except StopIteration as end:
                result: T = end.value
                return result
            finally:
                self.seconds += time.thread_time() - began_s
            try:
                yield awaited
            except BaseException as error:  # also a cancellation: `work` must see it
                step = partial(steps.throw, error)
            else:
                step = partial(next, steps)


class HistoryBudget:
    """Budget of a process for the pages of its history. It belongs to one event loop."""

    def __init__(self, gate: PriorityGate, quiet_share: float = QUIET_SHARE) -> None:
        """`quiet_share` is the part of a core for all pages while there is no response work. A process passes BUSY_SHARE if
        its response work is too short for the gate to notice."""
        self._gate, self._quiet_share = gate, quiet_share
        self._readers: dict[str, _Reader] = {}
        self._level_s = 0.0
        """Processor time that the last admitted reader had used, seconds: the level at which a new reader begins."""
        self._running = 0
        self._next_at_s = 0.0
        """Time from which the budget allows another page, by the event loop's clock, seconds."""
        self._timer: asyncio.TimerHandle | None = None

    @property
    def pages(self) -> int:
        """Number of pages that are read or wait."""
        return sum(reader.pages for reader in self._readers.values())

    async def read(self, who: str, page: Callable[[], Awaitable[T]]) -> T:
        """Reads a page for an identity in its turn and returns it. Raises BudgetSpent if too many calls wait, or after 2 s."""
        reader = self._readers.get(who)
        if reader and reader.calls >= MAX_CALLS_OF_IDENTITY:
            raise self._spent(f"at most {MAX_CALLS_OF_IDENTITY} reads of the history at once for each identity")
        if sum(each.calls for each in self._readers.values()) >= MAX_CALLS:
            raise self._spent(f"at most {MAX_CALLS} reads of the history at once")
        async with self._turn(who, is_call=True) as cost:
            return await cost.measured(page())

    async def read_in_stream(self, who: str, page: Callable[[], Awaitable[T]]) -> T:
        """Reads a page of a stream, which has begun, so the page waits for its turn as long as needed."""
        async with self._turn(who, is_call=False) as cost:
            return await cost.measured(page())

    @asynccontextmanager
    async def _turn(self, who: str, *, is_call: bool) -> AsyncIterator[_Cost]:
        reader = self._readers.setdefault(who, _Reader(self._level_s))
        reader.pages += 1
        reader.calls += is_call
        cost = _Cost()
        try:
            try:
                async with asyncio.timeout(MAX_WAIT_S if is_call else None):
                    await self._admitted(reader.waiting_calls if is_call else reader.waiting_streams)
            except TimeoutError:
                raise self._spent("the history's budget is spent: other callers go first") from None
            try:
                async with self._gate.history():
                    yield cost
            finally:
                self._running -= 1
                self._charge(reader, cost.seconds)
        finally:
            reader.pages -= 1
            reader.calls -= is_call
            self._forget_idle()
            self._admit()

    async def _admitted(self, waiting: deque[asyncio.Future[None]]) -> None:
        turn = asyncio.get_running_loop().create_future()
        waiting.append(turn)
        self._admit()
        try:
            await turn
        except asyncio.CancelledError:
            if turn in waiting:
                waiting.remove(turn)
            elif not turn.cancelled():  # it was admitted in the same turn of the event loop
                self._running -= 1
            raise

    def _admit(self) -> None:
        """Admits the pages whose turn it is. Sets the timer for the next."""
        loop = asyncio.get_running_loop()
        if self._timer:
            self._timer.cancel()
            self._timer = None
        while self._running < PAGE_CONCURRENCY and (waiting := [r for r in self._readers.values() if r.waiting]):
            if self._next_at_s > loop.time():
                self._timer = loop.call_at(self._next_at_s, self._admit)
                return
            reader = min(waiting, key=lambda waiting: waiting.used_s)
            turn = reader.waiting.popleft()
            if not turn.cancelled():
                self._level_s = max(self._level_s, reader.used_s)
                self._running += 1
                turn.set_result(None)

    def _charge(self, reader: _Reader, cost_s: float) -> None:
        reader.used_s += cost_s
        share = BUSY_SHARE if self._gate.idle_s() < BUSY_S else self._quiet_share
        self._next_at_s = max(self._next_at_s, asyncio.get_running_loop().time()) + min(cost_s / share, MAX_PAUSE_S)

    def _forget_idle(self) -> None:
        """Forgets readers without pages that used no more than a new reader is given at its start."""
        if not self.pages:
            self._readers.clear()
        for who in [
            who for who, reader in self._readers.items() if not reader.pages and reader.used_s <= self._level_s
        ]:
            del self._readers[who]

    def _spent(self, reason: str) -> BudgetSpent:
        behind_s = max(self._next_at_s - asyncio.get_running_loop().time(), 0.0)
        return BudgetSpent(reason, retry_after_s=1.0 + behind_s)
