"""Records of both agencies: wearers, tags, protected persons, devices, orders, home units and beacons. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date
from enum import Enum
from typing import TypeAlias

from services.common import ids
from services.common.geometry import Area, Circle
from services.common.privacy.notices import TagBasis

CLOCKS_DIFFER_MS = 120_000
"""How far the clock of an office may differ from the mesh's, milliseconds."""


class Action(Enum):
    """Demand that a wearer triggers by entering a ring."""

    WARN = "WARN"
    NOTIFY = "NOTIFY"
    RESPOND = "RESPOND"


@dataclass(frozen=True, slots=True)
class OrderRing:
    """Distance threshold of an order, and the demand inside it."""

    radius_m: float
    """Distance from the protected person, or from the edge of the protected place, metres."""
    action: Action


DEFAULT_RINGS = (OrderRing(2000.0, Action.WARN), OrderRing(1000.0, Action.NOTIFY), OrderRing(100.0, Action.RESPOND))
"""Rings of an order without rings of its own: warn at 2 km, notify both desks at 1 km, respond at 100 m (the statutes' distance)."""


@dataclass(frozen=True, slots=True)
class Place:
    """A protected place: home, work, school."""

    place_id: str
    shape: Area
    named_to_respondent: bool = False
    """Whether the order names the place to the respondent; False if the address is kept from the respondent, or if that isn't known."""


class EncounterReason(Enum):
    """Reason for an authorised encounter."""

    COURT_DATE = "COURT_DATE"
    POLICE_STATION = "POLICE_STATION"
    COMMUTE = "COMMUTE"


@dataclass(frozen=True, slots=True)
class AllowedEncounter:
    """A dated exception of an order: an approach is recorded and the protected person is warned, but nobody is dispatched."""

    encounter_id: str
    reason: EncounterReason
    from_ms: int
    """Start of the exception, milliseconds since 1970 UTC."""
    until_ms: int
    """End of the exception, exclusive, milliseconds since 1970 UTC."""
    places: tuple[Place, ...] = ()
    """Places where the wearer must be for the exception to apply. Empty means anywhere."""
    daily_from_s: int = 0
    """Start of the exception on each day, seconds after midnight in Korea."""
    daily_until_s: int = 0
    """End of the exception on each day, exclusive, seconds after midnight in Korea. Both 0 mean all day."""


class Sex(Enum):
    """Sex as the records state it."""

    FEMALE = "FEMALE"
    MALE = "MALE"


class Relation(Enum):
    """Reason for which an order protects a person."""

    VICTIM = "VICTIM"
    COHABITANT = "COHABITANT"
    FAMILY = "FAMILY"


class OrderType(Enum):
    """Law that an order is based on. lifecycle.LIMITS has the maximum durations."""

    STALKING_APPROACH = "STALKING_APPROACH"
    STALKING_TELECOM = "STALKING_TELECOM"
    STALKING_TAG = "STALKING_TAG"
    POLICE_EMERGENCY = "POLICE_EMERGENCY"
    DV_TEMPORARY = "DV_TEMPORARY"
    DV_PROTECTION = "DV_PROTECTION"
    STALKING_PROTECTION = "STALKING_PROTECTION"
    TAG_CONDITION = "TAG_CONDITION"
    STALKING_INTERIM = "STALKING_INTERIM"


class EndReason(Enum):
    """Reason for the early end of an order."""

    CANCELLED_BY_COURT = "CANCELLED_BY_COURT"
    CANCELLED_BY_POLICE = "CANCELLED_BY_POLICE"
    COVERED_BY_COURT_ORDER = "COVERED_BY_COURT_ORDER"
    NON_PROSECUTION = "NON_PROSECUTION"
    ACQUITTAL = "ACQUITTAL"
    DECIDED = "DECIDED"
    """The court's decision takes over from an interim protection order."""


@dataclass(frozen=True, slots=True)
class OrderEnd:
    """Early end of an order."""

    reason: EndReason
    at_ms: int
    """First moment at which the order isn't in force, milliseconds since 1970 UTC."""
    covering_order_id: str = ""
    """Court order that replaces this order. Only with the reasons COVERED_BY_COURT_ORDER and DECIDED."""


MAX_EXTENSIONS = 100
"""Maximum number of extensions of an order."""


class ExerciseKind(Enum):
    """Kind of exercise that a synthetic record belongs to."""

    DRILL = "DRILL"
    CANARY = "CANARY"


class WearerEndReason(Enum):
    """Reason for the end of a wearer's case with the Ministry."""

    COMPLETED = "COMPLETED"
    ACQUITTAL = "ACQUITTAL"
    LAPSED = "LAPSED"


@dataclass(frozen=True, slots=True)
class WearerEnd:
    """The end of a wearer's case with the Ministry."""

    reason: WearerEndReason
    at_ms: int
    """When the case ended, milliseconds since 1970 UTC."""


class ListedKind(Enum):
    """Kind of a record; its value is the number in the list of an agency."""

    WEARER = 1
    TAG = 2
    PROTECTED_PERSON = 3
    DEVICE = 4
    ORDER = 5
    WEARER_UNIT = 10
    PERSON_UNIT = 11


# Fields that were added later have a default, and stored records omit values that equal their default. So records that
# were stored earlier keep their content and their digests.


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
    """End of the wearer's case; None while the case runs."""
    exercise: ExerciseKind | None = None
    """Exercise that the record belongs to; None for a live record."""


