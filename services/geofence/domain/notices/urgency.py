"""The Ministry's rule of urgency: when a location may be given to a protected person together with a notice.

The law asks for urgency by distance and danger (Tag Act Decree 13-3, 23-17(1)). The Ministry's rule measures it by the distance to
her, the speed at which the wearer comes nearer, and the distance to a protected place. The limits are rules of the log, so that a
replay gives the same answer.
"""

from __future__ import annotations

from services.geofence.domain.entries import Case, Target
from services.geofence.domain.kinematics.track import UNKNOWN_AFTER_MS, minus
from services.geofence.domain.state import State
from services.geofence.domain.tracks.fixes import AFTER_ALL_MS

CLOSING_OVER_MS = 30_000
"""Least time over which the closing speed is measured, ms: shorter ones are the receiver's noise."""


def is_urgent(state: State, case: Case, target: Target | None) -> bool:
    """Whether a location may go with a notice about a target now.

    Without positions of both sides from the last 3 minutes there is no location to give. A notice without a target, or about a place,
    is urgent if any place or person that it concerns is.
    """
    targets = (target,) if target is not None else case.targets
    return any(_is_urgent(state, case, each) for each in targets)


def _is_urgent(state: State, case: Case, target: Target) -> bool:
    rules, apart_mm = state.rules, _apart_mm(state, case, target, before_ms=AFTER_ALL_MS)
    if apart_mm is None:
        return False
    if apart_mm <= (rules.urgent_within_mm if target.is_person else rules.urgent_place_within_mm):
        return True
    mps = closing_mps(state, case, target)
    return mps is not None and mps >= rules.urgent_closing_mps


def closing_mps(state: State, case: Case, target: Target) -> float | None:
    """Speed at which the wearer has come nearer to a target over the last half minute or more, m/s; negative if the distance grew.

    None if the positions don't say.
    """
    track = state.last_track(case.tag_device_ids)
    if track is None:
        return None
    now = track.recent[-1]
    earlier = track.last_before(now.time_ms - CLOSING_OVER_MS + 1)
    if earlier is None or now.time_ms - earlier.time_ms > UNKNOWN_AFTER_MS:
        return None
    apart_mm = _apart_mm(state, case, target, before_ms=AFTER_ALL_MS)
    earlier_mm = _apart_mm(state, case, target, before_ms=earlier.time_ms + 1)
    if apart_mm is None or earlier_mm is None:
        return None
    return (earlier_mm - apart_mm) / (now.time_ms - earlier.time_ms)


def _apart_mm(state: State, case: Case, target: Target, *, before_ms: int) -> float | None:
    """Distance between the wearer and a target by their newest positions before a moment, mm; None if a side has none or old ones."""
    as_of_ms = min(before_ms, state.now_ms)
    wearer = state.last_track(case.tag_device_ids)
    here = wearer.last_before(before_ms) if wearer else None
    if here is None or as_of_ms - here.time_ms > UNKNOWN_AFTER_MS:
        return None
    if not target.is_person:
        return target.shape.distance_mm(here.point)
    person = state.last_track(target.device_ids)
    there = person.last_before(before_ms) if person else None
    if there is None or as_of_ms - there.time_ms > UNKNOWN_AFTER_MS:
        return None
    relative = minus(here.point, there.point)
    return target.shape.distance_mm(relative)
