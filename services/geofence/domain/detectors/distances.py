"""Repeated warnings: while a ring is entered, the protected person is warned again as the wearer comes nearer or goes away."""

from __future__ import annotations

import math

from services.geofence.domain import accounts, demands
from services.geofence.domain.alerts import CausingReport
from services.geofence.domain.decisions import Decisions
from services.geofence.domain.demands import Detection
from services.geofence.domain.detectors import withheld_clearing
from services.geofence.domain.entries import Demand, Target
from services.geofence.domain.kinematics import rings
from services.geofence.domain.state import CaseState, LastWarning, State

NEARER_MM = 100_000
"""Warn for each 100 m that the wearer comes nearer, as the protective app of the police does."""
FARTHER_MM = 300_000
"""Warn for each 300 m that the wearer goes away: that is no reason to look at a phone while running."""
MIN_INTERVAL_MS = 15_000
"""Minimum interval between two warnings, however many reports arrive at once."""


def check(decisions: Decisions, case_state: CaseState, cause: CausingReport) -> None:
    """Repeats the warning of each person within whose ring the wearer is, if the distance has changed since the last warning."""
    state, case = decisions.state, case_state.case
    for target in case.targets:
        if not target.is_person:
            continue
        entered = [ring for ring in case.rings if ring.action >= Demand.WARN and case_state.ring(target, ring).open]
        if not entered:
            case_state.warned.pop(target.key, None)
            continue
        nearest = _apart(state, case_state, target)
        if nearest is None:
            continue
        apart_mm, at_ms = nearest
        before = case_state.warned.get(target.key)
        if before is None or before.rings != len(entered):
            # The alert of that ring has warned her.
            case_state.warned[target.key] = LastWarning(apart_mm, state.now_ms, len(entered))
            continue
        if state.now_ms - before.at_ms < MIN_INTERVAL_MS or -NEARER_MM < apart_mm - before.apart_mm < FARTHER_MM:
            continue
        if (
            apart_mm > before.apart_mm
            and withheld_clearing.implausible_departure_ms(state, case_state, target, ring=entered[-1]) is not None
        ):
            continue  # the greater distance isn't credible while no vehicle makes the way
        case_state.warned[target.key] = LastWarning(apart_mm, state.now_ms, len(entered))
        kind, demand = demands.DETECTIONS[Detection.DISTANCE_CHANGED]
        ring = entered[-1]
        decisions.alert(
            case_state, kind, demand, at_ms=at_ms, target=target, ring=ring, cause=cause, distance_mm=apart_mm
        )


def _apart(state: State, case_state: CaseState, target: Target) -> tuple[float, int] | None:
    """Least distance between fresh newest positions of both sides, mm, and its moment; None where none are fresh."""
    candidates = []
    for wearer, device in accounts.pairs(state, case_state, target):
        here, there = wearer.last(), device.last() if device else None
        if here and there and all(rings.is_fresh(fix.time_ms, state.now_ms) for fix in (here, there)):
            candidates.append((math.dist(here.point, there.point), max(here.time_ms, there.time_ms)))
    return min(candidates, default=None)
