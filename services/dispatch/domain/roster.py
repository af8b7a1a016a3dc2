"""Offices and units of one agency, and all that a choice among them rests on. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from types import MappingProxyType

from services.dispatch.domain.areas import Area, LatLon
from services.dispatch.domain.events import Estimate

POSITION_MAX_AGE_MS = 600_000
"""A unit's position that is older says nothing of its travel time."""


class Status(IntEnum):
    """What a unit says of itself; the numbers are those of tandem.dispatch.v1.UnitStatus."""

    AVAILABLE = 1
    BUSY = 2
    OFF = 3


class RosterOutcome(IntEnum):
    """What became of a record that was put; the numbers are those of tandem.dispatch.v1.RosterOutcome."""

    STORED = 1
    UNCHANGED = 2
    SUPERSEDED = 3


@dataclass(frozen=True, slots=True)
class Office:
    """An office; without an area and without subjects it is responsible wherever no other is."""

    office_id: str
    version: int
    area: Area | None
    subject_ids: frozenset[str]
    """For whom it is responsible wherever they are."""
    next_office_id: str
    """Empty where there is none."""
    supervisor_desk: str
    national_desk: str
    removed: bool = False


@dataclass(frozen=True, slots=True)
class Unit:
    """A team or a patrol car, as its agency put it."""

    unit_id: str
    version: int
    office_id: str
    unit_class: str
    skills: frozenset[str]
    shift_from_ms: int
    shift_until_ms: int
    """The first moment after its shift, mesh time."""
    contact_key: str = ""
    removed: bool = False


@dataclass(frozen=True, slots=True)
class UnitReport:
    """What a unit says of itself."""

    status: Status = Status.AVAILABLE
    reported_ms: int | None = None
    """Mesh time; None where it never said anything."""
    position: LatLon | None = None
    position_ms: int | None = None

    def place(self, now_ms: int) -> LatLon | None:
        """Where the unit is; None where nothing recent says so."""
        if self.position_ms is None or now_ms - self.position_ms > POSITION_MAX_AGE_MS:
            return None
        return self.position


@dataclass(frozen=True, slots=True)
class Travel:
    """How long a unit takes."""

    travel_s: int
    estimate: Estimate


@dataclass(frozen=True, slots=True)
class Board:
    """What a choice rests on. Without an office there is no choice: the desk itself is offered."""

    offices: Mapping[str, Office] = field(default_factory=lambda: MappingProxyType({}))
    units: Mapping[str, tuple[Unit, UnitReport]] = field(default_factory=lambda: MappingProxyType({}))
    engaged: Mapping[str, Mapping[str, str]] = field(default_factory=lambda: MappingProxyType({}))
    """By unit: the assignments that it has a part in, each with its incident."""
    positions: Mapping[str, LatLon] = field(default_factory=lambda: MappingProxyType({}))
    """By destination, where that is known."""
    travel: Mapping[tuple[str, str], Travel] = field(default_factory=lambda: MappingProxyType({}))
    """By unit and destination, where that is known."""

    def asks_units(self) -> bool:
        """Whether there is anybody but the desk itself to be asked."""
        return any(not office.removed for office in self.offices.values())

    def can_go(self, unit_id: str) -> bool:
        """Whether a unit is there and not off."""
        found = self.units.get(unit_id)
        return found is not None and not found[0].removed and found[1].status is not Status.OFF


NO_ROSTER = Board()


def decide_put(known: Office | Unit | None, given: Office | Unit) -> RosterOutcome | None:
    """What becomes of a record: the greater version counts. None where the same version was stored with other content."""
    if known is None or given.version > known.version:
        return RosterOutcome.STORED
    if given.version < known.version:
        return RosterOutcome.SUPERSEDED
    return RosterOutcome.UNCHANGED if given == known else None


def decide_report(known: UnitReport, given: UnitReport) -> tuple[RosterOutcome, UnitReport]:
    """What becomes of a report, and what is known then: the later one counts, and one without a position leaves the last."""
    if known.reported_ms is not None and given.reported_ms is not None and given.reported_ms < known.reported_ms:
        return RosterOutcome.SUPERSEDED, known
    kept = given.position is None
    merged = UnitReport(
        given.status,
        given.reported_ms,
        known.position if kept else given.position,
        known.position_ms if kept else given.position_ms,
    )
    return (RosterOutcome.UNCHANGED if merged == known else RosterOutcome.STORED), merged
