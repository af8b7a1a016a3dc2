"""Safe regions: balls in which a device may move before any ring could matter. Safe regions only save work and never decide anything.

If two devices of a case have regions, these regions are farther apart than any decision reaches. A device's region holds the newest
fix, the fix before it, and all positions between them. So a new fix within the region changes nothing: neither device was near the
other since the last fix. That holds even if a device jumped from one end of its region to the other and was still at its previous
position. Any event that breaks this drops the regions concerned, and the full evaluation then decides, as it would without any region.
Regions follow from tracks, cases and rules, so no checkpoint holds them, and a restart begins without.

A region is far if both devices are so far apart that no movement within their regions changes the interval that a tag should keep. In
any other region each newest fix is evaluated for that interval, but not for rings (`detectors/sensing.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from services.geofence.domain.entries import Case
from services.geofence.domain.geometry import Vector
from services.geofence.domain.kinematics import plausibility, presence
from services.geofence.domain.kinematics.fixes import Fix
from services.geofence.domain.kinematics.track import MAX_PREDICTION_MM, SafeRegion, Track
from services.geofence.domain.state import CaseState, State

ACCURACY_TIMES = 3
"""A position may be wrong by three times its 68 % accuracy (4.5 standard deviations); no decision rests on less likely errors."""

MIN_FAR_SHARE = 0.5
"""Least radius of a far region, as a share of the radius that any other region could have."""

RangeHook = Callable[[State, CaseState], float]
FarHook = Callable[[State, Case], float | None]
QuietHook = Callable[[State, str], bool]


class _Other(NamedTuple):
    """A device or place that a device must keep away from."""

    device_id: str | None
    """The other device; None for a place."""
    apart_mm: float
    """Least distance to the positions of the other device or place since a moment, mm."""
    region_mm: float | None
    """Least distance to the other device's safe region, mm; None if there is no region."""
    is_far: bool
    """Whether the other device's safe region is far."""
    range_mm: float
    """Range of any decision, mm."""
    far_mm: float
    """Distance of far regions, mm; never below `range_mm`."""


class _Free(NamedTuple):
    """The space round a device."""

    radius_mm: float
    narrowed: list[str]
    """Devices that lose their regions, because too little space was left between these and the device."""


def measure(
    state: State,
    device_id: str,
    from_ms: int,
    *,
    ranges_mm: Sequence[RangeHook],
    far_mm: FarHook,
    is_quiet: QuietHook,
) -> None:
    """Makes the safe region round a device's newest fix, after a full evaluation from the fix before it (`from_ms`), if possible.

    `ranges_mm` are the hooks that say within which distance of a place a detector needs each fix. `far_mm` says beyond which distance
    from a target the interval of a case's tags is always the same, and `is_quiet` whether no request to the device is due there.
    Each of two devices gets half of the space between them. If no region can be made, or the last step leads out of it, the other
    devices lose their regions too. Those regions were made against this device's earlier position.
    """
    track = state.tracks[device_id]
    fixes = track.recent
    last, before = fixes[-1], fixes[-2] if len(fixes) > 1 else fixes[-1]
    if not plausibility.is_newest_believed(track, state.rules.reach_mps):
        return drop(state, device_id)  # the next fix may confirm this one, and with it the movement to it
    others: list[_Other] = []
    for case_id in state.cases_of[device_id]:
        case_state = state.cases[case_id]
        range_mm = math.inf if case_state.episode_id else max(hook(state, case_state) for hook in ranges_mm)
        if range_mm == math.inf or _has_jumped(state, case_state.case):
            return drop(state, device_id)
        away_mm = far_mm(state, case_state.case)
        others += _others(
            state, case_state.case, device_id, last=last, from_ms=from_ms, range_mm=range_mm, far_mm=away_mm or 0
        )
    near, far = _free(others, is_far=False), _free(others, is_far=True)
    # A small far region is worth less than a large one in which the interval is evaluated.
    is_far = far.radius_mm >= near.radius_mm * MIN_FAR_SHARE
    free = far if is_far else near
    if (
        math.dist(last.point, before.point) + ACCURACY_TIMES * max(last.accuracy_mm, before.accuracy_mm)
        > free.radius_mm
    ):
        return drop(state, device_id)
    for other_id in free.narrowed:
        state.tracks[other_id].safe_region = None
    skip_mm = free.radius_mm if is_far and is_quiet(state, device_id) else -1.0
    track.safe_region = SafeRegion(centre=last.point, skip_mm=skip_mm, free_mm=free.radius_mm, is_far=is_far)


