"""Offices and units of a leg, in its database and as messages, and the positions that units report while they have an assignment.

So a review can show how the response moved. A unit that has no assignment and isn't asked is not recorded: the roster keeps only its
last report. Positions are kept as long as the copies of evidence that they are shown with may be needed for a complaint or a trial,
UNIT_POSITIONS_KEPT_MS.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar, assert_never

import sqlalchemy as sa

from services.common import fields, times
from services.common.errors import Conflict, InvalidField, NotFound
from services.common.geometry import Area, Circle, LatLon, Polygon
from services.common.storage.db import insert_by_dialect
from services.dispatch.domain.roster import Office, RosterOutcome, Status, Unit, UnitReport, decide_put, decide_report
from services.dispatch.leg.tables import assignments, metadata
from tandem.common.v1 import geometry_pb2
from tandem.dispatch.v1 import dispatch_pb2, roster_pb2

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
Registered = TypeVar("Registered", Office, Unit)


def roster_version(connection: sa.Connection) -> int:
    """Returns the version of the roster, which grows with each change; 0 before the first change."""
    return connection.scalar(sa.select(_roster.c.version)) or 0


def read_offices(connection: sa.Connection, since: int = 0) -> dict[str, Office]:
    """Returns the offices that have changed since a version of the roster, by id."""
    query = sa.select(_offices.c.payload).where(_offices.c.changed > since).order_by(_offices.c.office_id)
    stored = (stored_office(payload) for (payload,) in connection.execute(query))
    return {office.office_id: office for office in stored}


def read_units(connection: sa.Connection, since: int = 0) -> dict[str, tuple[Unit, UnitReport]]:
    """Returns the units that have changed since a version of the roster, by id, each with its last report."""
    query = sa.select(_units).where(_units.c.changed > since).order_by(_units.c.unit_id)
    return {row.unit_id: (_stored_unit(row.payload), _report(row)) for row in connection.execute(query)}


def read_unit(connection: sa.Connection, unit_id: str) -> Unit | None:
    """Returns a unit of the roster, also one that was removed; None if the id is unknown."""
    payload = connection.scalar(sa.select(_units.c.payload).where(_units.c.unit_id == unit_id))
    return _stored_unit(payload) if payload else None


def read_report(connection: sa.Connection, unit_id: str) -> UnitReport:
    """Returns the last report of a unit of the roster."""
    [row] = connection.execute(sa.select(_units).where(_units.c.unit_id == unit_id)).all()
    return _report(row)


def change_distress(connection: sa.Connection, unit_id: str, since_ms: int | None) -> bool:
    """Stores since when an officer of a unit calls for help, mesh time; None ends the call. Returns whether anything changed."""
    known = _units.c.distress_ms.is_(None)
    changes = (_units.c.unit_id == unit_id) & (known if since_ms is not None else ~known)
    values = {"distress_ms": since_ms, "changed": _next_version(connection)}
    return bool(connection.execute(sa.update(_units).where(changes).values(values)).rowcount)


def read_engaged(connection: sa.Connection) -> dict[str, dict[str, str]]:
    """Returns the assignments that each unit has or is asked for: assignment id to incident id, by unit id."""
    query = sa.select(assignments.c.unit_ids, assignments.c.assignment_id, assignments.c.incident_id)
    engaged: dict[str, dict[str, str]] = {}
    for unit_ids, assignment_id, incident_id in connection.execute(query.where(assignments.c.unit_ids.is_not(None))):
        for unit_id in unit_ids.split():
            engaged.setdefault(unit_id, {})[assignment_id] = incident_id
    return engaged


def destinations(connection: sa.Connection, unit_ids: Sequence[str]) -> set[str]:
    """Returns the subject ids of the destinations to which units go or are asked to go."""
    found = read_engaged(connection)
    ids = {assignment_id for unit_id in unit_ids for assignment_id in found.get(unit_id, ())}
    query = sa.select(assignments.c.payload).where(assignments.c.assignment_id.in_(ids))
    return {dispatch_pb2.Assignment.FromString(payload).subject_id for (payload,) in connection.execute(query)}


def put_offices(connection: sa.Connection, given: Sequence[Office]) -> list[RosterOutcome]:
    """Stores offices. Raises Conflict, and stores none, if a version is already stored with other content."""
    outcomes, stored = _decide(read_offices(connection), given, lambda office: office.office_id)
    if stored:
        changed = _next_version(connection)
        rows = [
            {"office_id": office.office_id, "payload": office_payload(office), "changed": changed} for office in stored
        ]
        connection.execute(_UPSERT_OFFICE[connection.dialect.name], rows)
    return outcomes


def put_units(connection: sa.Connection, given: Sequence[Unit]) -> list[RosterOutcome]:
    """Stores units. Raises Conflict, and stores none, if a version is already stored with other content."""
    known = {unit_id: unit for unit_id, (unit, _) in read_units(connection).items()}
    outcomes, stored = _decide(known, given, lambda unit: unit.unit_id)
    if stored:
        new = {"status": int(Status.AVAILABLE), "changed": _next_version(connection)}
        rows = [{"unit_id": unit.unit_id, "payload": _unit_payload(unit), **new} for unit in stored]
        connection.execute(_UPSERT_UNIT[connection.dialect.name], rows)
    return outcomes


def report_unit(connection: sa.Connection, unit_id: str, given: UnitReport) -> RosterOutcome:
    """Stores the report of a unit about itself. Raises NotFound if the roster has no such unit."""
    row = connection.execute(sa.select(_units).where(_units.c.unit_id == unit_id)).first()
    if row is None or _stored_unit(row.payload).removed:
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
        _note_positions(connection, unit_id, [at for report in (before, merged) if (at := _position(report))])
    return outcome


def _decide(
    known: Mapping[str, Registered], given: Sequence[Registered], id_of: Callable[[Registered], str]
) -> tuple[list[RosterOutcome], list[Registered]]:
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
    next_version = roster_version(connection) + 1
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


UNIT_POSITIONS_KEPT_MS = (3 * 365 + 1) * 86_400_000
"""Retention of units' positions, milliseconds: 3 years, as long as the access ledgers (Tag Act Decree 14). At most one of 3 years has
a leap day."""
MAX_UNIT_POSITIONS = 20_000
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
_INSERT = insert_by_dialect(_unit_positions, lambda made: made.on_conflict_do_nothing())


class UnitPosition(NamedTuple):
    """A unit's position at a time, milliseconds of mesh time."""

    at_ms: int
    point: LatLon


