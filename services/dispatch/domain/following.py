"""Decisions on an assignment when its target moves, or when the race against the wearer is being lost. Pure.

A unit on the scene stays. A unit on the way is notified of the target's new position, and is replaced only by a much nearer unit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from services.common.rpc.errors import FailedPrecondition
from services.dispatch.domain import escalation, race
from services.dispatch.domain.choosing import SKILLS, UnitQuery, next_choice, offices_for
from services.dispatch.domain.enums import Advice, EscalationLevel, EscalationReason
from services.dispatch.domain.escalation import Deadlines
from services.dispatch.domain.events import Choice, Escalated, Event, Raced, Retargeted, SceneShared, TargetsShown
from services.dispatch.domain.evolving import evolve
from services.dispatch.domain.incident import ACCEPTED, OVER, UNANSWERED, Assignment, AssignmentState, Incident
from services.dispatch.domain.race import Approach
from services.dispatch.domain.roster import NO_ROSTER, Board

ON_THE_WAY = frozenset((AssignmentState.ACKNOWLEDGED, AssignmentState.DISPATCHED, AssignmentState.EN_ROUTE))
"""States of an accepted assignment whose unit hasn't arrived yet."""
NEARER_S = {False: 120, True: 300}
"""Travel time, seconds, that a replacement must save; the key says whether the assignment was accepted."""
NEARER_SHARE = 0.5
"""Maximum travel time of a replacement, as a share of the present unit's. A recall costs a minute of a unit that has read the offer or
is on the way."""
RETARGET_MS = 30_000
"""Minimum time between two notifications that the target moved far, milliseconds. The unit's screen shows the live position."""
SCENE_M = 100.0
"""Maximum radius, metres, of a ring that counts as one scene. It is the distance in the law, so it reveals no more than the ring."""


@dataclass(frozen=True, slots=True)
class TargetUpdate:
    """Movement of a target and the wearer's approach to it, for one assignment."""

    incident_id: str
    assignment_id: str
    subject_id: str
    approach: Approach
    moved_m: int
    """Distance, metres, from the target's position when the unit was chosen or last notified; 0 where it isn't far."""
    found: bool = False
    """The target's position is known now, and was unknown when the unit was chosen."""


@dataclass(frozen=True, slots=True)
class Follow:
    """Command: apply an update of a target."""

    update: TargetUpdate
    now_ms: int
    deadlines: Deadlines
    board: Board = NO_ROSTER


@dataclass(frozen=True, slots=True)
class ShowTargets:
    """Command: a desk asks for the live positions of the incident's targets."""

    by: str
    """SPIFFE id of the caller."""
    now_ms: int


def decide(incident: Incident, command: Follow | ShowTargets) -> Iterator[Event]:
    """Events that a command leads to. Raises FailedPrecondition where a desk asks for an incident without an open assignment."""
    if isinstance(command, ShowTargets):
        if all(assignment.state in OVER for assignment in incident.assignments.values()):
            raise FailedPrecondition(f"incident {incident.incident_id} isn't open in this leg")
        yield TargetsShown(command.now_ms, command.by)
        return
    id_ = command.update.assignment_id
    if id_ not in incident.assignments or incident.assignments[id_].state not in UNANSWERED | ACCEPTED:
        return
    if command.update.moved_m or command.update.found:
        for event in _rechosen(incident, incident.assignments[id_], command):
            yield event
            incident = evolve(incident, event)
    yield from _raced(incident, incident.assignments[id_], command)


def scenes(incident: Incident, now_ms: int) -> Iterator[Event]:
    """Events that both legs now go to one scene, or no longer do. Both legs derive them from the same alerts.

    Probation isn't notified that a ring was left, as that would reveal another distance from the protected person's home.
    """
    if incident.leg == "warning":
        return  # the warning leg sends nobody
    for id_, assignment in incident.assignments.items():
        ring_m = incident.ring_m(id_)
        shared = ring_m is not None and ring_m <= SCENE_M
        if not shared and incident.leg == "probation":
            continue
        if assignment.state in UNANSWERED | ACCEPTED and shared != (assignment.one_scene_ms is not None):
            yield SceneShared(now_ms, id_, shared)


