"""Closest approach: predicts contact with a wearer before help can arrive.

A wearer within an outer ring is assumed to move on as now. Contact is predicted if the wearer then enters the ring that demands a
response before help can arrive.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

from services.geofence.domain.decisions import AlertDraft, CaseContext, Detector, Movement
from services.geofence.domain.demands import Detection
from services.geofence.domain.detectors import distances, encounters
from services.geofence.domain.entries import Ring, Rules, Target
from services.geofence.domain.geometry import BOUND_ALLOWANCE_MM, Vector, between
from services.geofence.domain.kinematics import accuracy, plausibility, rings
from services.geofence.domain.kinematics.fixes import Fix
from services.geofence.domain.kinematics.rings import Sides
from services.geofence.domain.kinematics.track import (
    PREDICT_UP_TO_MPS,
    UNKNOWN_AFTER_MS,
    Track,
    minus,
)
from services.geofence.domain.pairs import moved_pairs
from services.geofence.domain.state import CasePart, CaseState

MIN_MOVEMENT_MS = 30_000
"""Minimum duration of a measured movement: shorter ones are the receiver's noise."""
CONFIRM_AFTER_MS = 30_000
"""Time after which another check must confirm the approach."""
WELL_INSIDE_DIVISOR = 3
"""The line must lead well into the ring, within this fraction (a third) of its radius: a mere passer-by only touches the ring."""
MIN_APPROACH_MPS = 1
"""Minimum approach speed, m/s: slower than a walker isn't an approach."""


class ApproachKey(NamedTuple):
    """Key of an approach: a target, and the device that moves towards the other side."""

    target_key: str
    device_id: str


@dataclass(slots=True)
class Approaches:
    """Approaches of an episode."""

    since_ms: dict[ApproachKey, int] = field(default_factory=dict)
    """Since when each device's movement brings the two sides together."""
    emitted: set[str] = field(default_factory=set)
    """Keys of the targets for which contact was predicted."""


_EMITTED = -1
"""Value in a checkpoint instead of a time: contact with the target was predicted."""


def _to_json(approaches: Approaches) -> dict[str, int]:
    since_ms = {f"{key.target_key} {key.device_id}": at_ms for key, at_ms in approaches.since_ms.items()}
    return since_ms | dict.fromkeys(approaches.emitted, _EMITTED)


def _of_json(content: dict[str, int]) -> Approaches:
    since_ms = {ApproachKey._make(key.split(" ")): at_ms for key, at_ms in content.items() if at_ms != _EMITTED}
    return Approaches(since_ms, {key for key, at_ms in content.items() if at_ms == _EMITTED})


APPROACHES = CasePart("closing", new=Approaches, encode=_to_json, decode=_of_json)


def is_contact_predicted(case_state: CaseState, target: Target) -> bool:
    """Whether contact with a target was predicted in this episode."""
    return target.key in APPROACHES.of(case_state).emitted


def check_fix(context: CaseContext, movement: Movement) -> None:
    """Checks whether the newest fix of a device shows an approach. Emits CONTACT_PREDICTED once for each target of an episode."""
    case_state = context.case_state
    if not case_state.episode_id or movement.until_ms is not None:
        return
    for target in case_state.case.targets:
        ring = _ring(case_state, target)
        if ring is not None and not is_contact_predicted(case_state, target):
            _check_target(context, target, ring, device_id=movement.device_id)


def _check_target(context: CaseContext, target: Target, ring: Ring, *, device_id: str) -> None:
    state, mover = context.state, context.state.tracks[device_id]
    if device_id not in context.case.tag_device_ids and device_id not in target.device_ids:
        return
    if not plausibility.is_newest_believed(mover, state.rules.reach_mps):
        return
    at_ms = mover.recent[-1].time_ms
    distances_mm = [
        distance_mm
        for moved, sides in moved_pairs(state, context.case, device_id)
        if moved is target
        and (distance_mm := _approach_distance_mm(mover, sides, target, ring=ring, rules=state.rules)) is not None
    ]
    approaches = APPROACHES.of(context.case_state)
    # Only the device that showed an approach can confirm it: between two reports of that device, other devices see it standing still.
    key = ApproachKey(target.key, device_id)
    if not distances_mm:
        approaches.since_ms.pop(key, None)
        return
    since_ms = approaches.since_ms.setdefault(key, at_ms)
    if at_ms - since_ms < CONFIRM_AFTER_MS or encounters.active_at(state, context.case, at_ms):
        return
    approaches.emitted.add(target.key)
    context.alert(
        AlertDraft(
            Detection.CLOSING_IN.alert_type,
            at_ms,
            target=target,
            ring=ring,
            cause=context.cause,
            distance_mm=min(distances_mm),
        )
    )
    distances.note_warning(context, target, min(distances_mm))


