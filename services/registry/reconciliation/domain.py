"""Compare an agency's list with the stored records: canonical text, digests, root hash and differences. Pure.

protos/tandem/registry/v1/reconciliation.proto defines the text and the hashes, so that an agency computes the same values.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from services.registry.domain import (
    Action,
    AllowedEncounter,
    Circle,
    Contact,
    ContactLanguage,
    Device,
    EncounterReason,
    EndReason,
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
"""How long an agency may go without proof that both lists are equal, milliseconds of mesh time."""


class ListedKind(Enum):
    """Kind of a record; its value is the number in the list."""

    WEARER = 1
    TAG = 2
    PROTECTED_PERSON = 3
    DEVICE = 4
    ORDER = 5


class Agency(Enum):
    """Agency that sends a list: the Ministry of Justice (MOJ) or the National Police Agency (NPA)."""

    MOJ = "moj"
    NPA = "npa"


KINDS_OF: Mapping[Agency, tuple[ListedKind, ...]] = {
    Agency.MOJ: (ListedKind.WEARER, ListedKind.TAG),
    Agency.NPA: (ListedKind.PROTECTED_PERSON, ListedKind.DEVICE, ListedKind.ORDER),
}
"""Kinds of records that each agency owns."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A record of a list, as its version and digest."""

    kind: ListedKind
    record_id: str
    source_version: int
    digest: bytes
    """SHA-256 of the record's canonical text."""


class Finding(Enum):
    """How a record differs between the list and the store."""

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


def compare(listed: Iterable[Listed], stored: Iterable[Listed]) -> list[Difference]:
    """Differences between two lists, by kind and id. Each record may be in a list only once."""
    theirs, ours = ({_sort_key(record): record for record in side} for side in (listed, stored))
    differences = []
    for key in sorted(theirs.keys() | ours.keys()):
        their, our = theirs.get(key), ours.get(key)
        if their == our:
            continue
        finding = Finding.EXTRA if their is None else Finding.MISSING if our is None else Finding.DIFFERENT
        versions = (their.source_version if their else 0, our.source_version if our else 0)
        differences.append(Difference(finding, ListedKind(key[0]), key[1], *versions))
    return differences


def root(records: Iterable[Listed]) -> bytes:
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


def overdue(since_ms: int, proven_at_ms: int | None, now_ms: int) -> bool:
    """Whether the proof of an agency is older than ALARM_AFTER_MS. Without any proof, the time counts from `since_ms`."""
    return now_ms - (since_ms if proven_at_ms is None else proven_at_ms) > ALARM_AFTER_MS


# ── canonical text ───────────────────────────────────────────────────────────────────────────────────────────────────

# Numbers of the enums in registry.proto; a test compares them.
SEX_NUMBERS = {Sex.FEMALE: 1, Sex.MALE: 2}
RELATION_NUMBERS = {relation: n for n, relation in enumerate(Relation, 1)}
LANGUAGE_NUMBERS = {language: n for n, language in enumerate(ContactLanguage, 1)}
TYPE_NUMBERS = {order_type: n for n, order_type in enumerate(OrderType, 1)}
END_NUMBERS = {reason: n for n, reason in enumerate(EndReason, 1)}
WEARER_END_NUMBERS = {reason: n for n, reason in enumerate(WearerEndReason, 1)}
ENCOUNTER_NUMBERS = {reason: n for n, reason in enumerate(EncounterReason, 1)}
ACTION_NUMBERS = {Action.WARN: 2, Action.NOTIFY: 3, Action.RESPOND: 4}

_Line = tuple[str, str | int | None]


def listed(record: Wearer | Tag | ProtectedPerson | Device | Order) -> Listed:
    """The list entry of a record, as its agency would compute it."""
    kind, record_id, lines = _lines_of(record)
    text = "".join(f"{path}={value}\n" for path, value in lines if value)
    return Listed(
        kind=kind,
        record_id=record_id,
        source_version=record.source_version,
        digest=hashlib.sha256(text.encode()).digest(),
    )


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


def _encounter_lines(path: str, encounter: AllowedEncounter) -> Iterator[_Line]:
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
    """Number of differences per finding, for the log."""
    return {
        finding.value.lower(): sum(difference.finding is finding for difference in differences) for finding in Finding
    }
