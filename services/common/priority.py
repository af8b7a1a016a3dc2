"""Who goes first within a process: response work at once, sharing a moment after it, records when it is quiet.

A process has one `PriorityGate`. Response work (report, alert, offer, warning, deadlines) never waits at it, it only marks its time:

    with gate.response():
        await offer(incident)

Sharing (positions and figures for desks) and record work (traces, evidence) ask for admission:

    async with gate.record():
        await write_page(rows)

Ask for each page or batch, not for a whole run, so that response work gets between them. Admission is in order of arrival within a
class. It is a delay with an upper bound, so nothing starves: work that has waited that long goes beside the response work. Don't ask
inside an admitted block, because the class may be full.

The order of log entries doesn't depend on the gate. It is for admission and for secondary outputs only.
"""

from __future__ import annotations

import asyncio
import enum
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass


class WorkClass(enum.Enum):
    """Class of a unit of work. The earlier goes first."""

    RESPONSE = "response"
    """Report, alert, offer, warning and deadlines. It is never delayed."""
    SHARING = "sharing"
    """Positions and figures for desks, and the console's pages."""
    RECORD = "record"
    """Traces, evidence and the ledger."""
    HISTORY = "history"
    """Pages of the history for callers (services/common/rpc/history.py). It waits as records do, but a caller waits for it."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Admission of a class of work."""

    quiet_s: float
    """Time without response work before work of this class is admitted, seconds. 0: as soon as none is pending."""
    max_delay_s: float
    """Maximum delay in favour of response work, seconds. Work that has waited so long is admitted as soon as a slot is free."""
    slots: int
    """Maximum number of admitted blocks at once."""


SHARING = Limits(quiet_s=0.03, max_delay_s=1.0, slots=16)
"""The other processes offer and warn within some 20 ms after this process's part of the response, on the same processors. A position
that is a second late is still useful to a unit."""
RECORD = Limits(quiet_s=0.05, max_delay_s=3.0, slots=4)
"""50 ms are longer than the steps of an incident are apart. After 3 s of uninterrupted response work a batch of records goes beside it,
so that a backlog stays bounded."""
HISTORY = Limits(quiet_s=0.05, max_delay_s=2.0, slots=4)
"""As for records, within the deadline of a unary call."""
PUT_OFF_S = 2.0
"""Wait from which work counts as put off in a process's readiness, seconds."""


@dataclass(eq=False, slots=True)
class _Waiter:
    """A caller that waits for admission."""

    admitted: asyncio.Future[None]
    since_s: float
    """Time of its arrival, by the event loop's clock, seconds."""


class _Admission:
    """Admission of one class, in order of arrival."""

    def __init__(self, gate: PriorityGate, limits: Limits) -> None:
        self.limits = limits
        self.waiting: deque[_Waiter] = deque()
        self.running = 0
        """Number of admitted blocks."""
        self.overdue = 0
        """Number of blocks admitted beside response work, because they had waited for the maximum delay."""
        self._gate = gate
        self._timer: asyncio.TimerHandle | None = None

    @asynccontextmanager
    async def admitted(self) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        if not self.waiting and self.running < self.limits.slots and self._gate.quiet_at_s(self) <= loop.time():
            self.running += 1
        else:
            await self._wait(loop)
        try:
            yield
        finally:
            self.running -= 1
            self._gate.readmit()

    async def _wait(self, loop: asyncio.AbstractEventLoop) -> None:
        waiter = _Waiter(loop.create_future(), loop.time())
        self.waiting.append(waiter)
        self.admit()
        try:
            await waiter.admitted
        except asyncio.CancelledError:
            if waiter in self.waiting:
                self.waiting.remove(waiter)
            elif not waiter.admitted.cancelled():  # it was admitted in the same turn of the event loop
                self.running -= 1
            self._gate.readmit()
            raise

    def admit(self) -> None:
        """Admits the waiting callers that may go now. Sets the timer for the next."""
        if self._timer:
            self._timer.cancel()
            self._timer = None
        while self.waiting and self.running < self.limits.slots:
            head, loop = self.waiting[0], asyncio.get_running_loop()
            if head.admitted.cancelled():
                self.waiting.popleft()
                continue
            overdue_at_s, quiet_at_s = head.since_s + self.limits.max_delay_s, self._gate.quiet_at_s(self)
            if min(overdue_at_s, quiet_at_s) > loop.time():
                self._timer = loop.call_at(min(overdue_at_s, quiet_at_s), self.admit)
                return
            if quiet_at_s > loop.time():
                self.overdue += 1
            self.waiting.popleft()
            self.running += 1
            head.admitted.set_result(None)