def _ring(case_state: CaseState, target: Target) -> Ring | None:
    """The ring that demands a response, if it isn't entered but a wider ring of the target is; else None."""
    ring = case_state.case.response_ring
    if ring is None or case_state.ring(target, ring).open:
        return None
    wider = (other for other in case_state.case.rings if other.radius_mm > ring.radius_mm)
    return ring if any(case_state.ring(target, other).open for other in wider) else None


def _approach_distance_mm(mover: Track, sides: Sides, target: Target, *, ring: Ring, rules: Rules) -> float | None:
    """Distance now, mm, if the movement of the last half minute or more leads into the ring before help arrives; else None.

    The straight line must lead well into the ring. The probability of being inside must be as high as for entering the ring, with all
    errors of the positions. A line through two points says little far beyond them. The other side moves along its fixes and stays at
    its last one. A movement within the accuracies doesn't count, nor does a movement that only a jump of the receiver can explain.
    """
    now = mover.recent[-1]
    before = _before(mover, now.time_ms - MIN_MOVEMENT_MS)
    if before is None or now.time_ms - before.time_ms > UNKNOWN_AFTER_MS:
        return None
    tracks = [side for side in sides if side]
    if len(tracks) > 1 and not all(
        [track.is_fresh(now.time_ms) and track.began_by(before.time_ms) for track in tracks]
    ):
        return None
    took_ms = now.time_ms - before.time_ms
    # The stated accuracies are a lower bound of the credible ones, and the ways of both sides an upper bound of the approach, unless
    # both ride in one train. Nearly always one of them decides, before the movement or any scatter is measured.
    least_mm = max(MIN_APPROACH_MPS * took_ms, 2 * sum([track.recent[-1].accuracy_mm for track in tracks]))
    if sides.device is None or not rings.rides_along(sides.wearer, sides.device, before.time_ms):
        moved_mm = sum([track.path_since_mm(before.time_ms) for track in tracks])
        if moved_mm + BOUND_ALLOWANCE_MM <= least_mm:
            return None
    start, end = (_relative(sides, at_ms) for at_ms in (before.time_ms, now.time_ms))
    if start is None or end is None:
        return None
    nearer_mm = target.shape.distance_mm(start) - target.shape.distance_mm(end)
    if nearer_mm <= least_mm:
        return None
    vague_mm = sum(map(accuracy.credible_mm, tracks))
    if not max(MIN_APPROACH_MPS * took_ms, 2 * vague_mm) < nearer_mm <= PREDICT_UP_TO_MPS * took_ms:
        return None
    ahead = between(start, end, 1 + rules.help_after_ms / took_ms)
    spans = target.shape.within(end, ahead, ring.radius_mm / WELL_INSIDE_DIVISOR)
    if not spans:
        return None
    times = 1 + sum(spans[0]) / 2 * rules.help_after_ms / took_ms
    there = between(start, end, times)
    # The error of either end grows with the factor by which the line is extended.
    before_mm = max(before.accuracy_mm, accuracy.floor_mm(mover))
    off_mm = round(math.hypot(times * vague_mm, (times - 1) * before_mm))
    p = accuracy.p_inside(target.shape.distance_mm(there), ring.radius_mm, (off_mm,))
    return target.shape.distance_mm(end) if p >= rules.respond_p_pct / 100 else None


def _before(track: Track, at_ms: int) -> Fix | None:
    """The newest fix at a moment or before."""
    return track.last_before(at_ms + 1)


def _relative(sides: Sides, at_ms: int) -> Vector | None:
    """The wearer's position relative to the target's shape at a moment. A side that hasn't reported since is at its last position, or
    still in the train in which both ride."""
    wearer, device = sides
    if device is None:
        return rings.assumed_at(wearer, at_ms)
    if rings.rides_along(wearer, device, at_ms):
        pieces = rings.assumed_to_stay(sides, at_ms, at_ms)
        return pieces[0].start if pieces else None
    here, there = rings.assumed_at(wearer, at_ms), rings.assumed_at(device, at_ms)
    return None if here is None or there is None else minus(here, there)


DETECTOR = Detector(on_fix=check_fix, parts=(APPROACHES,))