def _note_positions(connection: sa.Connection, unit_id: str, positions: Sequence[UnitPosition]) -> None:
    """Stores positions of a unit for each incident in which it has an assignment or is asked; without one, nothing."""
    if not positions:
        return
    rows = [
        {
            "incident_id": incident_id,
            "unit_id": unit_id,
            "at_ms": position.at_ms,
            "lat_deg": position.point.lat_deg,
            "lon_deg": position.point.lon_deg,
        }
        for incident_id in set(read_engaged(connection).get(unit_id, {}).values())
        for position in positions
    ]
    if rows:
        connection.execute(_INSERT[connection.dialect.name], rows)
        newest_ms = max(position.at_ms for position in positions)
        connection.execute(
            sa.delete(_unit_positions).where(_unit_positions.c.at_ms < newest_ms - UNIT_POSITIONS_KEPT_MS)
        )


def read_tracks(connection: sa.Connection, incident_id: str) -> Mapping[str, Sequence[UnitPosition]]:
    """Returns the positions of an incident's units by unit id, earliest first, at most MAX_UNIT_POSITIONS."""
    query = sa.select(_unit_positions).where(_unit_positions.c.incident_id == incident_id)
    found: dict[str, list[UnitPosition]] = {}
    for row in connection.execute(query.order_by(_unit_positions.c.at_ms).limit(MAX_UNIT_POSITIONS)):
        found.setdefault(row.unit_id, []).append(UnitPosition(row.at_ms, LatLon(row.lat_deg, row.lon_deg)))
    return found


RECORDS_MAX = 1_000
SUBJECTS_MAX = 10_000
SKILLS_MAX = 20
VERTICES_MAX = 1_000
"""Maximum number of corners of an office's area, its outline and holes together."""
HOLES_MAX = 20
RADIUS_MAX_M = 200_000.0
CONTACT_MAX_CHARS = 200
AHEAD_MAX_MS = 120_000
"""Maximum time by which a report may be ahead of the mesh clock, milliseconds. Devices have the same limit."""
M = TypeVar("M")
R = TypeVar("R")


def parse_offices(messages: Sequence[roster_pb2.Office]) -> list[Office]:
    """Parses offices. Each id may occur once."""
    return _records("offices", messages, parse_office, id_name="office_id", id_of=lambda parsed: parsed.office_id)


