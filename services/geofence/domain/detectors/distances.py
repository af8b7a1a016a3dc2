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

NEARER_SHARE = 0.5
"""Warn when the wearer has come to this share of the distance that the person was last told."""
NEARER_MM = 100_000
"""Least approach that is worth another warning, mm: below 200 m only the ring that demands a response warns again."""
AWAY_TIMES = 3
"""Warn once when the wearer has gone to this many times the distance that the person was last told: it misleads by then."""
AWAY_MM = 500_000
"""Least increase that is worth that warning, mm."""
MIN_INTERVAL_MS = 15_000
"""Minimum interval between two warnings, however many reports arrive at once."""


class LastWarning(NamedTuple):
    """The last warning of a protected person about the distance to the wearer."""

    apart_mm: float
    at_ms: int
    """Time of the warning, mesh time."""
    rings: int
    """Number of rings entered at that time."""
    away: bool = False
    """Whether the person was warned, since that number of rings is entered, that the wearer has gone away."""


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
    before = warned.get(target.key)
    if before is None or before.rings != len(entered):
        # The alert of that ring has warned her.
        warned[target.key] = LastWarning(apart_mm, state.now_ms, len(entered))
        return
    ring, away = entered[-1], apart_mm > before.apart_mm
    if state.now_ms - before.at_ms < MIN_INTERVAL_MS or not _is_news(before, apart_mm, entered[0].radius_mm):
        return
    if away and withheld_clearing.implausible_departure_ms(state, case_state, target, ring=ring) is not None:
        return  # not credible: no vehicle could have covered that way in the time
    warned[target.key] = LastWarning(apart_mm, state.now_ms, len(entered), away or before.away)
    kind, demand = demands.DETECTIONS[Detection.DISTANCE_CHANGED]
    context.alert(AlertDraft(kind, demand, at_ms, target=target, ring=ring, cause=newest, distance_mm=apart_mm))


def _is_news(before: LastWarning, apart_mm: float, widest_mm: int) -> bool:
    """Whether a distance differs enough from the one that the person was last told. Beyond the widest ring no distance is news."""
    if apart_mm > widest_mm:
        return False
    if apart_mm < before.apart_mm:
        return apart_mm <= min(NEARER_SHARE * before.apart_mm, before.apart_mm - NEARER_MM)
    return not before.away and apart_mm >= max(AWAY_TIMES * before.apart_mm, before.apart_mm + AWAY_MM)


def _apart(state: State, case_state: CaseState, target: Target) -> tuple[float, int] | None:
    """Least distance, mm, between the wearer's and the person's devices, and its time. Only fresh positions count; None if no pair has
    them.

    Each pair is compared by the newest positions, and at the newest moment at which both positions are known: two people in one vehicle
    who report in turn are near each other, however far apart their newest positions are.
    """
    candidates = []
    for sides in accounts.pairs(state, case_state, target):
        wearer, device = sides
        here, there = wearer.last(), device.last() if device else None
        if here and there and all(rings.is_fresh(fix.time_ms, state.now_ms) for fix in (here, there)):
            candidates.append((math.dist(here.point, there.point), max(here.time_ms, there.time_ms)))
            known_ms = min(here.time_ms, there.time_ms)
            if (apart := rings.relative_at(sides, known_ms)) is not None:
                candidates.append((math.hypot(*apart), known_ms))
    return min(candidates, default=None)


DETECTOR = Detector(on_batch=check, parts=(WARNED,))
