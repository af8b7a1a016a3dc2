"""Decisions on an assignment when its target moves, or when the race against the wearer is being lost. Pure.

A unit on the scene stays. A unit on the way is notified of the target's new position, and is replaced only by a much nearer unit. If a
unit hasn't answered yet, the nearer one is asked as well.

The race compares the wearer's time of arrival at a destination with the responder's. The wearer is assumed to go straight, at the pace
of the last minute and at least at walking pace. A false alarm is better than a late one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, assert_never

from services.common.errors import FailedPrecondition
from services.common.geometry import LatLon, great_circle_m
from services.dispatch.domain import escalation
from services.dispatch.domain.assignment import ACCEPTED, OVER, UNANSWERED, Assignment, AssignmentState
from services.dispatch.domain.enums import Advice, EscalationLevel, EscalationReason
from services.dispatch.domain.escalation import Situation
from services.dispatch.domain.events import Event, Raced, Retargeted, SceneShared, TargetsShown
from services.dispatch.domain.incident import Decided, Incident
from services.dispatch.domain.roster import READY_S, Choice, TravelEstimated, Trip, next_choice, offices_for

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
        yield escalation.offer_to(assignment, nearer, EscalationReason.TARGET_MOVED, situation=situation)
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
    travel = situation.board.travel.get(Trip(assignment.responding_unit_id, assignment.subject_id))
    theirs_s = responder_s(assignment, travel.travel_s if travel else None, situation.now_ms)
    there = assignment.state not in UNANSWERED | ON_THE_WAY
    losing = not there and is_lost(assignment, update.approach.wearer_s, theirs_s)
    return None if losing == assignment.losing else _Turn(losing, theirs_s)


def _raced(
    incident: Incident, assignment: Assignment, update: TargetUpdate, *, situation: Situation
) -> Iterator[Event]:
    turn = _turns(assignment, update, situation)
    if turn is None:
        return
    losing, theirs_s = turn
    now_ms = situation.now_ms
    board = situation.board
    wearer_s = update.approach.wearer_s
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
        advice=advise(wearer_s) if advises else Advice.NONE,
        wearer_s=wearer_s,
        responder_s=theirs_s,
        by_ring=update.approach.by_ring,
        supervisor_desk=offices[0].supervisor_desk if offices else "",
        due_ms=due_ms,
    )
    if losing and wearer_s is not None:
        best = _best(incident, assignment, situation)
        if best and best.unit_id != assignment.responding_unit_id and (best.travel_s or 0) + READY_S < wearer_s:
            yield escalation.offer_to(assignment, best, EscalationReason.RACE_LOST, situation=situation)


def _nearer(incident: Incident, assignment: Assignment, situation: Situation) -> Choice | None:
    """A unit that is much nearer to the target's present position than the assigned unit; None if there is none."""
    best = _best(incident, assignment, situation)
    present = situation.board.travel.get(Trip(assignment.responding_unit_id, assignment.subject_id))
    if best is None or best.unit_id == assignment.responding_unit_id or best.travel_s is None or present is None:
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


FOOT_MPS = 1.5
"""Pace of a brisk walk, metres per second."""
FASTEST_MPS = 60.0
"""Maximum pace, metres per second; a faster movement is a position jump of the receiver."""
PACE_LEAST_MS = 10_000
PACE_OVER_MS = 60_000
"""Minimum and maximum duration, milliseconds, of a movement that gives a pace. A shorter movement is receiver noise, a longer one is
outdated."""
RECEDES_M = 50.0
"""Growth of the distance, metres, during such a movement, from which the wearer counts as going away. Then there is no race."""
ARRIVES_S = 307
"""Assumed travel time of a unit without an estimate, seconds: police arrive 5 min 7 s after the call on average."""
SOON_S = 30
"""Assumed remaining time of a unit that has been on the way for longer than its travel time, seconds."""
MARGIN_S = 60
"""Lead of the responder, seconds, that ends a lost race. It keeps the result from alternating."""
DAY_MS = 86_400_000
LEAVE_FROM_S = 300
"""Minimum time, seconds, for the advice to leave: with less time, a person who goes outside may meet the wearer."""


