"""Offices and units of one agency, and the choice of the unit or desk for an offer. Pure.

Units are chosen by jurisdiction, shift, status, skills and travel time. Each escalation level gets one offer of the leg's own: a unit
of the responsible office, another unit of that office, a unit of the next office, the supervisor, the national desk. At night one pair
covers a whole office, and may already be in an incident. Free units come first, including those of the next office. Busy units are
asked only if no unit is free, and the offer says that the unit is busy. A desk may ask any unit on duty.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from types import MappingProxyType
from typing import NamedTuple

from services.common.geometry import Area, LatLon
from services.dispatch.domain.enums import EscalationLevel, Estimate, UnitOfferState

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

    @property
    def is_free(self) -> bool:
        """Whether the unit has no other task."""
        return not self.busy and not self.busy_in

    def for_desk(self) -> Choice:
        """The leg's own desk at the same level, which has the assignment in place of a unit that was asked."""
        return Choice(level=self.level, office_id=self.office_id, desk=self.desk)


@dataclass(frozen=True, slots=True)
class UnitOffer:
    """An offer of an assignment to a unit. Several may be open at the same time: the first acceptance wins."""

    choice: Choice
    """The unit, with the facts behind the choice."""
    offer_number: int
    """Number of the step that made the offer."""
    asked_ms: int
    """Time of the offer, mesh time."""
    open_until_ms: int
    """Until when the unit may accept, mesh time."""
    asked_by: str = ""
    """SPIFFE id of the officer who asked the unit; empty if the leg asked it by itself."""
    received_ms: int | None = None
    """When the unit's page or the desk's machine confirmed that it shows the offer, mesh time."""
    state: UnitOfferState = UnitOfferState.ASKED

    @property
    def unit_id(self) -> str:
        """The unit that was asked."""
        return self.choice.unit_id

    @property
    def is_open(self) -> bool:
        """Whether the unit may still accept."""
        return self.state is UnitOfferState.ASKED


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


SKILL_WORTH_S = 300
"""Head start of a unit with the preferred skill, seconds. A unit without the skill is asked first only if it is nearer by more."""


@dataclass(frozen=True, slots=True)
class UnitQuery:
    """Query for the next unit or desk to ask for a destination."""

    assignment_id: str
    subject_id: str
    now_ms: int
    skill: str = ""
    """Preferred skill; empty if none is preferred."""
    above: int = 0
    """Escalation level that was asked last; 0 if nobody was asked yet."""
    tried: frozenset[str] = frozenset()
    """Units that were asked before."""
    engaged: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Incident id by unit id, for units that already go to another destination of the same incident."""
    skip_office_id: str = ""
    """Office that is left out, since its machine doesn't respond: none of its units would receive the offer. Empty for none."""


def next_choice(board: Board, query: UnitQuery) -> Choice | None:
    """The next unit or desk to ask; None if the last level was asked already."""
    return next(_choices(board, query), None)


def next_free_unit(board: Board, query: UnitQuery) -> Choice | None:
    """The nearest free unit of the offices in reach that wasn't asked yet, whatever the escalation level; None if there is none.

    It is for a desk that has asked a unit and waits for an answer: the desk is the level.
    """
    offices = offices_for(board, query.subject_id)
    found = [choice for choices in _candidates(board, query, offices).values() for choice in choices if choice.is_free]
    first = min(found, key=lambda choice: _order(board, query, choice), default=None)
    return first and replace(first, level=_level(offices, first, query.tried), candidates=len(found))


def choice_of(board: Board, query: UnitQuery, unit_id: str, *, tried: Collection[str]) -> Choice | None:
    """The choice of a unit by a desk; None if it isn't on duty. `tried` are the units that were asked before.

    Raises KeyError if the roster has no such unit.
    """
    unit, report = board.units[unit_id]
    if not _is_on_duty(unit, report, query.now_ms):
        return None
    choice = _choice(board, query, unit, report=report)
    return replace(choice, level=_level(offices_for(board, query.subject_id), choice, tried))


def units_on_duty(board: Board, query: UnitQuery) -> list[Choice]:
    """All units that a desk can send, of any office: free ones first, then by travel time. Those of unknown travel time come last."""
    found = [
        _choice(board, query, unit, report=report)
        for unit, report in board.units.values()
        if _is_on_duty(unit, report, query.now_ms)
    ]
    return sorted(
        found,
        key=lambda choice: (not choice.is_free, choice.travel_s is None, choice.travel_s or 0, choice.unit_id),
    )


def _level(offices: Sequence[Office], choice: Choice, tried: Collection[str]) -> EscalationLevel:
    """Level of a unit that a desk chose: if it fails, the levels above are asked."""
    if offices and choice.office_id != offices[0].office_id:
        return EscalationLevel.NEXT_OFFICE
    return EscalationLevel.NEXT_UNIT if tried else EscalationLevel.UNIT


def units_in_reach(board: Board, subject_id: str) -> tuple[str, ...]:
    """Sorted ids of all units of the offices that may be asked for a destination."""
    offices = {office.office_id for office in offices_for(board, subject_id)}
    return tuple(sorted(id_ for id_, (unit, _) in board.units.items() if unit.office_id in offices))


