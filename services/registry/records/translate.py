"""Translation between the registry's protobuf messages and its domain. Parsers validate: a parsed record is complete and in range.

Each parser raises InvalidField with the path inside the record, such as `rings[0].radius_m`. No error text repeats the value
that was sent, because it may be personal data.
"""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from enum import Enum
from typing import Any, TypeVar

from google.protobuf.timestamp_pb2 import Timestamp

from services.common import fields, ids, times
from services.common.errors import InvalidField
from services.common.geometry import Circle
from services.common.privacy.notices import TagBasis
from services.registry.domain.lifecycle import OrderStage, PutOutcome, RecordWarning, ReplacedOrder, check_type
from services.registry.domain.records import (
    DEFAULT_UNIT_INTERVAL_S,
    MAX_EXTENSIONS,
    Action,
    AllowedEncounter,
    Contact,
    ContactLanguage,
    Device,
    EncounterReason,
    EndReason,
    ExerciseKind,
    Order,
    OrderEnd,
    OrderRing,
    OrderType,
    PersonUnit,
    PresenceUnit,
    ProtectedPerson,
    Relation,
    Respondent,
    Sex,
    Tag,
    UnitKind,
    Wearer,
    WearerEnd,
    WearerEndReason,
    WearerUnit,
)
from services.registry.records import places
from services.registry.records.places import ServiceArea, all_different, parse_places, place_to_proto
from tandem.common.v1 import contact_pb2, encounter_pb2, exercise_pb2, geometry_pb2, presence_pb2
from tandem.registry.v1 import presence_unit_pb2, registry_pb2

NAME_MAX_CHARS = 200
PHONE_MAX_CHARS = 40
ADDRESS_MAX_CHARS = 400
REASON_MAX_CHARS = 500
HANDLE_MAX_CHARS = 200
PERSONS_MAX = 100
PLACES_MAX = 50
RINGS_MAX = 20

_E = TypeVar("_E", bound=Enum)

_NATIONAL_ID = re.compile(r"[0-9]{6}-?[0-9]{7}")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")  # control characters, surrogates, line and paragraph separators
_INVISIBLE = ("Cf", "Zs")  # format characters, such as a space without width, and spaces
_TURNING = frozenset(("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"))
"""Bidirectional classes of the characters that make a screen show other text in another order than it is stored in (Unicode UAX 9)."""
ACTIONS = {
    geometry_pb2.Demand.WARN: Action.WARN,
    geometry_pb2.Demand.NOTIFY: Action.NOTIFY,
    geometry_pb2.Demand.RESPOND: Action.RESPOND,
}
SEXES: Mapping[int, Sex] = {registry_pb2.SEX_FEMALE: Sex.FEMALE, registry_pb2.SEX_MALE: Sex.MALE}
RELATIONS: Mapping[int, Relation] = {
    registry_pb2.Relation.Value(f"RELATION_{relation.name}"): relation for relation in Relation
}
ORDER_TYPES: Mapping[int, OrderType] = {
    registry_pb2.OrderType.Value(f"ORDER_TYPE_{order_type.name}"): order_type for order_type in OrderType
}
TAG_BASES: Mapping[int, TagBasis] = {
    registry_pb2.TagBasis.Value(f"TAG_BASIS_{basis.name}"): basis for basis in TagBasis if basis
}
END_REASONS: Mapping[int, EndReason] = {
    registry_pb2.EndReason.Value(f"END_REASON_{reason.name}"): reason for reason in EndReason
}
WEARER_END_REASONS: Mapping[int, WearerEndReason] = {
    registry_pb2.WearerEndReason.Value(f"WEARER_END_REASON_{reason.name}"): reason for reason in WearerEndReason
}
LANGUAGES: Mapping[int, ContactLanguage] = {
    contact_pb2.Language.Value(f"LANGUAGE_{language.name}"): language for language in ContactLanguage
}
_OUTCOMES = {
    PutOutcome.STORED: registry_pb2.PutOutcome.STORED,
    PutOutcome.UNCHANGED: registry_pb2.PutOutcome.UNCHANGED,
    PutOutcome.SUPERSEDED: registry_pb2.PutOutcome.SUPERSEDED,
}


