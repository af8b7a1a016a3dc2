"""Escalation of an offer: the first unit or desk, the next level, and the deadline of each offer. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import assert_never

from services.dispatch.contact.domain import decisions as contacts
from services.dispatch.domain.assignment import UNANSWERED, Assignment, AssignmentState
from services.dispatch.domain.choosing import UnitQuery, next_choice
from services.dispatch.domain.enums import EscalationLevel, EscalationReason
from services.dispatch.domain.events import Escalated, Event, NobodyAvailable, Step
from services.dispatch.domain.incident import Incident
from services.dispatch.domain.roster import NO_ROSTER, Board, Choice, Trip
from services.dispatch.duty.domain import UNLIMITED, Reminded, WorkLimits

LONGEST_WAIT_MS = 3_600_000
"""Longest time between two escalations of one assignment to the same desk, milliseconds of mesh time."""

RACE_ANSWER_MS = 10_000
"""Time to answer at each escalation level while the race is being lost, milliseconds. The nearest unit isn't skipped: others are
farther."""

LATE_SHARE = 1.5
"""Time after which a unit on its way is reminded, as a share of its estimated travel time: an estimate knows no traffic."""
LEAST_TRAVEL_MS = 60_000
"""Shortest time after which a unit on its way is reminded, milliseconds: the way from the car to the door."""


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Time limits of each step, mesh time, milliseconds. The setting of `x_ms` is `x_within_s`."""

    acknowledge_ms: int
    """From the offer until a person accepts it."""
    receive_ms: int = 5_000
    """From the offer until the desk's machine has received it. Awaited only if there is a roster."""
    dispatch_ms: int = 60_000
    """From the acknowledgement until a unit is dispatched. Awaited only if there is a roster."""
    other_leg_ms: int = 10_000
    """From an alert that demands a response of both legs until the other leg shows a step."""
    depart_ms: int = 120_000
    """From the order to go until the unit is on its way. Then it is reminded, as after the two times below."""
    arrive_ms: int = 307_000
    """Travel time of a unit on its way if nobody can estimate it: police arrive 5 min 7 s after the call on average."""
    word_ms: int = 900_000
    """From the arrival, or the unit's last word, until the unit on the scene says something."""
    react_ms: int = 60_000
    """From a reminder until the assignment escalates."""


@dataclass(frozen=True, slots=True)
class Situation:
    """Facts outside the incident under which a command is decided."""

    now_ms: int
    """Mesh time."""
    deadlines: Deadlines
    board: Board = NO_ROSTER
    """The roster's availability; NO_ROSTER if offers go to the desk itself."""


@dataclass(frozen=True, slots=True)
class PassDeadline:
    """Command: check whether the deadline of an assignment has passed."""

    assignment_id: str


@dataclass(frozen=True, slots=True)
class LoseUnit:
    """Command: check after a roster change whether the unit of an assignment is gone."""

    assignment_id: str


@dataclass(frozen=True, slots=True)
class FirstOffer:
    """The unit or desk that gets a new offer."""

    choice: Choice | None
    due_ms: int
    then: tuple[Step, ...]
    """Steps that follow at once. If no unit is available, these are NobodyAvailable and an escalation to the next desk."""


def decide(incident: Incident, command: PassDeadline | LoseUnit, situation: Situation) -> Iterator[Event]:
    """Escalates an assignment if its deadline has passed or its unit is gone; else yields nothing."""
    assignment = incident.assignments.get(command.assignment_id)
    if assignment is None:
        return
    if assignment.contact:
        yield from contacts.pass_deadline(assignment, situation.now_ms)
        return
    match command:
        case PassDeadline():
            if assignment.due_ms is not None and assignment.due_ms <= situation.now_ms:
                yield escalated(incident, assignment, _overdue(assignment), situation=situation)
            elif assignment.remind_ms is not None and assignment.remind_ms <= situation.now_ms:
                yield Reminded(situation.now_ms, assignment.assignment_id)
        case LoseUnit():
            # A unit on the scene may end its shift while the paperwork goes on.
            on_scene = assignment.state in (AssignmentState.ON_SCENE, AssignmentState.APPREHENDED)
            if assignment.unit_id and not on_scene and not situation.board.can_go(assignment.unit_id):
                yield escalated(incident, assignment, EscalationReason.UNIT_GONE, situation=situation)
        case _:
            assert_never(command)


