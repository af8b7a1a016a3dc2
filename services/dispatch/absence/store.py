"""Rows of awaited and absent legs by incident, written and deleted in the transactions of the events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import sqlalchemy as sa

from services.dispatch.domain.leg import Leg
from services.dispatch.leg import translate
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


def check(connection: sa.Connection, now_ms: int) -> list[AbsenceChange]:
    """Finds legs that became absent or came back. Each change is returned once. A leg that came in time is no longer awaited."""
    is_due = sa.not_(awaited_legs.c.absent) & (awaited_legs.c.due_ms <= now_ms)
    due = sa.select(awaited_legs).where(is_due).order_by(awaited_legs.c.due_ms).limit(_BATCH)
    missing = sa.select(awaited_legs).where(awaited_legs.c.absent).order_by(awaited_legs.c.due_ms.desc()).limit(_BATCH)
    rows = [
        AwaitedRow(incident_id=row.incident_id, leg=Leg(row.leg), due_ms=row.due_ms, absent=row.absent)
        for query in (due, missing)
        for row in connection.execute(query)
    ]
    if not rows:
        return []
    shown = _shown(connection, {row.incident_id for row in rows})
    present = [row for row in rows if (row.incident_id, row.leg) in shown]
    late = [row for row in rows if not row.absent and (row.incident_id, row.leg) not in shown]
    if present:
        connection.execute(sa.delete(awaited_legs).where(_THIS), _keys(present))
    if late:
        connection.execute(sa.update(awaited_legs).where(_THIS).values(absent=True), _keys(late))
    returned = [AbsenceChange(row.incident_id, row.leg, True) for row in present if row.absent]
    return [*(AbsenceChange(row.incident_id, row.leg, False) for row in late), *returned]


def _shown(connection: sa.Connection, incident_ids: set[str]) -> set[tuple[str, Leg]]:
    """(incident id, leg) of each other leg that has shown an assignment in one of the incidents."""
    query = sa.select(_peers.c.incident_id, _peers.c.payload).where(_peers.c.incident_id.in_(incident_ids))
    return {
        (incident_id, translate.leg_of(dispatch_pb2.Assignment.FromString(payload).leg))
        for incident_id, payload in connection.execute(query)
    }


def _keys(rows: Sequence[AwaitedRow]) -> list[dict[str, str]]:
    return [{"incident": row.incident_id, "which": row.leg} for row in rows]