class PriorityGate:
    """Admission of sharing and record work beside the response work of a process. It belongs to one event loop."""

    def __init__(self, sharing: Limits = SHARING, record: Limits = RECORD, history: Limits = HISTORY) -> None:
        self._pending = 0
        """Number of blocks of response work that run."""
        self._idle_since_s = float("-inf")
        """Time at which the last response work ended, by the event loop's clock, seconds."""
        self._lanes = {
            WorkClass.SHARING: _Admission(self, sharing),
            WorkClass.RECORD: _Admission(self, record),
            WorkClass.HISTORY: _Admission(self, history),
        }

    @contextmanager
    def response(self) -> Iterator[None]:
        """Marks the block as response work. It never waits."""
        self._pending += 1
        try:
            yield
        finally:
            self._pending -= 1
            if not self._pending:
                self._idle_since_s = asyncio.get_running_loop().time()
                self.readmit()

    @asynccontextmanager
    async def sharing(self) -> AsyncIterator[None]:
        """Waits until no response work was pending for 30 ms, at most a second, and then for a slot."""
        async with self._lanes[WorkClass.SHARING].admitted():
            yield

    @asynccontextmanager
    async def record(self) -> AsyncIterator[None]:
        """Waits until no response work was pending for 50 ms and no sharing is, at most 3 s, and then for a slot."""
        async with self._lanes[WorkClass.RECORD].admitted():
            yield

    @asynccontextmanager
    async def history(self) -> AsyncIterator[None]:
        """Waits as `record`, but at most 2 s, and then for a slot. HistoryBudget calls it for each page."""
        async with self._lanes[WorkClass.HISTORY].admitted():
            yield

    def idle_s(self) -> float:
        """Time since the last response work, seconds. 0 while some is pending, infinite before the first."""
        return 0.0 if self._pending else asyncio.get_running_loop().time() - self._idle_since_s

    def waiting(self, work: WorkClass) -> int:
        """Number of callers that wait for admission in a class."""
        lane = self._lanes.get(work)
        return len(lane.waiting) if lane else 0

    def oldest_s(self, work: WorkClass) -> float:
        """Longest time that a caller has waited for admission in a class, seconds. 0 if none waits."""
        lane = self._lanes.get(work)
        return asyncio.get_running_loop().time() - lane.waiting[0].since_s if lane and lane.waiting else 0.0

    def overdue(self, work: WorkClass) -> int:
        """Number of blocks of a class that were admitted beside response work after the maximum delay, since the start."""
        lane = self._lanes.get(work)
        return lane.overdue if lane else 0

    def put_off(self) -> str:
        """Work that has waited for PUT_OFF_S or longer, for people. Empty if there is none."""
        late = [work for work in self._lanes if self.waiting(work) and self.oldest_s(work) >= PUT_OFF_S]
        return ", ".join(
            f"{self.waiting(work)} {work.value} tasks have waited for up to {self.oldest_s(work):.0f} s"
            for work in late
        )

    def quiet_at_s(self, lane: _Admission) -> float:
        """Time from which it is quiet enough for a class, by the event loop's clock, seconds. Infinite while other work is pending."""
        sharing = self._lanes[WorkClass.SHARING]
        if self._pending or (lane is not sharing and (sharing.waiting or sharing.running)):
            return float("inf")
        return self._idle_since_s + lane.limits.quiet_s

    def readmit(self) -> None:
        """Admits the callers that may go now, after response work or an admitted block has ended."""
        for lane in self._lanes.values():
            if lane.waiting:
                lane.admit()
