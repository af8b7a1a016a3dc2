"""Compare an agency's list with the stored records: canonical text, digests, root hash and differences. Pure.

protos/tandem/registry/v1/reconciliation.proto defines the text and the hashes, so that an agency computes the same values.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias, assert_never

from services.common.geometry import Circle, LatLon, Polygon
from services.common.privacy.notices import TagBasis
from services.registry.domain.records import (
    Action,
    AllowedEncounter,
    Contact,
    ContactLanguage,
    Device,
    EncounterReason,
    EndReason,
    ExerciseKind,
    ListedKind,
    Order,
    OrderType,
    PersonUnit,
    Place,
    PresenceUnit,
    ProtectedPerson,
    Relation,
    Respondent,
    Sex,
    Tag,
    Wearer,
    WearerEndReason,
    WearerUnit,
)

ALARM_AFTER_MS = 15 * 60_000
"""How long an agency may go without proof that both lists are equal, milliseconds of mesh time."""


class Agency(Enum):
    """Agency that sends a list: the Ministry of Justice (MOJ) or the National Police Agency (NPA)."""

    MOJ = "moj"
    NPA = "npa"


@dataclass(frozen=True, slots=True)
class Listed:
    """A record of a list, as its version and digest."""

    kind: ListedKind
    record_id: str
    source_version: int
    digest: bytes
    """SHA-256 of the record's canonical text."""


class Finding(Enum):
    """Kind of difference in one record: MISSING is only in the agency's list, EXTRA only in the store, DIFFERENT in both."""

    MISSING = "MISSING"
    EXTRA = "EXTRA"
    DIFFERENT = "DIFFERENT"


@dataclass(frozen=True, slots=True)
class Difference:
    """Difference in one record. A version is 0 if that side lacks the record."""

    finding: Finding
    kind: ListedKind
    record_id: str
    listed_version: int
    stored_version: int


def compare_lists(listed: Iterable[Listed], stored: Iterable[Listed]) -> list[Difference]:
    """Differences between two lists, by kind and id. Each record may be in a list only once."""
    theirs, ours = ({_sort_key(record): record for record in side} for side in (listed, stored))
    differences = []
    for key in sorted(theirs.keys() | ours.keys()):
        their, our = theirs.get(key), ours.get(key)
        if their == our:
            continue
        finding = Finding.EXTRA if their is None else Finding.MISSING if our is None else Finding.DIFFERENT
        differences.append(
            Difference(
                finding=finding,
                kind=ListedKind(key[0]),
                record_id=key[1],
                listed_version=their.source_version if their else 0,
                stored_version=our.source_version if our else 0,
            )
        )
    return differences


def root_hash(records: Iterable[Listed]) -> bytes:
    """Root hash of a list."""
    hashed = hashlib.sha256()
    for record in sorted(records, key=_sort_key):
        hashed.update(
            f"{record.kind.value} {record.record_id} {record.source_version} {record.digest.hex()}\n".encode()
        )
    return hashed.digest()


def _sort_key(record: Listed) -> tuple[int, str]:
    # Ids are ASCII, so that sorting the text equals sorting the bytes, which the definition of the root hash requires.
    return record.kind.value, record.record_id


def is_overdue(since_ms: int, proven_at_ms: int | None, now_ms: int) -> bool:
    """Whether the proof of an agency is older than ALARM_AFTER_MS. Without any proof, the time counts from `since_ms`."""
    return now_ms - (since_ms if proven_at_ms is None else proven_at_ms) > ALARM_AFTER_MS


def summary_counts(differences: Sequence[Difference]) -> dict[str, int]:
    """Number of differences per finding, for the log."""
    return {
        finding.value.lower(): sum(difference.finding is finding for difference in differences) for finding in Finding
    }


# Numbers of the enums in registry.proto; a test compares them.
SEX_NUMBERS = {Sex.FEMALE: 1, Sex.MALE: 2}
RELATION_NUMBERS = {relation: n for n, relation in enumerate(Relation, 1)}
LANGUAGE_NUMBERS = {language: n for n, language in enumerate(ContactLanguage, 1)}
TYPE_NUMBERS = {order_type: n for n, order_type in enumerate(OrderType, 1)}
END_NUMBERS = {reason: n for n, reason in enumerate(EndReason, 1)}
WEARER_END_NUMBERS = {reason: n for n, reason in enumerate(WearerEndReason, 1)}
ENCOUNTER_NUMBERS = {reason: n for n, reason in enumerate(EncounterReason, 1)}
BASIS_NUMBERS = {basis: n for n, basis in enumerate((basis for basis in TagBasis if basis), 1)}
EXERCISE_NUMBERS = {exercise: n for n, exercise in enumerate(ExerciseKind, 1)}
ACTION_NUMBERS = {Action.WARN: 2, Action.NOTIFY: 3, Action.RESPOND: 4}

Line: TypeAlias = tuple[str, str | int | None]
"""Path of a field and its value. A line with an empty value, 0 or None isn't part of the text."""


def tag_lines(tag: Tag) -> Iterator[Line]:
    """Lines of a tag."""
    yield "wearer_id", tag.wearer_id
    yield "vendor_id", tag.vendor_id
    yield "basis", BASIS_NUMBERS.get(tag.basis)
    yield "removed_at", tag.removed_at_ms


def device_lines(device: Device) -> Iterator[Line]:
    """Lines of a protective device."""
    yield "person_id", device.person_id
    yield "vendor_id", device.vendor_id
    yield "removed_at", device.removed_at_ms


