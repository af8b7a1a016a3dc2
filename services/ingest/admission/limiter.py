"""Limit on the reports in flight: reports that were read and aren't durable yet, or aren't answered yet.

At the limit ingest stops reading a stream, which pushes back on its sender, and refuses other calls with StoreFull.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque

from services.common.rpc.errors import StoreFull

MAX_SENDER = 50_000
"""Maximum number of reports in flight of one sender: about 0.3 s of the log's throughput, and 15 MB."""
MAX_ALL = 400_000
"""Maximum number of reports in flight of all senders."""


class InFlightLimiter:
    """Limits the reports in flight, by sender. A sender that fills its share waits alone; the others aren't delayed."""

    def __init__(self, max_sender: int = MAX_SENDER, max_all: int = MAX_ALL) -> None:
        self._max_sender, self._max_all = max_sender, max_all
        self._in_flight: dict[str, int] = defaultdict(int)
        self._total = 0
        self._queues: dict[str, deque[tuple[int, asyncio.Future[None]]]] = {}

    @property
    def total(self) -> int:
        """Number of reports in flight now."""
        return self._total

    async def enter(self, sender: str, reports: int, patient: bool) -> None:
        """Admits reports. If they don't fit, a `patient` call waits for its turn, and any other call raises StoreFull."""
        if sender not in self._queues and self._fits(sender, reports):
            self._count(sender, reports)
            return
        if not patient:
            raise StoreFull(
                "too many reports of this sender, or of all senders, wait to be stored: send this batch again later",
                retry_after_s=1.0,
            )
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queues.setdefault(sender, deque()).append((reports, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave(sender, reports)
            raise

    def leave(self, sender: str, reports: int) -> None:
        """Releases reports that are no longer in flight, and admits the waiting ones that fit."""
        self._total -= reports
        self._in_flight[sender] -= reports
        if not self._in_flight[sender]:
            del self._in_flight[sender]
        for waiting in list(self._queues):
            self._admit(waiting)

    def _admit(self, sender: str) -> None:
        queue = self._queues[sender]
        while queue:
            reports, turn = queue[0]
            if turn.done():  # its caller was cancelled
                queue.popleft()
            elif self._fits(sender, reports):
                queue.popleft()
                self._count(sender, reports)
                turn.set_result(None)
            else:
                break
        if queue:
            # Senders take turns: this one goes to the end of the line.
            self._queues[sender] = self._queues.pop(sender)
        else:
            del self._queues[sender]

    def _fits(self, sender: str, reports: int) -> bool:
        mine = self._in_flight.get(sender, 0)
        return (not mine or mine + reports <= self._max_sender) and self._total + reports <= self._max_all

    def _count(self, sender: str, reports: int) -> None:
        self._total += reports
        self._in_flight[sender] += reports
