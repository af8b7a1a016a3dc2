"""Offices and units of one agency, and the facts by which a unit is chosen. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from types import MappingProxyType
from typing import NamedTuple

from services.common.geometry import Area, LatLon
from services.dispatch.domain.enums import EscalationLevel, Estimate

POSITION_MAX_AGE_MS = 600_000
"""Maximum age of a unit's position for estimating its travel time, milliseconds."""


class Status(IntEnum):
    """Status that a unit reports; numbers of tandem.dispatch.v1.UnitStatus."""

    AVAILABLE = 1
    BUSY = 2
    OFF = 3


class RosterOutcome(IntEnum):
    """Outcome of putting a roster record; numbers of tandem.dispatch.v1.RosterOutcome."""

    STORED = 1
    UNCHANGED = 2
    SUPERSEDED = 3


@dataclass(frozen=True, slots=True)
class Office:
    """An office of an agency. An office without area and subjects is responsible for destinations that no other office has."""

    office_id: str
    version: int
    area: Area | None
    subject_ids: frozenset[str]
    """Destinations for which the office is responsible, whatever their positions."""
    next_office_id: str
    """Office to ask after this one; empty if there is none."""
    supervisor_desk: str
    national_desk: str
    removed: bool = False


@dataclass(frozen=True, slots=True)
class Unit:
    """A team or a patrol car, as its agency registered it."""

    unit_id: str
    version: int
    office_id: str
    unit_class: str
    skills: frozenset[str]
    shift_from_ms: int
    shift_until_ms: int
    """End of the shift, exclusive, mesh time."""
    contact_key: str = ""
    removed: bool = False


@dataclass(frozen=True, slots=True)
class UnitReport:
    """Last report of a unit about itself."""

    status: Status = Status.AVAILABLE
    reported_ms: int | None = None
    """Time of the report, mesh time; None if the unit never reported."""
    position: LatLon | None = None
    position_ms: int | None = None
    distress_ms: int | None = None
    """Since when an officer of the unit calls for help, mesh time; None if nobody does."""

    def place(self, now_ms: int) -> LatLon | None:
        """The unit's position, or None if it is unknown or older than POSITION_MAX_AGE_MS."""
        if self.position_ms is None or now_ms - self.position_ms > POSITION_MAX_AGE_MS:
            return None
        return self.position


READY_S = 60
"""Assumed time from an offer or its acceptance until the unit is on the way, seconds."""


@dataclass(frozen=True, slots=True)
class Travel:
    """Travel time of a unit to a destination, seconds, with its source."""

    travel_s: int
    estimate: Estimate


@dataclass(frozen=True, slots=True)
class Choice:
    """The unit or desk to which an assignment is offered, and the facts behind the choice."""

    level: EscalationLevel
    office_id: str
    unit_id: str = ""
    """Empty for a desk."""
    unit_class: str = ""
    desk: str = ""
    """Supervisor's or national desk; empty for a unit."""
    travel_s: int | None = None
    """Travel time, seconds; None if it is unknown."""
    estimate: Estimate = Estimate.UNKNOWN
    candidates: int = 0
    """Number of units of the office that were available for the offer."""
    busy_in: str = ""
    """Id of the incident in which the unit already has another assignment; empty if it has none."""
    busy: bool = False
    """The unit reports that it is busy."""


@dataclass(frozen=True, slots=True)
class TravelEstimated:
    """Event: the travel time of a unit that was asked before the position of its destination was known. The position has come now."""

    at_ms: int
    assignment_id: str
    travel_s: int
    """Travel time, counted from the offer, seconds."""
    estimate: Estimate


class Trip(NamedTuple):
    """A unit's way to a destination."""

    unit_id: str
    subject_id: str


@dataclass(frozen=True, slots=True)
class Board:
    """Roster, engagements and travel times for choosing a unit. If the roster has no office, offers go to the desk itself."""

    offices: Mapping[str, Office] = field(default_factory=lambda: MappingProxyType({}))
    units: Mapping[str, tuple[Unit, UnitReport]] = field(default_factory=lambda: MappingProxyType({}))
    engaged: Mapping[str, Mapping[str, str]] = field(default_factory=lambda: MappingProxyType({}))
    """Incident id by assignment id, for the open assignments of each unit id."""
    positions: Mapping[str, LatLon] = field(default_factory=lambda: MappingProxyType({}))
    """Known positions by destination."""
    travel: Mapping[Trip, Travel] = field(default_factory=lambda: MappingProxyType({}))
    """Known travel times."""

    def asks_units(self) -> bool:
        """Whether the roster has an office, so that offers go to units instead of the desk."""
        return any(not office.removed for office in self.offices.values())

    def can_go(self, unit_id: str) -> bool:
        """Whether a unit is on the roster and not off duty."""
        entry = self.units.get(unit_id)
        return entry is not None and not entry[0].removed and entry[1].status is not Status.OFF


NO_ROSTER = Board()


def decide_put(known: Office | Unit | None, given: Office | Unit) -> RosterOutcome | None:
    """Outcome of putting a roster record: the greater version wins. None if the same version was stored with other content."""
    if known is None or given.version > known.version:
        return RosterOutcome.STORED
    if given.version < known.version:
        return RosterOutcome.SUPERSEDED
    return RosterOutcome.UNCHANGED if given == known else None


def decide_report(known: UnitReport, given: UnitReport) -> tuple[RosterOutcome, UnitReport]:
    """Outcome of a unit's report, and the merged report. The later report wins. A report without position keeps the last position."""
    if known.reported_ms is not None and given.reported_ms is not None and given.reported_ms < known.reported_ms:
        return RosterOutcome.SUPERSEDED, known
    keeps_position = given.position is None
    merged = UnitReport(
        status=given.status,
        reported_ms=given.reported_ms,
        position=known.position if keeps_position else given.position,
        position_ms=known.position_ms if keeps_position else given.position_ms,
        distress_ms=known.distress_ms,
    )
    return (RosterOutcome.UNCHANGED if merged == known else RosterOutcome.STORED), merged
