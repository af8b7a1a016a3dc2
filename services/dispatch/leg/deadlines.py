"""Watches a leg's deadlines, the absence of other legs, and the writes of other processes of the leg. Needs no NATS.

A leg that shows no step in an incident by its deadline is absent. The rows of awaited and absent legs are written and deleted in the
transactions of the events.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy import Connection

from services.common.clock import MeshClock
from services.common.storage import statements
from services.common.storage.statements import Prepared
from services.dispatch.domain.leg import Leg
from services.dispatch.leg import chain
from services.dispatch.leg.store import Store
from services.dispatch.leg.tables import awaited_legs, incidents, peers
from services.dispatch.leg.translate import assigned_leg
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
        self._leg = leg
        self._store = store
        self._clock = clock
        self._metrics = metrics
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
                absent=_count_absent(connection) if is_absent else {},
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


ABSENCE_BATCH = 500
"""Maximum number of due rows, and of absent ones, that a check reads."""
ABSENT_KEPT_MS = 3_600_000
"""Time after the end of an incident for which the return of an absent leg is still noted, milliseconds of mesh time. The incident's
record keeps the absence for good."""
_THIS = (awaited_legs.c.incident_id == sa.bindparam("incident")) & (awaited_legs.c.leg == sa.bindparam("which"))
_ABSENT = sa.select(awaited_legs.c.leg, sa.func.count()).where(awaited_legs.c.absent).group_by(awaited_legs.c.leg)
_IS_DUE = sa.not_(awaited_legs.c.absent) & (awaited_legs.c.due_ms <= sa.bindparam("now_ms", required=True))


@dataclass(frozen=True, slots=True)
class _Page:
    """A page of awaited legs, and the assignments that other legs have shown in their incidents."""

    rows: Prepared
    peers: Prepared


def _page(which: sa.ColumnElement[bool], *order: sa.UnaryExpression[int] | sa.Column[Any]) -> _Page:
    chosen = (
        sa.select(*awaited_legs.c, incidents.c.ended_ms)
        .select_from(awaited_legs.outerjoin(incidents, incidents.c.incident_id == awaited_legs.c.incident_id))
        .where(which)
        .order_by(*order)
        .limit(ABSENCE_BATCH)
        .subquery()
    )
    return _Page(
        rows=Prepared(
            sa.select(chosen.c.incident_id, chosen.c.leg, chosen.c.due_ms, chosen.c.absent, chosen.c.ended_ms)
        ),
        peers=Prepared(
            sa.select(peers.c.incident_id, peers.c.payload).where(
                peers.c.incident_id.in_(sa.select(chosen.c.incident_id))
            )
        ),
    )


_DUE = _page(_IS_DUE, awaited_legs.c.due_ms)
_AFTER_MS: sa.BindParameter[int] = sa.bindparam("after_ms", required=True)
_AFTER_INCIDENT: sa.BindParameter[str] = sa.bindparam("after_incident", required=True)
_FOLLOWS = (awaited_legs.c.due_ms < _AFTER_MS) | (
    (awaited_legs.c.due_ms == _AFTER_MS)
    & (
        (awaited_legs.c.incident_id > _AFTER_INCIDENT)
        | (
            (awaited_legs.c.incident_id == _AFTER_INCIDENT)
            & (awaited_legs.c.leg > sa.bindparam("after_leg", required=True))
        )
    )
)
_MISSING = _page(
    awaited_legs.c.absent & _FOLLOWS, awaited_legs.c.due_ms.desc(), awaited_legs.c.incident_id, awaited_legs.c.leg
)


@dataclass(frozen=True, slots=True)
class AbsenceChange:
    """A leg that became absent, or returned, in an incident."""

    incident_id: str
    leg: Leg
    returned: bool
    """True if the leg was absent and shows steps now; False if it showed no step by its deadline."""


def _count_absent(connection: sa.Connection) -> dict[Leg, int]:
    """Number of incidents in which each leg is absent."""
    return {Leg(leg): count for leg, count in connection.execute(_ABSENT)}


class _FoundRow(NamedTuple):
    """A stored row of an awaited leg, with the end of its incident."""

    incident_id: str
    leg: Leg
    due_ms: int
    absent: bool
    ended_ms: int | None
    """End of the incident, mesh time; None while it is open."""

    def has_lapsed(self, now_ms: int) -> bool:
        """Whether the row is of no use any more: the leg is absent, and the incident has been over for ABSENT_KEPT_MS."""
        return self.absent and self.ended_ms is not None and self.ended_ms <= now_ms - ABSENT_KEPT_MS


class AbsenceCheck:
    """Finds legs that became absent or came back. A check reads one page of the absent ones, so that all are read in turn."""

    def __init__(self) -> None:
        self._last: _FoundRow | None = None
        """Last row of the page of absent legs that was read last; None if the next page is the first one."""

    def check(self, connection: sa.Connection, now_ms: int) -> list[AbsenceChange]:
        """Legs that became absent or came back. Each change is returned once. A leg that came in time is no longer awaited, and an
        absent one no more once its incident has been over for ABSENT_KEPT_MS."""
        due, missing = _read_page(connection, _DUE, {"now_ms": now_ms}), self._next_missing(connection, now_ms)
        rows, shown = [*due.rows, *missing.rows], due.shown | missing.shown
        present = [row for row in rows if (row.incident_id, row.leg) in shown]
        lacking = [row for row in rows if (row.incident_id, row.leg) not in shown]
        late = [row for row in lacking if not row.absent]
        if gone := [*present, *(row for row in lacking if row.has_lapsed(now_ms))]:
            connection.execute(sa.delete(awaited_legs).where(_THIS), _keys(gone))
        if late:
            connection.execute(sa.update(awaited_legs).where(_THIS).values(absent=True), _keys(late))
        returned = [AbsenceChange(row.incident_id, row.leg, True) for row in present if row.absent]
        return [*(AbsenceChange(row.incident_id, row.leg, False) for row in late), *returned]

    def _next_missing(self, connection: sa.Connection, now_ms: int) -> _Found:
        """The next page of absent legs, the newest first; the first page after the last one."""
        last = self._last
        after_ms, incident_id, leg = (last.due_ms, last.incident_id, last.leg) if last else (now_ms + 1, "", "")
        values = {"after_ms": after_ms, "after_incident": incident_id, "after_leg": leg}
        found = _read_page(connection, _MISSING, values)
        self._last = found.rows[-1] if len(found.rows) == ABSENCE_BATCH else None
        return found


class _Found(NamedTuple):
    """A page of awaited legs."""

    rows: list[_FoundRow]
    shown: set[tuple[str, Leg]]
    """Incident and leg of each assignment that another leg has shown in the incidents of the page."""


def _read_page(connection: sa.Connection, page: _Page, values: Mapping[str, object]) -> _Found:
    rows = [
        _FoundRow(incident_id, Leg(leg), due_ms, absent=bool(is_absent), ended_ms=ended_ms)
        for incident_id, leg, due_ms, is_absent, ended_ms in page.rows.fetch(connection, values)
    ]
    shown = page.peers.fetch(connection, values) if rows else ()
    return _Found(rows, {(incident_id, assigned_leg(payload)) for incident_id, payload in shown})


def _keys(rows: Sequence[_FoundRow]) -> list[dict[str, str]]:
    return [{"incident": row.incident_id, "which": row.leg} for row in rows]
