"""Types of log entry, in the terms of the decision: cases, reports, rules of the decision, and the fold version that a log demands."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from services.common.errors import OutdatedFold
from services.common.privacy.notices import NoticeGround
from services.geofence.domain.geometry import Disc, Shape


class Demand(enum.IntEnum):
    """What an alert demands, from least to most. The numbers equal those of the protos."""

    RECORD = 1
    WARN = 2
    NOTIFY = 3
    RESPOND = 4


class Exercise(enum.IntEnum):
    """Whether a case is live (NONE) or an exercise. The numbers equal those of the protos."""

    NONE = 0
    DRILL = 1
    CANARY = 2


class EquipmentKind(enum.Enum):
    """Events that a device reports about itself."""

    STRAP_OPEN = "STRAP_OPEN"
    STRAP_CLOSED = "STRAP_CLOSED"
    CASE_OPEN = "CASE_OPEN"
    """The housing of the device was opened."""
    CASE_CLOSED = "CASE_CLOSED"
    BATTERY_LOW = "BATTERY_LOW"
    PANIC_BUTTON = "PANIC_BUTTON"
    PANIC_CANCELLED = "PANIC_CANCELLED"
    JAMMING_SUSPECTED = "JAMMING_SUSPECTED"
    JAMMING_OVER = "JAMMING_OVER"
    CHARGER_CONNECTED = "CHARGER_CONNECTED"
    CHARGER_REMOVED = "CHARGER_REMOVED"
    BATTERY_RECOVERED = "BATTERY_RECOVERED"
    SHUTDOWN = "SHUTDOWN"
    STARTED = "STARTED"
    OUT_OF_COVERAGE = "OUT_OF_COVERAGE"
    BACK_IN_COVERAGE = "BACK_IN_COVERAGE"
    DEVICE_REFUSED = "DEVICE_REFUSED"
    """The protected person refuses to carry the device."""
    DEVICE_ACCEPTED = "DEVICE_ACCEPTED"


class PositionSource(enum.IntEnum):
    """Where a position comes from. The numbers equal those of the protos."""

    UNSPECIFIED = 0
    GNSS = 1
    WIFI = 2
    CELL = 3


class UnitPlaceKind(enum.IntEnum):
    """Kinds of unit that show presence without satellites. The numbers equal those of the protos."""

    HOME_UNIT = 1
    BLUETOOTH_BEACON = 2
    WIFI_ACCESS_POINT = 3


@dataclass(frozen=True, slots=True)
class FoldVersion:
    """The log demands this fold version or a newer one."""

    version: int


FOLD_VERSION = 1
"""Version of the fold. Each change that could alter a decision increments it; the log tells older processes to stop."""


def require_supported(demanded: int) -> None:
    """Raises OutdatedFold if a log demands a newer fold version than this one."""
    if demanded > FOLD_VERSION:
        raise OutdatedFold(
            f"the log demands fold version {demanded}, this is {FOLD_VERSION}: use a release with that version, or begin a new log "
            "(the runbook: evaluator-down)"
        )


@dataclass(frozen=True, slots=True)
class Positions:
    """Positions that arrived together, as columns of equal length."""

    device_ids: list[str]
    report_ids: list[str]
    fix_times_ms: list[int]
    lat_e7: list[int]
    lon_e7: list[int]
    accuracy_mm: list[int]
    received_wall_us: int
    sources: Sequence[int] = ()
    """Source of each position, a number of PositionSource. Empty if no sender says."""


@dataclass(frozen=True, slots=True)
class Heard:
    """Devices with reports that couldn't be used: their positions are unknown, but the devices aren't silent."""

    device_ids: list[str]


class PresenceReport(NamedTuple):
    """A report that a device is, or was, at a home unit or beacon."""

    device_id: str
    report_id: str
    unit_id: str
    since_ms: int
    """Since when the device has been there without a break, by the sender."""
    seen_ms: int
    """When the device was last there."""
    left: bool
    """Whether the device left then."""


@dataclass(frozen=True, slots=True)
class Presences:
    """Reports of presence that arrived together."""

    reports: tuple[PresenceReport, ...]
    received_wall_us: int


@dataclass(frozen=True, slots=True)
class EquipmentReport:
    """An event that a device reported about itself."""

    device_id: str
    report_id: str
    event: EquipmentKind
    event_time_ms: int
    received_wall_us: int
    silent: bool = False
    """Whether the protected person called in silence (PANIC_BUTTON)."""


@dataclass(frozen=True, slots=True)
class Ring:
    """One distance threshold, with the action that entering it demands."""

    radius_mm: int
    action: Demand
    responds: bool = field(init=False, compare=False, repr=False)
    """Whether entering it demands a response. Each report near a ring asks for this several times, and Python 3.11 takes 0.3 us to find
    the member of an enum."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "responds", self.action is Demand.RESPOND)


