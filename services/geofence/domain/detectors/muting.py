"""Muting: emits the full demand of a ring that was entered under an authorised encounter, once no encounter is active."""

from __future__ import annotations

from collections.abc import Iterable

from services.geofence.domain import demands
from services.geofence.domain.decisions import AlertDraft, CaseContext
from services.geofence.domain.demands import AlertKind
from services.geofence.domain.detectors import clearing, withheld_clearing
from services.geofence.domain.detectors.detector import Detector
from services.geofence.domain.entries import Ring, Target
from services.geofence.domain.kinematics import encounters
from services.geofence.domain.kinematics.track import Fix
from services.geofence.domain.state import CaseState


def end_muting(context: CaseContext, at_ms: int) -> Iterable[int]:
    """Emits the full demand of muted rings once no encounter is active. Returns the moment of the next check."""
    state, case_state, case = context.state, context.case_state, context.case
    if not has_muted(case_state):  # nearly always
        return ()
    muted = [(t, ring) for t in case.targets for ring in case.rings if case_state.ring(t, ring).muted]
    until_ms = encounters.active_until_ms(state, case, at_ms)
    if until_ms is not None:
        return (until_ms,)
    last = state.last_fix(case.tag_device_ids)
    for target, ring in muted:
        _end_muting(context, target, ring, last=last, at_ms=at_ms)
    return ()


def _end_muting(context: CaseContext, target: Target, ring: Ring, *, last: Fix | None, at_ms: int) -> None:
    """Emits the full demand of one ring.

    If the wearer is already beyond the ring and its margin, the ring is cleared instead, unless no vehicle can have made that
    departure.
    """
    state, case_state = context.state, context.case_state
    apart_mm, there = (state.apart_mm(last, target) if last else None) or (0.0, None)
    vague_mm = (last.accuracy_mm if last else 0) + (there.accuracy_mm if there else 0)
    departed_ms = None
    is_beyond = apart_mm > ring.radius_mm + state.rules.clear_margin_of(ring.radius_mm) + vague_mm
    if is_beyond:
        departed_ms = withheld_clearing.implausible_departure_ms(state, case_state, target, ring=ring)
        if departed_ms is None:
            return clearing.clear_ring(context, target, ring, upto_ms=at_ms)
    case_state.ring(target, ring).muted = False
    context.alert(
        AlertDraft(
            AlertKind.RING_ENTERED,
            demands.of_ring(ring.action, entered=True),
            at_ms,
            target=target,
            ring=ring,
            cause=context.cause,
            distance_mm=None if is_beyond else apart_mm,
        )
    )
    if departed_ms is not None:
        withheld_clearing.emit_withheld(context, target, ring, since_ms=departed_ms, distance_mm=apart_mm)


def has_muted(case_state: CaseState) -> bool:
    """Whether a ring was entered under an authorised encounter. A muted ring is an entered one, so the episode is open."""
    return bool(case_state.episode_id) and any(ring.muted for ring in case_state.rings.values())


DETECTOR = Detector(on_time=end_muting, awaits_report=has_muted)
