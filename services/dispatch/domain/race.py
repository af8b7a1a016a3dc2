"""Race to a destination: the wearer's time of arrival against the responder's. Pure.

The wearer is assumed to go straight, at the pace of the last minute and at least at walking pace. A false alarm is better than a
late one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from services.common.geometry import LatLon, great_circle_m
from services.dispatch.domain.assignment import ACCEPTED, UNANSWERED, Assignment, AssignmentState
from services.dispatch.domain.enums import Advice
from services.dispatch.domain.roster import READY_S

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
