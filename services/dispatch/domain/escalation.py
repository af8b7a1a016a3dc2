"""Escalation of an offer: the first unit or desk, the next level, and the deadline of each offer. Pure.

A unit that doesn't answer keeps its offer for a while: the next one is asked as well, and the first acceptance wins.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import assert_never

from services.dispatch.domain import contact
from services.dispatch.domain.assignment import UNANSWERED, Assignment, AssignmentState
from services.dispatch.domain.enums import EscalationLevel, EscalationReason, UnitOfferState
from services.dispatch.domain.events import (
    UNLIMITED,
    Acknowledged,
    Escalated,
    Event,
    NobodyAvailable,
    NoUnitLeft,
    Reminded,
    Step,
    UnitAsked,
    UnitOfferEnded,
    WorkLimits,
)
from services.dispatch.domain.incident import Decided, Incident
from services.dispatch.domain.roster import (
    NO_ROSTER,
    Board,
    Choice,
    Trip,
    UnitOffer,
    UnitQuery,
    next_choice,
    next_free_unit,
)

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
    """From the offer to a desk until a person accepts it."""
    receive_ms: int = 5_000
    """From the offer until the desk's machine has received it. Awaited only if there is a roster."""
    dispatch_ms: int = 60_000
    """From the acknowledgement by the desk until a unit has it, or by a unit until it goes. Awaited only if there is a roster."""
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
    answer_ms: int = 10_000
    """From the offer to a unit until the next unit or desk is asked as well: an officer at the wheel needs some seconds to answer, and
    each further second is lost if nobody looks at the page."""
    offer_ms: int = 30_000
    """From the offer to a unit until it ends: the time in which a person must accept an offer."""


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
    """Command: check whether a deadline of an assignment or of one of its offers has passed."""

    assignment_id: str


@dataclass(frozen=True, slots=True)
class LoseUnit:
    """Command: check after a roster change whether units that have an assignment or are asked are gone."""

    assignment_id: str


@dataclass(frozen=True, slots=True)
class FirstOffer:
    """The unit or desk that gets a new offer."""

    choice: Choice | None
    due_ms: int
    open_until_ms: int | None
    """As in `Offered.open_until_ms`."""
    then: tuple[Step, ...]
    """Steps that follow at once. If no unit is available, these are NobodyAvailable and an escalation to the next desk."""


def decide(incident: Incident, command: PassDeadline | LoseUnit, situation: Situation) -> Iterable[Event]:
    """Escalates an assignment if its deadline has passed or its unit is gone, and ends the offers that nobody can accept any more."""
    assignment = incident.assignments.get(command.assignment_id)
    if assignment is None:
        return ()
    if assignment.contact:
        return contact.pass_contact_deadline(assignment, situation.now_ms)
    match command:
        case PassDeadline():
            return _pass_deadlines(incident, assignment, situation)
        case LoseUnit():
            return _lose_units(incident, assignment, situation)
        case _:
            assert_never(command)


def _pass_deadlines(incident: Incident, assignment: Assignment, situation: Situation) -> Iterable[Event]:
    now_ms, id_ = situation.now_ms, assignment.assignment_id
    decided = Decided(incident)
    for offer in assignment.open_offers:
        if offer.open_until_ms <= now_ms:
            decided.add(
                UnitOfferEnded(now_ms, assignment_id=id_, offer_number=offer.offer_number, state=UnitOfferState.MISSED)
            )
    assignment = decided.incident.assignments[id_]
    if assignment.due_ms is not None and assignment.due_ms <= now_ms:
        decided.add(escalated(decided.incident, assignment, _overdue(assignment), situation=situation))
    elif assignment.ask_next_ms is not None and assignment.ask_next_ms <= now_ms:
        decided.add(ask_next(decided.incident, assignment, situation))
    elif assignment.remind_ms is not None and assignment.remind_ms <= now_ms:
        decided.add(Reminded(now_ms, id_))
    return decided.events


