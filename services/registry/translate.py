"""Between the registry's messages and its domain. Parsing is validation: what comes out is whole and in range.

Each parser raises InvalidField with the path inside the record, such as `rings[0].radius_m`; no text repeats what was
sent, because it may be personal.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from datetime import date
from enum import Enum
from typing import TypeVar

from services.common import fields
from services.common.errors import InvalidField
from services.registry.area import ServiceArea
from services.registry.domain import (
    Action,
    Circle,
    Device,
    EndReason,
    JointCase,
    Order,
    OrderEnd,
    OrderType,
    Outcome,
    Place,
    Point,
    Polygon,
    ProtectedPerson,
    Relation,
    Respondent,
    Ring,
    Sex,
    Tag,
    Wearer,
)
from tandem.common.v1 import geometry_pb2, log_pb2
from tandem.registry.v1 import registry_pb2

NAME_MAX_CHARS = 200
PHONE_MAX_CHARS = 40
ADDRESS_MAX_CHARS = 400
REASON_MAX_CHARS = 500
EXTENSIONS_MAX = 100
RADIUS_MAX_M = 20_000.0
PERSONS_MAX = 100
PLACES_MAX = 50
RINGS_MAX = 20
VERTICES_MAX = 200

_E = TypeVar("_E", bound=Enum)

_NATIONAL_ID = re.compile(r"[0-9]{6}-?[0-9]{7}")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")  # control characters, surrogates, line and paragraph separators
_ACTIONS = {
    geometry_pb2.Demand.WARN: Action.WARN,
    geometry_pb2.Demand.NOTIFY: Action.NOTIFY,
    geometry_pb2.Demand.RESPOND: Action.RESPOND,
}
_DEMANDS = {action: demand for demand, action in _ACTIONS.items()}
SEXES: Mapping[int, Sex] = {registry_pb2.SEX_FEMALE: Sex.FEMALE, registry_pb2.SEX_MALE: Sex.MALE}
RELATIONS: Mapping[int, Relation] = {registry_pb2.Relation.Value(f"RELATION_{one.name}"): one for one in Relation}
ORDER_TYPES: Mapping[int, OrderType] = {
    registry_pb2.OrderType.Value(f"ORDER_TYPE_{one.name}"): one for one in OrderType
}
END_REASONS: Mapping[int, EndReason] = {
    registry_pb2.EndReason.Value(f"END_REASON_{one.name}"): one for one in EndReason
}
_OUTCOMES = {
    Outcome.STORED: registry_pb2.PutOutcome.STORED,
    Outcome.UNCHANGED: registry_pb2.PutOutcome.UNCHANGED,
    Outcome.SUPERSEDED: registry_pb2.PutOutcome.SUPERSEDED,
}


def parse_wearer(msg: registry_pb2.Wearer) -> Wearer:
    """A wearer. Raises InvalidField."""
    return Wearer(
        wearer_id=fields.required_id("wearer_id", msg.wearer_id),
        national_id=_national_id("national_id", msg.national_id),
        name=_name("name", msg.name),
        birth_date=_birth_date("birth_date", msg.birth_date),
        source_version=_version(msg.source_version),
        sex=_one_of("sex", msg.sex, SEXES),
        phone=_text("phone", msg.phone, PHONE_MAX_CHARS),
        address=_text("address", msg.address, ADDRESS_MAX_CHARS),
    )


def parse_tag(msg: registry_pb2.Tag) -> Tag:
    """A tag. Raises InvalidField."""
    return Tag(
        device_id=fields.required_id("device_id", msg.device_id),
        wearer_id=fields.required_id("wearer_id", msg.wearer_id),
        source_version=_version(msg.source_version),
    )


def parse_protected_person(msg: registry_pb2.ProtectedPerson) -> ProtectedPerson:
    """A protected person. Raises InvalidField."""
    return ProtectedPerson(
        person_id=fields.required_id("person_id", msg.person_id),
        name=_name("name", msg.name),
        source_version=_version(msg.source_version),
        relation=_one_of("relation", msg.relation, RELATIONS),
    )


def parse_device(msg: registry_pb2.Device) -> Device:
    """A protective device. Raises InvalidField."""
    return Device(
        device_id=fields.required_id("device_id", msg.device_id),
        person_id=fields.required_id("person_id", msg.person_id),
        source_version=_version(msg.source_version),
    )


def parse_order(msg: registry_pb2.Order) -> Order:
    """A restraining order. Raises InvalidField."""
    order_id = fields.required_id("order_id", msg.order_id)
    if not msg.HasField("respondent"):
        raise InvalidField("respondent", "is missing")
    respondent = Respondent(
        national_id=_national_id("respondent.national_id", msg.respondent.national_id, required=False),
        name=_name("respondent.name", msg.respondent.name),
        birth_date=_birth_date("respondent.birth_date", msg.respondent.birth_date),
        sex=_one_of("respondent.sex", msg.respondent.sex, SEXES),
        phone=_text("respondent.phone", msg.respondent.phone, PHONE_MAX_CHARS),
        address=_text("respondent.address", msg.respondent.address, ADDRESS_MAX_CHARS),
    )
    if not msg.protected_person_ids and not msg.places:
        raise InvalidField("protected_person_ids", "an order protects at least one person or place")
    _at_most("protected_person_ids", msg.protected_person_ids, PERSONS_MAX)
    _at_most("places", msg.places, PLACES_MAX)
    _at_most("rings", msg.rings, RINGS_MAX)
    person_ids = tuple(
        fields.required_id(f"protected_person_ids[{n}]", value) for n, value in enumerate(msg.protected_person_ids)
    )
    places = tuple(_place(f"places[{n}]", place) for n, place in enumerate(msg.places))
    rings = tuple(_ring(f"rings[{n}]", ring) for n, ring in enumerate(msg.rings))
    _all_different("protected_person_ids[{}]", person_ids)
    _all_different("places[{}].place_id", [place.place_id for place in places])
    # Two rings are the same where the fold, which counts in millimetres, can't tell them apart.
    _all_different("rings[{}].radius_m", [round(ring.radius_m * 1000) for ring in rings])
    valid_from_ms = fields.moment("valid_from", msg.valid_from, msg.HasField("valid_from"))
    valid_until_ms = fields.moment("valid_until", msg.valid_until, msg.HasField("valid_until"))
    if valid_until_ms <= valid_from_ms:
        raise InvalidField("valid_until", "must be later than valid_from")
    return Order(
        order_id=order_id,
        respondent=respondent,
        protected_person_ids=person_ids,
        places=places,
        rings=rings,
        valid_from_ms=valid_from_ms,
        valid_until_ms=valid_until_ms,
        source_version=_version(msg.source_version),
        type=_one_of("type", msg.type, ORDER_TYPES),
        extensions=_whole("extensions", msg.extensions, EXTENSIONS_MAX),
        duration_reason=_text("duration_reason", msg.duration_reason, REASON_MAX_CHARS),
    )


def parse_order_end(msg: registry_pb2.EndOrderRequest) -> tuple[str, OrderEnd, int]:
    """Id of an order, how it ends, and the version of the record that says so. Raises InvalidField."""
    order_id = fields.required_id("order_id", msg.order_id)
    reason = _one_of("reason", msg.reason, END_REASONS)
    if reason is None:
        raise InvalidField("reason", "is missing")
    covering_order_id = ""
    if reason is EndReason.COVERED_BY_COURT_ORDER:
        covering_order_id = fields.required_id("covering_order_id", msg.covering_order_id)
    elif msg.covering_order_id:
        raise InvalidField("covering_order_id", "goes with COVERED_BY_COURT_ORDER only")
    at_ms = fields.moment("ended_at", msg.ended_at, msg.HasField("ended_at"))
    return order_id, OrderEnd(reason, at_ms, covering_order_id), _version(msg.source_version)


def parse_device_end(msg: registry_pb2.EndTagRequest | registry_pb2.EndDeviceRequest) -> tuple[str, int, int]:
    """Id of a tag or device, when it was taken off or given back, and the version that says so. Raises InvalidField."""
    return (
        fields.required_id("device_id", msg.device_id),
        fields.moment("removed_at", msg.removed_at, msg.HasField("removed_at")),
        _version(msg.source_version),
    )


def check_area(order: Order, area: ServiceArea) -> None:
    """Refuses places outside of the service area: raises InvalidField."""
    for n, place in enumerate(order.places):
        shape = place.shape
        if isinstance(shape, Circle):
            if not area.holds(shape.lat_deg, shape.lon_deg):
                raise InvalidField(
                    f"places[{n}].circle", f"lies outside {area.name}, the service area (TANDEM_SERVICE_AREA)"
                )
            continue
        for v, vertex in enumerate(shape.vertices):
            if not area.holds(vertex.lat_deg, vertex.lon_deg):
                raise InvalidField(
                    f"places[{n}].polygon.vertices[{v}]",
                    f"lies outside {area.name}, the service area (TANDEM_SERVICE_AREA)",
                )


def _version(value: int) -> int:
    if value < 0:
        raise InvalidField("source_version", "must be 0 or more")
    return value


def _national_id(field: str, value: str, required: bool = True) -> str:
    if not value:
        if not required:
            return ""
        raise InvalidField(field, "is missing")
    if not _NATIONAL_ID.fullmatch(value):
        raise InvalidField(field, "must be 13 digits, with or without a hyphen after the 6th")
    return value.replace("-", "")


def _name(field: str, value: str) -> str:
    if not _text(field, value, NAME_MAX_CHARS).strip():
        raise InvalidField(field, "is missing")
    return value


def _text(field: str, value: str, greatest: int) -> str:
    """A text of one line."""
    if len(value) > greatest:
        raise InvalidField(field, f"must be at most {greatest} characters")
    if any(unicodedata.category(char) in _UNPRINTABLE for char in value):
        raise InvalidField(field, "must not hold control characters")
    return value


def _one_of(field: str, value: int, known: Mapping[int, _E]) -> _E | None:
    """The domain's name of an enum's number; None where it isn't specified."""
    if not value:
        return None
    if value not in known:
        raise InvalidField(field, "is none of the known ones")
    return known[value]