def _overdue(assignment: Assignment) -> EscalationReason:
    """Reason for escalating an assignment whose deadline has passed: the step that is missing."""
    if assignment.state not in UNANSWERED:
        return _OVERDUE_WORK.get(assignment.state, EscalationReason.NOT_DISPATCHED)
    if assignment.choice and assignment.received_ms is None:
        return EscalationReason.NOT_RECEIVED
    return EscalationReason.NOT_ACKNOWLEDGED


_OVERDUE_WORK = {
    AssignmentState.DISPATCHED: EscalationReason.NOT_DEPARTED,
    AssignmentState.EN_ROUTE: EscalationReason.NOT_ARRIVED,
    AssignmentState.ON_SCENE: EscalationReason.NO_WORD,
}


def work_limits(assignment: Assignment, state: AssignmentState, situation: Situation) -> WorkLimits:
    """The limits of the unit that has an assignment, from its present step, `state`, until its next one.

    A desk that accepted has the limit of the dispatch only: it goes nowhere itself. Without a roster there is no limit.
    """
    now_ms, limits, choice = situation.now_ms, situation.deadlines, assignment.choice
    if state is AssignmentState.ACKNOWLEDGED:
        due_ms = now_ms + limits.dispatch_ms if choice else None
        react_ms = min(limits.react_ms, limits.dispatch_ms // 2)
        return WorkLimits(due_ms - react_ms if due_ms and choice and choice.unit_id else None, due_ms)
    if choice is None or not choice.unit_id or state not in _OVERDUE_WORK:
        return UNLIMITED
    within_ms = {
        AssignmentState.DISPATCHED: limits.depart_ms,
        AssignmentState.EN_ROUTE: _travel_ms(assignment, choice, situation),
        AssignmentState.ON_SCENE: limits.word_ms,
    }[state]
    return WorkLimits(now_ms + within_ms, now_ms + within_ms + limits.react_ms)


def _travel_ms(assignment: Assignment, choice: Choice, situation: Situation) -> int:
    """Time in which a unit on its way is expected, milliseconds: by its present position, else as when it was asked, else the default.

    A fast estimate isn't held against the unit: LATE_SHARE more, and at least LEAST_TRAVEL_MS.
    """
    travel = situation.board.travel.get(Trip(choice.unit_id, assignment.subject_id))
    travel_s = travel.travel_s if travel else choice.travel_s
    expected_ms = situation.deadlines.arrive_ms if travel_s is None else 1000 * travel_s
    return max(round(expected_ms * LATE_SHARE), LEAST_TRAVEL_MS)


def first(incident: Incident, assignment_id: str, subject_id: str, *, kind: int, situation: Situation) -> FirstOffer:
    """The first offer of an assignment for an alert of this kind. Raises ValueError if the roster names no national desk."""
    now_ms, board = situation.now_ms, situation.board
    if incident.exercise or not board.asks_units():
        # A unit that is sent to an exercise may be missing in a live incident, so the desk itself is asked.
        return FirstOffer(None, now_ms + situation.deadlines.acknowledge_ms, ())
    choice = next_choice(board, query(incident, assignment_id, subject_id, kind=kind, now_ms=now_ms))
    if choice is None:
        raise ValueError("the roster has no national desk: an office must name one")
    due = due_ms(choice, situation)
    if choice.unit_id:
        return FirstOffer(choice, due, ())
    supervisor = Escalated(
        at_ms=now_ms,
        assignment_id=assignment_id,
        due_ms=due,
        choice=choice,
        escalation_reason=EscalationReason.NOBODY,
    )
    return FirstOffer(None, due, (NobodyAvailable(now_ms, assignment_id), supervisor))


def escalated(
    incident: Incident, assignment: Assignment, reason: EscalationReason, *, situation: Situation
) -> Escalated:
    """The offer at the next escalation level. After the last level, the same desk is asked at growing intervals."""
    choice = _next_level(incident, assignment, reason, situation=situation)
    return Escalated(
        at_ms=situation.now_ms,
        assignment_id=assignment.assignment_id,
        due_ms=due_ms(choice, situation) if choice else _repeat_ms(assignment, situation),
        choice=choice or assignment.choice,
        escalation_reason=reason,
    )


def _repeat_ms(assignment: Assignment, situation: Situation) -> int:
    """Time at which the same desk is asked once more, with exponential backoff, mesh time.

    A desk that hasn't answered for an hour won't react to a message every 10 s.
    """
    acknowledge_ms = situation.deadlines.acknowledge_ms
    longest_ms = max(LONGEST_WAIT_MS, acknowledge_ms)
    return situation.now_ms + min(acknowledge_ms << min(assignment.repeats, 16), longest_ms)


def _next_level(
    incident: Incident, assignment: Assignment, reason: EscalationReason, *, situation: Situation
) -> Choice | None:
    """The unit or desk of the next escalation level; None after the last level, without a roster, or in an exercise."""
    if incident.exercise or not situation.board.asks_units():
        return None
    id_, present = assignment.assignment_id, assignment.choice
    above = int(present.level) if present else 0
    asked = query(incident, id_, assignment.subject_id, kind=assignment.kind, now_ms=situation.now_ms)
    return next_choice(
        situation.board,
        replace(
            asked,
            above=_above(above, reason),
            tried=assignment.tried,
            skip_office_id=present.office_id if present and reason is EscalationReason.NOT_RECEIVED else "",
        ),
    )


def _above(above: int, reason: EscalationReason) -> int:
    """Level above which somebody is asked, from the present level and the reason of the escalation."""
    if reason is EscalationReason.UNIT_GONE:
        return above - 1  # a unit that is gone doesn't use up a level: another unit replaces it at the same level
    if reason is EscalationReason.NO_WORD:
        # The unit is there, and may be busy with its hands. The supervisor decides whether somebody has to follow.
        return max(above, EscalationLevel.NEXT_OFFICE)
    return above


def received_due_ms(assignment: Assignment, deadlines: Deadlines) -> int | None:
    """Deadline for acknowledging an offer that the desk's machine has received, mesh time; None if the offer has no deadline."""
    if assignment.asked_ms is None or assignment.due_ms is None:
        return assignment.due_ms
    if assignment.losing:
        return max(assignment.due_ms, assignment.asked_ms + min(RACE_ANSWER_MS, deadlines.acknowledge_ms))
    return max(assignment.due_ms, assignment.asked_ms + deadlines.acknowledge_ms)


def due_ms(choice: Choice, situation: Situation) -> int:
    """Deadline of a new offer, mesh time. Before it, the machine of the unit or desk must confirm receipt."""
    deadlines = situation.deadlines
    # At the last level there is nobody to escalate to, so the desk gets the longer time.
    last = choice.level is EscalationLevel.NATIONAL_DESK
    return situation.now_ms + (
        deadlines.acknowledge_ms if last else min(deadlines.receive_ms, deadlines.acknowledge_ms)
    )


def query(incident: Incident, assignment_id: str, subject_id: str, *, kind: int, now_ms: int) -> UnitQuery:
    """The query for the first unit to ask for a destination, after an alert of this kind."""
    return UnitQuery(
        assignment_id=assignment_id,
        subject_id=subject_id,
        now_ms=now_ms,
        skill=incident.leg.policy.preferred_skills.get(kind, ""),
        engaged=_engaged(incident, assignment_id),
    )


def _engaged(incident: Incident, assignment_id: str) -> Mapping[str, str]:
    """Incident id by unit id, for units that already go to another destination of the same incident."""
    return {
        assignment.unit_id: incident.incident_id
        for assignment in incident.assignments.values()
        if assignment.unit_id and assignment.assignment_id != assignment_id
    }
