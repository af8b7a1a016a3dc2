"""Converts offices and units between messages and domain objects. Parsing validates: the result is complete and in range.

Each parser raises InvalidField with the path inside the request, such as `units[3].shift_until`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar, assert_never

from services.common import fields, times
from services.common.geometry import Area, Circle, LatLon, Polygon
from services.common.rpc.errors import InvalidField
from services.dispatch.domain.roster import Office, Status, Unit, UnitReport
from tandem.common.v1 import geometry_pb2
from tandem.dispatch.v1 import roster_pb2

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


def offices(messages: Sequence[roster_pb2.Office]) -> list[Office]:
    """Parses offices. Each id may occur once."""
    return _records("offices", messages, office, id_name="office_id", id_of=lambda parsed: parsed.office_id)


def units(messages: Sequence[roster_pb2.Unit]) -> list[Unit]:
    """Parses units. Each id may occur once."""
    return _records("units", messages, unit, id_name="unit_id", id_of=lambda parsed: parsed.unit_id)


def office(msg: roster_pb2.Office) -> Office:
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


def unit(msg: roster_pb2.Unit) -> Unit:
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


def report(msg: roster_pb2.ReportUnitRequest, now_ms: int) -> tuple[str, UnitReport]:
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


def unit_message(unit: Unit) -> roster_pb2.Unit:
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
        unit=unit_message(unit), status=roster_pb2.UnitStatus.ValueType(report.status), incident_id=incident_id
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


def unit_payload(record: Unit) -> bytes:
    """Encodes a unit for the database."""
    return unit_message(record).SerializeToString(deterministic=True)


def stored_office(payload: bytes) -> Office:
    """Decodes an office from the database."""
    return office(roster_pb2.Office.FromString(payload))


def stored_unit(payload: bytes) -> Unit:
    """Decodes a unit from the database."""
    return unit(roster_pb2.Unit.FromString(payload))


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
