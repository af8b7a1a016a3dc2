"""Records of the two agencies, and what follows from them: matches and joint cases. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from enum import Enum

from services.common import ids
from services.common.rpc.errors import Conflict


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
    """An area inside a closed line whose sides don't cross, without its holes."""

    vertices: tuple[Point, ...]
    """Corners in order, the first not repeated."""
    holes: tuple[tuple[Point, ...], ...] = ()
    """Corners of each area that is cut out, inside the line and apart from each other."""


@dataclass(frozen=True, slots=True)
class Place:
    """A protected place: home, work, school."""

    place_id: str
    shape: Circle | Polygon


class EncounterReason(Enum):
    """Why an encounter is allowed."""

    COURT_DATE = "COURT_DATE"
    POLICE_STATION = "POLICE_STATION"
    COMMUTE = "COMMUTE"


@dataclass(frozen=True, slots=True)
class Encounter:
    """A dated exception of an order: while it holds, an approach is warned of and recorded, and nobody is sent."""

    encounter_id: str
    reason: EncounterReason
    from_ms: int
    """First moment, milliseconds since 1970 UTC."""
    until_ms: int
    """End, exclusive, milliseconds since 1970 UTC."""
    places: tuple[Place, ...] = ()
    """Where the wearer must be for it to hold; none means anywhere."""
    daily_from_s: int = 0
    """Of each day only from this second after midnight in Korea ..."""
    daily_until_s: int = 0
    """... until this one, exclusive; both 0 mean all day."""


class Sex(Enum):
    """Sex as the records have it."""

    FEMALE = "FEMALE"
    MALE = "MALE"


class Relation(Enum):
    """Why an order protects a person."""

    VICTIM = "VICTIM"
    COHABITANT = "COHABITANT"
    FAMILY = "FAMILY"


class OrderType(Enum):
    """By what law an order stands; lifecycle.LIMITS has the greatest durations."""

    STALKING_APPROACH = "STALKING_APPROACH"
    STALKING_TELECOM = "STALKING_TELECOM"
    STALKING_TAG = "STALKING_TAG"
    POLICE_EMERGENCY = "POLICE_EMERGENCY"
    DV_TEMPORARY = "DV_TEMPORARY"
    DV_PROTECTION = "DV_PROTECTION"
    STALKING_PROTECTION = "STALKING_PROTECTION"
    TAG_CONDITION = "TAG_CONDITION"


class EndReason(Enum):
    """Why an order ends before its time."""

    CANCELLED_BY_COURT = "CANCELLED_BY_COURT"
    CANCELLED_BY_POLICE = "CANCELLED_BY_POLICE"
    COVERED_BY_COURT_ORDER = "COVERED_BY_COURT_ORDER"
    NON_PROSECUTION = "NON_PROSECUTION"
    ACQUITTAL = "ACQUITTAL"


@dataclass(frozen=True, slots=True)
class OrderEnd:
    """The end of an order before its time."""

    reason: EndReason
    at_ms: int
    """From when on it isn't in force, milliseconds since 1970 UTC."""
    covering_order_id: str = ""
    """The court order that covers it, where that is the reason."""


EXERCISE_IDS = "exercise."
"""How ids of records begin that the registry makes up for exercises; no agency's do."""


class ExerciseKind(Enum):
    """What a record belongs to that isn't in earnest."""

    DRILL = "DRILL"
    CANARY = "CANARY"


class WearerEndReason(Enum):
    """Why a wearer's case with the Ministry is over."""

    COMPLETED = "COMPLETED"
    ACQUITTAL = "ACQUITTAL"
    LAPSED = "LAPSED"


@dataclass(frozen=True, slots=True)
class WearerEnd:
    """The end of a wearer's case with the Ministry."""

    reason: WearerEndReason
    at_ms: int
    """Milliseconds since 1970 UTC."""


# A record's field that was added later has a default, and what equals its default is left out where the record is stored:
# so records and digests of before stay what they were.


@dataclass(frozen=True, slots=True)
class Wearer:
    """A person fitted with a tag; the Ministry's record."""

    wearer_id: str
    national_id: str = field(repr=False)
    """13 digits."""
    name: str = field(repr=False)
    birth_date: date = field(repr=False)
    source_version: int
    sex: Sex | None = field(default=None, repr=False)
    phone: str = field(default="", repr=False)
    address: str = field(default="", repr=False)
    end: WearerEnd | None = None
    """The end of their case; None while it runs."""
    exercise: ExerciseKind | None = None
    """Part of an exercise; None for a person."""


@dataclass(frozen=True, slots=True)
class Tag:
    """A tag on a wearer; the Ministry's record."""

    device_id: str
    wearer_id: str
    source_version: int
    removed_at_ms: int | None = None
    """When it was taken off, milliseconds since 1970 UTC; None while it is on."""
    vendor_id: str = ""
    """The vendor that may report for it; empty where none may."""


