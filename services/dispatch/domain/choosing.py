"""Choice of the unit or desk for an offer, by jurisdiction, shift, status, skills and travel time. Pure.

Each escalation level gets one offer: a unit of the responsible office, another unit of that office, a unit of the next office, the
supervisor, the national desk. At night one pair covers a whole office, and may already be in an incident. Free units come first,
including those of the next office. Busy units are asked only if no unit is free, and the offer says that the unit is busy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from services.dispatch.domain.enums import EscalationLevel, Estimate
from services.dispatch.domain.roster import Board, Choice, Office, Status, Trip, Unit, UnitReport

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
        if unit.office_id in found and _can_be_asked(unit, report, query):
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
        matching = [choice for choice in choices if (choice.busy or bool(choice.busy_in)) == busy]
        if matching:
            first = min(matching, key=lambda choice: _order(board, query, choice))
            yield replace(first, level=level, candidates=len(choices))
            return


def _can_be_asked(unit: Unit, report: UnitReport, query: UnitQuery) -> bool:
    return (
        not unit.removed
        and unit.unit_id not in query.tried
        and report.status is not Status.OFF
        and unit.shift_from_ms <= query.now_ms < unit.shift_until_ms
    )


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