def _lose_units(incident: Incident, assignment: Assignment, situation: Situation) -> Iterable[Event]:
    now_ms, id_ = situation.now_ms, assignment.assignment_id
    decided = Decided(incident)
    gone = [offer for offer in assignment.open_offers if not situation.board.can_go(offer.unit_id)]
    for offer in gone:
        decided.add(
            UnitOfferEnded(now_ms, assignment_id=id_, offer_number=offer.offer_number, state=UnitOfferState.OFF_DUTY)
        )
    assignment = decided.incident.assignments[id_]
    # A unit on the scene may end its shift while the paperwork goes on.
    on_scene = assignment.state in (AssignmentState.ON_SCENE, AssignmentState.APPREHENDED)
    responding, lost = assignment.responding_unit_id, {offer.unit_id for offer in gone}
    if responding in lost or (assignment.unit_id and not on_scene and not situation.board.can_go(assignment.unit_id)):
        decided.add(escalated(decided.incident, assignment, EscalationReason.UNIT_GONE, situation=situation))
    elif is_newest_of(assignment, lost):
        decided.add(ask_next(decided.incident, assignment, situation))
    return decided.events


def is_newest_of(assignment: Assignment, unit_ids: Collection[str]) -> bool:
    """Whether the desk waits for the answer of the unit that was asked last, and it is one of these."""
    newest = assignment.unit_offers[-1] if assignment.unit_offers else None
    return assignment.ask_next_ms is not None and newest is not None and newest.unit_id in unit_ids


def next_unit_id(incident: Incident, assignment: Assignment, situation: Situation) -> str:
    """The unit that the leg would ask next if nobody answers; empty if it would ask a desk or nobody."""
    if incident.exercise or not situation.board.asks_units():
        return ""
    choice: Choice | None = None
    if assignment.state in UNANSWERED:
        choice = _next_level(incident, assignment, EscalationReason.NOT_ACKNOWLEDGED, situation=situation)
    elif assignment.is_with_desk:
        asked = query(
            incident,
            assignment.assignment_id,
            assignment.subject_id,
            kind=assignment.kind,
            now_ms=situation.now_ms,
        )
        choice = next_free_unit(situation.board, replace(asked, tried=assignment.tried))
    return choice.unit_id if choice else ""


