"""Closest approach: predicts contact with a wearer before help can arrive.

It checks whether a wearer within an outer ring, moving on as now, enters the ring that demands a response before help arrives.
"""

from __future__ import annotations

import math
from bisect import bisect_right

from services.geofence.domain import demands
from services.geofence.domain.alerts import CausingReport
from services.geofence.domain.decisions import Decisions
from services.geofence.domain.demands import Detection
from services.geofence.domain.detectors import encounters
from services.geofence.domain.entries import Demand, Ring, Target
from services.geofence.domain.kinematics import plausibility, probability, rings
from services.geofence.domain.kinematics.geometry import Vector, between
from services.geofence.domain.kinematics.track import (
    AFTER_ALL_MS,
    PREDICT_UP_TO_MPS,
    UNKNOWN_AFTER_MS,
    Fix,
    Track,
    difference,
)
from services.geofence.domain.rules import Rules
from services.geofence.domain.state import CONTACT_EMITTED, CaseState

MIN_MOVEMENT_MS = 30_000
"""Minimum duration of a measured movement: shorter ones are the receiver's noise."""
CONFIRM_AFTER_MS = 30_000
"""Time after which another check must confirm the approach."""
WELL_INSIDE_DIVISOR = 3
"""The line must lead well into the ring, within this fraction (a third) of its radius: a mere passer-by only touches the ring."""
MIN_APPROACH_MPS = 1
"""Minimum approach speed, m/s: slower than a walker isn't an approach."""


def check(decisions: Decisions, case_state: CaseState, device_id: str, *, cause: CausingReport) -> None:
    """Checks how the device with the newest fix moves relative to the other side. Emits once for each episode and target."""
    state, case = decisions.state, case_state.case
    for target in case.targets:
        ring = _ring(case_state, target)
        if ring is None or case_state.approaching_since_ms.get(target.key) == CONTACT_EMITTED:
            continue
        if device_id in case.tag_device_ids:
            other_devices = (
                [state.tracks.get(device_id) for device_id in target.device_ids] if target.is_person else [None]
            )
            pairs = [(state.tracks[device_id], other) for other in other_devices if other or not target.is_person]
        elif device_id in target.device_ids:
            wearers = [state.tracks.get(tag_device_id) for tag_device_id in case.tag_device_ids]
            pairs = [(wearer, state.tracks[device_id]) for wearer in wearers if wearer]
        else:
            continue
        mover = state.tracks[device_id]
        if not plausibility.is_newest_believed(mover, state.rules.reach_mps):
            continue
        at_ms = mover.fixes[-1].time_ms
        distances_mm = [
            d
            for d in (
                _approach_distance_mm(mover, *pair, target=target, ring=ring, rules=state.rules) for pair in pairs
            )
            if d is not None
        ]
        if not distances_mm:
            case_state.approaching_since_ms.pop(f"{target.key} {device_id}", None)
            continue
        # Each device confirms its own checks: to the other devices, the moving one stands still between its reports.
        since_ms = case_state.approaching_since_ms.setdefault(f"{target.key} {device_id}", at_ms)
        if at_ms - since_ms < CONFIRM_AFTER_MS or encounters.active_at(state, case, at_ms):
            continue
        case_state.approaching_since_ms[target.key] = CONTACT_EMITTED
        kind, demand = demands.DETECTIONS[Detection.CLOSING_IN]
        decisions.alert(
            case_state, kind, demand, at_ms=at_ms, target=target, ring=ring, cause=cause, distance_mm=min(distances_mm)
        )


def _ring(case_state: CaseState, target: Target) -> Ring | None:
    """The ring that demands a response, if it isn't entered but a wider ring of the target is; else None."""
    rings_ = case_state.case.rings
    responding = next((ring for ring in rings_ if ring.action is Demand.RESPOND), None)
    if responding is None or case_state.ring(target, responding).open:
        return None
    wider = any(case_state.ring(target, ring).open for ring in rings_ if ring.radius_mm > responding.radius_mm)
    return responding if wider else None


def _approach_distance_mm(
    mover: Track, wearer: Track, device: Track | None, *, target: Target, ring: Ring, rules: Rules
) -> float | None:
    """Distance now, mm, if the movement of the last half minute or more leads into the ring before help arrives; else None.

    The straight line must lead well into the ring, and as probably into it as a ring is entered, with all errors of the positions:
    a line through two points says little far beyond them. The other side moves as its fixes say, and stays at its last one. A
    movement within the accuracies doesn't count, nor does one that only a jump of the receiver can explain.
    """
    now = mover.fixes[-1]
    before = _before(mover, now.time_ms - MIN_MOVEMENT_MS)
    if before is None or now.time_ms - before.time_ms > UNKNOWN_AFTER_MS:
        return None
    if device is not None and not all(
        rings.is_fresh(track.fixes[-1].time_ms, now.time_ms) and track.fixes[0].time_ms <= before.time_ms
        for track in (wearer, device)
    ):
        return None
    took_ms = now.time_ms - before.time_ms
    start, end = (_relative(wearer, device, at_ms) for at_ms in (before.time_ms, now.time_ms))
    if start is None or end is None:
        return None
    nearer_mm = target.shape.least(start, start) - target.shape.least(end, end)
    vague_mm = wearer.fixes[-1].accuracy_mm + (device.fixes[-1].accuracy_mm if device else 0)
    if not max(MIN_APPROACH_MPS * took_ms, 2 * vague_mm) < nearer_mm <= PREDICT_UP_TO_MPS * took_ms:
        return None
    ahead = between(start, end, 1 + rules.help_after_ms / took_ms)
    spans = target.shape.within(end, ahead, ring.radius_mm / WELL_INSIDE_DIVISOR)
    if not spans:
        return None
    times = 1 + sum(spans[0]) / 2 * rules.help_after_ms / took_ms
    there = between(start, end, times)
    # The error of either end grows with the factor by which the line is extended.
    off_mm = round(math.hypot(times * vague_mm, (times - 1) * before.accuracy_mm))
    p = probability.inside(target.shape.least(there, there), ring.radius_mm, (off_mm,))
    return target.shape.least(end, end) if p >= rules.respond_p_pct / 100 else None


def _before(track: Track, at_ms: int) -> Fix | None:
    """The newest fix at a moment or before."""
    index = bisect_right(track.fixes, (at_ms, AFTER_ALL_MS))
    return track.fixes[index - 1] if index else None


def _relative(wearer: Track, device: Track | None, at_ms: int) -> Vector | None:
    """The wearer's position relative to the target's shape at a moment."""
    wearer_pieces = list(wearer.assumed(at_ms, at_ms))
    first = next(
        iter(wearer_pieces) if device is None else difference(wearer_pieces, list(device.assumed(at_ms, at_ms))), None
    )
    return first.start if first else None