def parse_units(messages: Sequence[roster_pb2.Unit]) -> list[Unit]:
    """Parses units. Each id may occur once."""
    return _records("units", messages, parse_unit, id_name="unit_id", id_of=lambda parsed: parsed.unit_id)


def parse_office(msg: roster_pb2.Office) -> Office:
    """Parses an office."""
    fields.at_most("subject_ids", msg.subject_ids, SUBJECTS_MAX)
    for n, subject_id in enumerate(msg.subject_ids):
        for part in subject_id.split("/", 1):  # the subject id of a place is `order/place`
            fields.required_id(f"subject_ids[{n}]", part)
    office_id = fields.required_id("office_id", msg.office_id)
    if msg.next_office_id:
        fields.required_id("next_office_id", msg.next_office_id)
        if msg.next_office_id == office_id:
            raise InvalidField("next_office_id", "must not be the office itself")
    return Office(
        office_id=office_id,
        version=_version(msg.version),
        area=_area(msg),
        subject_ids=frozenset(msg.subject_ids),
        next_office_id=msg.next_office_id,
        supervisor_desk=fields.required_id("supervisor_desk", msg.supervisor_desk),
        national_desk=fields.required_id("national_desk", msg.national_desk),
        removed=msg.removed,
    )


def parse_unit(msg: roster_pb2.Unit) -> Unit:
    """Parses a unit."""
    fields.at_most("skills", msg.skills, SKILLS_MAX)
    from_ms = fields.moment("shift_from", msg.shift_from, msg.HasField("shift_from"))
    until_ms = fields.moment("shift_until", msg.shift_until, msg.HasField("shift_until"))
    if until_ms <= from_ms:
        raise InvalidField("shift_until", "must be after shift_from")
    if len(msg.contact_key) > CONTACT_MAX_CHARS or not msg.contact_key.isprintable():
        raise InvalidField("contact_key", f"must be at most {CONTACT_MAX_CHARS} printable characters")
    return Unit(
        unit_id=fields.required_id("unit_id", msg.unit_id),
        version=_version(msg.version),
        office_id=fields.required_id("office_id", msg.office_id),
        unit_class=fields.required_id("unit_class", msg.unit_class),
        skills=frozenset(fields.required_id(f"skills[{n}]", skill) for n, skill in enumerate(msg.skills)),
        shift_from_ms=from_ms,
        shift_until_ms=until_ms,
        contact_key=msg.contact_key,
        removed=msg.removed,
    )


def parse_report(msg: roster_pb2.ReportUnitRequest, now_ms: int) -> tuple[str, UnitReport]:
    """Parses the report of a unit about itself. Returns the unit's id and the report."""
    unit_id = fields.required_id("unit_id", msg.unit_id)
    if int(msg.status) not in {int(status) for status in Status}:
        raise InvalidField("status", "is missing or unknown")
    at_ms = fields.moment("at", msg.at, msg.HasField("at"))
    if at_ms > now_ms + AHEAD_MAX_MS:
        raise InvalidField("at", f"is {(at_ms - now_ms) // 1000} s ahead of the mesh's clock")
    position = _point("position", msg.position) if msg.HasField("position") else None
    return unit_id, UnitReport(
        status=Status(msg.status), reported_ms=at_ms, position=position, position_ms=at_ms if position else None
    )


def office_message(office: Office) -> roster_pb2.Office:
    """Converts an office to a message."""
    message = roster_pb2.Office(
        office_id=office.office_id,
        version=office.version,
        subject_ids=sorted(office.subject_ids),
        next_office_id=office.next_office_id,
        supervisor_desk=office.supervisor_desk,
        national_desk=office.national_desk,
        removed=office.removed,
    )
    match office.area:
        case None:
            pass
        case Circle(lat_deg, lon_deg, radius_m):
            message.circle.CopyFrom(geometry_pb2.Circle(lat_deg=lat_deg, lon_deg=lon_deg, radius_m=radius_m))
        case Polygon(vertices, holes):
            message.polygon.vertices.extend(map(_point_message, vertices))
            for hole in holes:
                message.polygon.holes.add(vertices=map(_point_message, hole))
        case _:
            assert_never(office.area)
    return message