@dataclass(frozen=True, slots=True)
class Tag:
    """A tag on a wearer; the Ministry's record."""

    device_id: str
    wearer_id: str
    source_version: int
    removed_at_ms: int | None = None
    """When the tag was taken off, milliseconds since 1970 UTC; None while the wearer has it on."""
    vendor_id: str = ""
    """Vendor that may report for the tag; empty if no vendor may."""
    basis: TagBasis = TagBasis.UNKNOWN
    """Why the wearer wears the tag."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "basis", TagBasis(self.basis))  # the database returns the text


class ContactLanguage(Enum):
    """Language in which a protected person is warned."""

    KOREAN = "KOREAN"
    ENGLISH = "ENGLISH"


@dataclass(frozen=True, slots=True)
class Contact:
    """Contact data for warning a protected person."""

    handle: str = field(repr=False)
    """Address that the warning leg's gateways use to reach the person."""
    language: ContactLanguage | None = None
    """Language of the warnings; None means Korean."""
    duress_choice: int = field(default=0, repr=False)
    """Number of the answer, 1 to 3, that secretly signals duress; 0 if none was agreed."""


@dataclass(frozen=True, slots=True)
class ProtectedPerson:
    """A victim, or a cohabitant or relative whom an order names; the police's record."""

    person_id: str
    name: str = field(repr=False)
    source_version: int
    relation: Relation | None = None
    ended_at_ms: int | None = None
    """When the protection ended, milliseconds since 1970 UTC; None while the person is protected."""
    contact: Contact | None = None
    """Contact data; None if unknown, or if the person doesn't want warnings."""


@dataclass(frozen=True, slots=True)
class Device:
    """A protective device; the police's record."""

    device_id: str
    person_id: str
    source_version: int
    removed_at_ms: int | None = None
    """When the person gave the device back, milliseconds since 1970 UTC; None while the person has it."""
    vendor_id: str = ""
    """Vendor that may report for the device; empty if no vendor may."""


DEFAULT_UNIT_INTERVAL_S = 60


class UnitKind(Enum):
    """Kind of a unit; its value is the number of the proto's PresenceUnitKind."""

    HOME_UNIT = 1
    BLUETOOTH_BEACON = 2
    WIFI_ACCESS_POINT = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class PresenceUnit:
    """A home unit or beacon at a fixed place."""

    unit_id: str
    source_version: int
    kind: UnitKind
    place: Circle = field(repr=False)
    """The place; its radius is the unit's range."""
    installed_from_ms: int
    """First moment at which the unit counts, milliseconds since 1970 UTC."""
    installed_until_ms: int | None = None
    """End, exclusive, milliseconds since 1970 UTC; None until the unit is removed."""
    interval_s: int = DEFAULT_UNIT_INTERVAL_S
    """Interval at which presence at the unit is reported, seconds."""
    vendor_id: str = ""
    """Vendor that may report for the unit; empty if no vendor may."""
    identifier: str = field(default="", repr=False)
    """What is heard of a beacon, in lower case; empty for a home unit."""

    @property
    def device_id(self) -> str:
        """Id of the unit's route."""
        return self.unit_id

    def is_removed(self, now_ms: int) -> bool:
        """Whether the unit counts no longer."""
        return self.installed_until_ms is not None and self.installed_until_ms <= now_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class WearerUnit(PresenceUnit):
    """A home unit or beacon of a wearer; the Ministry's record."""

    wearer_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PersonUnit(PresenceUnit):
    """A beacon of a protected person; the police's record."""

    person_id: str


RoutedDevice: TypeAlias = Tag | Device | WearerUnit | PersonUnit
"""A device whose reports ingest accepts by its route."""


@dataclass(frozen=True, slots=True)
class Respondent:
    """The person whom an order restrains."""

    national_id: str = field(repr=False)
    """13 digits; empty if the police don't know the number."""
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
    rings: tuple[OrderRing, ...]
    """Rings as the order states them. Empty means DEFAULT_RINGS."""
    valid_from_ms: int
    """First moment of validity, milliseconds since 1970 UTC."""
    valid_until_ms: int | None
    """End of validity, exclusive, milliseconds since 1970 UTC; None if the order is valid until the court decides."""
    source_version: int
    type: OrderType | None = None
    extensions: int = 0
    """Number of extensions so far."""
    duration_reason: str = field(default="", repr=False)
    """Reason why the order lasts longer than its type allows."""
    end: OrderEnd | None = None
    """Early end of the order; None if there is none."""
    encounters: tuple[AllowedEncounter, ...] = ()
    """Authorised encounters, within the validity."""
    exercise: ExerciseKind | None = None
    """Exercise that the order belongs to; None for a live order."""
    fit_by_ms: int | None = None
    """The court's time for the fitting of a tag, milliseconds since 1970 UTC; None if the record doesn't give it."""

    @property
    def ends_ms(self) -> int | None:
        """First moment at which the order isn't in force, milliseconds since 1970 UTC; None if it has no end yet."""
        return self.valid_until_ms if self.end is None else self._capped_ms(self.end.at_ms)

    def _capped_ms(self, end_ms: int) -> int:
        # An order that ended before it began keeps 1 ms of validity, so that its case stays well formed.
        capped_ms = end_ms if self.valid_until_ms is None else min(self.valid_until_ms, end_ms)
        return max(self.valid_from_ms + 1, capped_ms)

    def is_over(self, at_ms: int) -> bool:
        """Whether the order has ended by a moment, milliseconds since 1970 UTC."""
        return self.ends_ms is not None and self.ends_ms <= at_ms


def is_match(respondent: Respondent, wearer: Wearer) -> bool:
    """Whether respondent and wearer have the same national number, which proves that they are one person."""
    return bool(wearer.national_id) and respondent.national_id == wearer.national_id


def case_id_of(order_id: str, wearer_id: str) -> str:
    """Id of the joint case of an order and a wearer."""
    return ids.hash_id("case", order_id, wearer_id)
