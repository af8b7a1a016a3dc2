"""Decisions on an assignment when its target moves, or when the race against the wearer is being lost. Pure.

A unit on the scene stays. A unit on the way is notified of the target's new position, and is replaced only by a much nearer unit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple, assert_never

from services.common.rpc.errors import FailedPrecondition
from services.dispatch.domain import escalation, race
from services.dispatch.domain.assignment import ACCEPTED, OVER, UNANSWERED, Assignment, AssignmentState
from services.dispatch.domain.choosing import next_choice, offices_for
from services.dispatch.domain.enums import Advice, EscalationLevel, EscalationReason
from services.dispatch.domain.escalation import Situation
from services.dispatch.domain.events import Escalated, Event, Retargeted, SceneShared, TargetsShown
from services.dispatch.domain.incident import Decided, Incident
from services.dispatch.domain.race import Approach
from services.dispatch.domain.roster import READY_S, Choice, TravelEstimated, Trip
from services.dispatch.following.domain import Raced

ON_THE_WAY = frozenset((AssignmentState.ACKNOWLEDGED, AssignmentState.DISPATCHED, AssignmentState.EN_ROUTE))
"""States of an accepted assignment before its unit arrives."""
NEARER_S = {False: 120, True: 300}
"""Travel time that a replacement must save, seconds. The key is True for an accepted assignment, False for an unanswered offer."""
NEARER_SHARE = 0.5
"""Maximum travel time of a replacement, as a share of the present unit's travel time. A recall wastes a minute of a unit that has read
the offer or is on the way."""
RETARGET_MS = 30_000
"""Minimum time between two notifications that the target moved far, milliseconds. The unit's screen shows the live position."""
SCENE_M = 100.0
"""Radius, metres, within which both legs go to one scene. It is the distance in the law, so it reveals no more than the ring does."""


@dataclass(frozen=True, slots=True)
class TargetUpdate:
    """Movement of a target and the wearer's approach to it, for one assignment."""

    incident_id: str
    assignment_id: str
    subject_id: str
    approach: Approach
    moved_m: int
    """Distance that the target moved since the unit was chosen or last notified, metres; 0 if it isn't far."""
    found: bool = False
    """The target's position is known now, and was unknown when the unit was chosen."""


@dataclass(frozen=True, slots=True)
class Follow:
    """Command: apply an update of a target."""

    update: TargetUpdate


@dataclass(frozen=True, slots=True)
class ShowTargets:
    """Command: a desk asks for the live positions of the incident's targets."""

    by: str
    """SPIFFE id of the caller."""


def decide(incident: Incident, command: Follow | ShowTargets, situation: Situation) -> Iterable[Event]:
    """Events that a command leads to. Raises FailedPrecondition if a desk asks for an incident without an open assignment."""
    match command:
        case ShowTargets():
            if all(assignment.state in OVER for assignment in incident.assignments.values()):
                raise FailedPrecondition(f"incident {incident.incident_id} isn't open in this leg")
            return (TargetsShown(situation.now_ms, command.by),)
        case Follow():
            return _follow(incident, command.update, situation)
        case _:
            assert_never(command)


def may_change(incident: Incident, update: TargetUpdate, situation: Situation) -> bool:
    """Whether an update may lead to events. Most don't, and the leg needs no transaction for these.

    The board of `situation` holds the travel times, as for `decide`.
    """
    assignment = incident.assignments.get(update.assignment_id)
    if assignment is None or assignment.state not in UNANSWERED | ACCEPTED:
        return False
    return bool(update.moved_m) or update.found or _turns(assignment, update, situation) is not None


def _follow(incident: Incident, update: TargetUpdate, situation: Situation) -> Iterable[Event]:
    assignment = incident.assignments.get(update.assignment_id)
    if assignment is None or assignment.state not in UNANSWERED | ACCEPTED:
        return ()
    decided = Decided(incident)
    if update.moved_m or update.found:
        decided.add(*_rechosen(incident, assignment, update, situation=situation))
    if update.found:
        decided.add(*_estimated(decided.incident.assignments[update.assignment_id], situation))
    assignment = decided.incident.assignments[update.assignment_id]
    decided.add(*_raced(decided.incident, assignment, update, situation=situation))
    return decided.events


def scenes(incident: Incident, now_ms: int) -> Iterator[Event]:
    """Events which say that both legs go to one scene now, or no longer do. Both legs derive the events from the same alerts."""
    if not incident.leg.policy.has_units:
        return
    for id_, assignment in incident.assignments.items():
        ring_m = incident.ring_m(id_)
        shared = ring_m is not None and ring_m <= SCENE_M
        # Probation's desk isn't notified when the wearer leaves a ring: that would reveal another distance from her home.
        if not shared and not incident.leg.policy.may_locate_person:
            continue
        if assignment.state in UNANSWERED | ACCEPTED and shared != (assignment.one_scene_ms is not None):
            yield SceneShared(now_ms, id_, shared)


