"""Moments at which something has to be checked: one heap and one wake-up, however many things wait."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Hashable
from contextlib import suppress
from itertools import count
from typing import Generic, TypeVar

from services.common.clock import MeshClock

K = TypeVar("K", bound=Hashable)
SPARE = 64
"""Superseded entries that the heap may hold besides as many as there are keys."""
LONGEST_SLEEP_S = 1.0
"""Maximum time until the moments are compared with the clock, seconds, since the system clock may be set."""


class Moments(Generic[K]):
    """The next moment of each key, in mesh time, ms."""

    def __init__(self) -> None:
        self._at_ms: dict[K, int] = {}
        self._heap: list[tuple[int, int, K]] = []
        self._numbers = count()

    def __len__(self) -> int:
        return len(self._at_ms)

    def set(self, key: K, at_ms: int) -> None:
        """Sets the next moment of a key, in place of an earlier one."""
        if self._at_ms.get(key) == at_ms:
            return
        self._at_ms[key] = at_ms
        heapq.heappush(self._heap, (at_ms, next(self._numbers), key))
        if len(self._heap) > 2 * len(self._at_ms) + SPARE:
            self._heap = [(ms, next(self._numbers), each) for each, ms in self._at_ms.items()]
            heapq.heapify(self._heap)

    def drop(self, key: K) -> None:
        """Drops the moment of a key, if it has one."""
        self._at_ms.pop(key, None)

    def next_ms(self) -> int | None:
        """The earliest moment; None if no key has one."""
        while self._heap and self._at_ms.get(self._heap[0][2]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def pop_due(self, now_ms: int) -> list[K]:
        """The keys whose moment has come, earliest first. They have no moment afterwards."""
        due = []
        while (at_ms := self.next_ms()) is not None and at_ms <= now_ms:
            key = heapq.heappop(self._heap)[2]
            del self._at_ms[key]
            due.append(key)
        return due

    async def sleep(self, wake: asyncio.Event, clock: MeshClock, *, within_s: float | None = None) -> bool:
        """Waits until `wake` is set, or for a while: until the earliest moment, LONGEST_SLEEP_S if there is a moment, or `within_s`.

        Returns False without waiting if a moment has come or `within_s` isn't above 0. Doesn't clear `wake`.
        """
        waits_s = [] if within_s is None else [within_s]
        if (next_ms := self.next_ms()) is not None:
            waits_s += [LONGEST_SLEEP_S, clock.wall_s(next_ms - clock.now_ms())]
        wait_s = min(waits_s, default=None)
        if wait_s is not None and wait_s <= 0:
            return False
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await wake.wait()
        return True
