"""When a leg has to act by itself: its deadlines, other legs that show nothing, what another process of it wrote. Needs no NATS."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from sqlalchemy import Connection

from services.common.clock import MeshClock
from services.common.messaging import flow
from services.dispatch import metrics
from services.dispatch.absence import store as store_legs
from services.dispatch.leg import chain
from services.dispatch.leg.store import Store

STORE_AWAY_AFTER_S = 10.0
"""How long the store may be silent before the leg says that it can't do its work."""
_LONGEST_SLEEP_S = 1.0


@dataclass(frozen=True, slots=True)
class Pulse:
    """What the store says that time or another process may ask for."""

    head: chain.ChainHead
    due_ms: float
    """The next deadline of an assignment, mesh time; infinite where there is none."""
    leg_due_ms: float
    """When another leg is looked for next, likewise."""
    absent: Mapping[str, int]
    """In how many incidents each leg is absent."""


class DeadlineWatch:
    """Wakes a leg in time."""

    def __init__(self, leg: str, store: Store, clock: MeshClock) -> None:
        self._leg, self._store, self._clock = leg, store, clock
        self._next_ms = math.inf
        self._sooner = asyncio.Event()
        self._due_ms = math.inf
        """The earliest deadline that isn't acted on; kept through failures, so that it can be asked without the store."""
        self._store_answered_s = time.monotonic()

    def due(self, due_ms: float, leg_due_ms: float) -> None:
        """A deadline of an assignment was set, and when another leg is looked for; mesh time, infinite where there is none. Either may
        be sooner than the rest."""
        self._due_ms = min(self._due_ms, due_ms)
        sooner_ms = min(due_ms, leg_due_ms)
        if sooner_ms < self._next_ms:
            self._next_ms = sooner_ms
            self._sooner.set()

    async def run(self, feel: Callable[[], Awaitable[Pulse]], act: Callable[[Pulse, int], Awaitable[None]]) -> None:
        """Feels the pulse once a second and whenever something is due, and has the leg act on it, for ever."""
        while True:
            self._next_ms = math.inf  # so that an offer committed from now on shortens the wait below
            pulse = await feel()
            now_ms = self._clock.now_ms()
            await act(pulse, now_ms)
            next_ms = min(pulse.due_ms, pulse.leg_due_ms)
            if next_ms <= now_ms:
                continue  # acting on it may have set others
            self._next_ms = min(self._next_ms, next_ms)
            await self._wait(time.monotonic() + _LONGEST_SLEEP_S)

    async def _wait(self, until_s: float) -> None:
        """Until something is due, and not beyond a moment of the monotonic clock: a jump of the system's clock delays nothing for
        long. What becomes due later than now costs no look at the store: an offer is on its way out while it is written down."""
        while True:
            self._sooner.clear()
            left_s = until_s - time.monotonic()
            if self._next_ms < math.inf:
                left_s = min(left_s, self._clock.wall_s(int(self._next_ms) - self._clock.now_ms()))
            if left_s <= 0:
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await self._sooner.wait()

    async def pulse(self) -> Pulse:
        """What the store says. Raises Unavailable."""

        def read(connection: Connection) -> Pulse:
            return Pulse(
                self._store.head_within(connection),
                _or_never(self._store.next_due_within(connection)),
                _or_never(store_legs.next_due_ms(connection)),
                store_legs.absent(connection),
            )

        pulse = await self._store.transaction(read)
        self._store_answered_s, self._due_ms = time.monotonic(), pulse.due_ms
        for leg in flow.LEGS:
            metrics.LEG_ABSENT.labels(self._leg, leg).set(pulse.absent.get(leg, 0))
        return pulse

    def overdue_s(self) -> float:
        """How long ago the earliest deadline passed that isn't acted on, seconds of wall time. Needs no store."""
        if self._due_ms == math.inf:
            return 0.0
        return max(0.0, self._clock.wall_s(self._clock.now_ms() - int(self._due_ms)))

    def unable(self) -> str:
        """Why the leg can't do its work; empty where it can. NATS isn't needed for what it has."""
        silent_s = time.monotonic() - self._store_answered_s
        return f"the store hasn't answered for {silent_s:.0f} s" if silent_s > STORE_AWAY_AFTER_S else ""


def _or_never(due_ms: int | None) -> float:
    return math.inf if due_ms is None else due_ms