def _rechosen(incident: Incident, assignment: Assignment, command: Follow) -> Iterator[Event]:
    if assignment.state not in UNANSWERED | ON_THE_WAY:
        return  # a unit on the scene stays
    nearer = _nearer(incident, assignment, command)
    if nearer:
        yield _offered(assignment, nearer, EscalationReason.TARGET_MOVED, command=command)
    elif not command.update.moved_m:
        return
    elif assignment.retargeted_ms is None or command.now_ms - assignment.retargeted_ms >= RETARGET_MS:
        yield Retargeted(command.now_ms, assignment.assignment_id, command.update.moved_m)


def _raced(incident: Incident, assignment: Assignment, command: Follow) -> Iterator[Event]:
    travel = command.board.travel.get((assignment.unit_id, assignment.subject_id))
    theirs_s = race.responder_s(assignment, travel.travel_s if travel else None, command.now_ms)
    wearer_s = command.update.approach.wearer_s
    there = assignment.state not in UNANSWERED | ON_THE_WAY
    losing = not there and race.is_lost(assignment, wearer_s, theirs_s)
    if losing == assignment.losing:
        return
    id_, now_ms = assignment.assignment_id, command.now_ms
    due_ms = None
    if losing and assignment.state in UNANSWERED and assignment.due_ms is not None:
        due_ms = min(assignment.due_ms, now_ms + escalation.RACE_ANSWER_MS)
    # Advice isn't changed until the race is won back: a person who was advised to leave is outside by now.
    advice = race.advise(wearer_s) if losing and incident.leg == "police" else Advice.NONE
    offices = offices_for(command.board, assignment.subject_id) if command.board.asks_units() else ()
    supervisor = offices[0].supervisor_desk if losing and offices else ""
    yield Raced(
        at_ms=now_ms,
        assignment_id=id_,
        losing=losing,
        advice=advice,
        wearer_s=wearer_s,
        responder_s=theirs_s,
        by_ring=command.update.approach.by_ring,
        supervisor_desk=supervisor,
        due_ms=due_ms,
    )
    if losing and wearer_s is not None:
        best = _best(incident, assignment, command)
        if best and best.unit_id != assignment.unit_id and (best.travel_s or 0) + race.READY_S < wearer_s:
            yield _offered(assignment, best, EscalationReason.RACE_LOST, command=command)


def _nearer(incident: Incident, assignment: Assignment, command: Follow) -> Choice | None:
    """A unit that is much nearer to the target's present position than the assigned unit; None where there is none."""
    best = _best(incident, assignment, command)
    present = command.board.travel.get((assignment.unit_id, assignment.subject_id))
    if best is None or best.unit_id == assignment.unit_id or best.travel_s is None or present is None:
        return None
    saved_s = present.travel_s - best.travel_s
    enough_s = NEARER_S[assignment.state in ACCEPTED]
    return best if saved_s >= enough_s and best.travel_s <= present.travel_s * NEARER_SHARE else None


def _best(incident: Incident, assignment: Assignment, command: Follow) -> Choice | None:
    """The unit that would be asked first now, among those that haven't refused; None unless its travel time is known."""
    id_, present = assignment.assignment_id, assignment.choice
    if present is None or not present.unit_id or not command.board.asks_units():
        return None
    query = UnitQuery(
        *(id_, assignment.subject_id, command.now_ms, SKILLS.get((incident.leg, assignment.kind), "")),
        tried=assignment.tried - {present.unit_id},
        engaged=escalation.engaged(incident, id_),
    )
    best = next_choice(command.board, query)
    if best is None or not best.unit_id or best.travel_s is None:
        return None
    # A busy unit may replace only another busy unit.
    if (best.busy or best.busy_in) and not (present.busy or present.busy_in):
        return None
    # The replacement gets the escalation level of the replaced unit, so that no level is asked twice.
    return replace(best, level=max(present.level, EscalationLevel.UNIT))


def _offered(
    assignment: Assignment, choice: Choice, escalation_reason: EscalationReason, *, command: Follow
) -> Escalated:
    due_ms = escalation.due_ms(choice, command.now_ms, command.deadlines)
    return Escalated(
        at_ms=command.now_ms,
        assignment_id=assignment.assignment_id,
        due_ms=due_ms,
        choice=choice,
        escalation_reason=escalation_reason,
    )