def _unit_message(unit: Unit) -> roster_pb2.Unit:
    """Converts a unit to a message."""
    return roster_pb2.Unit(
        unit_id=unit.unit_id,
        version=unit.version,
        office_id=unit.office_id,
        unit_class=unit.unit_class,
        skills=sorted(unit.skills),
        shift_from=times.to_timestamp(unit.shift_from_ms),
        shift_until=times.to_timestamp(unit.shift_until_ms),
        contact_key=unit.contact_key,
        removed=unit.removed,
    )


def listed_unit(unit: Unit, report: UnitReport, incident_id: str) -> roster_pb2.UnitReport:
    """Converts a unit and its last report to a message, without the unit's contact key."""
    message = roster_pb2.UnitReport(
        unit=_unit_message(unit), status=roster_pb2.UnitStatus.ValueType(report.status), incident_id=incident_id
    )
    message.unit.ClearField("contact_key")
    if report.position:
        message.position.CopyFrom(_point_message(report.position))
    if report.position_ms is not None:
        message.position_at.CopyFrom(times.to_timestamp(report.position_ms))
    if report.reported_ms is not None:
        message.reported_at.CopyFrom(times.to_timestamp(report.reported_ms))
    if report.distress_ms is not None:
        message.distress_at.CopyFrom(times.to_timestamp(report.distress_ms))
    return message


def office_payload(record: Office) -> bytes:
    """Encodes an office for the database."""
    return office_message(record).SerializeToString(deterministic=True)


def _unit_payload(record: Unit) -> bytes:
    """Encodes a unit for the database."""
    return _unit_message(record).SerializeToString(deterministic=True)


def stored_office(payload: bytes) -> Office:
    """Decodes an office from the database."""
    return parse_office(roster_pb2.Office.FromString(payload))


def _stored_unit(payload: bytes) -> Unit:
    """Decodes a unit from the database."""
    return parse_unit(roster_pb2.Unit.FromString(payload))


def _records(
    name: str, messages: Sequence[M], parse: Callable[[M], R], *, id_name: str, id_of: Callable[[R], str]
) -> list[R]:
    if not messages:
        raise InvalidField(name, "is missing")
    fields.at_most(name, messages, RECORDS_MAX)
    records: dict[str, R] = {}
    for n, message in enumerate(messages):
        try:
            record = parse(message)
        except InvalidField as error:
            raise error.under(f"{name}[{n}]") from None
        if id_of(record) in records:
            raise InvalidField(f"{name}[{n}].{id_name}", "is given twice")
        records[id_of(record)] = record
    return list(records.values())


def _area(msg: roster_pb2.Office) -> Area | None:
    if msg.HasField("circle"):
        return Circle(
            fields.number("circle.lat_deg", msg.circle.lat_deg, -90, greatest=90),
            fields.number("circle.lon_deg", msg.circle.lon_deg, -180, greatest=180),
            fields.number("circle.radius_m", msg.circle.radius_m, 1, greatest=RADIUS_MAX_M),
        )
    if msg.HasField("polygon"):
        return _polygon("polygon", msg.polygon)
    return None


def _polygon(field: str, msg: geometry_pb2.Polygon) -> Polygon:
    fields.at_most(f"{field}.holes", msg.holes, HOLES_MAX)
    if len(msg.vertices) + sum(len(hole.vertices) for hole in msg.holes) > VERTICES_MAX:
        raise InvalidField(field, f"must have at most {VERTICES_MAX} vertices, those of its holes included")
    return Polygon(
        _line(f"{field}.vertices", msg.vertices),
        tuple(_line(f"{field}.holes[{n}].vertices", hole.vertices) for n, hole in enumerate(msg.holes)),
    )


def _line(field: str, corners: Sequence[geometry_pb2.Point]) -> tuple[LatLon, ...]:
    if len(corners) < 3:
        raise InvalidField(field, "must have at least 3 vertices")
    return tuple(_point(f"{field}[{n}]", corner) for n, corner in enumerate(corners))


def _point(field: str, msg: geometry_pb2.Point) -> LatLon:
    return LatLon(
        fields.number(f"{field}.lat_deg", msg.lat_deg, -90, greatest=90),
        fields.number(f"{field}.lon_deg", msg.lon_deg, -180, greatest=180),
    )


def _point_message(point: LatLon) -> geometry_pb2.Point:
    return geometry_pb2.Point(lat_deg=point.lat_deg, lon_deg=point.lon_deg)


def _version(version: int) -> int:
    if not 1 <= version < 1 << 63:
        raise InvalidField("version", "must be at least 1")
    return version
