"""Reachability: how far an unseen wearer can have moved. When the ring that demands a response can have been reached, when that is
likely, and where nobody can have been in a gap between two positions.

An unseen wearer may be as far from the last position as its accuracy and a speed allow. What is possible follows from the speed
bound, and what is likely from the wearer's own pace. All moments follow from the positions and the rules alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations, pairwise, product
from typing import NamedTuple

from services.geofence.domain.entries import Case, Target
from services.geofence.domain.kinematics.geometry import Shape, Vector
from services.geofence.domain.kinematics.rings import Sides
from services.geofence.domain.kinematics.track import (
    MAX_PACE_MS,
    MIN_PACE_MS,
    UNKNOWN_AFTER_MS,
    Piece,
    Track,
    minus,
)
from services.geofence.domain.state import State
from services.geofence.domain.tracks.fixes import Fix

SOON_MS = 20_000
"""A report that is due this soon after the position became unknown is waited for before somebody is sent."""


REST_WITHIN_MM = 50_000
"""A fix shows a device at the place of another fix if they are at most this far apart beyond their accuracies, mm: a building and its
courtyard."""
MAX_REST_ACCURACY_MM = 100_000
"""Greatest accuracy, mm, that explains a distance between fixes of a stationary device. A vaguer fix could be anywhere."""


class AtUnit(NamedTuple):
    """A wearer at a home unit or beacon after the newest fix."""

    fix: Fix
    """The unit's place, when the wearer was last there; the accuracy is the unit's range."""
    rested_ms: int
    """How long the wearer has been there, ms; 0 once the wearer has left."""


class Unseen(NamedTuple):
    """A wearer whose position is unknown."""

    track: Track
    """Track of the tag with the newest fix."""
    from_ms: int
    """The moment from which on the position is unknown."""
    at_unit: AtUnit | None = None
    """The last known place, if a home unit or beacon showed it after the newest fix."""

    @property
    def last(self) -> Fix:
        """The last known position."""
        return self.at_unit.fix if self.at_unit else self.track.recent[-1]

    @property
    def rested_ms(self) -> int:
        """How long the wearer had been at the last known position, ms."""
        return self.at_unit.rested_ms if self.at_unit else rest_ms(self.track)


def possible_ms(state: State, case: Case, unseen: Unseen, *, target: Target) -> int | None:
    """The first moment at which an unseen wearer can be within the ring that demands a response, at the speed bound.

    None if help would come before that, or if the person's position is unknown.
    """
    at_ms = _reached_ms(state, case, unseen.last, target=target, mps=state.rules.reach_mps)
    latest_ms = unseen.from_ms + state.rules.max_reach_ms - UNKNOWN_AFTER_MS
    return None if at_ms is None or at_ms > latest_ms else max(at_ms, unseen.from_ms)


def likely_ms(state: State, case: Case, unseen: Unseen, *, target: Target) -> int:
    """The first moment at which the wearer is likely within the ring: the arrival at the wearer's own pace, or a long time unseen."""
    long_ms = unseen.last.time_ms + state.rules.silent_notify_after_ms
    at_ms = _reached_ms(state, case, unseen.last, target=target, mps=pace_mps(state, unseen))
    return long_ms if at_ms is None else min(long_ms, max(at_ms, unseen.from_ms))


def respond_ms(state: State, case: Case, unseen: Unseen, *, target: Target, is_announced: bool) -> int:
    """The moment from which on somebody is sent to a target near which a wearer was last seen.

    The wearer can have arrived at the own pace, and an overdue report has had its chance. Nobody is sent earlier than the rules say if
    the wearer was stationary or going away, or if the device had announced (`is_announced`) that it would fall silent.
    """
    rules, last_ms = state.rules, unseen.last.time_ms
    at_ms = max(likely_ms(state, case, unseen, target=target), _chance_ms(unseen) + rules.report_grace_ms)
    if is_announced or unseen.rested_ms >= rules.rest_ms:
        at_ms = max(at_ms, last_ms + rules.rest_respond_after_ms)
    if unseen.at_unit is None and _goes_away(state, unseen.track, target):
        at_ms = max(at_ms, last_ms + rules.away_respond_after_ms)
    return at_ms