class Language(Enum):
    """In which language a person is warned."""

    KOREAN = "KOREAN"
    ENGLISH = "ENGLISH"


@dataclass(frozen=True, slots=True)
class Contact:
    """How a protected person is warned."""

    handle: str = field(repr=False)
    """What the warning leg's gateways reach them by."""
    language: Language | None = None
    """None is Korean."""
    duress_choice: int = field(default=0, repr=False)
    """Which of the three answers says that somebody else has a hand in it, 1 to 3; 0 where none was agreed."""


@dataclass(frozen=True, slots=True)
class ProtectedPerson:
    """A victim, or a cohabitant or relative whom an order names; the police's record."""

    person_id: str
    name: str = field(repr=False)
    source_version: int
    relation: Relation | None = None
    ended_at_ms: int | None = None
    """Since when they aren't protected any more, milliseconds since 1970 UTC; None while they are."""
    contact: Contact | None = None
    """None where it isn't known or not wanted."""


@dataclass(frozen=True, slots=True)
class Device:
    """A protective device; the police's record."""

    device_id: str
    person_id: str
    source_version: int
    removed_at_ms: int | None = None
    """Since when the person hasn't had it, milliseconds since 1970 UTC; None while they have."""
    vendor_id: str = ""
    """The vendor that may report for it; empty where none may."""


@dataclass(frozen=True, slots=True)
class Respondent:
    """The person whom an order restrains."""

    national_id: str = field(repr=False)
    """13 digits; empty where the police don't know it."""
    name: str = field(repr=False)
    birth_date: date = field(repr=False)
    sex: Sex | None = field(default=None, repr=False)
    phone: str = field(default="", repr=False)
    address: str = field(default="", repr=False)


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
    type: OrderType | None = None
    extensions: int = 0
    """How often it was extended so far."""
    duration_reason: str = field(default="", repr=False)
    """Why it lasts longer than its type allows."""
    end: OrderEnd | None = None
    """Its end before its time; None while it runs."""
    encounters: tuple[Encounter, ...] = ()
    """Authorised encounters, within the validity."""
    exercise: ExerciseKind | None = None
    """Part of an exercise; None in earnest."""

    @property
    def ends_ms(self) -> int:
        """From when on it isn't in force, milliseconds since 1970 UTC."""
        if self.end is None:
            return self.valid_until_ms
        # A moment is left of an order that ended before it began, so that its case stays well formed.
        return max(self.valid_from_ms + 1, min(self.valid_until_ms, self.end.at_ms))


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
    encounters: tuple[Encounter, ...]
    """As the order allows them, also beyond an end before its time."""
    exercise: ExerciseKind | None
    """Part of an exercise; None in earnest."""


class PutOutcome(Enum):
    """What becomes of a record that is put."""

    STORED = "STORED"
    UNCHANGED = "UNCHANGED"
    SUPERSEDED = "SUPERSEDED"


def decide_put(stored_version: int | None, stored_digest: bytes | None, version: int, digest: bytes) -> PutOutcome:
    """What becomes of a record of this version and content, given what is stored (None: nothing).

    Raises Conflict where the same version is stored with other content.
    """
    if stored_version is None or version > stored_version:
        return PutOutcome.STORED
    if version < stored_version:
        return PutOutcome.SUPERSEDED
    if digest != stored_digest:
        raise Conflict(
            f"version {version} of this record is stored with other content; a change needs a greater version"
        )
    return PutOutcome.UNCHANGED


def is_match(respondent: Respondent, wearer: Wearer) -> bool:
    """Whether respondent and wearer are one person beyond doubt: the same national number."""
    return bool(wearer.national_id) and respondent.national_id == wearer.national_id


def case_id_of(order_id: str, wearer_id: str) -> str:
    """Id of the joint case of an order and a wearer."""
    return ids.hash_id("case", order_id, wearer_id)


def build_case(order: Order, wearer: Wearer, tags: Sequence[Tag], devices: Sequence[Device]) -> JointCase:
    """The joint case of an order and the wearer whom it restrains. Tags and devices of others are left out."""
    return JointCase(
        case_id=case_id_of(order.order_id, wearer.wearer_id),
        order_id=order.order_id,
        wearer_id=wearer.wearer_id,
        tag_device_ids=tuple(
            sorted(tag.device_id for tag in tags if tag.wearer_id == wearer.wearer_id and tag.removed_at_ms is None)
        ),
        persons=tuple(
            ProtectedTarget(
                person_id,
                tuple(
                    sorted(
                        device.device_id
                        for device in devices
                        if device.person_id == person_id and device.removed_at_ms is None
                    )
                ),
            )
            for person_id in order.protected_person_ids
        ),
        places=order.places,
        rings=order.rings or DEFAULT_RINGS,
        valid_from_ms=order.valid_from_ms,
        valid_until_ms=order.ends_ms,
        encounters=order.encounters,
        exercise=order.exercise,
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
