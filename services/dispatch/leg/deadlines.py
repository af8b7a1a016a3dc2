"""Watches a leg's deadlines, the absence of other legs, and the writes of other processes of the leg. Needs no NATS."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from sqlalchemy import Connection

from services.common.clock import MeshClock
from services.common.storage import statements
from services.dispatch.absence import store as absence
from services.dispatch.domain.leg import Leg
from services.dispatch.leg import chain
from services.dispatch.leg.store import Store
from services.dispatch.metrics import DispatchMetrics

STORE_AWAY_AFTER_S = 10.0
"""Time without an answer of the store after which the leg reports that it can't work, seconds."""
_LONGEST_SLEEP_S = 1.0
_PULSE = """
    SELECT last.id, (SELECT hash FROM events WHERE events.id = last.id),
        (SELECT min(due_ms) FROM assignments),
        (SELECT min(due_ms) FROM awaited_legs WHERE absent = {no}),
        EXISTS (SELECT 1 FROM awaited_legs WHERE absent = {yes}),
        (SELECT max(version) FROM roster)
    FROM (SELECT max(id) AS id FROM events) AS last
"""
"""One statement, which indices answer: the pulse is read each second, however many incidents are open."""
_PULSE_BY_DIALECT = {"postgresql": _PULSE.format(no="false", yes="true"), "sqlite": _PULSE.format(no=0, yes=1)}


@dataclass(frozen=True, slots=True)
class Pulse:
    """Facts of the store that may require the leg to act: the head of the chain, deadlines and absent legs."""

    head: chain.ChainHead
    due_ms: float
    """Next deadline of an assignment, mesh time; infinite if there is none."""
    leg_due_ms: float
    """Next deadline by which another leg must show a step, mesh time; infinite if there is none."""
    absent: Mapping[Leg, int]
    """Number of incidents in which each other leg is absent. A leg that is absent nowhere is left out."""
    roster_version: int
    """Version of the roster. Another process of this leg may have changed it."""


class DeadlineWatch:
    """Wakes a leg at its deadlines."""

    def __init__(self, leg: Leg, store: Store, clock: MeshClock, *, metrics: DispatchMetrics) -> None:
        self._leg, self._store, self._clock, self._metrics = leg, store, clock, metrics
        self._next_ms = math.inf
        self._sooner = asyncio.Event()
        self._due_ms = math.inf
        """Earliest unhandled deadline, mesh time. The value is kept while the store fails, so that `overdue_s` needs no store."""
        self._store_answered_s = time.monotonic()

    def due(self, due_ms: float, leg_due_ms: float) -> None:
        """Announces the earliest new deadlines, of an assignment and of an awaited leg, mesh time; infinite if there is none."""
        self._due_ms = min(self._due_ms, due_ms)
        sooner_ms = min(due_ms, leg_due_ms)
        if sooner_ms < self._next_ms:
            self._next_ms = sooner_ms
            self._sooner.set()

    async def run(
        self, read_pulse: Callable[[], Awaitable[Pulse]], act: Callable[[Pulse, int], Awaitable[None]]
    ) -> None:
        """Reads the pulse every second and at each deadline, and calls `act` with the pulse and the mesh time, until cancelled."""
        while True:
            self._next_ms = math.inf  # so that an offer committed from now on shortens the wait below
            pulse = await read_pulse()
            now_ms = self._clock.now_ms()
            await act(pulse, now_ms)
            next_ms = min(pulse.due_ms, pulse.leg_due_ms)
            if next_ms <= now_ms:
                continue  # `act` may have set new deadlines
            self._next_ms = min(self._next_ms, next_ms)
            await self._wait(time.monotonic() + _LONGEST_SLEEP_S)

    async def _wait(self, until_s: float) -> None:
        """Waits until the next deadline, but at most until `until_s` of the monotonic clock.

        The limit keeps a step of the system clock from delaying a deadline for long. A new deadline in the future only shortens the
        wait. It causes no read of the store, which is busy writing the offer.
        """
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
        """The present pulse of the store. Raises Unavailable."""

        def read(connection: Connection) -> Pulse:
            [found] = statements.fetch(connection, _PULSE_BY_DIALECT[connection.dialect.name])
            id_, hash_, due_ms, leg_due_ms, is_absent, roster_version = found
            return Pulse(
                head=chain.ChainHead(id_, hash_) if id_ else chain.ChainHead(),
                due_ms=_or_never(due_ms),
                leg_due_ms=_or_never(leg_due_ms),
                absent=absence.absent(connection) if is_absent else {},
                roster_version=roster_version or 0,
            )

        pulse = await self._store.transaction(read)
        self._store_answered_s, self._due_ms = time.monotonic(), pulse.due_ms
        for leg in Leg:
            self._metrics.leg_absent.labels(self._leg, leg).set(pulse.absent.get(leg, 0))
        return pulse

    def overdue_s(self) -> float:
        """Time since the earliest unhandled deadline passed, seconds of wall time. Needs no store."""
        if self._due_ms == math.inf:
            return 0.0
        return max(0.0, self._clock.wall_s(self._clock.now_ms() - int(self._due_ms)))

    def unable(self) -> str:
        """Reason why the leg can't work; empty if it can. A missing NATS is no reason: the leg still handles its own assignments."""
        silent_s = time.monotonic() - self._store_answered_s
        return f"the store hasn't answered for {silent_s:.0f} s" if silent_s > STORE_AWAY_AFTER_S else ""


def _or_never(due_ms: int | None) -> float:
    return math.inf if due_ms is None else due_ms
