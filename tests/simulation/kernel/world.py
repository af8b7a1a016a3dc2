"""The simulated world: one virtual clock, one source of randomness, and the events that are due.

Nothing in the world happens beside it: every process, disk, connection and person is a callback of `World`. Two worlds with the same
seed therefore do the same in the same order.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeAlias

from tests.simulation.kernel.running import leave

SECOND_NS = 1_000_000_000
START_NS = 1_783_296_000 * SECOND_NS
"""Wall time at which every world starts: 2026-07-06, when the two agencies' systems were linked."""

MAX_SIMULTANEOUS_EVENTS = 100_000
"""Maximum number of events at the same time. A world in which more of them follow one another without a pause would never end."""

Action = Callable[[], object]
Event: TypeAlias = list[Any]
"""When an action is due, wall time in nanoseconds, the event's number, and the action, or None in the place of a cancelled one. A list,
because it is an entry of the queue: a world has 150 events in each of its seconds."""


class World:
    """Virtual time and the queue of events."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        """Randomness of the order of events, delays and faults."""
        self.values = random.Random(f"values of {seed}")
        """Randomness that the simulated processes draw, for example ids and keys."""
        self.now_ns = START_NS
        """Wall time, nanoseconds since 1970 UTC."""
        self.events = 0
        """Number of events that have happened."""
        self.on_turn: Callable[[str], None] | None = None
        """Called with a line for each callback and each fact, to compare two runs of a seed. None, the default, costs no time."""
        self._queue: list[Event] = []
        self._number = 0
        self._is_over = False
        self.is_stuck = False
        """Whether the world has ended because its time didn't go on."""
        self._digest = blake2b(digest_size=16)

    @property
    def elapsed_s(self) -> float:
        """Time since the world's start, seconds."""
        return (self.now_ns - START_NS) / SECOND_NS

    def at_ns(self, when_ns: int, action: Action) -> Event:
        """Plans an action for a wall time, nanoseconds. A time in the past means now."""
        self._number = number = self._number + 1
        event = [when_ns if when_ns > self.now_ns else self.now_ns, number, action]
        heapq.heappush(self._queue, event)
        return event

    @staticmethod
    def cancel(event: Event) -> None:
        """Cancels an event, so that it doesn't happen."""
        event[2] = None

    def after(self, delay_s: float, action: Action) -> Event:
        """Plans an action after a delay in seconds."""
        return self.at_ns(self.now_ns + int(delay_s * SECOND_NS), action)

    def between(self, least: float, most: float) -> float:
        """A random number in a range."""
        return least + (most - least) * self.random.random()

    def run(self, until_s: float, *, stop: Callable[[], bool] | None = None) -> None:
        """Lets everything happen up to a time since the start, seconds, or until `end`, or until `stop` returns True after an event."""
        end_ns = START_NS + int(until_s * SECOND_NS)
        try:
            self._run(end_ns, stop)
        finally:
            leave()

    def _run(self, end_ns: int, stop: Callable[[], bool] | None) -> None:
        queue, simultaneous = self._queue, 0
        while queue and queue[0][0] <= end_ns:
            when_ns, _, action = heapq.heappop(queue)
            if action is None:
                continue
            simultaneous = simultaneous + 1 if when_ns == self.now_ns else 0
            if simultaneous > MAX_SIMULTANEOUS_EVENTS:
                self.is_stuck = True
                return
            self.now_ns = when_ns
            self.events += 1
            action()
            if self._is_over or (stop is not None and stop()):
                return
        self.now_ns = max(self.now_ns, end_ns)

    def end(self) -> None:
        """Lets nothing more happen."""
        self._is_over = True

    def trace_to(self, path: str) -> None:
        """Writes a line for each callback and each fact to a file, from now on. Does nothing if the path is empty."""
        if path:
            file = Path(path).open("w")  # noqa: SIM115  # open until the process ends
            self.on_turn = lambda line: print(line, file=file, flush=True)

    def note(self, text: str) -> None:
        """Adds a fact to the digest of this world. The time is part of the fact."""
        self._digest.update(f"{self.now_ns} {text}\n".encode())
        if self.on_turn:
            self.on_turn(f"{self.now_ns} fact {text}")

    @property
    def digest(self) -> str:
        """Hash of all facts so far: equal for two runs of the same seed."""
        return self._digest.hexdigest()
