"""Devices that need somebody: those of a desk's own side, and those that operators have checked. Pure.

A desk looks after low batteries, silence, equipment events and phones without location. Operators look after devices that don't obey,
report seldom, or state an accuracy that can't be true.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

LOW_PCT = 20.0
"""Charge from which on a device is listed and its desk is notified: a tag has some hours left then."""
_NEVER_MS = 1 << 60


@dataclass(frozen=True, slots=True)
class EquipmentCard:
    """Equipment of a device, as the decision knows it."""

    device_id: str
    subject_id: str
    """Id of the wearer or protected person."""
    events: tuple[str, ...] = ()
    """Active equipment events, such as BATTERY_LOW or STRAP_OPEN."""
    heard_ms: int | None = None
    fix_ms: int | None = None
    accuracy_m: float | None = None
    source: str = "UNSPECIFIED"
    is_silent: bool = False


@dataclass(frozen=True, slots=True)
class BatteryCard:
    """Battery charge of a device, as it reported it."""

    device_id: str
    subject_id: str
    charge_pct: float
    at_ms: int
    empty_ms: int | None = None
    """When it will be empty at its present rate; None if that isn't known."""


@dataclass(frozen=True, slots=True)
class PhoneCard:
    """What a protected person's phone last said about itself. Times are milliseconds since 1970 UTC."""

    device_id: str
    location: str
    """Whether its app gets positions: GOOD, VAGUE, DENIED, UNAVAILABLE, or UNSPECIFIED while it isn't known."""
    location_ms: int
    is_hidden: bool
    """Whether the screen is locked, or another app is on it. The app reports only while it is on the screen."""
    screen_ms: int


@dataclass(frozen=True, slots=True)
class WatchedDevice:
    """A device, as far as each service knows it."""

    device_id: str
    equipment: EquipmentCard | None = None
    battery: BatteryCard | None = None
    phone: PhoneCard | None = None

    @property
    def subject_id(self) -> str:
        """Id of the wearer or protected person; empty if it isn't known."""
        known = self.equipment or self.battery
        return known.subject_id if known else ""

    @property
    def is_low(self) -> bool:
        """Whether the device said that its battery is low, or its charge is at most LOW_PCT."""
        said_so = self.equipment is not None and "BATTERY_LOW" in self.equipment.events
        return said_so or (self.battery is not None and self.battery.charge_pct <= LOW_PCT)

    @property
    def is_silent(self) -> bool:
        """Whether no report came for 3 minutes, and the phone didn't say that its app isn't on the screen."""
        return self.equipment is not None and self.equipment.is_silent and not self.is_hidden

    @property
    def is_hidden(self) -> bool:
        """Whether it is a phone whose app isn't on the screen, so that it can't report. That is a known state, and no silence."""
        return self.phone is not None and self.phone.is_hidden

    @property
    def location_trouble(self) -> str:
        """Why a phone's app gets no usable positions, in a way that its owner can mend: DENIED or VAGUE; empty if there is none."""
        return self.phone.location if self.phone and self.phone.location in ("DENIED", "VAGUE") else ""

    @property
    def other_events(self) -> tuple[str, ...]:
        """Active equipment events but a low battery."""
        return tuple(event for event in self.equipment.events if event != "BATTERY_LOW") if self.equipment else ()

    @property
    def is_in_trouble(self) -> bool:
        """Whether somebody of the desk must look after it."""
        return self.is_low or self.is_silent or bool(self.other_events) or bool(self.location_trouble)

    def urgency(self) -> tuple[bool, int, float, str]:
        """Key of the order: low batteries first, the one that dies first at the top; then the others by id."""
        empty_ms = self.battery.empty_ms if self.battery and self.battery.empty_ms is not None else _NEVER_MS
        return not self.is_low, empty_ms, self.battery.charge_pct if self.battery else 100.0, self.device_id