@dataclass(frozen=True, slots=True)
class Target:
    """A protected person or a protected place."""

    target_id: str
    is_person: bool
    device_ids: tuple[str, ...]
    """Protective devices of a person, perhaps none. A place has none."""
    shape: Shape
    """Area of a place. For a person, a single point at the origin (`geometry.PERSON`), because distances to a person are computed
    from the wearer's position relative to the person."""
    is_named: bool = False
    """Whether the order names this place to the wearer."""

    key: str = field(init=False, compare=False)
    """Unique key within the case: a person and a place may have the same id."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", f"person/{self.target_id}" if self.is_person else f"place/{self.target_id}")


@dataclass(frozen=True, slots=True)
class Encounter:
    """An authorised encounter: when and where the wearer may come near."""

    encounter_id: str
    from_ms: int
    until_ms: int
    """Exclusive end, ms since 1970 UTC."""
    places: tuple[Shape, ...]
    """Places in which the wearer must be; empty means anywhere."""
    daily_from_s: int
    """Daily start, in seconds after midnight in Korea."""
    daily_until_s: int
    """Daily end, exclusive, in seconds after midnight in Korea; start and end both 0 mean all day."""


@dataclass(frozen=True, slots=True)
class GoodCause:
    """A period for which an officer recorded good cause that no tag is worn."""

    cause_id: str
    from_ms: int
    until_ms: int
    """Exclusive end, ms since 1970 UTC."""


@dataclass(frozen=True, slots=True)
class TagDuty:
    """The duty to wear a tag under an order of item 3-2 (Tag Act 31-6(2))."""

    fit_by_ms: int
    """The court's time: by then the respondent has to be fitted, ms since 1970 UTC."""
    refused_ms: int | None = None
    """When the respondent refused to be fitted; None if no refusal is recorded."""
    good_causes: tuple[GoodCause, ...] = ()
    """In ascending order."""


@dataclass(frozen=True, slots=True)
class Removal:
    """An authorised removal of a tag (Tag Act Decree 10)."""

    removal_id: str
    device_id: str
    from_ms: int
    until_ms: int
    """Exclusive end, ms since 1970 UTC."""


@dataclass(frozen=True, slots=True)
class UnitPlace:
    """A home unit or beacon at a fixed place."""

    unit_id: str
    kind: UnitPlaceKind
    holder: str
    """Whose devices it shows: key of a protected person, or empty for the wearer."""
    place: Disc
    """The place; its radius is the unit's range."""
    installed_from_ms: int
    installed_until_ms: int | None
    """Exclusive end, ms since 1970 UTC; None until the unit is removed."""
    interval_ms: int
    """Interval at which presence is reported."""

    def is_installed(self, at_ms: int) -> bool:
        """Whether the unit is at its place at a moment."""
        return self.installed_from_ms <= at_ms and (self.installed_until_ms is None or at_ms < self.installed_until_ms)


def unit_key(unit_id: str) -> str:
    """Key of a unit in an index of devices. Ids hold no slash."""
    return f"unit/{unit_id}"


