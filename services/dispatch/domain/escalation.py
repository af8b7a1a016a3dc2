"""The ladder of an offer: who is asked first, who is next, and until when. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from services.dispatch.domain.choosing import SKILLS, UnitQuery, next_choice
from services.dispatch.domain.events import Choice, Escalated, EscalationLevel, EscalationReason, NobodyAvailable, Step
from services.dispatch.domain.incident import Assignment, Incident
from services.dispatch.domain.roster import Board

LONGEST_WAIT_MS = 3_600_000
"""Longest time between two escalations of one assignment to the same desk."""

RACE_ANSWER_MS = 10_000
"""How long each rung has to answer while the race is being lost. The nearest unit keeps its offer: another one is farther away."""


@dataclass(frozen=True, slots=True)
class Deadlines:
    """How long each step may take, mesh time, milliseconds."""

    acknowledge_ms: int
    """Until a person takes it."""
    receive_ms: int = 5_000
    """Until the desk's machine has it; awaited where there is a roster."""
    dispatch_ms: int = 60_000
    """From then until a unit is told to go; awaited where there is a roster."""
    other_leg_ms: int = 10_000
    """Until another leg shows a step of what the same alert demands of it."""


@dataclass(frozen=True, slots=True)
class First:
    """Whom a new offer goes to."""

    choice: Choice | None
    due_ms: int
    then: tuple[Step, ...]
    """Steps that follow at once: where nobody is there, that is said, and the supervisor is asked."""


def first(
    incident: Incident, assignment_id: str, subject_id: str, kind: int, now_ms: int, deadlines: Deadlines, board: Board
) -> First:
    """Whom an assignment is offered to that an alert asks for."""
    if incident.exercise or not board.asks_units():
        # Whoever is sent to an exercise may be missing where it is in earnest: the desk itself is asked.
        return First(None, now_ms + deadlines.acknowledge_ms, ())
    question = UnitQuery(
        *(assignment_id, subject_id, now_ms, SKILLS.get((incident.leg, kind), "")),
        engaged=engaged(incident, assignment_id),
    )
    choice = next_choice(board, question)
    if choice and choice.unit_id:
        return First(choice, due_ms(choice, now_ms, deadlines), ())
    if choice is None:
        raise ValueError("an office without a national desk")
    due = due_ms(choice, now_ms, deadlines)
    return First(
        None,
        due,
        (
            NobodyAvailable(now_ms, assignment_id),
            Escalated(now_ms, assignment_id, due, choice, EscalationReason.NOBODY),
        ),
    )


def climbed(
    incident: Incident,
    assignment: Assignment,
    escalation_reason: EscalationReason,
    now_ms: int,
    deadlines: Deadlines,
    board: Board,
) -> Escalated:
    """The next rung; where there is none the same desk again, ever more rarely."""
    id_, present = assignment.assignment_id, assignment.choice
    if board.asks_units() and not incident.exercise:
        above = int(present.level) if present else 0
        question = UnitQuery(
            *(id_, assignment.subject_id, now_ms, SKILLS.get((incident.leg, assignment.kind), "")),
            # Who is gone doesn't use a rung up: another takes its place on the same one.
            above=above - 1 if escalation_reason is EscalationReason.UNIT_GONE else above,
            tried=assignment.tried,
            engaged=engaged(incident, id_),
            skip_office_id=present.office_id if present and escalation_reason is EscalationReason.NOT_RECEIVED else "",
        )
        choice = next_choice(board, question)
        if choice:
            return Escalated(now_ms, id_, due_ms(choice, now_ms, deadlines), choice, escalation_reason)
    # Again and again, but ever more rarely: who hasn't answered for an hour isn't moved by a message every 10 s.
    longest_ms = max(LONGEST_WAIT_MS, deadlines.acknowledge_ms)
    within_ms = min(deadlines.acknowledge_ms << min(assignment.repeats, 16), longest_ms)
    return Escalated(now_ms, id_, now_ms + within_ms, present, escalation_reason)


def received_due_ms(assignment: Assignment, deadlines: Deadlines) -> int | None:
    """When a person must have taken what the machine has."""
    if assignment.asked_ms is None or assignment.due_ms is None:
        return assignment.due_ms
    if assignment.losing:
        return max(assignment.due_ms, assignment.asked_ms + min(RACE_ANSWER_MS, deadlines.acknowledge_ms))
    return max(assignment.due_ms, assignment.asked_ms + deadlines.acknowledge_ms)


def due_ms(choice: Choice, now_ms: int, deadlines: Deadlines) -> int:
    """When an offer to a choice is offered on, unless its machine says that it has it."""
    # Beyond the last rung nobody is left who would have it sooner.
    last = choice.level is EscalationLevel.NATIONAL_DESK
    return now_ms + (deadlines.acknowledge_ms if last else min(deadlines.receive_ms, deadlines.acknowledge_ms))


def engaged(incident: Incident, assignment_id: str) -> Mapping[str, str]:
    """Units that have a part in another destination of the same incident."""
    return {
        assignment.unit_id: incident.incident_id
        for assignment in incident.assignments.values()
        if assignment.unit_id and assignment.assignment_id != assignment_id
    }
