"""Mesh time, and the moments of it at which something has to be checked.

Mesh time equals wall time in live operation, and is faster for replays on loopback. However many things wait, there is one heap of
moments and one wake-up.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Hashable
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from typing import Generic, TypeVar


@dataclass(frozen=True, slots=True)
class MeshClock:
    """Mapping between wall time and mesh time. Deadlines and stamps use mesh time; latencies are measured in wall time."""

    rate: int = 1
    """Speed of mesh time relative to wall time. An integer, so that every host maps a stamp to the same millisecond."""
    anchor_ms: int = 0
    """Wall time at which wall time and mesh time are equal, milliseconds since 1970 UTC."""

    def to_mesh_ms(self, wall_ms: int) -> int:
        """Converts wall time to mesh time, both milliseconds since 1970 UTC."""
        return wall_ms if self.rate == 1 else self.anchor_ms + (wall_ms - self.anchor_ms) * self.rate

    def now_ms(self) -> int:
        """Current mesh time, milliseconds since 1970 UTC."""
        return self.to_mesh_ms(time.time_ns() // 1_000_000)

    def to_wall_us(self, mesh_ms: int) -> int:
        """Converts mesh time in milliseconds to wall time in microseconds, both since 1970 UTC."""
        return (
            mesh_ms * 1000 if self.rate == 1 else self.anchor_ms * 1000 + (mesh_ms - self.anchor_ms) * 1000 // self.rate
        )

    def wall_s(self, mesh_ms: int) -> float:
        """Converts a duration in mesh time, milliseconds, to its duration in wall time, seconds."""
        return mesh_ms / 1000 / self.rate


def wall_us() -> int:
    """Current wall time, microseconds since 1970 UTC. For latency measurements only."""
    return time.time_ns() // 1000


# ── moments ───────────────────────────────────────────────────────────────────────────────────────────────────────────

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
