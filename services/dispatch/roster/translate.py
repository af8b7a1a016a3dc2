"""Offices and units between messages and domain. Parsing is validation: what comes out is whole and in range.

Each parser raises InvalidField with the path inside the request, such as `units[3].shift_until`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from services.common import fields, times
from services.common.rpc.errors import InvalidField
from services.dispatch.domain.areas import Area, JurisdictionCircle, JurisdictionPolygon, LatLon
from services.dispatch.domain.roster import Office, Status, Unit, UnitReport
from tandem.common.v1 import geometry_pb2
from tandem.dispatch.v1 import roster_pb2

RECORDS_MAX = 1_000
SUBJECTS_MAX = 10_000
SKILLS_MAX = 20
VERTICES_MAX = 1_000
RADIUS_MAX_M = 200_000.0
CONTACT_MAX_CHARS = 200
AHEAD_MAX_MS = 120_000
"""A report's time may be that much ahead of the mesh's clock, as of those of devices."""
M = TypeVar("M")
R = TypeVar("R")


def offices(messages: Sequence[roster_pb2.Office]) -> list[Office]:
    """Offices, each once."""
    return _records("offices", messages, office, "office_id", lambda one: one.office_id)


def units(messages: Sequence[roster_pb2.Unit]) -> list[Unit]:
    """Units, each once."""
    return _records("units", messages, unit, "unit_id", lambda one: one.unit_id)


def office(msg: roster_pb2.Office) -> Office:
    """An office."""
    fields.at_most("subject_ids", msg.subject_ids, SUBJECTS_MAX)
    for n, subject_id in enumerate(msg.subject_ids):
        for part in subject_id.split("/", 1):  # a place is `order/place`
            fields.required_id(f"subject_ids[{n}]", part)
    office_id = fields.required_id("office_id", msg.office_id)
    if msg.next_office_id:
        fields.required_id("next_office_id", msg.next_office_id)
        if msg.next_office_id == office_id:
            raise InvalidField("next_office_id", "is the office itself")
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
    """A unit."""
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
    """What a unit says of itself: its id and the rest."""
    unit_id = fields.required_id("unit_id", msg.unit_id)
    if int(msg.status) not in {int(status) for status in Status}:
        raise InvalidField("status", "is missing or unknown")
    at_ms = fields.moment("at", msg.at, msg.HasField("at"))
    if at_ms > now_ms + AHEAD_MAX_MS:
        raise InvalidField("at", f"is {(at_ms - now_ms) // 1000} s ahead of the mesh's clock")
    position = _point("position", msg.position) if msg.HasField("position") else None
    return unit_id, UnitReport(Status(msg.status), at_ms, position, at_ms if position else None)


def office_message(one: Office) -> roster_pb2.Office:
    """The message of an office."""
    message = roster_pb2.Office(
        office_id=one.office_id,
        version=one.version,
        subject_ids=sorted(one.subject_ids),
        next_office_id=one.next_office_id,
        supervisor_desk=one.supervisor_desk,
        national_desk=one.national_desk,
        removed=one.removed,
    )
    if isinstance(one.area, JurisdictionCircle):
        centre = one.area.centre
        message.circle.CopyFrom(
            geometry_pb2.Circle(lat_deg=centre.lat_deg, lon_deg=centre.lon_deg, radius_m=one.area.radius_m)
        )
    elif one.area:
        message.polygon.vertices.extend(_point_message(vertex) for vertex in one.area.vertices)
    return message


def unit_message(one: Unit) -> roster_pb2.Unit:
    """The message of a unit."""
    return roster_pb2.Unit(
        unit_id=one.unit_id,
        version=one.version,
        office_id=one.office_id,
        unit_class=one.unit_class,
        skills=sorted(one.skills),
        shift_from=times.to_timestamp(one.shift_from_ms),
        shift_until=times.to_timestamp(one.shift_until_ms),
        contact_key=one.contact_key,
        removed=one.removed,
    )


def listed_unit(one: Unit, said: UnitReport, incident_id: str) -> roster_pb2.UnitReport:
    """The message of a unit with what it said last."""
    message = roster_pb2.UnitReport(
        unit=unit_message(one), status=roster_pb2.UnitStatus.ValueType(said.status), incident_id=incident_id
    )
    message.unit.ClearField("contact_key")
    if said.position:
        message.position.CopyFrom(_point_message(said.position))
    if said.position_ms is not None:
        message.position_at.CopyFrom(times.to_timestamp(said.position_ms))
    if said.reported_ms is not None:
        message.reported_at.CopyFrom(times.to_timestamp(said.reported_ms))
    return message


def office_payload(one: Office) -> bytes:
    """An office as it is stored."""
    return office_message(one).SerializeToString(deterministic=True)


def unit_payload(one: Unit) -> bytes:
    """A unit as it is stored."""
    return unit_message(one).SerializeToString(deterministic=True)


def stored_office(payload: bytes) -> Office:
    """A stored office."""
    return office(roster_pb2.Office.FromString(payload))


def stored_unit(payload: bytes) -> Unit:
    """A stored unit."""
    return unit(roster_pb2.Unit.FromString(payload))


def _records(
    name: str, messages: Sequence[M], parse: Callable[[M], R], id_name: str, id_of: Callable[[R], str]
) -> list[R]:
    if not messages:
        raise InvalidField(name, "is missing")
    fields.at_most(name, messages, RECORDS_MAX)
    found: dict[str, R] = {}
    for n, message in enumerate(messages):
        try:
            one = parse(message)
        except InvalidField as error:
            raise error.under(f"{name}[{n}]") from None
        if id_of(one) in found:
            raise InvalidField(f"{name}[{n}].{id_name}", "is given twice")
        found[id_of(one)] = one
    return list(found.values())


def _area(msg: roster_pb2.Office) -> Area | None:
    if msg.HasField("circle"):
        centre = LatLon(
            fields.number("circle.lat_deg", msg.circle.lat_deg, -90, 90),
            fields.number("circle.lon_deg", msg.circle.lon_deg, -180, 180),
        )
        return JurisdictionCircle(centre, fields.number("circle.radius_m", msg.circle.radius_m, 1, RADIUS_MAX_M))
    if msg.HasField("polygon"):
        corners = msg.polygon.vertices
        if len(corners) < 3:
            raise InvalidField("polygon.vertices", "must hold at least 3")
        fields.at_most("polygon.vertices", corners, VERTICES_MAX)
        return JurisdictionPolygon(tuple(_point(f"polygon.vertices[{n}]", corner) for n, corner in enumerate(corners)))
    return None


def _point(field: str, msg: geometry_pb2.Point) -> LatLon:
    return LatLon(
        fields.number(f"{field}.lat_deg", msg.lat_deg, -90, 90),
        fields.number(f"{field}.lon_deg", msg.lon_deg, -180, 180),
    )


def _point_message(point: LatLon) -> geometry_pb2.Point:
    return geometry_pb2.Point(lat_deg=point.lat_deg, lon_deg=point.lon_deg)


def _version(version: int) -> int:
    if not 1 <= version < 1 << 63:
        raise InvalidField("version", "must be from 1")
    return version
