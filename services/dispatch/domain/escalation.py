"""Escalation of an offer: the first unit or desk, the next level, and the deadline of each offer. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from services.dispatch.domain.choosing import SKILLS, UnitQuery, next_choice
from services.dispatch.domain.enums import EscalationLevel, EscalationReason
from services.dispatch.domain.events import Choice, Escalated, NobodyAvailable, Step
from services.dispatch.domain.incident import Assignment, Incident
from services.dispatch.domain.roster import Board

LONGEST_WAIT_MS = 3_600_000
"""Longest time between two escalations of one assignment to the same desk."""

RACE_ANSWER_MS = 10_000
"""Time to answer at each escalation level while the race is being lost. The nearest unit keeps its offer: others are farther."""


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Time limits of each step, mesh time, milliseconds."""

    acknowledge_ms: int
    """From the offer until a person accepts it."""
    receive_ms: int = 5_000
    """From the offer until the desk's machine has it; awaited only where there is a roster."""
    dispatch_ms: int = 60_000
    """From the acknowledgement until a unit is dispatched; awaited only where there is a roster."""
    other_leg_ms: int = 10_000
    """From an alert that demands a response of both legs until the other leg shows a step."""


@dataclass(frozen=True, slots=True)
class FirstOffer:
    """The unit or desk that gets a new offer."""

    choice: Choice | None
    due_ms: int
    then: tuple[Step, ...]
    """Steps that follow at once: where no unit is available, NobodyAvailable and an escalation to the supervisor."""


def first(
    incident: Incident,
    assignment_id: str,
    subject_id: str,
    *,
    kind: int,
    now_ms: int,
    deadlines: Deadlines,
    board: Board,
) -> FirstOffer:
    """The first offer of an assignment for an alert of some kind. Raises ValueError for an office without a national desk."""
    if incident.exercise or not board.asks_units():
        # A unit that is sent to an exercise may be missing in a live incident, so the desk itself is asked.
        return FirstOffer(None, now_ms + deadlines.acknowledge_ms, ())
    query = UnitQuery(
        *(assignment_id, subject_id, now_ms, SKILLS.get((incident.leg, kind), "")),
        engaged=engaged(incident, assignment_id),
    )
    choice = next_choice(board, query)
    if choice and choice.unit_id:
        return FirstOffer(choice, due_ms(choice, now_ms, deadlines), ())
    if choice is None:
        raise ValueError("the roster has no national desk: an office must name one")
    due = due_ms(choice, now_ms, deadlines)
    return FirstOffer(
        None,
        due,
        (
            NobodyAvailable(now_ms, assignment_id),
            Escalated(
                at_ms=now_ms,
                assignment_id=assignment_id,
                due_ms=due,
                choice=choice,
                escalation_reason=EscalationReason.NOBODY,
            ),
        ),
    )


def escalated(
    incident: Incident,
    assignment: Assignment,
    escalation_reason: EscalationReason,
    *,
    now_ms: int,
    deadlines: Deadlines,
    board: Board,
) -> Escalated:
    """The offer at the next escalation level. Where there is none, the same desk is asked at growing intervals."""
    id_, present = assignment.assignment_id, assignment.choice
    if board.asks_units() and not incident.exercise:
        above = int(present.level) if present else 0
        query = UnitQuery(
            *(id_, assignment.subject_id, now_ms, SKILLS.get((incident.leg, assignment.kind), "")),
            # A unit that is gone doesn't use up a level: another unit replaces it at the same level.
            above=above - 1 if escalation_reason is EscalationReason.UNIT_GONE else above,
            tried=assignment.tried,
            engaged=engaged(incident, id_),
            skip_office_id=present.office_id if present and escalation_reason is EscalationReason.NOT_RECEIVED else "",
        )
        choice = next_choice(board, query)
        if choice:
            return Escalated(
                at_ms=now_ms,
                assignment_id=id_,
                due_ms=due_ms(choice, now_ms, deadlines),
                choice=choice,
                escalation_reason=escalation_reason,
            )
    # Repeat with exponential backoff: a desk that hasn't answered for an hour won't react to a message every 10 s.
    longest_ms = max(LONGEST_WAIT_MS, deadlines.acknowledge_ms)
    within_ms = min(deadlines.acknowledge_ms << min(assignment.repeats, 16), longest_ms)
    return Escalated(
        at_ms=now_ms, assignment_id=id_, due_ms=now_ms + within_ms, choice=present, escalation_reason=escalation_reason
    )


def received_due_ms(assignment: Assignment, deadlines: Deadlines) -> int | None:
    """Deadline for acknowledging an offer that the desk's machine has, mesh time."""
    if assignment.asked_ms is None or assignment.due_ms is None:
        return assignment.due_ms
    if assignment.losing:
        return max(assignment.due_ms, assignment.asked_ms + min(RACE_ANSWER_MS, deadlines.acknowledge_ms))
    return max(assignment.due_ms, assignment.asked_ms + deadlines.acknowledge_ms)


def due_ms(choice: Choice, now_ms: int, deadlines: Deadlines) -> int:
    """Time at which an offer is escalated unless the machine of its unit or desk confirms receipt, mesh time."""
    # At the last level no further desk could receive it sooner.
    last = choice.level is EscalationLevel.NATIONAL_DESK
    return now_ms + (deadlines.acknowledge_ms if last else min(deadlines.receive_ms, deadlines.acknowledge_ms))


def engaged(incident: Incident, assignment_id: str) -> Mapping[str, str]:
    """Incident id by unit, for units that have a part in another destination of the same incident."""
    return {
        assignment.unit_id: incident.incident_id
        for assignment in incident.assignments.values()
        if assignment.unit_id and assignment.assignment_id != assignment_id
    }