def parse_wearer(msg: registry_pb2.Wearer) -> Wearer:
    """Parse a wearer. Raises InvalidField."""
    return Wearer(
        wearer_id=_own_id("wearer_id", msg.wearer_id),
        national_id=_national_id("national_id", msg.national_id),
        name=_name("name", msg.name),
        birth_date=_birth_date("birth_date", msg.birth_date),
        source_version=_version(msg.source_version),
        sex=_one_of("sex", msg.sex, SEXES),
        phone=optional_text("phone", msg.phone, PHONE_MAX_CHARS),
        address=optional_text("address", msg.address, ADDRESS_MAX_CHARS),
        exercise=_drill(msg.exercise),
    )


def parse_tag(msg: registry_pb2.Tag) -> Tag:
    """Parse a tag. Raises InvalidField."""
    return Tag(
        device_id=_own_id("device_id", msg.device_id),
        wearer_id=fields.required_id("wearer_id", msg.wearer_id),
        source_version=_version(msg.source_version),
        vendor_id=fields.vendor_id("vendor_id", msg.vendor_id),
        basis=_one_of("basis", msg.basis, TAG_BASES) or TagBasis.UNKNOWN,
    )


def parse_protected_person(msg: registry_pb2.ProtectedPerson) -> ProtectedPerson:
    """Parse a protected person. Raises InvalidField."""
    return ProtectedPerson(
        person_id=_own_id("person_id", msg.person_id),
        name=_name("name", msg.name),
        source_version=_version(msg.source_version),
        relation=_one_of("relation", msg.relation, RELATIONS),
        contact=_contact("contact", msg.contact) if msg.HasField("contact") else None,
    )


def parse_device(msg: registry_pb2.Device) -> Device:
    """Parse a protective device. Raises InvalidField."""
    return Device(
        device_id=_own_id("device_id", msg.device_id),
        person_id=fields.required_id("person_id", msg.person_id),
        source_version=_version(msg.source_version),
        vendor_id=fields.vendor_id("vendor_id", msg.vendor_id),
    )


def parse_order(msg: registry_pb2.Order) -> Order:
    """Parse a restraining order. Raises InvalidField."""
    order_id = _own_id("order_id", msg.order_id)
    if not msg.HasField("respondent"):
        raise InvalidField("respondent", "is missing")
    respondent = Respondent(
        national_id=_national_id("respondent.national_id", msg.respondent.national_id, required=False),
        name=_name("respondent.name", msg.respondent.name),
        birth_date=_birth_date("respondent.birth_date", msg.respondent.birth_date),
        sex=_one_of("respondent.sex", msg.respondent.sex, SEXES),
        phone=optional_text("respondent.phone", msg.respondent.phone, PHONE_MAX_CHARS),
        address=optional_text("respondent.address", msg.respondent.address, ADDRESS_MAX_CHARS),
    )
    if not msg.protected_person_ids and not msg.places:
        raise InvalidField(
            "protected_person_ids", "is empty, and so is places: name at least one protected person or place"
        )
    fields.at_most("protected_person_ids", msg.protected_person_ids, PERSONS_MAX)
    fields.at_most("rings", msg.rings, RINGS_MAX)
    person_ids = tuple(
        fields.required_id(f"protected_person_ids[{n}]", value) for n, value in enumerate(msg.protected_person_ids)
    )
    protected = places.parse_places("places", msg.places, PLACES_MAX)
    rings = tuple(_ring(f"rings[{n}]", ring) for n, ring in enumerate(msg.rings))
    places.all_different("protected_person_ids[{}]", person_ids)
    # Radii are compared in millimetres, because the fold can't distinguish smaller differences.
    places.all_different("rings[{}].radius_m", [round(ring.radius_m * 1000) for ring in rings])
    valid_from_ms = fields.moment("valid_from", msg.valid_from, msg.HasField("valid_from"))
    valid_until_ms = _optional_moment("valid_until", msg.valid_until, msg.HasField("valid_until"))
    order = Order(
        order_id=order_id,
        respondent=respondent,
        protected_person_ids=person_ids,
        places=protected,
        rings=rings,
        valid_from_ms=valid_from_ms,
        valid_until_ms=valid_until_ms,
        source_version=_version(msg.source_version),
        type=_one_of("type", msg.type, ORDER_TYPES),
        extensions=_whole("extensions", msg.extensions, MAX_EXTENSIONS),
        duration_reason=parse_reason("duration_reason", msg.duration_reason),
        encounters=parse_encounters(msg.encounters, valid_from_ms, valid_until_ms),
        exercise=_drill(msg.exercise),
        fit_by_ms=_optional_moment("fit_by", msg.fit_by, msg.HasField("fit_by")),
    )
    check_type(order)
    return order


