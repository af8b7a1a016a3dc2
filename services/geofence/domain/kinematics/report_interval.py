"""The interval between reports that the decisions need from a tag: a share of the time until the wearer could reach a ring.

Intervals and speeds come from a closed-loop study of 1,894 simulated approaches, held against constant intervals (ADR 54). With these
values a tag reports every half minute near a protected person and every 3 minutes far away, and fewer breaches are missed than with a
report a minute.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from services.geofence.domain.entries import Case, EquipmentKind, Target
from services.geofence.domain.kinematics import encounters, plausibility
from services.geofence.domain.kinematics.track import Track
from services.geofence.domain.rules import Rules
from services.geofence.domain.state import CaseState, State
from services.geofence.domain.tracks.fixes import Fix

MIN_INTERVAL_S = 30
"""Shortest interval. Positions 5 s apart share their errors and don't make fewer rings falsely entered, seconds."""
MAX_INTERVAL_S = 170
"""Longest interval. Positions farther apart than 180 s aren't joined by a line, seconds."""
MAX_NEAR_INTERVAL_S = 60
"""Longest interval within NEAR_MM of a ring, seconds."""
NEAR_MM = 1_000_000
VAGUE_FROM_MM = 100_000
"""With a vaguer position, a tag is asked for no interval below MAX_NEAR_INTERVAL_S: more such positions show nothing, mm."""
MIN_MPS = 2
"""Least speed of a wearer that an interval allows for, m/s: somebody in a hurry on foot."""
PACE_TIMES = 1.5
"""How much faster than now a wearer may become until the next report."""
SHARE = 0.55
"""Share of the time until the ring could be reached. With 0.6 more breaches were missed where gaps are long, and with 0.5 a wearer who
lives 300 m away sends a tenth more reports."""
SMALL_SHARE = 0.1
"""A place whose radius is at most this share of its distance counts as its circle: that is off by less than an interval is jittered."""
SHORTER, LONGER = 0.75, 1.4
"""The interval is changed only if it must be shorter or longer than the last one by these factors, so that noise changes nothing."""


class Need(NamedTuple):
    """What all orders together need from a tag."""

    interval_s: float
    can_reach: bool
    """Whether the wearer can reach a ring that demands a response before help is there."""


class Gap(NamedTuple):
    """The way from a wearer to a ring that demands a response."""

    line_mm: float
    """Distance between the newest positions and the ring's line, mm; negative inside."""
    vague_mm: int
    """Sum of the positions' accuracies, mm."""
    other_mps: float
    """Pace of the protected person, m/s; 0 for a place."""

    @property
    def free_mm(self) -> float:
        """Distance to the ring's line that remains if both positions are wrong by their accuracies, mm."""
        return self.line_mm - self.vague_mm


def interval_s(gap: Gap, own_mps: float, *, max_mps: int, is_battery_low: bool) -> float:
    """Interval that a tag should keep, seconds, by the wearer's own pace. `max_mps` is the greatest speed of either side that counts.

    A low battery takes the whole time to the ring, if the wearer isn't near it.
    """
    is_near = gap.line_mm <= NEAR_MM
    share = 1.0 if is_battery_low and not is_near else SHARE
    mps = max(MIN_MPS, min(PACE_TIMES * own_mps, max_mps)) + min(gap.other_mps, max_mps)
    least_s = MAX_NEAR_INTERVAL_S if gap.vague_mm >= VAGUE_FROM_MM else MIN_INTERVAL_S
    return min(max(share * gap.free_mm / 1000 / mps, least_s), MAX_NEAR_INTERVAL_S if is_near else MAX_INTERVAL_S)


def far_mm(max_mps: int) -> int:
    """Distance to a ring's line beyond which no pace of either side changes an interval, mm: 7.1 km at 14 m/s."""
    return round(1000 * SHORTER * MAX_INTERVAL_S / SHARE * 2 * max_mps)


def differs(needed_s: float, basis_s: int) -> bool:
    """Whether the interval that is needed now differs enough from the one of the last request."""
    return needed_s < SHORTER * basis_s or needed_s > LONGER * basis_s


def jittered_s(needed_s: float, permille: int) -> int:
    """An interval that is up to 10 % shorter or longer, within the bounds; `permille` is from 0 to 1,000."""
    longest_s = MAX_NEAR_INTERVAL_S if needed_s <= MAX_NEAR_INTERVAL_S else MAX_INTERVAL_S
    return min(max(round(needed_s * (0.9 + permille / 5000)), MIN_INTERVAL_S), longest_s)


def shortened_s(needed_s: float, permille: int) -> int:
    """An interval shorter than the needed one without any cause, evenly drawn by `permille`, from 0 to 1,000."""
    return round(MIN_INTERVAL_S + (max(SHORTER * needed_s, MIN_INTERVAL_S) - MIN_INTERVAL_S) * permille / 1000)


# ── by the state ─────────────────────────────────────────────────────────────────────────────────────────────────────


def cases_of(state: State, device_id: str) -> Iterator[CaseState]:
    """Live cases in force that name a device. No real tag stands behind an exercise."""
    for case_state in map(state.cases.__getitem__, state.cases_of.get(device_id, ())):
        case = case_state.case
        if case.is_live and case.is_in_force(state.now_ms):
            yield case_state


def is_tag(state: State, device_id: str) -> bool:
    """Whether a case names a device as its wearer's tag."""
    return any(device_id in state.cases[case_id].case.tag_device_ids for case_id in state.cases_of.get(device_id, ()))


