"""Devices that need an operator's attention: they don't obey, report seldom, or state an accuracy that can't be true. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

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


def joined(asked: Iterable[AskedDevice], measured: Iterable[MeasuredTag]) -> list[DeviceCard]:
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