def parse_reason(field: str, value: str) -> str:
    """Parse the reason of a duration beyond the law's. Raises InvalidField."""
    return optional_text(field, value, REASON_MAX_CHARS)


def parse_replaced(msg: registry_pb2.ReplacedOrder) -> ReplacedOrder:
    """Parse the interim protection order from which an order takes over. Raises InvalidField."""
    return ReplacedOrder(fields.required_id("order_id", msg.order_id), _version(msg.source_version))


def parse_order_end(msg: registry_pb2.EndOrderRequest) -> tuple[str, OrderEnd, int]:
    """Parse the early end of an order: order id, end, and version of the record. Raises InvalidField."""
    order_id = fields.required_id("order_id", msg.order_id)
    reason = _one_of("reason", msg.reason, END_REASONS)
    if reason is None:
        raise InvalidField("reason", "is missing")
    covering_order_id = ""
    if reason in (EndReason.COVERED_BY_COURT_ORDER, EndReason.DECIDED):
        covering_order_id = fields.required_id("covering_order_id", msg.covering_order_id)
    elif msg.covering_order_id:
        raise InvalidField("covering_order_id", "must be empty unless the reason is COVERED_BY_COURT_ORDER or DECIDED")
    at_ms = fields.moment("ended_at", msg.ended_at, msg.HasField("ended_at"))
    return order_id, OrderEnd(reason, at_ms, covering_order_id), _version(msg.source_version)


def parse_wearer_end(msg: registry_pb2.EndWearerRequest) -> tuple[str, WearerEnd, int]:
    """Parse the end of a wearer's case: wearer id, end, and version of the record. Raises InvalidField."""
    wearer_id = fields.required_id("wearer_id", msg.wearer_id)
    reason = _one_of("reason", msg.reason, WEARER_END_REASONS)
    if reason is None:
        raise InvalidField("reason", "is missing")
    at_ms = fields.moment("ended_at", msg.ended_at, msg.HasField("ended_at"))
    return wearer_id, WearerEnd(reason, at_ms), _version(msg.source_version)


def parse_person_end(msg: registry_pb2.EndProtectedPersonRequest) -> tuple[str, int, int]:
    """Parse the end of a protection: person id, end in milliseconds since 1970 UTC, and version. Raises InvalidField."""
    return (
        fields.required_id("person_id", msg.person_id),
        fields.moment("ended_at", msg.ended_at, msg.HasField("ended_at")),
        _version(msg.source_version),
    )


def parse_device_end(msg: registry_pb2.EndTagRequest | registry_pb2.EndDeviceRequest) -> tuple[str, int, int]:
    """Parse the removal of a tag or device: id, removal in milliseconds since 1970 UTC, and version. Raises InvalidField."""
    return (
        fields.required_id("device_id", msg.device_id),
        fields.moment("removed_at", msg.removed_at, msg.HasField("removed_at")),
        _version(msg.source_version),
    )