def _rechosen(
    incident: Incident, assignment: Assignment, update: TargetUpdate, *, situation: Situation
) -> Iterator[Event]:
    if assignment.state not in UNANSWERED | ON_THE_WAY:
        return  # a unit on the scene stays
    nearer = _nearer(incident, assignment, situation)
    if nearer:
        yield _offered(assignment, nearer, EscalationReason.TARGET_MOVED, situation=situation)
    elif not update.moved_m:
        return
    elif assignment.retargeted_ms is None or situation.now_ms - assignment.retargeted_ms >= RETARGET_MS:
        yield Retargeted(situation.now_ms, assignment.assignment_id, update.moved_m)


def _estimated(assignment: Assignment, situation: Situation) -> Iterator[Event]:
    """The travel time of a unit that was asked before the position of its destination was known, if it is known now."""
    choice, asked_ms = assignment.choice, assignment.asked_ms
    if (
        choice is None
        or choice.travel_s is not None
        or asked_ms is None
        or assignment.state not in UNANSWERED | ON_THE_WAY
    ):
        return
    if travel := situation.board.travel.get(Trip(choice.unit_id, assignment.subject_id)):
        travel_s = travel.travel_s + (situation.now_ms - asked_ms) // 1000
        yield TravelEstimated(
            at_ms=situation.now_ms,
            assignment_id=assignment.assignment_id,
            travel_s=travel_s,
            estimate=travel.estimate,
        )


class _Turn(NamedTuple):
    """A turn of the race."""

    losing: bool
    responder_s: int
    """The responder's time to the destination, seconds."""


def _turns(assignment: Assignment, update: TargetUpdate, situation: Situation) -> _Turn | None:
    """Whether the race begins to be lost, or is won back; None if it stays as it is."""
    travel = situation.board.travel.get(Trip(assignment.unit_id, assignment.subject_id))
    theirs_s = race.responder_s(assignment, travel.travel_s if travel else None, situation.now_ms)
    there = assignment.state not in UNANSWERED | ON_THE_WAY
    losing = not there and race.is_lost(assignment, update.approach.wearer_s, theirs_s)
    return None if losing == assignment.losing else _Turn(losing, theirs_s)


def _raced(
    incident: Incident, assignment: Assignment, update: TargetUpdate, *, situation: Situation
) -> Iterator[Event]:
    turn = _turns(assignment, update, situation)
    if turn is None:
        return
    losing, theirs_s = turn
    now_ms, board, wearer_s = situation.now_ms, situation.board, update.approach.wearer_s
    due_ms = None
    if losing and assignment.state in UNANSWERED and assignment.due_ms is not None:
        due_ms = min(assignment.due_ms, now_ms + escalation.RACE_ANSWER_MS)
    # The advice stays the same until the race is won back: a person who was advised to leave is outside by now.
    advises = losing and incident.leg.policy.advises_persons
    offices = offices_for(board, assignment.subject_id) if losing and board.asks_units() else ()
    yield Raced(
        at_ms=now_ms,
        assignment_id=assignment.assignment_id,
        losing=losing,
        advice=race.advise(wearer_s) if advises else Advice.NONE,
        wearer_s=wearer_s,
        responder_s=theirs_s,
        by_ring=update.approach.by_ring,
        supervisor_desk=offices[0].supervisor_desk if offices else "",
        due_ms=due_ms,
    )
    if losing and wearer_s is not None:
        best = _best(incident, assignment, situation)
        if best and best.unit_id != assignment.unit_id and (best.travel_s or 0) + READY_S < wearer_s:
            yield _offered(assignment, best, EscalationReason.RACE_LOST, situation=situation)


def _nearer(incident: Incident, assignment: Assignment, situation: Situation) -> Choice | None:
    """A unit that is much nearer to the target's present position than the assigned unit; None if there is none."""
    best = _best(incident, assignment, situation)
    present = situation.board.travel.get(Trip(assignment.unit_id, assignment.subject_id))
    if best is None or best.unit_id == assignment.unit_id or best.travel_s is None or present is None:
        return None
    saved_s = present.travel_s - best.travel_s
    enough_s = NEARER_S[assignment.state in ACCEPTED]
    return best if saved_s >= enough_s and best.travel_s <= present.travel_s * NEARER_SHARE else None


def _best(incident: Incident, assignment: Assignment, situation: Situation) -> Choice | None:
    """The unit that would be asked first now, among the assigned unit and units not asked yet. None if it has no known travel time."""
    present = assignment.choice
    if present is None or not present.unit_id or not situation.board.asks_units():
        return None
    query = escalation.query(
        incident,
        assignment.assignment_id,
        assignment.subject_id,
        kind=assignment.kind,
        now_ms=situation.now_ms,
    )
    best = next_choice(situation.board, replace(query, tried=assignment.tried - {present.unit_id}))
    if best is None or not best.unit_id or best.travel_s is None:
        return None
    # A busy unit may replace only another busy unit.
    if (best.busy or best.busy_in) and not (present.busy or present.busy_in):
        return None
    # The replacement gets the escalation level of the replaced unit, so that no level is asked twice.
    return replace(best, level=max(present.level, EscalationLevel.UNIT))


def _offered(
    assignment: Assignment, choice: Choice, escalation_reason: EscalationReason, *, situation: Situation
) -> Escalated:
    return Escalated(
        at_ms=situation.now_ms,
        assignment_id=assignment.assignment_id,
        due_ms=escalation.due_ms(choice, situation),
        choice=choice,
        escalation_reason=escalation_reason,
    )
