"""The race: how long the wearer needs to a destination, against whoever goes there. Pure.

A wearer is taken to go straight, at the pace of the last minute and on foot at least: rather an alarm too many than one too late.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from services.dispatch.domain.areas import LatLon, great_circle_m
from services.dispatch.domain.events import Advice
from services.dispatch.domain.incident import TAKEN, UNANSWERED, Assignment, AssignmentState

FOOT_MPS = 1.5
"""A brisk walk."""
FASTEST_MPS = 60.0
"""What is faster is a jump of the receiver."""
PACE_LEAST_MS = 10_000
PACE_OVER_MS = 60_000
"""A pace is of a movement between these lengths: a shorter one is the receiver's noise, a longer one is over."""
RECEDES_M = 50.0
"""Who has gone away by that much within that time doesn't come: no race is run against them."""
ARRIVES_S = 307
"""Police arrive 5 min 7 s after the call on average: taken where nothing is known of a unit."""
READY_S = 60
"""Until somebody who is asked, or has taken it, is on the way."""
SOON_S = 30
"""Who is on the way for longer than their travel time is taken to be there so soon."""
MARGIN_S = 60
"""The race is won back where help is earlier by that much, so that it doesn't go to and fro."""
LEAVE_FROM_S = 300
"""With less time than that, who goes outside may meet the wearer."""


@dataclass(frozen=True, slots=True)
class Sighting:
    """Where somebody was."""

    at_ms: int
    """When, mesh time."""
    point: LatLon


@dataclass(frozen=True, slots=True)
class Approach:
    """How the wearer comes to a destination."""

    wearer_s: int | None
    """Time to the destination, seconds; None where the wearer doesn't come nearer, or nothing is known."""
    by_ring: bool = False
    """It is the ring's radius at the wearer's pace: at most so long."""


def pace_mps(track: Sequence[Sighting]) -> float:
    """The pace of the last movement, metres a second; that on foot at least. The track is in order of time."""
    pair = _stretch(track)
    if pair is None:
        return FOOT_MPS
    before, last = pair
    mps = great_circle_m(before.point, last.point) / (last.at_ms - before.at_ms) * 1000
    return min(max(mps, FOOT_MPS), FASTEST_MPS)


def approach(track: Sequence[Sighting], to: LatLon, reach_m: float) -> Approach:
    """How the wearer comes to a point or to the edge of a place that reaches so far from it."""
    if not track:
        return Approach(None)
    distance_m = great_circle_m(track[-1].point, to)
    pair = _stretch(track)
    if pair and distance_m - great_circle_m(pair[0].point, to) > RECEDES_M:
        return Approach(None)
    return Approach(round(max(0.0, distance_m - reach_m) / pace_mps(track)))


def approach_by_ring(track: Sequence[Sighting], ring_m: float | None) -> Approach:
    """The same where the ring alone is known, or may be: nothing in it tells where in the ring the wearer is."""
    return Approach(round(ring_m / pace_mps(track)), True) if ring_m else Approach(None)


def responder_s(assignment: Assignment, travel_s: int | None, now_ms: int) -> int:
    """How long whoever goes still needs, seconds. `travel_s` is from where the unit is now; None where that is unknown."""
    if assignment.state in (AssignmentState.ON_SCENE, AssignmentState.APPREHENDED):
        return 0
    ready_s = READY_S if assignment.state in UNANSWERED | {AssignmentState.ACKNOWLEDGED} else 0
    if travel_s is not None:
        return travel_s + ready_s
    told_s = assignment.choice.travel_s if assignment.choice else None
    since_ms = assignment.asked_ms if assignment.state in TAKEN and assignment.asked_ms is not None else now_ms
    return max((ARRIVES_S if told_s is None else told_s) - (now_ms - since_ms) // 1000, SOON_S) + ready_s


def is_lost(assignment: Assignment, wearer_s: int | None, theirs_s: int) -> bool:
    """Whether the wearer would be there first."""
    if wearer_s is None:
        return False
    return wearer_s < theirs_s + (MARGIN_S if assignment.losing else 0)


def advise(wearer_s: int | None) -> Advice:
    """What a protected person does best while the race is being lost."""
    return Advice.LEAVE if wearer_s is not None and wearer_s >= LEAVE_FROM_S else Advice.STAY_INSIDE


def _stretch(track: Sequence[Sighting]) -> tuple[Sighting, Sighting] | None:
    """The ends of the last movement that is long enough and not too long."""
    if not track:
        return None
    last = track[-1]
    for one in track:
        if PACE_LEAST_MS <= last.at_ms - one.at_ms <= PACE_OVER_MS:
            return one, last
    return None
