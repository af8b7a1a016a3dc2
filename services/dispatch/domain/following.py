"""What it does to an assignment that its target moves, and that the race for it is being lost. Pure.

Who is there already stays. Who goes there is told of the new place, and replaced only by somebody who is much nearer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from services.common.rpc.errors import FailedPrecondition
from services.dispatch.domain import escalation, race
from services.dispatch.domain.choosing import SKILLS, UnitQuery, next_choice, offices_for
from services.dispatch.domain.escalation import Deadlines
from services.dispatch.domain.events import (
    Advice,
    Choice,
    Escalated,
    EscalationLevel,
    EscalationReason,
    Event,
    Raced,
    Retargeted,
    SceneShared,
    TargetsShown,
)
from services.dispatch.domain.evolving import evolve
from services.dispatch.domain.incident import OVER, TAKEN, UNANSWERED, Assignment, AssignmentState, Incident
from services.dispatch.domain.race import Approach
from services.dispatch.domain.roster import NO_ROSTER, Board

ON_THE_WAY = frozenset((AssignmentState.ACKNOWLEDGED, AssignmentState.DISPATCHED, AssignmentState.EN_ROUTE))
"""Somebody has taken it and isn't there yet."""
NEARER_S = {False: 120, True: 300}
"""By whether it was taken: another unit has to be nearer by that much ..."""
NEARER_SHARE = 0.5
"""... and need no more than this share of the time. Who has read an offer or is on the way loses a minute by being called back."""
RETARGET_MS = 30_000
"""Whoever goes is told at most so often that the target went far; the live position is on their screen all the time."""
SCENE_M = 100.0
"""In a ring of that radius or less the two are in one place. The law's own distance, which tells nobody more than the ring."""


@dataclass(frozen=True, slots=True)
class TargetUpdate:
    """Where a target and the wearer are, as far as it matters."""

    incident_id: str
    assignment_id: str
    subject_id: str
    approach: Approach
    moved_m: int
    """How far the target is from where it was when the unit was chosen, or told the last time, metres; 0 where that isn't far."""
    found: bool = False
    """Where the target is was unknown when the unit was chosen, and is known now."""


@dataclass(frozen=True, slots=True)
class Follow:
    """It was looked at."""

    look: TargetUpdate
    now_ms: int
    deadlines: Deadlines
    board: Board = NO_ROSTER


@dataclass(frozen=True, slots=True)
class ShowTargets:
    """A desk asks where the incident's targets are."""

    by: str
    """SPIFFE id of who asks."""
    now_ms: int


def decide(incident: Incident, command: Follow | ShowTargets) -> Iterator[Event]:
    """What it leads to. Raises FailedPrecondition where a desk asks after an incident in which nobody has anything to do."""
    if isinstance(command, ShowTargets):
        if all(assignment.state in OVER for assignment in incident.assignments.values()):
            raise FailedPrecondition("no such incident is open in this leg")
        yield TargetsShown(command.now_ms, command.by)
        return
    id_ = command.look.assignment_id
    if id_ not in incident.assignments or incident.assignments[id_].state not in UNANSWERED | TAKEN:
        return
    if command.look.moved_m or command.look.found:
        for event in _rechosen(incident, incident.assignments[id_], command):
            yield event
            incident = evolve(incident, event)
    yield from _raced(incident, incident.assignments[id_], command)


def scenes(incident: Incident, now_ms: int) -> Iterator[Event]:
    """Where both legs come to one place now, or don't any more. Both find the same in the same alerts.

    Probation isn't told that a ring was left: that would be one more distance from where she lives.
    """
    if incident.leg == "warning":
        return  # nobody goes anywhere
    for id_, assignment in incident.assignments.items():
        ring_m = incident.ring_m(id_)
        shared = ring_m is not None and ring_m <= SCENE_M
        if not shared and incident.leg == "probation":
            continue
        if assignment.state in UNANSWERED | TAKEN and shared != (assignment.one_scene_ms is not None):
            yield SceneShared(now_ms, id_, shared)