def _whole(field: str, value: int, greatest: int) -> int:
    if not 0 <= value <= greatest:
        raise InvalidField(field, f"must be from 0 to {greatest}")
    return value


def _birth_date(field: str, value: str) -> date:
    if not value:
        raise InvalidField(field, "is missing")
    try:
        birth_date = date.fromisoformat(value) if _DATE.fullmatch(value) else None
    except ValueError:
        birth_date = None
    if birth_date is None or not 1900 <= birth_date.year <= 2100:
        raise InvalidField(field, "must be a date of the years 1900 to 2100, YYYY-MM-DD")
    return birth_date


def _ring(field: str, msg: geometry_pb2.Ring) -> Ring:
    if not math.isfinite(msg.radius_m) or not 0.001 <= msg.radius_m <= RADIUS_MAX_M:
        raise InvalidField(f"{field}.radius_m", f"must be more than 0 and at most {RADIUS_MAX_M:g}")
    action = _ACTIONS.get(msg.action)
    if action is None:
        raise InvalidField(f"{field}.action", "must be WARN, NOTIFY or RESPOND")
    return Ring(msg.radius_m, action)


def _place(field: str, msg: geometry_pb2.Place) -> Place:
    place_id = fields.required_id(f"{field}.place_id", msg.place_id)
    if msg.HasField("circle"):
        inside = f"{field}.circle"
        return Place(
            place_id,
            Circle(
                fields.number(f"{inside}.lat_deg", msg.circle.lat_deg, -90, 90),
                fields.number(f"{inside}.lon_deg", msg.circle.lon_deg, -180, 180),
                fields.number(f"{inside}.radius_m", msg.circle.radius_m, 0, RADIUS_MAX_M),
            ),
        )
    if msg.HasField("polygon"):
        return Place(place_id, _polygon(f"{field}.polygon", msg.polygon))
    raise InvalidField(field, "needs a circle or a polygon")