def _optional_moment(field: str, value: Timestamp, present: bool) -> int | None:
    """A moment, milliseconds since 1970 UTC; None if the message doesn't give it."""
    return fields.moment(field, value, present) if present else None


def _own_id(field: str, value: str) -> str:
    if value.startswith(ids.EXERCISE_IDS):
        raise InvalidField(field, f"must not begin with {ids.EXERCISE_IDS}: this prefix is reserved for exercises")
    return fields.required_id(field, value)


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
        raise InvalidField(field, "must be 13 digits, as YYMMDDNNNNNNN or YYMMDD-NNNNNNN")
    return value.replace("-", "")


def _name(field: str, value: str) -> str:
    return required_text(field, value, NAME_MAX_CHARS)


def optional_text(field: str, value: str, greatest: int) -> str:
    """A text of one line, perhaps empty. Raises InvalidField if it is too long, or holds characters that a line can't show as it is."""
    if len(value) > greatest:
        raise InvalidField(field, f"must be at most {greatest} characters")
    if value.isprintable():
        return value
    if any(unicodedata.category(char) in _UNPRINTABLE for char in value):
        raise InvalidField(field, "must not hold control characters")
    if any(unicodedata.bidirectional(char) in _TURNING for char in value):
        raise InvalidField(field, "must not hold characters that turn the direction of reading (such as U+202E)")
    return value


def required_text(field: str, value: str, greatest: int) -> str:
    """A text of one line with at least one visible character. Raises InvalidField."""
    if all(unicodedata.category(char) in _INVISIBLE for char in optional_text(field, value, greatest)):
        raise InvalidField(field, "is missing")
    return value


def _contact(field: str, msg: contact_pb2.Contact) -> Contact:
    return Contact(
        handle=required_text(f"{field}.handle", msg.handle, HANDLE_MAX_CHARS),
        language=_one_of(f"{field}.language", msg.language, LANGUAGES),
        duress_choice=_whole(f"{field}.duress_choice", msg.duress_choice, 3),
    )


def _one_of(field: str, value: int, known: Mapping[int, _E]) -> _E | None:
    """Domain value of an enum number; None for the number 0, which means unspecified."""
    if not value:
        return None
    if value not in known:
        raise InvalidField(field, "is not a known value of this enum")
    return known[value]


def _drill(value: int) -> ExerciseKind | None:
    """Exercise of an agency's record: none, or a drill. No desk sees a canary, so the registry alone makes its records."""
    if value == exercise_pb2.CANARY:
        raise InvalidField("exercise", "must not be CANARY, which no desk sees: use DRILL for an exercise with people")
    return _one_of("exercise", value, {exercise_pb2.DRILL: ExerciseKind.DRILL})


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
        raise InvalidField(field, "must be a date YYYY-MM-DD between 1900 and 2100 (example: 1990-01-31)")
    return birth_date


def _ring(field: str, msg: geometry_pb2.Ring) -> OrderRing:
    if not math.isfinite(msg.radius_m) or not 0.001 <= msg.radius_m <= places.RADIUS_MAX_M:
        raise InvalidField(f"{field}.radius_m", f"must be more than 0 and at most {places.RADIUS_MAX_M:g}")
    action = ACTIONS.get(msg.action)
    if action is None:
        raise InvalidField(f"{field}.action", "must be WARN, NOTIFY or RESPOND")
    return OrderRing(msg.radius_m, action)


