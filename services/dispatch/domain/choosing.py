"""Whom to ask: by jurisdiction, shift, status, skills and travel time. Pure.

One is asked of each rung: a unit of the office that is responsible, another of the same office, one of the next office, the
supervisor, the national desk. At night one pair covers a whole office, and may be in an incident already. Whoever is free goes
first, of the next office too; only where nobody is free are those asked who have a part in something else, and the offer says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from services.dispatch.domain.areas import holds
from services.dispatch.domain.events import Choice, EscalationLevel, Estimate
from services.dispatch.domain.roster import Board, Office, Status, Unit, UnitReport

TAMPERED = 3
"""Number of the tandem.common.v1.AlertKind."""

SKILLS: Mapping[tuple[str, int], str] = MappingProxyType({("probation", TAMPERED): "tag-repair"})
"""By leg and kind of alert: the skill that is preferred."""
SKILL_WORTH_S = 300
"""Who has the preferred skill may take that much longer; beyond it, who is there first counts more."""


@dataclass(frozen=True, slots=True)
class UnitQuery:
    """Who is next for a destination?"""

    assignment_id: str
    subject_id: str
    now_ms: int
    skill: str = ""
    """The skill that is preferred; empty where none is."""
    above: int = 0
    """The rung that was asked last; 0 where none was."""
    tried: frozenset[str] = frozenset()
    """Units that were asked before."""
    engaged: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Units that go to another destination of the same incident, with its id."""
    skip_office_id: str = ""
    """An office whose machine is silent: another unit of it would not hear of it either."""


def next_choice(board: Board, question: UnitQuery) -> Choice | None:
    """Who is asked next; None where the last was asked already."""
    return next(_choices(board, question), None)


def units_in_reach(board: Board, subject_id: str) -> tuple[str, ...]:
    """Units of all offices that may be asked for a destination, by id."""
    offices = {office.office_id for office in offices_for(board, subject_id)}
    return tuple(sorted(id_ for id_, (unit, _) in board.units.items() if unit.office_id in offices))


def offices_for(board: Board, subject_id: str) -> tuple[Office, ...]:
    """The office that is responsible for a destination, then those that follow it; empty where none is.

    An office that names the destination goes before one whose area it is in, and that before one that is responsible for the rest.
    """
    offices = [office for _, office in sorted(board.offices.items()) if not office.removed]
    named = [office for office in offices if subject_id in office.subject_ids]
    position = board.positions.get(subject_id)
    around = [office for office in offices if position and office.area and holds(office.area, position)]
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


def _choices(board: Board, question: UnitQuery) -> Iterator[Choice]:
    """Who can be asked above a rung, in their order."""
    offices = offices_for(board, question.subject_id)
    own, others = offices[:1], offices[1:]
    candidates = _candidates(board, question, offices) if question.above < EscalationLevel.NEXT_OFFICE else {}
    for busy in (False, True):
        if question.above < EscalationLevel.NEXT_UNIT:
            level = EscalationLevel.NEXT_UNIT if question.above else EscalationLevel.UNIT
            yield from _best(board, question, own, candidates, level, busy)
        if question.above < EscalationLevel.NEXT_OFFICE:
            yield from _best(board, question, others, candidates, EscalationLevel.NEXT_OFFICE, busy)
    if question.above < EscalationLevel.SUPERVISOR and own:
        yield Choice(EscalationLevel.SUPERVISOR, own[0].office_id, desk=own[0].supervisor_desk)
    if question.above < EscalationLevel.NATIONAL_DESK:
        # Where nobody is responsible, any office knows the agency's national desk.
        office = own[0] if own else min(board.offices.values(), key=lambda office: (office.removed, office.office_id))
        yield Choice(EscalationLevel.NATIONAL_DESK, office.office_id, desk=office.national_desk)


def _candidates(board: Board, question: UnitQuery, offices: Iterable[Office]) -> Mapping[str, list[Choice]]:
    """By office: who can be asked, on whatever rung."""
    found: dict[str, list[Choice]] = {
        office.office_id: [] for office in offices if office.office_id != question.skip_office_id
    }
    for unit, report in board.units.values():
        if unit.office_id in found and _can_be_asked(unit, report, question):
            found[unit.office_id].append(_choice(board, question, unit, report))
    return found


def _best(
    board: Board,
    question: UnitQuery,
    offices: Iterable[Office],
    candidates: Mapping[str, list[Choice]],
    level: EscalationLevel,
    busy: bool,
) -> Iterator[Choice]:
    """The first of the units of the first office that has any."""
    for office in offices:
        there = candidates.get(office.office_id, [])
        matching = [one for one in there if (one.busy or bool(one.busy_in)) == busy]
        if matching:
            first = min(matching, key=lambda one: _order(board, question, one))
            yield replace(first, level=level, candidates=len(there))
            return


def _can_be_asked(unit: Unit, report: UnitReport, question: UnitQuery) -> bool:
    return (
        not unit.removed
        and unit.unit_id not in question.tried
        and report.status is not Status.OFF
        and unit.shift_from_ms <= question.now_ms < unit.shift_until_ms
    )


def _choice(board: Board, question: UnitQuery, unit: Unit, report: UnitReport) -> Choice:
    travel = board.travel.get((unit.unit_id, question.subject_id))
    return Choice(
        EscalationLevel.UNIT,
        unit.office_id,
        unit.unit_id,
        unit.unit_class,
        travel_s=travel.travel_s if travel else None,
        estimate=travel.estimate if travel else Estimate.UNKNOWN,
        busy_in=_busy_in(board, question, unit.unit_id),
        busy=report.status is Status.BUSY,
    )


def _busy_in(board: Board, question: UnitQuery, unit_id: str) -> str:
    parts = board.engaged.get(unit_id, {})
    others = (incident_id for id_, incident_id in parts.items() if id_ != question.assignment_id)
    return question.engaged.get(unit_id) or next(others, "")


def _order(board: Board, question: UnitQuery, choice: Choice) -> tuple[bool, int, str]:
    lacks = bool(question.skill) and question.skill not in board.units[choice.unit_id][0].skills
    return choice.travel_s is None, (choice.travel_s or 0) + (SKILL_WORTH_S if lacks else 0), choice.unit_id
