"""Rows of awaited and absent legs by incident, written and deleted in the transactions of the events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import sqlalchemy as sa

from services.common.storage import statements
from services.common.storage.statements import Prepared
from services.dispatch.domain.leg import Leg
from services.dispatch.leg import translate
from services.dispatch.leg.rows import PeerRow
from services.dispatch.leg.tables import metadata
from tandem.dispatch.v1 import dispatch_pb2

awaited_legs = sa.Table(
    "awaited_legs",
    metadata,
    sa.Column("incident_id", sa.String, primary_key=True),
    sa.Column("leg", sa.String, primary_key=True),
    sa.Column("due_ms", sa.BigInteger, nullable=False, index=True),
    sa.Column("absent", sa.Boolean, nullable=False),
    sa.Index("awaited_legs_next", "absent", "due_ms"),
)
_peers, _incidents = metadata.tables["peer_assignments"], metadata.tables["incidents"]
BATCH = 500
"""Maximum number of due rows, and of absent ones, that a check reads."""
ABSENT_KEPT_MS = 3_600_000
"""Time after the end of an incident for which the return of an absent leg is still noted, milliseconds of mesh time. The incident's
record keeps the absence for good."""
_THIS = (awaited_legs.c.incident_id == sa.bindparam("incident")) & (awaited_legs.c.leg == sa.bindparam("which"))
_ABSENT = sa.select(awaited_legs.c.leg, sa.func.count()).where(awaited_legs.c.absent).group_by(awaited_legs.c.leg)
_IS_DUE = sa.not_(awaited_legs.c.absent) & (awaited_legs.c.due_ms <= sa.bindparam("now_ms", required=True))
_CAME_SQLITE = "DELETE FROM awaited_legs WHERE incident_id = ? AND leg = ? AND absent = 0"
_CAME_POSTGRESQL = """
    DELETE FROM awaited_legs USING unnest($1::VARCHAR[], $2::VARCHAR[]) AS came (incident_id, leg)
        WHERE awaited_legs.incident_id = came.incident_id AND awaited_legs.leg = came.leg AND NOT absent
"""


@dataclass(frozen=True, slots=True)
class _Page:
    """A page of awaited legs, and the assignments that other legs have shown in their incidents."""

    rows: Prepared
    peers: Prepared


def _page(which: sa.ColumnElement[bool], *order: sa.UnaryExpression[int] | sa.Column[Any]) -> _Page:
    chosen = (
        sa.select(*awaited_legs.c, _incidents.c.ended_ms)
        .select_from(awaited_legs.outerjoin(_incidents, _incidents.c.incident_id == awaited_legs.c.incident_id))
        .where(which)
        .order_by(*order)
        .limit(BATCH)
        .subquery()
    )
    return _Page(
        rows=Prepared(
            sa.select(chosen.c.incident_id, chosen.c.leg, chosen.c.due_ms, chosen.c.absent, chosen.c.ended_ms)
        ),
        peers=Prepared(
            sa.select(_peers.c.incident_id, _peers.c.payload).where(
                _peers.c.incident_id.in_(sa.select(chosen.c.incident_id))
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


class AwaitedRow(NamedTuple):
    """Another leg that has to show a step in an incident."""

    incident_id: str
    leg: Leg
    due_ms: int
    """Deadline for the first step, mesh time."""
    absent: bool = False
    """The desk was notified that the leg missed the deadline."""


@dataclass(frozen=True, slots=True)
class AbsenceChange:
    """A leg that became absent, or returned, in an incident."""

    incident_id: str
    leg: Leg
    returned: bool
    """True if the leg was absent and shows steps now; False if it showed no step by its deadline."""


def absent(connection: sa.Connection) -> dict[Leg, int]:
    """Number of incidents in which each leg is absent."""
    return {Leg(leg): count for leg, count in connection.execute(_ABSENT)}


def note_first_steps(connection: sa.Connection, rows: Sequence[PeerRow]) -> None:
    """Deletes the rows of legs that came in time, so that no deadline comes for them. `rows` are the first steps of assignments.

    The row of a leg that counts as absent stays, since `AbsenceCheck` finds its return by it.
    """
    shown = [(row.incident_id, _leg(row.payload)) for row in rows]
    if shown and statements.is_postgresql(connection):
        statements.execute(connection, _CAME_POSTGRESQL, list(zip(*shown, strict=True)))
    else:
        statements.execute_many(connection, _CAME_SQLITE, shown)


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
        due, missing = _read(connection, _DUE, {"now_ms": now_ms}), self._next_missing(connection, now_ms)
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
        found = _read(connection, _MISSING, values)
        self._last = found.rows[-1] if len(found.rows) == BATCH else None
        return found


class _Found(NamedTuple):
    """A page of awaited legs."""

    rows: list[_FoundRow]
    shown: set[tuple[str, Leg]]
    """Incident and leg of each assignment that another leg has shown in the incidents of the page."""


def _read(connection: sa.Connection, page: _Page, values: Mapping[str, object]) -> _Found:
    rows = [
        _FoundRow(incident_id, Leg(leg), due_ms, absent=bool(is_absent), ended_ms=ended_ms)
        for incident_id, leg, due_ms, is_absent, ended_ms in page.rows.fetch(connection, values)
    ]
    peers = page.peers.fetch(connection, values) if rows else ()
    return _Found(rows, {(incident_id, _leg(payload)) for incident_id, payload in peers})


def _leg(payload: bytes) -> Leg:
    """The leg of a serialised assignment."""
    return translate.leg_of(dispatch_pb2.Assignment.FromString(payload).leg)


def _keys(rows: Sequence[_FoundRow]) -> list[dict[str, str]]:
    return [{"incident": row.incident_id, "which": row.leg} for row in rows]
