"""Room for reports that are read and not yet durable, or not yet answered: beyond it nobody is listened to, which pushes back on the
senders."""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque

from services.common.rpc.errors import StoreFull

MAX_SENDER = 50_000
"""Reports of one sender: about a third of a second of what the log takes, and 15 MB."""
MAX_ALL = 400_000
"""Reports of all senders."""


class InFlightLimiter:
    """Counts reports by sender. One that fills its own share waits by itself; its neighbours don't notice."""

    def __init__(self, sender_most: int = MAX_SENDER, all_most: int = MAX_ALL) -> None:
        self._sender_most, self._all_most = sender_most, all_most
        self._taken: dict[str, int] = defaultdict(int)
        self._total = 0
        self._queues: dict[str, deque[tuple[int, asyncio.Future[None]]]] = {}

    @property
    def total(self) -> int:
        """Reports that have room now."""
        return self._total

    async def enter(self, sender: str, reports: int, patient: bool) -> None:
        """Takes room; waits for its turn (`patient`), or raises StoreFull."""
        if sender not in self._queues and self._fits(sender, reports):
            self._take(sender, reports)
            return
        if not patient:
            raise StoreFull("too many reports wait for the log", retry_after_s=1.0)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queues.setdefault(sender, deque()).append((reports, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave(sender, reports)
            raise

    def leave(self, sender: str, reports: int) -> None:
        """Gives room back, to those who wait for it."""
        self._total -= reports
        self._taken[sender] -= reports
        if not self._taken[sender]:
            del self._taken[sender]
        for waiting in list(self._queues):
            self._admit(waiting)

    def _admit(self, sender: str) -> None:
        queue = self._queues[sender]
        while queue:
            reports, turn = queue[0]
            if turn.done():  # given up
                queue.popleft()
            elif self._fits(sender, reports):
                queue.popleft()
                self._take(sender, reports)
                turn.set_result(None)
            else:
                break
        if queue:
            # Behind the others, for the next that leaves.
            self._queues[sender] = self._queues.pop(sender)
        else:
            del self._queues[sender]

    def _fits(self, sender: str, reports: int) -> bool:
        mine = self._taken.get(sender, 0)
        return (not mine or mine + reports <= self._sender_most) and self._total + reports <= self._all_most

    def _take(self, sender: str, reports: int) -> None:
        self._total += reports
        self._taken[sender] += reports
