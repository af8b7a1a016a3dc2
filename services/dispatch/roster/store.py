"""Stores offices and units in the leg's database. Roster changes aren't events: the event of a choice holds the facts behind it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import sqlalchemy as sa

from services.common.geometry import LatLon
from services.common.rpc.errors import Conflict, NotFound
from services.common.storage.db import insert_by_dialect
from services.dispatch.domain.roster import Office, RosterOutcome, Status, Unit, UnitReport, decide_put, decide_report
from services.dispatch.leg.tables import metadata
from services.dispatch.roster import tracks, translate
from services.dispatch.roster.tracks import UnitPosition
from tandem.dispatch.v1 import dispatch_pb2

_roster = sa.Table(
    "roster",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("version", sa.BigInteger, nullable=False),
)
_offices = sa.Table(
    "offices",
    metadata,
    sa.Column("office_id", sa.String, primary_key=True),
    sa.Column("payload", sa.LargeBinary, nullable=False),
    sa.Column("changed", sa.BigInteger, nullable=False, index=True),
)
_units = sa.Table(
    "units",
    metadata,
    sa.Column("unit_id", sa.String, primary_key=True),
    sa.Column("payload", sa.LargeBinary, nullable=False),
    sa.Column("changed", sa.BigInteger, nullable=False, index=True),
    sa.Column("status", sa.Integer, nullable=False),
    sa.Column("reported_ms", sa.BigInteger),
    sa.Column("lat_deg", sa.Float),
    sa.Column("lon_deg", sa.Float),
    sa.Column("position_ms", sa.BigInteger),
    sa.Column("distress_ms", sa.BigInteger),
)
_assignments = metadata.tables["assignments"]


def _upsert(table: sa.Table, changing: Sequence[str]) -> Mapping[str, Any]:
    """Returns the upsert statement of a table by SQL dialect. `changing` names the columns that an upsert overwrites."""
    return insert_by_dialect(
        table,
        lambda made: made.on_conflict_do_update(
            index_elements=list(table.primary_key), set_={name: made.excluded[name] for name in changing}
        ),
    )


_UPSERT_VERSION = _upsert(_roster, ("version",))
_UPSERT_OFFICE = _upsert(_offices, ("payload", "changed"))
_UPSERT_UNIT = _upsert(_units, ("payload", "changed"))
R = TypeVar("R", Office, Unit)


def version(connection: sa.Connection) -> int:
    """Returns the version of the roster, which grows with each change; 0 before the first change."""
    return connection.scalar(sa.select(_roster.c.version)) or 0


def offices(connection: sa.Connection, since: int = 0) -> dict[str, Office]:
    """Returns the offices that have changed since a version of the roster, by id."""
    query = sa.select(_offices.c.payload).where(_offices.c.changed > since).order_by(_offices.c.office_id)
    stored = (translate.stored_office(payload) for (payload,) in connection.execute(query))
    return {office.office_id: office for office in stored}


def units(connection: sa.Connection, since: int = 0) -> dict[str, tuple[Unit, UnitReport]]:
    """Returns the units that have changed since a version of the roster, by id, each with its last report."""
    query = sa.select(_units).where(_units.c.changed > since).order_by(_units.c.unit_id)
    return {row.unit_id: (translate.stored_unit(row.payload), _report(row)) for row in connection.execute(query)}


def unit(connection: sa.Connection, unit_id: str) -> Unit | None:
    """Returns a unit of the roster, also one that was removed; None if the id is unknown."""
    payload = connection.scalar(sa.select(_units.c.payload).where(_units.c.unit_id == unit_id))
    return translate.stored_unit(payload) if payload else None


def report_of(connection: sa.Connection, unit_id: str) -> UnitReport:
    """Returns the last report of a unit of the roster."""
    [row] = connection.execute(sa.select(_units).where(_units.c.unit_id == unit_id)).all()
    return _report(row)


def change_distress(connection: sa.Connection, unit_id: str, since_ms: int | None) -> bool:
    """Stores since when an officer of a unit calls for help, mesh time; None ends the call. Returns whether anything changed."""
    known = _units.c.distress_ms.is_(None)
    changes = (_units.c.unit_id == unit_id) & (known if since_ms is not None else ~known)
    values = {"distress_ms": since_ms, "changed": _next_version(connection)}
    return bool(connection.execute(sa.update(_units).where(changes).values(values)).rowcount)


def engaged(connection: sa.Connection) -> dict[str, dict[str, str]]:
    """Returns the current assignments of each unit: assignment id to incident id, by unit id."""
    query = sa.select(_assignments.c.unit_id, _assignments.c.assignment_id, _assignments.c.incident_id)
    assignments: dict[str, dict[str, str]] = {}
    for unit_id, assignment_id, incident_id in connection.execute(query.where(_assignments.c.unit_id.is_not(None))):
        assignments.setdefault(unit_id, {})[assignment_id] = incident_id
    return assignments


def destinations(connection: sa.Connection, unit_ids: Sequence[str]) -> set[str]:
    """Returns the subject ids of the current destinations of units."""
    query = sa.select(_assignments.c.payload).where(_assignments.c.unit_id.in_(unit_ids))
    return {dispatch_pb2.Assignment.FromString(payload).subject_id for (payload,) in connection.execute(query)}


def put_offices(connection: sa.Connection, given: Sequence[Office]) -> list[RosterOutcome]:
    """Stores offices. Raises Conflict, and stores none, if a version is already stored with other content."""
    outcomes, stored = _decide(offices(connection), given, lambda office: office.office_id)
    if stored:
        changed = _next_version(connection)
        rows = [
            {"office_id": office.office_id, "payload": translate.office_payload(office), "changed": changed}
            for office in stored
        ]
        connection.execute(_UPSERT_OFFICE[connection.dialect.name], rows)
    return outcomes


def put_units(connection: sa.Connection, given: Sequence[Unit]) -> list[RosterOutcome]:
    """Stores units. Raises Conflict, and stores none, if a version is already stored with other content."""
    known = {unit_id: unit for unit_id, (unit, _) in units(connection).items()}
    outcomes, stored = _decide(known, given, lambda unit: unit.unit_id)
    if stored:
        new = {"status": int(Status.AVAILABLE), "changed": _next_version(connection)}
        rows = [{"unit_id": unit.unit_id, "payload": translate.unit_payload(unit), **new} for unit in stored]
        connection.execute(_UPSERT_UNIT[connection.dialect.name], rows)
    return outcomes


def report_unit(connection: sa.Connection, unit_id: str, given: UnitReport) -> RosterOutcome:
    """Stores the report of a unit about itself. Raises NotFound if the roster has no such unit."""
    row = connection.execute(sa.select(_units).where(_units.c.unit_id == unit_id)).first()
    if row is None or translate.stored_unit(row.payload).removed:
        raise NotFound(f"the roster has no unit {unit_id}")
    before = _report(row)
    outcome, merged = decide_report(before, given)
    if outcome is RosterOutcome.STORED:
        position = merged.position
        values = {
            "status": int(merged.status),
            "reported_ms": merged.reported_ms,
            "lat_deg": position.lat_deg if position else None,
            "lon_deg": position.lon_deg if position else None,
            "position_ms": merged.position_ms,
            "changed": _next_version(connection),
        }
        connection.execute(sa.update(_units).where(_units.c.unit_id == unit_id).values(values))
        # The last position before the assignment is noted too: it says where the unit set out.
        tracks.note(connection, unit_id, [at for report in (before, merged) if (at := _position(report))])
    return outcome


def _decide(
    known: Mapping[str, R], given: Sequence[R], id_of: Callable[[R], str]
) -> tuple[list[RosterOutcome], list[R]]:
    outcomes, stored = [], []
    for record in given:
        outcome = decide_put(known.get(id_of(record)), record)
        if outcome is None:
            raise Conflict(f"version {record.version} of {id_of(record)} is stored with other content")
        outcomes.append(outcome)
        if outcome is RosterOutcome.STORED:
            stored.append(record)
    return outcomes, stored


def _next_version(connection: sa.Connection) -> int:
    """Increments the version of the roster and returns it."""
    next_version = version(connection) + 1
    connection.execute(_UPSERT_VERSION[connection.dialect.name], {"id": 1, "version": next_version})
    return next_version


def _position(report: UnitReport) -> UnitPosition | None:
    if report.position is None or report.position_ms is None:
        return None
    return UnitPosition(report.position_ms, report.position)


def _report(row: sa.Row[*tuple[object, ...]]) -> UnitReport:
    position = None if row.lat_deg is None else LatLon(row.lat_deg, row.lon_deg)
    return UnitReport(
        status=Status(row.status),
        reported_ms=row.reported_ms,
        position=position,
        position_ms=row.position_ms,
        distress_ms=row.distress_ms,
    )