def wearer_to_proto(wearer: Wearer, names: frozenset[str]) -> registry_pb2.Wearer:
    """A wearer with only the named fields of personal data."""
    whole = registry_pb2.Wearer(
        national_id=wearer.national_id,
        name=wearer.name,
        birth_date=wearer.birth_date.isoformat(),
        sex=registry_pb2.Sex.Value(f"SEX_{wearer.sex.value if wearer.sex else 'UNSPECIFIED'}"),
        phone=wearer.phone,
        address=wearer.address,
    )
    shown = registry_pb2.Wearer(wearer_id=wearer.wearer_id, source_version=wearer.source_version)
    for name in names:
        setattr(shown, name, getattr(whole, name))
    return shown


def protected_person_to_proto(person: ProtectedPerson, names: frozenset[str]) -> registry_pb2.ProtectedPerson:
    """A protected person with only the named fields of personal data."""
    shown = registry_pb2.ProtectedPerson(person_id=person.person_id, source_version=person.source_version)
    if "name" in names:
        shown.name = person.name
    if "relation" in names and person.relation:
        shown.relation = registry_pb2.Relation.Value(f"RELATION_{person.relation.value}")
    return shown


def outcome_to_proto(outcome: PutOutcome) -> registry_pb2.PutOutcome.ValueType:
    """Result of a put for the response."""
    return _OUTCOMES[outcome]


def warnings_to_proto(prefix: str, warned: Iterable[RecordWarning]) -> list[registry_pb2.Warning]:
    """Record warnings as messages; `prefix` is the path of the record in the request, empty if the fields are the request's own."""
    path = f"{prefix}." if prefix else ""
    return [registry_pb2.Warning(field=f"{path}{warning.field}", reason=warning.reason) for warning in warned]


def stage_to_proto(stage: OrderStage | None) -> registry_pb2.OrderStage.ValueType:
    """Stage of an order's life cycle as an enum value."""
    return registry_pb2.OrderStage.Value(f"ORDER_STAGE_{stage.name if stage else 'UNSPECIFIED'}")


ENCOUNTERS_MAX = 50
ENCOUNTER_PLACES_MAX = 20
ENCOUNTER_VERTICES_MAX = 10_000
"""Maximum number of vertices in all encounters of an order. The test for crossing sides is slow and blocks other calls."""
DAY_S = 86_400

_ENCOUNTER_REASONS = {
    encounter_pb2.COURT_DATE: EncounterReason.COURT_DATE,
    encounter_pb2.POLICE_STATION: EncounterReason.POLICE_STATION,
    encounter_pb2.COMMUTE: EncounterReason.COMMUTE,
}
_ENCOUNTER_NUMBERS = {reason: number for number, reason in _ENCOUNTER_REASONS.items()}


def parse_encounters(
    messages: Sequence[encounter_pb2.Encounter], valid_from_ms: int, valid_until_ms: int | None
) -> tuple[AllowedEncounter, ...]:
    """Parse the encounters of an order that is valid between these moments, or without an end. Raises InvalidField."""
    fields.at_most("encounters", messages, ENCOUNTERS_MAX)
    polygons = [place.polygon for message in messages for place in message.places]
    corners = sum(len(polygon.vertices) + sum(len(hole.vertices) for hole in polygon.holes) for polygon in polygons)
    if corners > ENCOUNTER_VERTICES_MAX:
        raise InvalidField("encounters", f"must hold at most {ENCOUNTER_VERTICES_MAX} vertices in all")
    encounters = tuple(_encounter(f"encounters[{n}]", message) for n, message in enumerate(messages))
    encounter_ids = [encounter.encounter_id for encounter in encounters]
    all_different("encounters[{}].encounter_id", encounter_ids)
    for n, encounter in enumerate(encounters):
        if encounter.from_ms < valid_from_ms:
            raise InvalidField(f"encounters[{n}].from", "must not be earlier than the order's valid_from")
        if valid_until_ms is not None and encounter.until_ms > valid_until_ms:
            raise InvalidField(f"encounters[{n}].until", "must not be later than the order's valid_until")
    return encounters


