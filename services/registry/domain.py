"""Records of the two agencies, and what follows from them: matches and joint cases. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from enum import Enum

from services.common import ids
from services.common.errors import Conflict


class Action(Enum):
    """What entering a ring demands."""

    WARN = "WARN"
    NOTIFY = "NOTIFY"
    RESPOND = "RESPOND"


@dataclass(frozen=True, slots=True)
class Ring:
    """One distance threshold of an order."""

    radius_m: float
    """Distance from the protected person, or from the edge of the protected place, metres."""
    action: Action


DEFAULT_RINGS = (Ring(2000.0, Action.WARN), Ring(1000.0, Action.NOTIFY), Ring(100.0, Action.RESPOND))
"""Rings of an order that names none: warned at 2 km, both desks told at 1 km, the 100 m of the statutes answered."""


@dataclass(frozen=True, slots=True)
class Point:
    """A point on WGS84."""

    lat_deg: float
    lon_deg: float


@dataclass(frozen=True, slots=True)
class Circle:
    """A disc on WGS84; radius 0 is a point."""

    lat_deg: float
    lon_deg: float
    radius_m: float


@dataclass(frozen=True, slots=True)
class Polygon:
    """An area inside one closed line whose sides don't cross."""

    vertices: tuple[Point, ...]
    """Corners in order, the first not repeated."""


@dataclass(frozen=True, slots=True)
class Place:
    """A protected place: home, work, school."""

    place_id: str
    shape: Circle | Polygon


@dataclass(frozen=True, slots=True)
class Wearer:
    """A person fitted with a tag; the Ministry's record."""

    wearer_id: str
    national_id: str = field(repr=False)
    """13 digits."""
    name: str = field(repr=False)
    birth_date: date = field(repr=False)
    source_version: int


@dataclass(frozen=True, slots=True)
class Tag:
    """A tag on a wearer; the Ministry's record."""

    device_id: str
    wearer_id: str
    source_version: int


@dataclass(frozen=True, slots=True)
class ProtectedPerson:
    """A victim, or a cohabitant or relative whom an order names; the police's record."""

    person_id: str
    name: str = field(repr=False)
    source_version: int


@dataclass(frozen=True, slots=True)
class Device:
    """A protective device; the police's record."""

    device_id: str
    person_id: str
    source_version: int


@dataclass(frozen=True, slots=True)
class Respondent:
    """The person whom an order restrains."""

    national_id: str = field(repr=False)
    """13 digits."""
    name: str = field(repr=False)
    birth_date: date = field(repr=False)


@dataclass(frozen=True, slots=True)
class Order:
    """A restraining order; the police's record."""

    order_id: str
    respondent: Respondent
    protected_person_ids: tuple[str, ...]
    places: tuple[Place, ...]
    rings: tuple[Ring, ...]
    """As the order states them; none means DEFAULT_RINGS."""
    valid_from_ms: int
    """First moment of validity, milliseconds since 1970 UTC."""
    valid_until_ms: int
    """End of validity, exclusive, milliseconds since 1970 UTC."""
    source_version: int


@dataclass(frozen=True, slots=True)
class ProtectedTarget:
    """A protected person as the evaluator knows them: ids only."""

    person_id: str
    device_ids: tuple[str, ...]
    """Protective devices, sorted; none is a foreseen state."""


@dataclass(frozen=True, slots=True)
class JointCase:
    """One order joined with one wearer, whole. Holds ids and geometry, never names."""

    case_id: str
    order_id: str
    wearer_id: str
    tag_device_ids: tuple[str, ...]
    """Tags on the wearer, sorted."""
    persons: tuple[ProtectedTarget, ...]
    places: tuple[Place, ...]
    rings: tuple[Ring, ...]
    """At least one."""
    valid_from_ms: int
    valid_until_ms: int
    """Exclusive."""


class Outcome(Enum):
    """What becomes of a record that is put."""

    STORED = "STORED"
    UNCHANGED = "UNCHANGED"
    SUPERSEDED = "SUPERSEDED"


def decide_put(stored_version: int | None, stored_digest: bytes | None, version: int, digest: bytes) -> Outcome:
    """What becomes of a record of this version and content, given what is stored (None: nothing).

    Raises Conflict where the same version is stored with other content.
    """
    if stored_version is None or version > stored_version:
        return Outcome.STORED
    if version < stored_version:
        return Outcome.SUPERSEDED
    if digest != stored_digest:
        raise Conflict(
            f"version {version} of this record is stored with other content; a change needs a greater version"
        )
    return Outcome.UNCHANGED


def is_match(respondent: Respondent, wearer: Wearer) -> bool:
    """Whether respondent and wearer are one person: the same national number."""
    return respondent.national_id == wearer.national_id


def case_id_of(order_id: str, wearer_id: str) -> str:
    """Id of the joint case of an order and a wearer."""
    return ids.hash_id("case", order_id, wearer_id)


def build_case(order: Order, wearer: Wearer, tags: Sequence[Tag], devices: Sequence[Device]) -> JointCase:
    """The joint case of an order and the wearer whom it restrains. Tags and devices of others are left out."""
    return JointCase(
        case_id=case_id_of(order.order_id, wearer.wearer_id),
        order_id=order.order_id,
        wearer_id=wearer.wearer_id,
        tag_device_ids=tuple(sorted(tag.device_id for tag in tags if tag.wearer_id == wearer.wearer_id)),
        persons=tuple(
            ProtectedTarget(
                person_id, tuple(sorted(device.device_id for device in devices if device.person_id == person_id))
            )
            for person_id in order.protected_person_ids
        ),
        places=order.places,
        rings=order.rings or DEFAULT_RINGS,
        valid_from_ms=order.valid_from_ms,
        valid_until_ms=order.valid_until_ms,
    )


def withdraw(case: JointCase, at_ms: int) -> JointCase:
    """The case once its match no longer holds, because a number was corrected: valid until `at_ms` at the most."""
    ends_ms = max(case.valid_from_ms + 1, min(case.valid_until_ms, at_ms))
    return replace(case, valid_until_ms=ends_ms)


def tag_partitions(wearer_id: str, partitions: int) -> tuple[int, ...]:
    """Partitions of the log that need the reports of a wearer's tags."""
    return (ids.partition_of(wearer_id, partitions),)


def device_partitions(person_id: str, wearer_ids: Sequence[str], partitions: int) -> tuple[int, ...]:
    """Partitions that need the reports of a person's devices, sorted: those of the wearers who are kept away.

    The person's own one goes with them, so that reports have somewhere to go before there is a case.
    """
    return tuple(sorted({ids.partition_of(subject_id, partitions) for subject_id in (person_id, *wearer_ids)}))