def radius_mm(case: Case) -> int:
    """Radius of the widest ring of a case that demands a response, mm; if none does, of the narrowest ring."""
    for ring in case.rings:  # the widest first
        if ring.responds:
            return ring.radius_mm
    return case.rings[-1].radius_mm


def reach_mm(rules: Rules) -> int:
    """How far a wearer gets until help is there, or until a presence counts as likely, mm."""
    return rules.reach_mps * max(rules.help_after_ms, rules.max_reach_ms)


def need_of(state: State, tag_id: str) -> Need | None:
    """What all orders need from a tag by the newest positions; None if no position of the tag or of any target is known."""
    track = state.tracks.get(tag_id)
    if track is None or not track.recent:
        return None
    region = track.safe_region
    if region is not None and region.is_far:
        return Need(MAX_INTERVAL_S, can_reach=False) if _has_known_target(state, tag_id) else None
    least_s, free_mm = None, math.inf
    for case_state in cases_of(state, tag_id):
        for gap in _gaps(state, case_state, track):
            free_mm = min(free_mm, gap.free_mm)
            needed_s = interval_for(state, case_state.case, tag_id, gap=gap)
            least_s = needed_s if least_s is None else min(least_s, needed_s)
    return None if least_s is None else Need(least_s, free_mm <= reach_mm(state.rules))


def _has_known_target(state: State, tag_id: str) -> bool:
    """Whether the position of any target of a tag is known."""
    for case_state in cases_of(state, tag_id):
        for target in case_state.case.targets:
            if not target.is_person or state.last_track(target.device_ids) is not None:
                return True
    return False


def interval_for(state: State, case: Case, tag_id: str, *, gap: Gap) -> float:
    """The interval that a tag should keep because of one target, seconds."""
    max_mps = state.rules.reach_mps
    if gap.free_mm > far_mm(max_mps):
        return MAX_INTERVAL_S
    pace_mps = state.tracks[tag_id].pace_mps()
    needed_s = interval_s(
        gap,
        max_mps if pace_mps is None else pace_mps,
        max_mps=max_mps,
        is_battery_low=is_battery_low(state, tag_id),
    )
    # During an authorised encounter nobody is sent, however near they are.
    if needed_s < MAX_NEAR_INTERVAL_S and encounters.active_at(state, case, state.now_ms):
        return MAX_NEAR_INTERVAL_S
    return needed_s


def is_battery_low(state: State, tag_id: str) -> bool:
    """Whether a tag said that its battery is low, and hasn't been charged since."""
    return EquipmentKind.BATTERY_LOW.value in state.active_events.get(tag_id, ())


def _gaps(state: State, case_state: CaseState, track: Track) -> Iterator[Gap]:
    """The ways from a wearer to the rings of a case, also from positions before recent jumps."""
    starts = _starts(track)
    for target in case_state.case.targets:
        if _is_entered(case_state, target):
            yield Gap(line_mm=0, vague_mm=0, other_mps=0)  # also while the newest positions claim that it was left
        elif not target.is_person:
            for here in starts:
                yield _gap_to_place(state, case_state.case, here, target=target)
        else:
            for other in _known(state, target):
                for here in starts:
                    yield gap_to_person(state, case_state.case, here, other=other)


def _is_entered(case_state: CaseState, target: Target) -> bool:
    """Whether a ring of a target that demands a response is entered."""
    return bool(case_state.episode_id) and any(
        case_state.ring(target, ring).open for ring in case_state.case.rings if ring.responds
    )


def _starts(track: Track) -> list[Fix]:
    """The newest fix of a device, and the fixes at which it may still be because it jumped away from them."""
    return track.recent[-1:] + [fix for fix, _ in plausibility.left_by_jump(track)]


def _known(state: State, target: Target) -> list[Track]:
    """Tracks of a person's devices that were located lately; if none was, the one with the newest fix."""
    tracks = [track for device_id in target.device_ids if (track := state.tracks.get(device_id)) and track.recent]
    if len(tracks) < 2:
        return tracks
    newest_ms = max((track.recent[-1].time_ms for track in tracks), default=0)
    since_ms = min(newest_ms, state.now_ms - state.rules.protected_lost_after_ms)
    return [track for track in tracks if track.recent[-1].time_ms >= since_ms]


def _gap_to_place(state: State, case: Case, here: Fix, *, target: Target) -> Gap:
    """The way to a place, from its exact edge if the place is large for its distance."""
    away_mm = target.shape.distance_bound_mm(here.point)
    _, wide_mm = target.shape.bounding_ball
    if wide_mm > SMALL_SHARE * away_mm and away_mm - radius_mm(case) <= far_mm(state.rules.reach_mps):
        away_mm = target.shape.distance_mm(here.point)
    return Gap(line_mm=away_mm - radius_mm(case), vague_mm=here.accuracy_mm, other_mps=0)


def gap_to_person(state: State, case: Case, here: Fix, *, other: Track) -> Gap:
    """The way from a position of the wearer to a person's device, with that device's pace where it matters."""
    ring_mm = radius_mm(case)
    gaps = [
        Gap(math.dist(here[3:6], there[3:6]) - ring_mm, vague_mm=here.accuracy_mm + there.accuracy_mm, other_mps=0)
        for there in _starts(other)
    ]
    nearest = gaps[0] if len(gaps) == 1 else min(gaps, key=lambda gap: gap.free_mm)
    if nearest.free_mm > far_mm(state.rules.reach_mps):
        return nearest
    return Gap(nearest.line_mm, vague_mm=nearest.vague_mm, other_mps=other.pace_mps() or 0.0)