def _rechosen(incident: Incident, assignment: Assignment, command: Follow) -> Iterator[Event]:
    if assignment.state not in UNANSWERED | ON_THE_WAY:
        return  # who is there sees it through
    nearer = _nearer(incident, assignment, command)
    if nearer:
        yield _offered(assignment, nearer, EscalationReason.TARGET_MOVED, command)
    elif not command.look.moved_m:
        return
    elif assignment.retargeted_ms is None or command.now_ms - assignment.retargeted_ms >= RETARGET_MS:
        yield Retargeted(command.now_ms, assignment.assignment_id, command.look.moved_m)


def _raced(incident: Incident, assignment: Assignment, command: Follow) -> Iterator[Event]:
    travel = command.board.travel.get((assignment.unit_id, assignment.subject_id))
    theirs_s = race.responder_s(assignment, travel.travel_s if travel else None, command.now_ms)
    wearer_s = command.look.approach.wearer_s
    there = assignment.state not in UNANSWERED | ON_THE_WAY
    losing = not there and race.is_lost(assignment, wearer_s, theirs_s)
    if losing == assignment.losing:
        return
    id_, now_ms = assignment.assignment_id, command.now_ms
    due_ms = None
    if losing and assignment.state in UNANSWERED and assignment.due_ms is not None:
        due_ms = min(assignment.due_ms, now_ms + escalation.RACE_ANSWER_MS)
    # Advice is given once and stands until the race is won back: who was told to leave is outside by now.
    advice = race.advise(wearer_s) if losing and incident.leg == "police" else Advice.NONE
    offices = offices_for(command.board, assignment.subject_id) if command.board.asks_units() else ()
    supervisor = offices[0].supervisor_desk if losing and offices else ""
    yield Raced(now_ms, id_, losing, advice, wearer_s, theirs_s, command.look.approach.by_ring, supervisor, due_ms)
    if losing and wearer_s is not None:
        best = _best(incident, assignment, command)
        if best and best.unit_id != assignment.unit_id and (best.travel_s or 0) + race.READY_S < wearer_s:
            yield _offered(assignment, best, EscalationReason.RACE_LOST, command)


def _nearer(incident: Incident, assignment: Assignment, command: Follow) -> Choice | None:
    """A unit that is much nearer to where the target is now than the one that goes."""
    best = _best(incident, assignment, command)
    present = command.board.travel.get((assignment.unit_id, assignment.subject_id))
    if best is None or best.unit_id == assignment.unit_id or best.travel_s is None or present is None:
        return None
    saved_s = present.travel_s - best.travel_s
    enough_s = NEARER_S[assignment.state in TAKEN]
    return best if saved_s >= enough_s and best.travel_s <= present.travel_s * NEARER_SHARE else None


def _best(incident: Incident, assignment: Assignment, command: Follow) -> Choice | None:
    """Who would be asked first now, of those who haven't refused; None where that is no unit with a travel time."""
    id_, present = assignment.assignment_id, assignment.choice
    if present is None or not present.unit_id or not command.board.asks_units():
        return None
    question = UnitQuery(
        *(id_, assignment.subject_id, command.now_ms, SKILLS.get((incident.leg, assignment.kind), "")),
        tried=assignment.tried - {present.unit_id},
        engaged=escalation.engaged(incident, id_),
    )
    best = next_choice(command.board, question)
    if best is None or not best.unit_id or best.travel_s is None:
        return None
    # Who does something else is called away from it only in place of somebody who does, too.
    if (best.busy or best.busy_in) and not (present.busy or present.busy_in):
        return None
    # It takes the other's place on the ladder, so that what was asked already isn't asked again.
    return replace(best, level=max(present.level, EscalationLevel.UNIT))


def _offered(assignment: Assignment, choice: Choice, escalation_reason: EscalationReason, command: Follow) -> Escalated:
    due_ms = escalation.due_ms(choice, command.now_ms, command.deadlines)
    return Escalated(command.now_ms, assignment.assignment_id, due_ms, choice, escalation_reason)