def _chance_ms(unseen: Unseen) -> int:
    """The moment at which the position became unknown, or at which the next report is due if that is soon after."""
    last_ms, kept_ms = unseen.last.time_ms, unseen.track.kept_interval_ms()
    if not kept_ms or unseen.at_unit:
        return unseen.from_ms
    due_ms = last_ms + math.ceil((unseen.from_ms - last_ms) / kept_ms) * kept_ms
    return due_ms if due_ms <= unseen.from_ms + SOON_MS else unseen.from_ms


def pace_mps(state: State, unseen: Unseen) -> float:
    """Speed at which an unseen wearer is assumed to go on, m/s: on foot after a rest, at the speed bound if no pace is known."""
    rules = state.rules
    if unseen.rested_ms >= rules.rest_ms:
        return rules.foot_mps
    pace_mps = None if unseen.at_unit else unseen.track.pace_mps()
    return rules.reach_mps if pace_mps is None else min(rules.reach_mps, max(rules.foot_mps, pace_mps))


def rest_ms(track: Track) -> int:
    """How long a device had been at the place of its newest fix, ms, without a gap in which its position was unknown."""
    last, gap_ms = track.recent[-1], track.unknown_after_ms()
    since_ms = last.time_ms
    for fix in track.backwards():
        vague_mm = min(fix.accuracy_mm, MAX_REST_ACCURACY_MM) + min(last.accuracy_mm, MAX_REST_ACCURACY_MM)
        if since_ms - fix.time_ms > gap_ms or math.dist(fix[3:6], last[3:6]) > REST_WITHIN_MM + vague_mm:
            break
        since_ms = fix.time_ms
    return last.time_ms - since_ms


def _goes_away(state: State, track: Track, target: Target) -> bool:
    """Whether the last movement of half a minute to five minutes led away from a target, by more than the accuracies.

    The target counts as stationary.
    """
    last = track.recent[-1]
    for fix in track.backwards():
        took_ms = last.time_ms - fix.time_ms
        if took_ms > MAX_PACE_MS:
            return False
        if took_ms >= MIN_PACE_MS:
            before, now = state.apart_mm(fix, target), state.apart_mm(last, target)
            return before is not None and now is not None and now[0] - before[0] > fix.accuracy_mm + last.accuracy_mm
    return False


def is_beyond_response(state: State, case: Case, last: Fix, *, target: Target) -> bool:
    """Whether a position, with its accuracy, is surely beyond the ring that demands a response. False if the other side's position is
    unknown."""
    apart = state.apart_mm(last, target)
    if apart is None:
        return False
    vague_mm = last.accuracy_mm + (apart[1].accuracy_mm if apart[1] else 0)
    return apart[0] - vague_mm > _response_radius_mm(case)


def _response_radius_mm(case: Case) -> int:
    """Radius of the widest ring that demands a response, mm; of the narrowest ring if none does."""
    return max((ring.radius_mm for ring in case.rings if ring.responds), default=case.rings[-1].radius_mm)


def _reached_ms(state: State, case: Case, last: Fix, *, target: Target, mps: float) -> int | None:
    """Time at which the ring that demands a response is reached, if each side moves at a speed; None if the other side's position is
    unknown. Never before the other side's last position."""
    apart = state.apart_mm(last, target)
    if apart is None:
        return None
    apart_mm, there = apart
    gap_mm = apart_mm - _response_radius_mm(case) - last.accuracy_mm
    if there is None:
        return _closed_ms(gap_mm, last.time_ms, mps=mps)
    return max(there.time_ms, _met_ms(gap_mm - there.accuracy_mm, last.time_ms, there.time_ms, mps=mps))


def _closed_ms(gap_mm: float, from_ms: int, *, mps: float) -> int:
    """Time at which one side has closed a gap at a speed (m/s are mm/ms) from `from_ms` on; may be earlier than `from_ms`."""
    return from_ms + math.ceil(gap_mm / mps)


