"""Rows of awaited and absent legs by incident, written and deleted in the transactions of the events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

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
_peers = metadata.tables["peer_assignments"]
_BATCH = 500
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


def _page(which: sa.ColumnElement[bool], order: sa.UnaryExpression[int] | sa.Column[int]) -> _Page:
    chosen = sa.select(awaited_legs).where(which).order_by(order).limit(_BATCH).subquery()
    return _Page(
        rows=Prepared(sa.select(chosen.c.incident_id, chosen.c.leg, chosen.c.due_ms, chosen.c.absent)),
        peers=Prepared(
            sa.select(_peers.c.incident_id, _peers.c.payload).where(
                _peers.c.incident_id.in_(sa.select(chosen.c.incident_id))
            )
        ),
    )


_DUE = _page(_IS_DUE, awaited_legs.c.due_ms)
_MISSING = _page(awaited_legs.c.absent, awaited_legs.c.due_ms.desc())


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

    The row of a leg that counts as absent stays, since `check` finds its return by it.
    """
    shown = [(row.incident_id, _leg(row.payload)) for row in rows]
    if shown and statements.is_postgresql(connection):
        statements.execute(connection, _CAME_POSTGRESQL, list(zip(*shown, strict=True)))
    else:
        statements.execute_many(connection, _CAME_SQLITE, shown)


def check(connection: sa.Connection, now_ms: int) -> list[AbsenceChange]:
    """Finds legs that became absent or came back. Each change is returned once. A leg that came in time is no longer awaited."""
    rows: list[AwaitedRow] = []
    shown: set[tuple[str, Leg]] = set()
    for page, values in ((_DUE, {"now_ms": now_ms}), (_MISSING, {})):
        found = [
            AwaitedRow(incident_id=incident_id, leg=Leg(leg), due_ms=due_ms, absent=bool(is_absent))
            for incident_id, leg, due_ms, is_absent in page.rows.fetch(connection, values)
        ]
        if found:
            rows += found
            shown |= {(incident_id, _leg(payload)) for incident_id, payload in page.peers.fetch(connection, values)}
    if not rows:
        return []
    present = [row for row in rows if (row.incident_id, row.leg) in shown]
    late = [row for row in rows if not row.absent and (row.incident_id, row.leg) not in shown]
    if present:
        connection.execute(sa.delete(awaited_legs).where(_THIS), _keys(present))
    if late:
        connection.execute(sa.update(awaited_legs).where(_THIS).values(absent=True), _keys(late))
    returned = [AbsenceChange(row.incident_id, row.leg, True) for row in present if row.absent]
    return [*(AbsenceChange(row.incident_id, row.leg, False) for row in late), *returned]


def _leg(payload: bytes) -> Leg:
    """The leg of a serialised assignment."""
    return translate.leg_of(dispatch_pb2.Assignment.FromString(payload).leg)


def _keys(rows: Sequence[AwaitedRow]) -> list[dict[str, str]]:
    return [{"incident": row.incident_id, "which": row.leg} for row in rows]
