"""Which other legs are awaited in which incident, and which are absent: rows beside the events, written and taken out with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from services.dispatch.leg import translate
from services.dispatch.leg.tables import metadata
from tandem.dispatch.v1 import dispatch_pb2

awaited_legs = sa.Table(
    "awaited_legs",
    metadata,
    sa.Column("incident_id", sa.String, primary_key=True),
    sa.Column("leg", sa.String, primary_key=True),
    sa.Column("due_ms", sa.BigInteger, nullable=False, index=True),
    sa.Column("absent", sa.Boolean, nullable=False, index=True),
)
_peers = metadata.tables["peer_assignments"]
_AT_ONCE = 500
_THIS = (awaited_legs.c.incident_id == sa.bindparam("incident")) & (awaited_legs.c.leg == sa.bindparam("which"))
_NEXT_DUE = sa.select(sa.func.min(awaited_legs.c.due_ms)).where(sa.not_(awaited_legs.c.absent))
_ABSENT = sa.select(awaited_legs.c.leg, sa.func.count()).where(awaited_legs.c.absent).group_by(awaited_legs.c.leg)


@dataclass(frozen=True, slots=True)
class AwaitedRow:
    """A leg that has to show a step in an incident."""

    incident_id: str
    leg: str
    due_ms: int
    """Until when, mesh time."""
    absent: bool = False
    """It was told to the desk that it hasn't."""


@dataclass(frozen=True, slots=True)
class Looked:
    """What has become of a leg that was awaited."""

    incident_id: str
    leg: str
    seen: bool
    """It shows steps now, and was absent; else it has shown none in time."""


def next_due_ms(connection: sa.Connection) -> int | None:
    """When a leg is looked for next, mesh time."""
    found: int | None = connection.scalar(_NEXT_DUE)
    return found


def absent(connection: sa.Connection) -> dict[str, int]:
    """In how many incidents each leg is absent."""
    return {leg: count for leg, count in connection.execute(_ABSENT)}


def look(connection: sa.Connection, now_ms: int) -> list[Looked]:
    """Who has shown no step by now, and who shows some again; each is told once, and who came in time is awaited no more."""
    is_due = sa.not_(awaited_legs.c.absent) & (awaited_legs.c.due_ms <= now_ms)
    due = sa.select(awaited_legs).where(is_due).order_by(awaited_legs.c.due_ms).limit(_AT_ONCE)
    gone = sa.select(awaited_legs).where(awaited_legs.c.absent).order_by(awaited_legs.c.due_ms.desc()).limit(_AT_ONCE)
    rows = [AwaitedRow(**row._mapping) for query in (due, gone) for row in connection.execute(query)]
    if not rows:
        return []
    shown = _shown(connection, {row.incident_id for row in rows})
    here = [row for row in rows if (row.incident_id, row.leg) in shown]
    late = [row for row in rows if not row.absent and (row.incident_id, row.leg) not in shown]
    if here:
        connection.execute(sa.delete(awaited_legs).where(_THIS), _keys(here))
    if late:
        connection.execute(sa.update(awaited_legs).where(_THIS).values(absent=True), _keys(late))
    returned = [Looked(row.incident_id, row.leg, True) for row in here if row.absent]
    return [*(Looked(row.incident_id, row.leg, False) for row in late), *returned]


def _shown(connection: sa.Connection, incident_ids: set[str]) -> set[tuple[str, str]]:
    """(incident, leg) of the other legs' assignments that are known."""
    query = sa.select(_peers.c.incident_id, _peers.c.payload).where(_peers.c.incident_id.in_(incident_ids))
    return {
        (incident_id, translate.leg_name(dispatch_pb2.Assignment.FromString(payload).leg))
        for incident_id, payload in connection.execute(query)
    }


def _keys(rows: Sequence[AwaitedRow]) -> list[dict[str, str]]:
    return [{"incident": row.incident_id, "which": row.leg} for row in rows]
