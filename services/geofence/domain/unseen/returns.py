"""Returns: a wearer who comes back to the last known position of a protected person whose devices are silent.

No ring is cleared while nobody knows where the person is. So the ring's demand is emitted once more when the wearer comes back after
having surely gone from there: a desk may have closed its assignment meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from services.geofence.domain import demands
from services.geofence.domain.accounts import pairs
from services.geofence.domain.alerts import CausingReport
from services.geofence.domain.contacts import first_contact
from services.geofence.domain.decisions import AlertDraft, CaseContext
from services.geofence.domain.demands import AlertKind
from services.geofence.domain.detectors.clearing import is_proven
from services.geofence.domain.detectors.detector import Detector
from services.geofence.domain.entries import Ring, Target
from services.geofence.domain.kinematics import accuracy, encounters, plausibility, probability, rings
from services.geofence.domain.kinematics.geometry import Disc
from services.geofence.domain.kinematics.rings import Sides
from services.geofence.domain.state import CasePart
from services.geofence.domain.wearing import removals

FIRST_VERSION = 18
"""Before this version of the log, a wearer who came back to a silent person whose ring had stayed open caused no alert."""

AWAY: CasePart[set[str]] = CasePart("away", new=set, encode=sorted, decode=set)
"""Keys of the silent persons whose last known position the wearer has left."""


def check(context: CaseContext, _: CausingReport | None) -> None:
    """Emits the demands of open rings round silent persons once more to whom the wearer comes back."""
    state, case_state = context.state, context.case_state
    if state.log_version < FIRST_VERSION or removals.is_off(case_state):
        return
    for target in context.case.targets:
        if not target.is_person:
            continue
        for ring in context.case.rings:
            if ring.responds and case_state.ring(target, ring).open:
                _check_ring(context, target, ring)


def _check_ring(context: CaseContext, target: Target, ring: Ring) -> None:
    state, away = context.state, AWAY.of(context.case_state)
    known = pairs(state, context.case_state, target)
    if any(sides.device and sides.device.is_fresh(state.now_ms) for sides in known):
        away.discard(target.key)
        return  # the positions of both sides decide
    held = [*_held(context, target)]
    if held and all(_has_gone(context, sides, place, ring=ring) for sides, place in held):
        away.add(target.key)
    elif target.key in away:
        for sides, place in held:
            if place.shape.distance_mm(rings.newest(sides)) <= ring.radius_mm:
                _emit(context, target, ring, sides=sides, place=place)
                return


def _held(context: CaseContext, target: Target) -> Iterator[tuple[Sides, Target]]:
    """The tags whose position is known, each with the last known positions of the person as places."""
    state = context.state
    for sides in pairs(state, context.case_state, target):
        if sides.device and sides.wearer.is_fresh(state.now_ms):
            yield Sides(sides.wearer, None), replace(target, shape=Disc(sides.device.recent[-1].point, 0))


def _has_gone(context: CaseContext, sides: Sides, place: Target, *, ring: Ring) -> bool:
    """Whether the wearer has surely left a ring round a place since it was entered."""
    state = context.state
    radius_mm = ring.radius_mm + state.rules.clear_margin_of(ring.radius_mm) + accuracy.credible_mm(sides.wearer)
    since_ms = context.case_state.ring(place, ring).since_ms or 0
    return is_proven(state, sides, place, ring=ring, radius_mm=radius_mm, since_ms=since_ms)


def _emit(context: CaseContext, target: Target, ring: Ring, *, sides: Sides, place: Target) -> None:
    state, last = context.state, sides.wearer.recent[-1]
    if not plausibility.is_newest_believed(sides.wearer, state.rules.reach_mps):
        return
    if encounters.active_at(state, context.case, last.time_ms) is not None:
        return
    AWAY.of(context.case_state).remove(target.key)
    demand, distance_mm = demands.of_ring(ring.action, entered=True), place.shape.distance_mm(rings.newest(sides))
    context.alert(
        AlertDraft(
            AlertKind.RING_ENTERED,
            demand,
            last.time_ms,
            target=target,
            ring=ring,
            cause=context.cause,
            distance_mm=distance_mm,
            p=probability.inside(distance_mm, ring.radius_mm, (last.accuracy_mm,)),
            contact=first_contact.of_entry(context, target, ring, demand=demand, is_past=False),
        )
    )


DETECTOR = Detector(on_batch=check, parts=(AWAY,))