def wearer_unit_lines(unit: WearerUnit) -> Iterator[Line]:
    """Lines of a wearer's home unit or beacon."""
    yield "wearer_id", unit.wearer_id
    yield from _unit_lines(unit)


def person_unit_lines(unit: PersonUnit) -> Iterator[Line]:
    """Lines of a protected person's beacon."""
    yield "person_id", unit.person_id
    yield from _unit_lines(unit)


def _unit_lines(unit: PresenceUnit) -> Iterator[Line]:
    yield "kind", unit.kind.value
    yield "place.lat_deg", _whole(unit.place.lat_deg, 1e7)
    yield "place.lon_deg", _whole(unit.place.lon_deg, 1e7)
    yield "place.radius_m", _whole(unit.place.radius_m, 1e3)
    yield "installed_from", unit.installed_from_ms
    yield "installed_until", unit.installed_until_ms
    yield "report_interval_s", unit.interval_s
    yield "vendor_id", unit.vendor_id
    yield "identifier", unit.identifier


def protected_person_lines(person: ProtectedPerson) -> Iterator[Line]:
    """Lines of a protected person."""
    yield "name", person.name
    yield "relation", RELATION_NUMBERS[person.relation] if person.relation else None
    if person.contact:
        yield from _contact_lines(person.contact)
    yield "ended_at", person.ended_at_ms


def _contact_lines(contact: Contact) -> Iterator[Line]:
    yield "contact.handle", contact.handle
    yield "contact.language", LANGUAGE_NUMBERS[contact.language] if contact.language else None
    yield "contact.duress_choice", contact.duress_choice


def wearer_lines(wearer: Wearer) -> Iterator[Line]:
    """Lines of a wearer."""
    yield from _person_lines("", wearer)
    yield "exercise", EXERCISE_NUMBERS[wearer.exercise] if wearer.exercise else None
    if wearer.end is not None:
        yield "end.reason", WEARER_END_NUMBERS[wearer.end.reason]
        yield "end.ended_at", wearer.end.at_ms


def _person_lines(prefix: str, person: Wearer | Respondent) -> Iterator[Line]:
    yield f"{prefix}national_id", person.national_id
    yield f"{prefix}name", person.name
    yield f"{prefix}birth_date", person.birth_date.isoformat()
    yield f"{prefix}sex", SEX_NUMBERS[person.sex] if person.sex else None
    yield f"{prefix}phone", person.phone
    yield f"{prefix}address", person.address


def order_lines(order: Order) -> Iterator[Line]:
    """Lines of an order."""
    yield from _person_lines("respondent.", order.respondent)
    for n, person_id in enumerate(order.protected_person_ids):
        yield f"protected_person_ids[{n}]", person_id
    for n, place in enumerate(order.places):
        yield from _place_lines(f"places[{n}]", place)
    for n, ring in enumerate(order.rings):
        yield f"rings[{n}].radius_m", _whole(ring.radius_m, 1e3)
        yield f"rings[{n}].action", ACTION_NUMBERS[ring.action]
    yield "valid_from", order.valid_from_ms
    yield "valid_until", order.valid_until_ms
    yield "type", TYPE_NUMBERS[order.type] if order.type else None
    yield "extensions", order.extensions
    yield "duration_reason", order.duration_reason
    for n, encounter in enumerate(order.encounters):
        yield from _encounter_lines(f"encounters[{n}]", encounter)
    yield "exercise", EXERCISE_NUMBERS[order.exercise] if order.exercise else None
    yield "fit_by", order.fit_by_ms
    if order.end is not None:
        yield "end.reason", END_NUMBERS[order.end.reason]
        yield "end.ended_at", order.end.at_ms
        yield "end.covering_order_id", order.end.covering_order_id


def _encounter_lines(path: str, encounter: AllowedEncounter) -> Iterator[Line]:
    yield f"{path}.encounter_id", encounter.encounter_id
    yield f"{path}.reason", ENCOUNTER_NUMBERS[encounter.reason]
    yield f"{path}.from", encounter.from_ms
    yield f"{path}.until", encounter.until_ms
    for n, place in enumerate(encounter.places):
        yield from _place_lines(f"{path}.places[{n}]", place)
    yield f"{path}.daily_from_s", encounter.daily_from_s
    yield f"{path}.daily_until_s", encounter.daily_until_s


def _place_lines(path: str, place: Place) -> Iterator[Line]:
    yield f"{path}.place_id", place.place_id
    match place.shape:
        case Circle() as shape:
            yield f"{path}.circle.lat_deg", _whole(shape.lat_deg, 1e7)
            yield f"{path}.circle.lon_deg", _whole(shape.lon_deg, 1e7)
            yield f"{path}.circle.radius_m", _whole(shape.radius_m, 1e3)
        case Polygon() as shape:
            yield from _corner_lines(f"{path}.polygon", shape.vertices)
            for n, hole in enumerate(shape.holes):
                yield from _corner_lines(f"{path}.polygon.holes[{n}]", hole)
        case _:
            assert_never(place.shape)
    yield f"{path}.named_to_respondent", 1 if place.named_to_respondent else None


def _corner_lines(path: str, vertices: Sequence[LatLon]) -> Iterator[Line]:
    for n, vertex in enumerate(vertices):
        yield f"{path}.vertices[{n}].lat_deg", _whole(vertex.lat_deg, 1e7)
        yield f"{path}.vertices[{n}].lon_deg", _whole(vertex.lon_deg, 1e7)


def _whole(value: float, units: float) -> int:
    return round(value * units)