def _free(others: Sequence[_Other], *, is_far: bool) -> _Free:
    """The space round a device for a far region or for any other one."""
    free_mm, narrowed = math.inf, []
    for other in others:
        half_mm = other.apart_mm - (other.far_mm if is_far else other.range_mm)
        if other.device_id is not None:
            half_mm /= 2
            if other.region_mm is not None:
                left_mm = other.region_mm - (other.far_mm if is_far or other.is_far else other.range_mm)
                if left_mm < half_mm / 2:
                    narrowed.append(other.device_id)  # that device makes a new region from its position at its next fix
                else:
                    half_mm = min(half_mm, left_mm)
        free_mm = min(free_mm, half_mm)
    return _Free(free_mm, narrowed)


def evaluate_next(track: Track) -> None:
    """Has the next fix of a device evaluated for the interval that its tag should keep, even in a far region."""
    if track.safe_region is not None:
        track.safe_region = track.safe_region._replace(skip_mm=-1.0)


def skip_if_quiet(state: State, device_id: str, is_quiet: QuietHook) -> None:
    """After such an evaluation, skips the further fixes in a far region if no request to the device is due there."""
    track = state.tracks[device_id]
    region = track.safe_region
    if region is not None and region.is_far and is_quiet(state, device_id):
        track.safe_region = region._replace(skip_mm=region.free_mm)


def drop(state: State, device_id: str) -> None:
    """Drops the safe regions of a device and of all devices that keep away from it.

    Each report of these devices is evaluated until new regions are made.
    """
    _remove(state, device_id)
    for case_id in state.cases_of.get(device_id, ()):
        drop_case(state, state.cases[case_id].case)


def drop_case(state: State, case: Case) -> None:
    """Drops the safe regions of all devices of a case."""
    for device_id in case.device_ids:
        _remove(state, device_id)


def drop_all(state: State) -> None:
    """Drops the safe regions of all devices: new rules change how far a decision reaches."""
    for track in state.tracks.values():
        track.safe_region = None


def _remove(state: State, device_id: str) -> None:
    if track := state.tracks.get(device_id):
        track.safe_region = None


def _has_jumped(state: State, case: Case) -> bool:
    """Whether a device of a case may still be at its position before a jump, outside its region."""
    tracks = (state.tracks[device_id] for device_id in case.device_ids if device_id in state.tracks)
    return any(map(plausibility.has_jumped, tracks))


def _others(
    state: State, case: Case, device_id: str, *, last: Fix, from_ms: int, range_mm: float, far_mm: float
) -> Iterator[_Other]:
    """All devices and places that a device must keep away from in a case, measured from its newest fix.

    `range_mm` is the range of any decision about a place, and `far_mm` the distance of far regions.
    """
    if device_id not in case.tag_device_ids:
        for tag_id in case.tag_device_ids:
            yield from _device(state, case, tag_id, point=last.point, from_ms=from_ms, far_mm=far_mm)
        return
    for target in case.targets:
        if not target.is_person:
            yield _Other(
                device_id=None,
                apart_mm=target.shape.distance_bound_mm(last.point),
                region_mm=None,
                is_far=False,
                range_mm=range_mm,
                far_mm=max(far_mm, range_mm),
            )
        for other_id in target.device_ids:
            yield from _device(state, case, other_id, point=last.point, from_ms=from_ms, far_mm=far_mm)


def _device(state: State, case: Case, other_id: str, *, point: Vector, from_ms: int, far_mm: float) -> Iterator[_Other]:
    track = state.tracks.get(other_id)
    if track is None or not track.recent:
        return  # the first fix of that device will be fully evaluated
    newest = track.recent[-1]
    # No movement is predicted for a device that may still be at its position before a jump.
    range_mm = case.rings[0].radius_mm + max(MAX_PREDICTION_MM, presence.max_travel_mm(state.rules))
    since_mm = track.path_since_mm(from_ms) + ACCURACY_TIMES * newest.accuracy_mm
    region = track.safe_region
    yield _Other(
        device_id=other_id,
        apart_mm=math.dist(point, newest.point) - since_mm,
        region_mm=math.dist(point, region.centre) - region.free_mm if region else None,
        is_far=region is not None and region.is_far,
        range_mm=range_mm,
        far_mm=max(far_mm, range_mm),
    )