def offices_for(board: Board, subject_id: str) -> tuple[Office, ...]:
    """The offices responsible for a destination, then the offices to ask after them; empty if no office is responsible.

    Offices that name the destination are responsible. If no office does, offices whose area contains it are responsible. If no area
    contains it, offices without area and subjects are responsible.
    """
    offices = [office for _, office in sorted(board.offices.items()) if not office.removed]
    named = [office for office in offices if subject_id in office.subject_ids]
    position = board.positions.get(subject_id)
    around = [office for office in offices if position and office.area and office.area.contains(position)]
    rest = [office for office in offices if office.area is None and not office.subject_ids]
    found: dict[str, Office] = {}
    for first in named or around or rest:
        found.setdefault(first.office_id, first)
    for first in list(found.values()):
        following = board.offices.get(first.next_office_id)
        seen = set()
        while following and following.office_id not in seen:
            seen.add(following.office_id)
            if not following.removed:
                found.setdefault(following.office_id, following)
            following = board.offices.get(following.next_office_id)
    return tuple(found.values())


def _choices(board: Board, query: UnitQuery) -> Iterator[Choice]:
    """Units and desks above an escalation level, in the order in which they are asked."""
    offices = offices_for(board, query.subject_id)
    own, others = offices[:1], offices[1:]
    candidates = _candidates(board, query, offices) if query.above < EscalationLevel.NEXT_OFFICE else {}
    for busy in (False, True):
        if query.above < EscalationLevel.NEXT_UNIT:
            level = EscalationLevel.NEXT_UNIT if query.above else EscalationLevel.UNIT
            yield from _best(board, query, own, candidates=candidates, level=level, busy=busy)
        if query.above < EscalationLevel.NEXT_OFFICE:
            yield from _best(board, query, others, candidates=candidates, level=EscalationLevel.NEXT_OFFICE, busy=busy)
    if query.above < EscalationLevel.SUPERVISOR and own:
        yield Choice(EscalationLevel.SUPERVISOR, own[0].office_id, desk=own[0].supervisor_desk)
    if query.above < EscalationLevel.NATIONAL_DESK:
        # If no office is responsible, take the national desk from any office: all offices name the agency's.
        office = own[0] if own else min(board.offices.values(), key=lambda office: (office.removed, office.office_id))
        yield Choice(EscalationLevel.NATIONAL_DESK, office.office_id, desk=office.national_desk)


def _candidates(board: Board, query: UnitQuery, offices: Iterable[Office]) -> Mapping[str, list[Choice]]:
    """Units that can be asked now, by office id, whatever the escalation level."""
    found: dict[str, list[Choice]] = {
        office.office_id: [] for office in offices if office.office_id != query.skip_office_id
    }
    for unit, report in board.units.values():
        if unit.office_id in found and unit.unit_id not in query.tried and _is_on_duty(unit, report, query.now_ms):
            found[unit.office_id].append(_choice(board, query, unit, report=report))
    return found


def _best(
    board: Board,
    query: UnitQuery,
    offices: Iterable[Office],
    *,
    candidates: Mapping[str, list[Choice]],
    level: EscalationLevel,
    busy: bool,
) -> Iterator[Choice]:
    """The best free unit, or busy unit if `busy`, of the first office that has one; nothing if no office has one."""
    for office in offices:
        choices = candidates.get(office.office_id, [])
        matching = [choice for choice in choices if choice.is_free is not busy]
        if matching:
            first = min(matching, key=lambda choice: _order(board, query, choice))
            yield replace(first, level=level, candidates=len(choices))
            return


def _is_on_duty(unit: Unit, report: UnitReport, now_ms: int) -> bool:
    return not unit.removed and report.status is not Status.OFF and unit.shift_from_ms <= now_ms < unit.shift_until_ms


def _choice(board: Board, query: UnitQuery, unit: Unit, *, report: UnitReport) -> Choice:
    travel = board.travel.get(Trip(unit.unit_id, query.subject_id))
    return Choice(
        level=EscalationLevel.UNIT,
        office_id=unit.office_id,
        unit_id=unit.unit_id,
        unit_class=unit.unit_class,
        travel_s=travel.travel_s if travel else None,
        estimate=travel.estimate if travel else Estimate.UNKNOWN,
        busy_in=_busy_in(board, query, unit.unit_id),
        busy=report.status is Status.BUSY,
    )


def _busy_in(board: Board, query: UnitQuery, unit_id: str) -> str:
    parts = board.engaged.get(unit_id, {})
    others = (incident_id for id_, incident_id in parts.items() if id_ != query.assignment_id)
    return query.engaged.get(unit_id) or next(others, "")


def _order(board: Board, query: UnitQuery, choice: Choice) -> tuple[bool, int, str]:
    lacks = bool(query.skill) and query.skill not in board.units[choice.unit_id][0].skills
    return choice.travel_s is None, (choice.travel_s or 0) + (SKILL_WORTH_S if lacks else 0), choice.unit_id