def _encounter(field: str, msg: encounter_pb2.Encounter) -> AllowedEncounter:
    encounter_id = fields.required_id(f"{field}.encounter_id", msg.encounter_id)
    reason = _ENCOUNTER_REASONS.get(msg.reason)
    if reason is None:
        raise InvalidField(f"{field}.reason", "must be COURT_DATE, POLICE_STATION or COMMUTE")
    from_ms = fields.moment(f"{field}.from", getattr(msg, "from"), msg.HasField("from"))
    until_ms = fields.moment(f"{field}.until", msg.until, msg.HasField("until"))
    if until_ms <= from_ms:
        raise InvalidField(f"{field}.until", "must be later than from")
    for name, second in (("daily_from_s", msg.daily_from_s), ("daily_until_s", msg.daily_until_s)):
        if not 0 <= second <= DAY_S:
            raise InvalidField(f"{field}.{name}", f"must be from 0 to {DAY_S}")
    if msg.daily_until_s <= msg.daily_from_s and (msg.daily_from_s or msg.daily_until_s):
        raise InvalidField(f"{field}.daily_until_s", "must be later than daily_from_s; both 0 mean all day")
    places = parse_places(f"{field}.places", msg.places, ENCOUNTER_PLACES_MAX)
    return AllowedEncounter(
        encounter_id=encounter_id,
        reason=reason,
        from_ms=from_ms,
        until_ms=until_ms,
        places=places,
        daily_from_s=msg.daily_from_s,
        daily_until_s=msg.daily_until_s,
    )


def encounter_to_proto(encounter: AllowedEncounter) -> encounter_pb2.Encounter:
    """An authorised encounter as a message for the log."""
    message = encounter_pb2.Encounter(
        encounter_id=encounter.encounter_id,
        reason=_ENCOUNTER_NUMBERS[encounter.reason],
        until=times.to_timestamp(encounter.until_ms),
        places=map(place_to_proto, encounter.places),
        daily_from_s=encounter.daily_from_s,
        daily_until_s=encounter.daily_until_s,
    )
    # `from` is a keyword of Python, so the field has no attribute syntax.
    getattr(message, "from").CopyFrom(times.to_timestamp(encounter.from_ms))
    return message


MIN_RANGE_M, MAX_RANGE_M = 1.0, 200.0
MIN_INTERVAL_S, MAX_INTERVAL_S = 15, 600

_UNIT_KINDS: Mapping[int, UnitKind] = {kind.value: kind for kind in UnitKind}
_ADDRESS = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_IBEACON = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}:[0-9]{1,5}:[0-9]{1,5}")


def parse_unit(msg: registry_pb2.PresenceUnit) -> WearerUnit | PersonUnit:
    """Parse a home unit or beacon. Raises InvalidField."""
    unit_id = fields.required_id("unit_id", msg.unit_id)
    if unit_id.startswith(ids.EXERCISE_IDS):
        raise InvalidField("unit_id", f"must not begin with {ids.EXERCISE_IDS}: this prefix is reserved for exercises")
    if bool(msg.wearer_id) == bool(msg.person_id):
        raise InvalidField(
            "wearer_id", "must be set for a wearer's unit, and person_id for a protected person's; not both"
        )
    if msg.source_version < 0:
        raise InvalidField("source_version", "must be 0 or more")
    kind = _UNIT_KINDS.get(msg.kind)
    if kind is None:
        raise InvalidField("kind", "must be HOME_UNIT, BLUETOOTH_BEACON or WIFI_ACCESS_POINT")
    if kind is UnitKind.HOME_UNIT and msg.person_id:
        raise InvalidField("kind", "must be BLUETOOTH_BEACON or WIFI_ACCESS_POINT: only a wearer has a home unit")
    installed_from_ms = fields.moment("installed_from", msg.installed_from, msg.HasField("installed_from"))
    installed_until_ms = None
    if msg.HasField("installed_until"):
        installed_until_ms = fields.moment("installed_until", msg.installed_until, True)
        if installed_until_ms <= installed_from_ms:
            raise InvalidField("installed_until", "must be later than installed_from")
    interval_s = msg.report_interval_s or DEFAULT_UNIT_INTERVAL_S
    fields.number("report_interval_s", interval_s, MIN_INTERVAL_S, greatest=MAX_INTERVAL_S)
    common: dict[str, Any] = {
        "unit_id": unit_id,
        "source_version": msg.source_version,
        "kind": kind,
        "place": _unit_place(msg),
        "installed_from_ms": installed_from_ms,
        "installed_until_ms": installed_until_ms,
        "interval_s": interval_s,
        "vendor_id": fields.vendor_id("vendor_id", msg.vendor_id),
        "identifier": _identifier(kind, msg.identifier),
    }
    if msg.wearer_id:
        return WearerUnit(wearer_id=fields.required_id("wearer_id", msg.wearer_id), **common)
    return PersonUnit(person_id=fields.required_id("person_id", msg.person_id), **common)


