"""Stores the positions that units report while they have an assignment, so that a review can show how the response moved.

A unit without an assignment isn't recorded: the roster keeps only its last report. Positions are kept as long as the copies of evidence
that they are shown with may be needed for a complaint or a trial, KEPT_MS.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import sqlalchemy as sa

from services.common.geometry import LatLon
from services.common.storage.db import insert_by_dialect
from services.dispatch.leg.tables import metadata

KEPT_MS = 3 * 365 * 86_400_000
"""Retention of units' positions, milliseconds: as long as the access ledgers (Tag Act Decree 14)."""
MAX_POINTS = 20_000
"""Maximum number of positions of an incident that are read: six units for a day, every half minute."""

_unit_positions = sa.Table(
    "unit_positions",
    metadata,
    sa.Column("incident_id", sa.String, primary_key=True),
    sa.Column("unit_id", sa.String, primary_key=True),
    sa.Column("at_ms", sa.BigInteger, primary_key=True, autoincrement=False, index=True),
    sa.Column("lat_deg", sa.Float, nullable=False),
    sa.Column("lon_deg", sa.Float, nullable=False),
)
_assignments = metadata.tables["assignments"]
_INSERT = insert_by_dialect(_unit_positions, lambda made: made.on_conflict_do_nothing())


class UnitPosition(NamedTuple):
    """A unit's position at a time, milliseconds of mesh time."""

    at_ms: int
    point: LatLon


def note(connection: sa.Connection, unit_id: str, positions: Sequence[UnitPosition]) -> None:
    """Stores positions of a unit for each incident in which it has an assignment; without one, nothing."""
    if not positions:
        return
    query = sa.select(_assignments.c.incident_id).distinct().where(_assignments.c.unit_id == unit_id)
    rows = [
        {
            "incident_id": incident_id,
            "unit_id": unit_id,
            "at_ms": position.at_ms,
            "lat_deg": position.point.lat_deg,
            "lon_deg": position.point.lon_deg,
        }
        for incident_id in connection.scalars(query)
        for position in positions
    ]
    if rows:
        connection.execute(_INSERT[connection.dialect.name], rows)
        newest_ms = max(position.at_ms for position in positions)
        connection.execute(sa.delete(_unit_positions).where(_unit_positions.c.at_ms < newest_ms - KEPT_MS))


def tracks(connection: sa.Connection, incident_id: str) -> Mapping[str, Sequence[UnitPosition]]:
    """Returns the positions of an incident's units by unit id, earliest first, at most MAX_POINTS."""
    query = sa.select(_unit_positions).where(_unit_positions.c.incident_id == incident_id)
    found: dict[str, list[UnitPosition]] = {}
    for row in connection.execute(query.order_by(_unit_positions.c.at_ms).limit(MAX_POINTS)):
        found.setdefault(row.unit_id, []).append(UnitPosition(row.at_ms, LatLon(row.lat_deg, row.lon_deg)))
    return found
