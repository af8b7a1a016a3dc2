"""Whether an agency's list is what is stored: canonical text, digests, the root hash, and the differences. Pure.

protos/tandem/registry/v1/reconciliation.proto defines the text and the hashes, so that an agency computes the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from services.registry.domain import (
    Action,
    Circle,
    Contact,
    Device,
    Encounter,
    EncounterReason,
    EndReason,
    Language,
    Order,
    OrderType,
    Place,
    Point,
    ProtectedPerson,
    Relation,
    Respondent,
    Sex,
    Tag,
    Wearer,
    WearerEndReason,
)

ALARM_AFTER_MS = 15 * 60_000
"""How long an agency may go without proof that both lists are the same, mesh time."""


class ListedKind(Enum):
    """Kinds of records, by their numbers in the list."""

    WEARER = 1
    TAG = 2
    PROTECTED_PERSON = 3
    DEVICE = 4
    ORDER = 5


class Agency(Enum):
    """Who lists."""

    MOJ = "moj"
    NPA = "npa"


KINDS_OF: Mapping[Agency, tuple[ListedKind, ...]] = {
    Agency.MOJ: (ListedKind.WEARER, ListedKind.TAG),
    Agency.NPA: (ListedKind.PROTECTED_PERSON, ListedKind.DEVICE, ListedKind.ORDER),
}
"""Whose record is whose."""


@dataclass(frozen=True, slots=True)
class Listed:
    """One record of a list."""

    kind: ListedKind
    record_id: str
    source_version: int
    digest: bytes
    """SHA-256 of its canonical text."""


class Finding(Enum):
    """How the two sides differ about a record."""

    MISSING = "MISSING"
    EXTRA = "EXTRA"
    DIFFERENT = "DIFFERENT"


@dataclass(frozen=True, slots=True)
class Difference:
    """One difference; a version is 0 where a side lacks the record."""

    finding: Finding
    kind: ListedKind
    record_id: str
    listed_version: int
    stored_version: int


def compare(listed: Iterable[Listed], stored: Iterable[Listed]) -> list[Difference]:
    """Differences by kind and id. Each record may be in a list once."""
    theirs, ours = ({_place(one): one for one in side} for side in (listed, stored))
    differences = []
    for place in sorted(theirs.keys() | ours.keys()):
        one, other = theirs.get(place), ours.get(place)
        if one == other:
            continue
        finding = Finding.EXTRA if one is None else Finding.MISSING if other is None else Finding.DIFFERENT
        versions = (one.source_version if one else 0, other.source_version if other else 0)
        differences.append(Difference(finding, ListedKind(place[0]), place[1], *versions))
    return differences


def root(records: Iterable[Listed]) -> bytes:
    """Root hash of a list."""
    hashed = hashlib.sha256()
    for record in sorted(records, key=_place):
        hashed.update(
            f"{record.kind.value} {record.record_id} {record.source_version} {record.digest.hex()}\n".encode()
        )
    return hashed.digest()


def _place(one: Listed) -> tuple[int, str]:
    # Ids are ASCII, so that their order is that of their bytes.
    return one.kind.value, one.record_id


def overdue(since_ms: int, proven_at_ms: int | None, now_ms: int) -> bool:
    """Whether an agency whose time counts from `since_ms` has gone without proof for too long."""
    return now_ms - (since_ms if proven_at_ms is None else proven_at_ms) > ALARM_AFTER_MS


# ── canonical text ───────────────────────────────────────────────────────────────────────────────────────────────────

# Numbers of the enums in registry.proto; a test compares them.
SEX_NUMBERS = {Sex.FEMALE: 1, Sex.MALE: 2}
RELATION_NUMBERS = {one: n for n, one in enumerate(Relation, 1)}
LANGUAGE_NUMBERS = {one: n for n, one in enumerate(Language, 1)}
TYPE_NUMBERS = {one: n for n, one in enumerate(OrderType, 1)}
END_NUMBERS = {one: n for n, one in enumerate(EndReason, 1)}
WEARER_END_NUMBERS = {one: n for n, one in enumerate(WearerEndReason, 1)}
ENCOUNTER_NUMBERS = {one: n for n, one in enumerate(EncounterReason, 1)}
ACTION_NUMBERS = {Action.WARN: 2, Action.NOTIFY: 3, Action.RESPOND: 4}

_Line = tuple[str, str | int | None]


def listed(record: Wearer | Tag | ProtectedPerson | Device | Order) -> Listed:
    """A record as its agency would list it."""
    kind, record_id, lines = _lines_of(record)
    text = "".join(f"{path}={value}\n" for path, value in lines if value)
    return Listed(kind, record_id, record.source_version, hashlib.sha256(text.encode()).digest())


def _lines_of(record: Wearer | Tag | ProtectedPerson | Device | Order) -> tuple[ListedKind, str, Iterable[_Line]]:
    match record:
        case Wearer():
            return ListedKind.WEARER, record.wearer_id, _wearer_lines(record)
        case Tag():
            lines = [
                ("wearer_id", record.wearer_id),
                ("vendor_id", record.vendor_id),
                ("removed_at", record.removed_at_ms),
            ]
            return ListedKind.TAG, record.device_id, lines
        case ProtectedPerson():
            relation = RELATION_NUMBERS[record.relation] if record.relation else None
            lines = [("name", record.name), ("relation", relation)]
            if record.contact:
                lines += _contact_lines(record.contact)
            lines.append(("ended_at", record.ended_at_ms))
            return ListedKind.PROTECTED_PERSON, record.person_id, lines
        case Device():
            lines = [
                ("person_id", record.person_id),
                ("vendor_id", record.vendor_id),
                ("removed_at", record.removed_at_ms),
            ]
            return ListedKind.DEVICE, record.device_id, lines
        case Order():
            return ListedKind.ORDER, record.order_id, _order_lines(record)


def _contact_lines(contact: Contact) -> Iterator[_Line]:
    yield "contact.handle", contact.handle
    yield "contact.language", LANGUAGE_NUMBERS[contact.language] if contact.language else None
    yield "contact.duress_choice", contact.duress_choice


def _wearer_lines(wearer: Wearer) -> Iterator[_Line]:
    yield from _person_lines("", wearer)
    if wearer.end is not None:
        yield "end.reason", WEARER_END_NUMBERS[wearer.end.reason]
        yield "end.ended_at", wearer.end.at_ms


def _person_lines(prefix: str, person: Wearer | Respondent) -> Iterator[_Line]:
    yield f"{prefix}national_id", person.national_id
    yield f"{prefix}name", person.name
    yield f"{prefix}birth_date", person.birth_date.isoformat()
    yield f"{prefix}sex", SEX_NUMBERS[person.sex] if person.sex else None
    yield f"{prefix}phone", person.phone
    yield f"{prefix}address", person.address


def _order_lines(order: Order) -> Iterator[_Line]:
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
    if order.end is not None:
        yield "end.reason", END_NUMBERS[order.end.reason]
        yield "end.ended_at", order.end.at_ms
        yield "end.covering_order_id", order.end.covering_order_id


def _encounter_lines(path: str, encounter: Encounter) -> Iterator[_Line]:
    yield f"{path}.encounter_id", encounter.encounter_id
    yield f"{path}.reason", ENCOUNTER_NUMBERS[encounter.reason]
    yield f"{path}.from", encounter.from_ms
    yield f"{path}.until", encounter.until_ms
    for n, place in enumerate(encounter.places):
        yield from _place_lines(f"{path}.places[{n}]", place)
    yield f"{path}.daily_from_s", encounter.daily_from_s
    yield f"{path}.daily_until_s", encounter.daily_until_s


def _place_lines(path: str, place: Place) -> Iterator[_Line]:
    yield f"{path}.place_id", place.place_id
    shape = place.shape
    if isinstance(shape, Circle):
        yield f"{path}.circle.lat_deg", _whole(shape.lat_deg, 1e7)
        yield f"{path}.circle.lon_deg", _whole(shape.lon_deg, 1e7)
        yield f"{path}.circle.radius_m", _whole(shape.radius_m, 1e3)
        return
    yield from _corner_lines(f"{path}.polygon", shape.vertices)
    for n, hole in enumerate(shape.holes):
        yield from _corner_lines(f"{path}.polygon.holes[{n}]", hole)


def _corner_lines(path: str, vertices: Sequence[Point]) -> Iterator[_Line]:
    for n, vertex in enumerate(vertices):
        yield f"{path}.vertices[{n}].lat_deg", _whole(vertex.lat_deg, 1e7)
        yield f"{path}.vertices[{n}].lon_deg", _whole(vertex.lon_deg, 1e7)


def _whole(value: float, units: float) -> int:
    return round(value * units)


def summary_counts(differences: Sequence[Difference]) -> dict[str, int]:
    """How many there are of each finding, for the log."""
    return {one.value.lower(): sum(each.finding is one for each in differences) for one in Finding}