def _unit_place(msg: registry_pb2.PresenceUnit) -> Circle:
    if not msg.HasField("place"):
        raise InvalidField("place", "is missing")
    return Circle(
        fields.number("place.lat_deg", msg.place.lat_deg, -90, greatest=90),
        fields.number("place.lon_deg", msg.place.lon_deg, -180, greatest=180),
        fields.number("place.radius_m", msg.place.radius_m, MIN_RANGE_M, greatest=MAX_RANGE_M),
    )


def _identifier(kind: UnitKind, text: str) -> str:
    lower = text.lower()
    if kind is UnitKind.HOME_UNIT:
        if text:
            raise InvalidField("identifier", "must be empty for a home unit, which reports by itself")
        return ""
    if _ADDRESS.fullmatch(lower) or (kind is UnitKind.BLUETOOTH_BEACON and _IBEACON.fullmatch(lower)):
        return lower
    raise InvalidField(
        "identifier",
        "must be an address (example: 02:00:5E:10:00:01), or uuid:major:minor of a Bluetooth beacon",
    )


def check_unit_area(unit: PresenceUnit, area: ServiceArea) -> None:
    """Check that a unit lies in the service area. Raises InvalidField."""
    if not area.holds(unit.place.lat_deg, unit.place.lon_deg):
        raise InvalidField("place", f"lies outside {area.name}, the service area (TANDEM_SERVICE_AREA)")


def parse_unit_end(msg: presence_unit_pb2.EndPresenceUnitRequest) -> tuple[str, int, int]:
    """Parse the removal of a unit: id, removal in milliseconds since 1970 UTC, and version. Raises InvalidField."""
    if msg.source_version < 0:
        raise InvalidField("source_version", "must be 0 or more")
    return (
        fields.required_id("unit_id", msg.unit_id),
        fields.moment("removed_at", msg.removed_at, msg.HasField("removed_at")),
        msg.source_version,
    )


def unit_to_proto(unit: PresenceUnit) -> presence_pb2.PresenceUnitPlace:
    """A unit as a part of a joint case's snapshot, without its identifier."""
    place = unit.place
    return presence_pb2.PresenceUnitPlace(
        unit_id=unit.unit_id,
        kind=presence_pb2.PresenceUnitKind.ValueType(unit.kind.value),
        place=geometry_pb2.Circle(lat_deg=place.lat_deg, lon_deg=place.lon_deg, radius_m=place.radius_m),
        installed_from_ms=unit.installed_from_ms,
        installed_until_ms=unit.installed_until_ms or 0,
        report_interval_s=unit.interval_s,
    )


def identifier_sha256(unit: PresenceUnit) -> bytes:
    """SHA-256 of what is heard of a beacon; empty for a home unit."""
    return hashlib.sha256(unit.identifier.encode()).digest() if unit.identifier else b""