def ask_next(incident: Incident, assignment: Assignment, situation: Situation) -> UnitAsked | NoUnitLeft:
    """Asks the nearest free unit beside those that are asked while the desk has the assignment. The desk's deadline goes on."""
    now_ms, id_ = situation.now_ms, assignment.assignment_id
    asked = query(incident, id_, assignment.subject_id, kind=assignment.kind, now_ms=now_ms)
    choice = next_free_unit(situation.board, replace(asked, tried=assignment.tried))
    if choice is None:
        return NoUnitLeft(now_ms, id_)
    due = due_ms(choice, situation)
    return UnitAsked(
        at_ms=now_ms,
        assignment_id=id_,
        choice=choice,
        open_until_ms=open_until(choice, situation) or due,
        ask_next_ms=due,
    )


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

    A desk that accepted has the limit of the dispatch only: it goes nowhere itself. A unit that it sent by radio has the limits of any
    other, so that the desk is reminded of it: it may have gone nowhere. Without a roster there is no limit.
    """
    now_ms = situation.now_ms
    limits = situation.deadlines
    choice = assignment.choice
    if state is AssignmentState.ACKNOWLEDGED:
        due_ms = now_ms + limits.dispatch_ms if choice else None
        react_ms = min(limits.react_ms, limits.dispatch_ms // 2)
        return WorkLimits(due_ms - react_ms if due_ms and choice and choice.unit_id else None, due_ms)
    if choice is None or not (choice.unit_id or assignment.radio_unit) or state not in _OVERDUE_WORK:
        return UNLIMITED
    within_ms = {
        AssignmentState.DISPATCHED: limits.depart_ms,
        AssignmentState.EN_ROUTE: _travel_ms(assignment, choice, situation),
        AssignmentState.ON_SCENE: limits.word_ms,
    }[state]
    return WorkLimits(now_ms + within_ms, now_ms + within_ms + limits.react_ms)


def accepted_by_desk(assignment: Assignment, by: str, situation: Situation) -> Acknowledged:
    """The acceptance by the desk itself. Units that are asked may still accept, and their time to answer goes on."""
    limits = work_limits(
        replace(assignment, choice=assignment.choice and assignment.choice.for_desk()),
        AssignmentState.ACKNOWLEDGED,
        situation,
    )
    present = assignment.offer_numbered(assignment.offer_number)
    return Acknowledged(
        at_ms=situation.now_ms,
        assignment_id=assignment.assignment_id,
        by=by,
        due_ms=limits.due_ms,
        remind_ms=limits.remind_ms,
        ask_next_ms=assignment.due_ms if present and present.is_open else None,
    )


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
        return FirstOffer(None, now_ms + situation.deadlines.acknowledge_ms, None, then=())
    choice = next_choice(board, query(incident, assignment_id, subject_id, kind=kind, now_ms=now_ms))
    if choice is None:
        raise ValueError("the roster has no national desk: an office must name one")
    due = due_ms(choice, situation)
    if choice.unit_id:
        return FirstOffer(choice, due, open_until(choice, situation), then=())
    supervisor = Escalated(
        at_ms=now_ms,
        assignment_id=assignment_id,
        due_ms=due,
        choice=choice,
        escalation_reason=EscalationReason.NOBODY,
    )
    return FirstOffer(None, due, None, then=(NobodyAvailable(now_ms, assignment_id), supervisor))


def escalated(
    incident: Incident, assignment: Assignment, reason: EscalationReason, *, situation: Situation
) -> Escalated:
    """The offer at the next escalation level. After the last level, the same desk is asked at growing intervals."""
    choice = _next_level(incident, assignment, reason, situation=situation)
    if choice:
        return offer_to(assignment, choice, reason, situation=situation)
    return Escalated(
        at_ms=situation.now_ms,
        assignment_id=assignment.assignment_id,
        due_ms=_repeat_ms(assignment, situation),
        choice=assignment.choice,
        escalation_reason=reason,
    )


def offer_to(assignment: Assignment, choice: Choice, reason: EscalationReason, *, situation: Situation) -> Escalated:
    """The escalation that asks a unit or desk."""
    return Escalated(
        at_ms=situation.now_ms,
        assignment_id=assignment.assignment_id,
        due_ms=due_ms(choice, situation),
        choice=choice,
        escalation_reason=reason,
        open_until_ms=open_until(choice, situation),
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
    """Deadline for answering the present offer once its machine has received it, mesh time; None if the offer has no deadline."""
    if assignment.asked_ms is None or assignment.due_ms is None:
        return assignment.due_ms
    within_ms = _answer_ms(bool(assignment.responding_unit_id), deadlines)
    if assignment.losing:
        within_ms = min(RACE_ANSWER_MS, within_ms)
    return max(assignment.due_ms, assignment.asked_ms + within_ms)


def received_ask_next_ms(assignment: Assignment, offer: UnitOffer, deadlines: Deadlines) -> int | None:
    """When the leg asks another unit beside those that a desk asked, once the page of one of them has shown its offer, mesh time."""
    if assignment.ask_next_ms is None or offer is not assignment.unit_offers[-1]:
        return assignment.ask_next_ms
    return max(assignment.ask_next_ms, offer.asked_ms + _answer_ms(True, deadlines))


def _answer_ms(to_unit: bool, deadlines: Deadlines) -> int:
    """Time to answer an offer before somebody else is asked, milliseconds."""
    return min(deadlines.answer_ms, deadlines.acknowledge_ms) if to_unit else deadlines.acknowledge_ms


def due_ms(choice: Choice, situation: Situation) -> int:
    """Deadline of a new offer, mesh time. Before it, the machine of the unit or desk must confirm receipt."""
    deadlines = situation.deadlines
    answer_ms = _answer_ms(bool(choice.unit_id), deadlines)
    # At the last level there is nobody to escalate to, so the desk gets the longer time.
    last = choice.level is EscalationLevel.NATIONAL_DESK
    return situation.now_ms + (answer_ms if last else min(deadlines.receive_ms, answer_ms))


def open_until(choice: Choice, situation: Situation) -> int | None:
    """Until when the unit of a new offer may accept, mesh time; None for a desk, whose offer ends with the next one."""
    deadlines = situation.deadlines
    return situation.now_ms + max(deadlines.offer_ms, deadlines.answer_ms) if choice.unit_id else None


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
    """Incident id by unit id, for units that already go to another destination of the same incident or are asked to."""
    return {
        unit_id: incident.incident_id
        for assignment in incident.assignments.values()
        if assignment.assignment_id != assignment_id
        for unit_id in assignment.engaged_unit_ids
    }