def watched_devices(
    equipment: Iterable[EquipmentCard], batteries: Iterable[BatteryCard], phones: Iterable[PhoneCard]
) -> list[WatchedDevice]:
    """Joins what the services know of each device, the most urgent first."""
    of_equipment = {card.device_id: card for card in equipment}
    of_battery = {card.device_id: card for card in batteries}
    of_phone = {card.device_id: card for card in phones}
    devices = [
        WatchedDevice(id_, of_equipment.get(id_), of_battery.get(id_), phone=of_phone.get(id_))
        for id_ in of_equipment.keys() | of_battery.keys() | of_phone.keys()
    ]
    return sorted(devices, key=WatchedDevice.urgency)


def hours_left(empty_ms: int | None, now_ms: int) -> float | None:
    """Hours until a battery is empty, at least 0; None if that isn't known."""
    return None if empty_ms is None else max(0.0, (empty_ms - now_ms) / 3_600_000)


SLOW_S = 150
"""Interval from which on the silence of a device and the end of an incident are noticed late."""
TOLERANCE, TOLERANCE_S = 1.25, 5
"""A device keeps an interval if its own is at most so many times as long, plus this time, as ingest judges it."""


class Problem(StrEnum):
    """A problem of a device, the worst first. The text of a problem `x` is `problem_x`."""

    DISOBEYS = "disobeys"
    """It doesn't keep the interval that it was asked for, or refused it."""
    ACCURACY = "accuracy"
    """Its positions scatter more than twice as far as the accuracy that it states."""
    SLOW = "slow"
    """It reports each SLOW_S or slower, and that isn't what it was asked for."""


def asker_of(by: str) -> str:
    """Kind of an asker: `decision`, `pursuit`, `desk`, or `mesh` for ingest itself. Its text is `asker_` and the kind."""
    if by == "geofence":
        return "decision"
    if "/desk/" in by:
        return "desk"
    return "pursuit" if "/service/dispatch" in by else "mesh"


@dataclass(frozen=True, slots=True)
class AskCard:
    """An interval that somebody asks of a device."""

    by: str
    """SPIFFE id of a desk or leg, or `geofence` for the decision."""
    interval_s: int
    asked_ms: int
    until_ms: int
    refused: bool

    @property
    def asker(self) -> str:
        """Kind of the asker."""
        return asker_of(self.by)


@dataclass(frozen=True, slots=True)
class AskedDevice:
    """What a device was asked and what it does, as ingest knows it."""

    device_id: str
    asks: tuple[AskCard, ...] = ()
    """Asks in force, the smallest interval first."""
    delivery: str = ""
    """State of the command: WAITING, SENT, RECEIVED, REFUSED, EXPIRED. Empty if nothing is asked."""
    delivery_ms: int | None = None
    refused_because: str = ""
    observed_s: int = 0
    """Interval that it keeps, seconds. 0 if that isn't known."""
    obeys: str = ""
    """NOT_ASKED, NOT_YET, YES or NO. Empty if ingest doesn't know."""
    slow: bool = False
    last_fix_ms: int | None = None
    locates_sent: int = 0
    locates_answered: int = 0


@dataclass(frozen=True, slots=True)
class MeasuredTag:
    """How a tag reports, as the evaluator knows it."""

    device_id: str
    kept_s: int
    """Interval that it keeps, seconds. 0 if that isn't known."""
    slow: bool
    stated_m: float
    observed_m: float | None
    contradicted: bool
    last_fix_ms: int | None
    source: str = "UNSPECIFIED"
    """Where its newest position comes from: GNSS, WIFI, CELL or UNSPECIFIED."""
    unit_id: str = ""
    """Home unit or beacon at which it was last present. Empty if there is none."""
    at_unit_ms: int | None = None
    """When it was last seen there, milliseconds since 1970 UTC."""