def _met_ms(gap_mm: float, last_ms: int, there_ms: int, *, mps: float) -> int:
    """Time at which both sides have closed the gap between their last positions. The person moves only for 3 minutes after the last
    position."""
    both_ms = math.ceil((gap_mm / mps + last_ms + there_ms) / 2)
    if both_ms <= there_ms + UNKNOWN_AFTER_MS:
        return both_ms
    return _closed_ms(gap_mm - mps * UNKNOWN_AFTER_MS, last_ms, mps=mps)


def is_known_beyond(sides: Sides, shape: Shape, radius_mm: int, *, from_ms: int, to_ms: int, mps: int | None) -> bool:
    """Whether the wearer was beyond a radius all the way from `from_ms` to `to_ms`, without an unknown stretch.

    Fixes up to 3 minutes apart are joined by a line. If a device keeps a longer interval, it may have gone anywhere between two fixes,
    at the speed bound `mps`, as far as it could come back in time. If `mps` is None, such fixes are joined by a line, too. A longer gap
    is an unknown stretch.
    """
    times_ms = {from_ms, to_ms}
    for side in sides:
        if side is not None:
            times_ms.update(fix.time_ms for fix in side.since(from_ms) if from_ms < fix.time_ms < to_ms)
    return all(
        _is_beyond(sides, shape, radius_mm, from_ms=low_ms, to_ms=high_ms, mps=mps)
        for low_ms, high_ms in pairwise(sorted(times_ms))
    )


def _is_beyond(sides: Sides, shape: Shape, radius_mm: int, *, from_ms: int, to_ms: int, mps: int | None) -> bool:
    """Whether the wearer was beyond a radius in a stretch of time in which no side has a fix, except at its ends."""
    wearer = _anchors(sides.wearer, from_ms, to_ms, mps=mps)
    device = _anchors(sides.device, from_ms, to_ms, mps=mps) if sides.device else _PLACE
    bounds = []
    for here, there in product(wearer, device):
        start, end = minus(here.start, there.start), minus(here.end, there.end)
        if here.at_ms is None and there.at_ms is None:
            return not shape.within(start, end, radius_mm)
        least_mm, speed = shape.least_distance_mm(start, end), mps or 0
        bounds.append(
            tuple(
                least_mm - speed * sum(abs(time_ms - side.at_ms) for side in (here, there) if side.at_ms is not None)
                for time_ms in (from_ms, to_ms)
            )
        )
    return bool(bounds) and _lowest(bounds) > radius_mm


class _Anchor(NamedTuple):
    """A known movement, or a known position to which a movement at the speed bound leads, or from which it comes."""

    start: Vector
    end: Vector
    at_ms: int | None
    """Time of the known position, outside the stretch or at its end; None for a known movement."""


_PLACE = [_Anchor((0, 0, 0), (0, 0, 0), None)]


def _anchors(track: Track, from_ms: int, to_ms: int, *, mps: int | None) -> list[_Anchor]:
    """What is known of a device in a stretch without a fix inside it: its movement on a line, or the fixes before and after. Empty if
    the gap between these fixes is an unknown stretch."""
    before, after = track.round(from_ms)
    if before is None or after is None:
        return []
    gap_ms = after.time_ms - before.time_ms
    if gap_ms > track.unknown_after_ms():
        return []
    if gap_ms <= UNKNOWN_AFTER_MS or mps is None:
        piece = Piece(from_ms=before.time_ms, to_ms=after.time_ms, start=before.point, end=after.point).clipped(
            from_ms, to_ms
        )
        return [_Anchor(piece.start, piece.end, None)]
    return [_Anchor(fix.point, fix.point, fix.time_ms) for fix in (before, after)]


def _lowest(bounds: Sequence[Sequence[float]]) -> float:
    """The least value, over a stretch, of the greatest of several bounds. Each bound is linear, given by its values at both ends."""
    shares = [0.0, 1.0]
    for (a, b), (c, d) in combinations(bounds, 2):
        slope = (b - a) - (d - c)
        if slope and 0 < (share := (c - a) / slope) < 1:
            shares.append(share)
    return min(max(start + share * (end - start) for start, end in bounds) for share in shares)