def _polygon(field: str, msg: geometry_pb2.Polygon) -> Polygon:
    count = len(msg.vertices)
    if count < 3:
        raise InvalidField(f"{field}.vertices", "must hold at least 3")
    _at_most(f"{field}.vertices", msg.vertices, VERTICES_MAX)
    vertices = tuple(
        Point(
            fields.number(f"{field}.vertices[{n}].lat_deg", vertex.lat_deg, -90, 90),
            fields.number(f"{field}.vertices[{n}].lon_deg", vertex.lon_deg, -180, 180),
        )
        for n, vertex in enumerate(msg.vertices)
    )
    longitudes = [vertex.lon_deg for vertex in vertices]
    if max(longitudes) - min(longitudes) > 180:
        raise InvalidField(field, "must not cross the 180th meridian")
    # In units of 1e-7 degrees, so that the tests below are exact.
    corners = [(round(vertex.lon_deg * 1e7), round(vertex.lat_deg * 1e7)) for vertex in vertices]
    for n, corner in enumerate(corners):
        if corner == corners[n - 1]:
            where = n if n else count - 1
            raise InvalidField(f"{field}.vertices[{where}]", "repeats its neighbour")
    if _crosses_itself(corners):
        raise InvalidField(field, "its sides must not cross or touch")
    return Polygon(vertices)


