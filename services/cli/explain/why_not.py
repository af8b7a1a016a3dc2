"""Why a report didn't enter a ring that demands a response: the fold's own evaluation, and the rule that held the entry back.

It explains decisions and never makes one: nothing here changes the state.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import NamedTuple

from services.geofence.domain.alerts import AnomalyKind
from services.geofence.domain.entries import Ring, Target
from services.geofence.domain.kinematics import plausibility, presence
from services.geofence.domain.kinematics.presence import Presence
from services.geofence.domain.kinematics.rings import Sides
from services.geofence.domain.state import CaseState, State


class HeldBackBy(Enum):
    """The rule because of which a ring wasn't entered at a report."""

    NOT_IN_FORCE = "the order wasn't in force"
    NO_POSITION = "one side had no position"
    FAR = "the probability of being inside was below 1 %"
    UNLIKELY = "the probability of being inside was too low to send somebody"
    UNCONFIRMED = "a position jump that no second position had confirmed"
    LATE = "it came late, and by itself proved no presence that was unknown"
    VAGUE = "the accuracy was too poor to tell whether the wearer was inside"
    ENCOUNTER = "an authorised encounter was active"


class EarlierEvaluation(NamedTuple):
    """The evaluation of a ring after a report."""

    held_back_by: HeldBackBy | None
    """None if the ring was entered, by this report or before."""
    distance_mm: float | None = None
    """Distance at the moment that counted; None if no position could be inside."""
    p: float | None = None
    """Probability of being inside at that moment; None if no position could be inside."""


def evaluate(
    state: State, case_state: CaseState, target: Target, *, ring: Ring, device_id: str, is_late: bool
) -> EarlierEvaluation:
    """Evaluates a ring that demands a response right after a report of a device was folded.

    Of several devices of a side, the pair with the greatest probability counts. `is_late`: the device has a newer position, so the
    report could only prove a presence in the past, and the ring would be open if it had.
    """
    case, ring_state = case_state.case, case_state.ring(target, ring)
    if not case.is_in_force(state.now_ms):
        return EarlierEvaluation(HeldBackBy.NOT_IN_FORCE)
    if ring_state.open:
        return EarlierEvaluation(HeldBackBy.ENCOUNTER if ring_state.muted else None)
    pairs = list(_sides(state, case_state, target))
    if is_late and pairs:
        return EarlierEvaluation(HeldBackBy.LATE)
    found = [
        _evaluation(_presence(state, case_state, target, ring=ring, sides=sides, device_id=device_id))
        for sides in pairs
    ]
    return max(found, key=lambda evaluation: evaluation.p or 0.0, default=EarlierEvaluation(HeldBackBy.NO_POSITION))


def _sides(state: State, case_state: CaseState, target: Target) -> Iterator[Sides]:
    """The pairs of tracks with positions."""
    for tag_id in case_state.case.tag_device_ids:
        wearer = state.tracks.get(tag_id)
        if wearer is None or not wearer.recent:
            continue
        if not target.is_person:
            yield Sides(wearer, None)
        for other_id in target.device_ids:
            device = state.tracks.get(other_id)
            if device is not None and device.recent:
                yield Sides(wearer, device)


def _presence(
    state: State, case_state: CaseState, target: Target, *, ring: Ring, sides: Sides, device_id: str
) -> Presence:
    """The presence as `detectors/approach.py` evaluates it for the newest movement of a device."""
    moved = state.tracks.get(device_id)
    fixes = moved.recent if moved is not None and moved in sides else sides.wearer.recent
    from_ms = fixes[-2].time_ms if len(fixes) > 1 else fixes[-1].time_ms
    known_ms, until_ms = max(side.recent[-1].time_ms for side in sides if side), case_state.case.valid_until_ms
    return presence.evaluate(
        state,
        sides,
        target,
        ring=ring,
        from_ms=max(
            plausibility.lookback_ms(sides, from_ms),
            case_state.case.valid_from_ms,
            case_state.ring(target, ring).bound_ms,
        ),
        until_ms=known_ms if until_ms is None else min(known_ms, until_ms - 1),
        newest=True,
    )


def _evaluation(seen: Presence) -> EarlierEvaluation:
    if seen.entered is not None:
        return EarlierEvaluation(None, seen.entered.distance_mm, seen.entered.p)
    if seen.possible is None:
        return EarlierEvaluation(HeldBackBy.FAR)
    possible = seen.possible
    held_back_by = {AnomalyKind.JUMP: HeldBackBy.UNCONFIRMED, AnomalyKind.VAGUE: HeldBackBy.VAGUE}
    return EarlierEvaluation(
        HeldBackBy.UNLIKELY if possible.anomaly is None else held_back_by[possible.anomaly],
        possible.distance_mm,
        possible.p,
    )