@dataclass(frozen=True, slots=True)
class Sighting:
    """Position of a wearer at one time."""

    at_ms: int
    """Time of the position, mesh time."""
    point: LatLon


@dataclass(frozen=True, slots=True)
class Approach:
    """The wearer's approach to a destination."""

    wearer_s: int | None
    """Time to the destination, seconds; None if the wearer doesn't come nearer or has no known position."""
    by_ring: bool = False
    """True if `wearer_s` is an upper bound: the ring's radius divided by the wearer's pace."""


def pace_mps(track: Sequence[Sighting]) -> float:
    """Pace of the last movement, metres per second, at least walking pace. The track is in order of time."""
    pair = _stretch(track)
    if pair is None:
        return FOOT_MPS
    before, last = pair
    mps = great_circle_m(before.point, last.point) / (last.at_ms - before.at_ms) * 1000
    return min(max(mps, FOOT_MPS), FASTEST_MPS)


def approach(track: Sequence[Sighting], to: LatLon, reach_m: float) -> Approach:
    """The wearer's approach to a point, or to the edge of a place of radius `reach_m` around it."""
    if not track:
        return Approach(None)
    distance_m = great_circle_m(track[-1].point, to)
    pair = _stretch(track)
    if pair and distance_m - great_circle_m(pair[0].point, to) > RECEDES_M:
        return Approach(None)
    return Approach(round(max(0.0, distance_m - reach_m) / pace_mps(track)))


def approach_by_ring(track: Sequence[Sighting], ring_m: float | None) -> Approach:
    """The wearer's approach for a leg that may know only the ring. The result doesn't depend on the position within the ring."""
    return Approach(round(ring_m / pace_mps(track)), True) if ring_m else Approach(None)


def responder_s(assignment: Assignment, travel_s: int | None, now_ms: int) -> int:
    """Remaining time of the responder, seconds. `travel_s` counts from the unit's present position; None if it is unknown."""
    if assignment.state in (AssignmentState.ON_SCENE, AssignmentState.APPREHENDED):
        return 0
    ready_s = READY_S if assignment.state in UNANSWERED | {AssignmentState.ACKNOWLEDGED} else 0
    if travel_s is not None:
        return travel_s + ready_s
    estimated_s = assignment.choice.travel_s if assignment.choice else None
    since_ms = assignment.asked_ms if assignment.state in ACCEPTED and assignment.asked_ms is not None else now_ms
    expected_s = ARRIVES_S if estimated_s is None else estimated_s
    return max(expected_s - (now_ms - since_ms) // 1000, SOON_S) + ready_s


def is_lost(assignment: Assignment, wearer_s: int | None, theirs_s: int) -> bool:
    """Whether the wearer would arrive before the responder, whose time is `theirs_s` seconds."""
    if wearer_s is None:
        return False
    return wearer_s < theirs_s + (MARGIN_S if assignment.losing else 0)


def won_at_ms(assignment: Assignment, wearer_s: int | None) -> int | None:
    """When a race that is being lost counts as won although nobody moved, mesh time: the rest of the responder's estimated travel time
    shrinks. None if that doesn't happen, or isn't known."""
    if not assignment.losing or wearer_s is None or assignment.asked_ms is None or assignment.state not in ACCEPTED:
        return None
    allowed_s = wearer_s - MARGIN_S
    if allowed_s < responder_s(assignment, None, assignment.asked_ms + DAY_MS):
        return None
    return assignment.asked_ms + max(0, responder_s(assignment, None, assignment.asked_ms) - allowed_s) * 1000


def advise(wearer_s: int | None) -> Advice:
    """Advice to a protected person while the race is being lost."""
    return Advice.LEAVE if wearer_s is not None and wearer_s >= LEAVE_FROM_S else Advice.STAY_INSIDE


def _stretch(track: Sequence[Sighting]) -> tuple[Sighting, Sighting] | None:
    """First and last position of the longest recent movement that gives a pace; None if there is none."""
    if not track:
        return None
    last = track[-1]
    for sighting in track:
        if PACE_LEAST_MS <= last.at_ms - sighting.at_ms <= PACE_OVER_MS:
            return sighting, last
    return None
