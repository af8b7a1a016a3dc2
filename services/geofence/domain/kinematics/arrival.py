"""Arrival of an unseen wearer: when the wearer can have reached the ring that demands a response, and when that is likely.

An unseen wearer may be as far from the last position as its accuracy and a speed allow. What is possible follows from the speed
bound, and what is likely from the wearer's own pace. All moments follow from the positions and the rules alone.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from services.geofence.domain.entries import Case, Demand, Target
from services.geofence.domain.kinematics.track import MAX_PACE_MS, MIN_PACE_MS, UNKNOWN_AFTER_MS, Fix, Track
from services.geofence.domain.state import State

SOON_MS = 20_000
"""A report that is due this soon after the position became unknown is waited for before somebody is sent."""


class Unseen(NamedTuple):
    """A wearer whose position is unknown."""

    track: Track
    """Track of the tag with the newest fix."""
    from_ms: int
    """The moment from which on the position is unknown."""

    @property
    def last(self) -> Fix:
        """The last known position."""
        return self.track.fixes[-1]


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
    at_ms = _reached_ms(state, case, unseen.last, target=target, mps=_pace_mps(state, unseen.track))
    return long_ms if at_ms is None else min(long_ms, max(at_ms, unseen.from_ms))


def respond_ms(state: State, case: Case, unseen: Unseen, *, target: Target, is_announced: bool) -> int:
    """The moment from which on somebody is sent to a target near which a wearer was last seen.

    The wearer can have arrived at the own pace, and an overdue report has had its chance. Nobody is sent earlier than the rules say if
    the wearer was stationary or going away, or if the device had announced (`is_announced`) that it would fall silent.
    """
    rules, last_ms = state.rules, unseen.last.time_ms
    at_ms = max(likely_ms(state, case, unseen, target=target), _chance_ms(unseen) + rules.report_grace_ms)
    if is_announced or unseen.track.rest_ms() >= rules.rest_ms:
        at_ms = max(at_ms, last_ms + rules.rest_respond_after_ms)
    if _goes_away(state, unseen.track, target):
        at_ms = max(at_ms, last_ms + rules.away_respond_after_ms)
    return at_ms


def _chance_ms(unseen: Unseen) -> int:
    """The moment at which the position became unknown, or at which the next report is due if that is soon after."""
    last_ms, kept_ms = unseen.last.time_ms, unseen.track.kept_interval_ms()
    if not kept_ms:
        return unseen.from_ms
    due_ms = last_ms + math.ceil((unseen.from_ms - last_ms) / kept_ms) * kept_ms
    return due_ms if due_ms <= unseen.from_ms + SOON_MS else unseen.from_ms


def _pace_mps(state: State, track: Track) -> float:
    """Speed at which an unseen wearer is assumed to go on, m/s: on foot after a rest, at the speed bound if no pace is known."""
    rules = state.rules
    if track.rest_ms() >= rules.rest_ms:
        return rules.foot_mps
    pace_mps = track.pace_mps()
    return rules.reach_mps if pace_mps is None else min(rules.reach_mps, max(rules.foot_mps, pace_mps))


def _goes_away(state: State, track: Track, target: Target) -> bool:
    """Whether the last movement of half a minute to five minutes led away from a target, by more than the accuracies.

    The target counts as stationary.
    """
    last = track.fixes[-1]
    for fix in reversed(track.fixes):
        took_ms = last.time_ms - fix.time_ms
        if took_ms > MAX_PACE_MS:
            return False
        if took_ms >= MIN_PACE_MS:
            before, now = state.apart_mm(fix, target), state.apart_mm(last, target)
            return before is not None and now is not None and now[0] - before[0] > fix.accuracy_mm + last.accuracy_mm
    return False


def _reached_ms(state: State, case: Case, last: Fix, *, target: Target, mps: float) -> int | None:
    """Time at which the ring that demands a response is reached, if each side moves at a speed; None if the other side's position is
    unknown. Never before the other side's last position."""
    apart = state.apart_mm(last, target)
    if apart is None:
        return None
    apart_mm, there = apart
    responds = [ring.radius_mm for ring in case.rings if ring.action is Demand.RESPOND]
    gap_mm = apart_mm - (max(responds) if responds else case.rings[-1].radius_mm) - last.accuracy_mm
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