@dataclass(frozen=True, slots=True)
class DeviceCard:
    """A device, as far as each service knows it."""

    device_id: str
    asked: AskedDevice
    measured: MeasuredTag | None

    @property
    def ask(self) -> AskCard | None:
        """The ask in effect: the smallest interval that the device didn't refuse, or the smallest one if it refused all."""
        asks = self.asked.asks
        return next((ask for ask in asks if not ask.refused), asks[0] if asks else None)

    @property
    def kept_s(self) -> int:
        """Interval that the device keeps, seconds; 0 if that isn't known. The decision's measure counts if there is one."""
        return (self.measured.kept_s if self.measured else 0) or self.asked.observed_s

    @property
    def last_fix_ms(self) -> int | None:
        """Time of the newest known fix."""
        known = [self.asked.last_fix_ms, self.measured.last_fix_ms if self.measured else None]
        return max((at_ms for at_ms in known if at_ms is not None), default=None)

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Its problems, the worst first."""
        holds = {
            Problem.DISOBEYS: self.asked.obeys == "NO" or self.asked.delivery == "REFUSED",
            Problem.ACCURACY: bool(self.measured and self.measured.contradicted),
            Problem.SLOW: (self.asked.slow or bool(self.measured and self.measured.slow)) and not self._is_as_asked(),
        }
        return tuple(problem for problem in Problem if holds[problem])

    def _is_as_asked(self) -> bool:
        """Whether the device keeps a long interval because it was asked to: far from every ring the decision needs few reports."""
        return self.ask is not None and 0 < self.kept_s <= TOLERANCE * self.ask.interval_s + TOLERANCE_S


def reporting_devices(asked: Iterable[AskedDevice], measured: Iterable[MeasuredTag]) -> list[DeviceCard]:
    """Joins what both services know by device. A device may be listed by several processes: the newest fix is right."""
    by_id: dict[str, AskedDevice] = {}
    for device in asked:
        known = by_id.get(device.device_id)
        if known is None or (device.last_fix_ms or 0) > (known.last_fix_ms or 0):
            by_id[device.device_id] = device
    tags = {tag.device_id: tag for tag in measured}
    return [
        DeviceCard(device_id, by_id.get(device_id, AskedDevice(device_id)), tags.get(device_id))
        for device_id in sorted(by_id | tags)
    ]


def conspicuous(cards: Iterable[DeviceCard], problem: str = "", text: str = "") -> list[DeviceCard]:
    """Devices with a problem, or with the given one, whose id has the text; the worst first.

    A device that doesn't obey is worse the shorter the interval that is asked, because that is the device of a wearer who is near.
    """
    found = [
        card
        for card in cards
        if card.problems and (not problem or problem in card.problems) and text.lower() in card.device_id.lower()
    ]
    return sorted(found, key=_rank)


def _rank(card: DeviceCard) -> tuple[object, ...]:
    worst = list(Problem).index(card.problems[0])
    asked_s = card.ask.interval_s if card.ask and Problem.DISOBEYS in card.problems else SLOW_S * 100
    tag = card.measured
    times_worse = tag.observed_m / max(tag.stated_m, 1.0) if tag and tag.contradicted and tag.observed_m else 0.0
    return worst, asked_s, -len(card.problems), -times_worse, -card.kept_s, card.device_id


def counts(cards: Iterable[DeviceCard]) -> Mapping[Problem, int]:
    """Number of devices with each problem."""
    counted = Counter(problem for card in cards for problem in card.problems)
    return {problem: counted[problem] for problem in Problem}


@dataclass(frozen=True, slots=True)
class HistoryLine:
    """A command that was given to a device."""

    command_id: str
    kind: str
    """Kind of the instruction, such as `report_every` or `remind_wearer`. Its text is `command_` and the kind."""
    interval_s: int
    """report_every: the interval, seconds; else 0."""
    asker: str
    state: str
    since_ms: int | None
    reason: str


def newest_first(lines: Sequence[HistoryLine], count: int) -> list[HistoryLine]:
    """The newest commands, by the time of their state."""
    return sorted(lines, key=lambda line: -(line.since_ms or 0))[:count]
