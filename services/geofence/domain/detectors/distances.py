"""Repeated warnings: while a ring is entered, the protected person is warned again as the wearer comes nearer or goes away."""

from __future__ import annotations

import math
from typing import NamedTuple

from services.geofence.domain import accounts, demands
from services.geofence.domain.alerts import CausingReport
from services.geofence.domain.decisions import AlertDraft, CaseContext
from services.geofence.domain.demands import Detection
from services.geofence.domain.detectors import withheld_clearing
from services.geofence.domain.detectors.detector import Detector
from services.geofence.domain.entries import Demand, Target
from services.geofence.domain.kinematics import rings
from services.geofence.domain.state import CaseState, State, part_by_key

NEARER_MM = 100_000
"""Warn for each 100 m that the wearer comes nearer, as the protective app of the police does."""
FARTHER_MM = 300_000
"""Warn for each 300 m that the wearer goes away: a greater distance is no reason to look at a phone while running."""
MIN_INTERVAL_MS = 15_000
"""Minimum interval between two warnings, however many reports arrive at once."""


class LastWarning(NamedTuple):
    """The last warning of a protected person about the distance to the wearer."""

    apart_mm: float
    at_ms: int
    """Time of the warning, mesh time."""
    rings: int
    """Number of rings entered at that time."""


WARNED = part_by_key("warned", LastWarning._make)
"""Last warning of each person while the wearer is within one of the person's rings, by the person's key."""


def check(context: CaseContext, newest: CausingReport | None) -> None:
    """Warns each person again while the wearer is within a ring, if the distance has changed enough since the last warning."""
    if not context.case_state.episode_id or newest is None:
        return
    for target in context.case.targets:
        if target.is_person:
            _check_person(context, target, newest)


def _check_person(context: CaseContext, target: Target, newest: CausingReport) -> None:
    state, case_state, warned = context.state, context.case_state, WARNED.of(context.case_state)
    rings_ = context.case.rings
    entered = [ring for ring in rings_ if ring.action >= Demand.WARN and case_state.ring(target, ring).open]
    if not entered:
        warned.pop(target.key, None)
        return
    nearest = _apart(state, case_state, target)
    if nearest is None:
        return
    apart_mm, at_ms = nearest
    before, now = warned.get(target.key), LastWarning(apart_mm, state.now_ms, len(entered))
    if before is None or before.rings != len(entered):
        # The alert of that ring has warned her.
        warned[target.key] = now
        return
    if state.now_ms - before.at_ms < MIN_INTERVAL_MS or -NEARER_MM < apart_mm - before.apart_mm < FARTHER_MM:
        return
    ring = entered[-1]
    if (
        apart_mm > before.apart_mm
        and withheld_clearing.implausible_departure_ms(state, case_state, target, ring=ring) is not None
    ):
        return  # not credible: no vehicle could have covered that way in the time
    warned[target.key] = now
    kind, demand = demands.DETECTIONS[Detection.DISTANCE_CHANGED]
    context.alert(AlertDraft(kind, demand, at_ms, target=target, ring=ring, cause=newest, distance_mm=apart_mm))


def _apart(state: State, case_state: CaseState, target: Target) -> tuple[float, int] | None:
    """Least distance, mm, between the newest positions of the wearer's and the person's devices, and its time. Only fresh positions
    count; None if no pair has them."""
    candidates = []
    for sides in accounts.pairs(state, case_state, target):
        here, there = sides.wearer.last(), sides.device.last() if sides.device else None
        if here and there and rings.are_fresh(sides, state.now_ms):
            candidates.append((math.dist(here.point, there.point), max(here.time_ms, there.time_ms)))
    return min(candidates, default=None)


DETECTOR = Detector(on_batch=check, parts=(WARNED,))