_Corner = tuple[int, int]


def _crosses_itself(corners: Sequence[_Corner]) -> bool:
    """Whether two sides of the closed line share more than the corner between them."""
    count = len(corners)
    sides = [(corners[n], corners[(n + 1) % count]) for n in range(count)]
    for n, (a, b) in enumerate(sides):
        c = corners[(n + 2) % count]
        # The next side runs back over this one.
        if _turn(a, b, c) == 0 and (c[0] - b[0]) * (b[0] - a[0]) + (c[1] - b[1]) * (b[1] - a[1]) < 0:
            return True
        last = count - 1 if n == 0 else count  # the first side and the last are neighbours
        if any(_meet(a, b, *sides[other]) for other in range(n + 2, last)):
            return True
    return False


def _meet(a: _Corner, b: _Corner, c: _Corner, d: _Corner) -> bool:
    """Whether the segments ab and cd have a point in common."""
    for axis in (0, 1):
        if max(a[axis], b[axis]) < min(c[axis], d[axis]) or max(c[axis], d[axis]) < min(a[axis], b[axis]):
            return False
    # Their boxes overlap: they meet where neither lies wholly on one side of the other.
    return _turn(a, b, c) * _turn(a, b, d) <= 0 and _turn(c, d, a) * _turn(c, d, b) <= 0


def _turn(a: _Corner, b: _Corner, c: _Corner) -> int:
    """Sign of the turn from ab to ac: 1 left, -1 right, 0 straight."""
    cross = (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
    return (cross > 0) - (cross < 0)


def _at_most(field: str, values: Sequence[object], greatest: int) -> None:
    if len(values) > greatest:
        raise InvalidField(field, f"must hold at most {greatest}")


def _all_different(field: str, values: Sequence[object]) -> None:
    seen: set[object] = set()
    for n, value in enumerate(values):
        if value in seen:
            raise InvalidField(field.format(n), "is given twice")
        seen.add(value)


def case_to_proto(case: JointCase, version: int) -> log_pb2.CaseSnapshot:
    """The snapshot of a case for the log."""
    return log_pb2.CaseSnapshot(
        case_id=case.case_id,
        version=version,
        order_id=case.order_id,
        wearer_id=case.wearer_id,
        tag_device_ids=case.tag_device_ids,
        persons=[
            log_pb2.ProtectedTarget(person_id=person.person_id, device_ids=person.device_ids) for person in case.persons
        ],
        places=[place_to_proto(place) for place in case.places],
        rings=[geometry_pb2.Ring(radius_m=ring.radius_m, action=_DEMANDS[ring.action]) for ring in case.rings],
        valid_from_ms=case.valid_from_ms,
        valid_until_ms=case.valid_until_ms,
    )


def place_to_proto(place: Place) -> geometry_pb2.Place:
    """A protected place."""
    shape = place.shape
    if isinstance(shape, Circle):
        circle = geometry_pb2.Circle(lat_deg=shape.lat_deg, lon_deg=shape.lon_deg, radius_m=shape.radius_m)
        return geometry_pb2.Place(place_id=place.place_id, circle=circle)
    vertices = [geometry_pb2.Point(lat_deg=vertex.lat_deg, lon_deg=vertex.lon_deg) for vertex in shape.vertices]
    return geometry_pb2.Place(place_id=place.place_id, polygon=geometry_pb2.Polygon(vertices=vertices))


def outcome_to_proto(outcome: Outcome) -> registry_pb2.PutOutcome.ValueType:
    """What became of a record, for the answer."""
    return _OUTCOMES[outcome]