@dataclass(frozen=True, slots=True)
class Case:
    """A snapshot of one joint case: an order joined with a wearer."""

    case_id: str
    version: int
    order_id: str
    wearer_id: str
    tag_device_ids: tuple[str, ...]
    targets: tuple[Target, ...]
    """Persons first, then places."""
    rings: tuple[Ring, ...]
    """Widest ring first."""
    valid_from_ms: int
    valid_until_ms: int | None
    """Exclusive end of the order; None if it is valid until the court decides."""
    encounters: tuple[Encounter, ...] = ()
    exercise: Exercise = Exercise.NONE
    notice_ground: NoticeGround | None = None
    """Ground on which the Ministry may notify the persons; None if there is none."""
    police_must_check: bool = False
    """Whether the police must look into each notice about the wearer's acts (Tag Act 31-6(5))."""
    tag_duty: TagDuty | None = None
    """None unless the order is one of item 3-2."""
    removals: tuple[Removal, ...] = ()
    """Authorised removals of the wearer's tags, in ascending order."""
    units: tuple[UnitPlace, ...] = ()
    """Home units and beacons of the wearer, then those of the persons."""
    is_live: bool = field(init=False, compare=False, repr=False)
    """Whether the case is no exercise. It follows from `exercise`, and saves time in each check of a case."""
    response_ring: Ring | None = field(init=False, compare=False, repr=False)
    """The widest ring that demands a response; None if none does. It follows from `rings`, and saves time at each position."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "is_live", self.exercise is Exercise.NONE)
        object.__setattr__(self, "response_ring", next((ring for ring in self.rings if ring.responds), None))

    @property
    def response_radius_mm(self) -> int:
        """Radius of the widest ring that demands a response, mm; of the narrowest ring if none does."""
        return (self.response_ring or self.rings[-1]).radius_mm

    @property
    def unit_keys(self) -> tuple[str, ...]:
        """Keys of the units in an index of devices, where a unit and a device may have the same id."""
        return tuple(map(unit_key, (unit.unit_id for unit in self.units)))

    @property
    def device_ids(self) -> tuple[str, ...]:
        """All devices of the case: tags, then those of the persons."""
        return *self.tag_device_ids, *(device_id for target in self.targets for device_id in target.device_ids)

    @property
    def end_ms(self) -> int:
        """Exclusive end of an order that has one, ms since 1970 UTC. Raises ValueError if the order has none."""
        if self.valid_until_ms is None:
            raise ValueError(f"{self.case_id} ends, but its order has no end")
        return self.valid_until_ms

    def can_locate(self, target: Target) -> bool:
        """Whether the case names devices of both sides: a tag, and a device of the target unless it is a place."""
        return bool(self.tag_device_ids and (target.device_ids or not target.is_person))

    def is_over(self, at_ms: int) -> bool:
        """Whether the order has ended by a moment."""
        return self.valid_until_ms is not None and at_ms >= self.valid_until_ms

    def is_in_force(self, at_ms: int) -> bool:
        """Whether the order is valid at a moment."""
        return self.valid_from_ms <= at_ms and not self.is_over(at_ms)


@dataclass(frozen=True, slots=True)
class Rules:
    """Settings of the decision, which an entry of the log can replace. Each decision names the set that it rests on."""

    rules_id: str = "default"
    clear_margin_mm: int = 0
    """Margin beyond a ring's radius at which the ring may be cleared, mm. 0 means a tenth of the radius, at least 20 m."""
    clear_after_ms: int = 60_000
    """How long the wearer must stay beyond the margin without a break before a ring is cleared."""
    late_after_ms: int = 60_000
    """A decision made this long after its moment is marked late."""
    silent_notify_after_ms: int = 1_800_000
    """Silence of all the wearer's tags after which probation is notified."""
    reach_mps: int = 14
    """Speed bound of a wearer since the last position, m/s: 50 km/h, the limit in Korean towns."""
    max_reach_ms: int = 480_000
    """How long after the last position the speed bound counts: the time that help needs. A region that grew further would soon be
    the whole town and say nothing about where to go. Probation learns of later possibilities by the silence itself."""
    protected_lost_after_ms: int = 1_800_000
    """Silence of all a protected person's devices after which the police are notified. Phones sleep."""
    help_after_ms: int = 480_000
    """Time until help arrives: police need 5 min 7 s after a call on average, and 100 m are 70 s on foot."""
    foot_mps: int = 2
    """Least speed of an unseen wearer, m/s: somebody in a hurry on foot. An unseen wearer is assumed to go on at the last known
    pace, and at this speed at least."""
    report_grace_ms: int = 10_000
    """How long a report of an unseen wearer may still come before somebody is sent. With a report each 60 s the third one is due at the
    end of the 3 minutes: in the study of real tracks, 536 of 857 such wearers were seen again within 5 s."""
    rest_ms: int = 400_000
    """Time at one place after which a wearer counts as stationary. In the study of real tracks this was longer than stops on the
    way."""
    rest_respond_after_ms: int = 540_000
    """Nobody is sent earlier than this after the last position of a wearer who was stationary, or whose tag had announced its silence.
    Most such gaps are rooms without reception, and end before. The desks are notified after 3 minutes."""
    away_respond_after_ms: int = 360_000
    """Nobody is sent earlier than this after the last position of a wearer who was going away from the target, who would have to turn
    round first."""

    urgent_within_mm: int = 600_000
    """The Ministry's rule of urgency: a location may go with a notice while the wearer is at most this far from the person, mm. Police
    practice shows her a map within 600 m."""
    urgent_closing_mps: int = 5
    """A location may also go with a notice while the wearer comes nearer at least this fast, m/s: faster than on foot."""
    urgent_place_within_mm: int = 300_000
    """A location may also go with a notice while the wearer is at most this far from a protected place of the order, mm."""

    respond_p_pct: int = 20
    """Least probability of being inside, in percent, at which a ring that demands a response is entered, on its line or just beyond
    it. Other rings send nobody: any position enters them."""

    def clear_beyond_mm(self, radius_mm: int) -> int:
        """Distance beyond which a ring of a radius may be cleared, mm: the ring and its margin."""
        return radius_mm + (self.clear_margin_mm or max(20_000, radius_mm // 10))


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Body = FoldVersion | Positions | Heard | Presences | EquipmentReport | Case | Rules | Tick


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of the log."""

    sequence: int
    stamp_ms: int
    """When the stream's leader stored the entry, wall clock, milliseconds since 1970 UTC."""
    body: Body
