"""The region in which a wearer may be now, for her map. Pure: it reads the fold's state and changes nothing.

The region is a set of circles that holds the true position with a probability of 90 %. Each circle begins as the 90 % radius of a
position, by the accuracy that its device deserves, and grows with the position's age by the pace at which the fold assumes that an
unseen wearer goes on. A position from before a jump adds a circle, because the device may still be there.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from services.geofence.domain.entries import Case
from services.geofence.domain.kinematics import accuracy, plausibility, reachability
from services.geofence.domain.kinematics.geometry import Vector, between
from services.geofence.domain.kinematics.probability import R68_PER_SIGMA
from services.geofence.domain.kinematics.reachability import Unseen
from services.geofence.domain.kinematics.track import UNKNOWN_AFTER_MS, Track
from services.geofence.domain.state import State
from services.geofence.domain.tracks.fixes import Fix

R90_PER_R68 = math.sqrt(-2 * math.log(0.1)) / R68_PER_SIGMA
"""Radius that holds 90 % of a 2-D normal distribution, in radii that hold 68 %."""
HEADING_OVER_MS = 10_000
"""Least time over which the direction of a movement is measured, ms."""
AHEAD_SHARE = 0.5
"""The middle of the circle moves ahead by this share of the way that the last movement would have led."""
GROWTH_SHARE = 0.6
"""The radius grows by this share of the way that the wearer can have gone at the assumed pace. Half of it would do for a wearer who
stops or goes straight on; the rest is for corners (`bench.region`)."""
MIN_RADIUS_MM = 25_000
"""Least radius, mm: a receiver's error between houses is greater than it says."""


class RegionCircle(NamedTuple):
    """One circle of a region."""

    centre: Vector
    """Earth-centred, mm."""
    radius_mm: float


class Region(NamedTuple):
    """The region in which a wearer may be at a moment."""

    circles: tuple[RegionCircle, ...]
    """The first rests on the newest position; the others on positions from before jumps."""
    fix_ms: int
    """Time of the newest position, mesh time."""
    grows_mps: float
    """How fast the radii grow until the next position, m/s."""


def possible_region(state: State, case: Case, at_ms: int) -> Region | None:
    """The region in which the wearer of a case may be at a moment.

    None if the newest position is older than 3 minutes then: his place is unknown.
    """
    track = state.last_track(case.tag_device_ids)
    if track is None or at_ms - track.recent[-1].time_ms > UNKNOWN_AFTER_MS:
        return None
    last = track.recent[-1]
    pace_mps = reachability.pace_mps(state, Unseen(track, last.time_ms))
    age_ms = max(0, at_ms - last.time_ms)
    newest = RegionCircle(
        _ahead(track, age_ms, pace_mps=pace_mps),
        _radius_mm(accuracy.credible_mm(track), pace_mps, age_ms),
    )
    earlier = [
        RegionCircle(fix.point, _radius_mm(fix.accuracy_mm, mps, at_ms - fix.time_ms))
        for fix, mps in _before_jumps(state, track, pace_mps)
    ]
    circles = (newest, *(circle for circle in earlier if not _is_inside(circle, newest)))
    return Region(circles, last.time_ms, GROWTH_SHARE * pace_mps)


def _radius_mm(accuracy_mm: int, pace_mps: float, age_ms: int) -> float:
    return max(MIN_RADIUS_MM, R90_PER_R68 * accuracy_mm) + GROWTH_SHARE * pace_mps * age_ms


def _ahead(track: Track, age_ms: int, *, pace_mps: float) -> Vector:
    """The middle of the circle of the newest position: ahead in the direction of the last movement, or at the position itself."""
    last = track.recent[-1]
    before = track.last_before(last.time_ms - HEADING_OVER_MS + 1)
    if before is None or last.time_ms - before.time_ms > UNKNOWN_AFTER_MS:
        return last.point
    moved_mm = math.dist(before.point, last.point)
    if moved_mm <= before.accuracy_mm + last.accuracy_mm:
        return last.point
    ahead_mm = AHEAD_SHARE * min(moved_mm / (last.time_ms - before.time_ms), pace_mps) * age_ms
    return between(before.point, last.point, 1 + ahead_mm / moved_mm)


def _before_jumps(state: State, track: Track, pace_mps: float) -> list[tuple[Fix, float]]:
    """Positions at which the device may still be although a newer position says otherwise, newest first, with the pace of each, m/s."""
    rules = state.rules
    left = [(fix, min(rules.reach_mps, max(rules.foot_mps, pace))) for fix, pace in plausibility.left_by_jump(track)]
    if left or plausibility.is_newest_believed(track, rules.reach_mps):
        return left
    last = track.recent[-1]
    return [(plausibility.believed(track, last.time_ms, None, bound_mps=rules.reach_mps).recent[-1], pace_mps)]


def _is_inside(inner: RegionCircle, outer: RegionCircle) -> bool:
    return math.dist(inner.centre, outer.centre) + inner.radius_mm <= outer.radius_mm
