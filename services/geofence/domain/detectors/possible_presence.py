"""Possible presence: a wearer may be within the ring that demands a response, but it isn't likely.

The reason is an unconfirmed position, a vague position, or a good position at the edge of its accuracy. Nobody is sent. The desks are
notified if nobody was sent to the target before, even if the wearer is known to be within a wider ring. Every possible presence is
recorded.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from services.geofence.domain import demands
from services.geofence.domain.alerts import AnomalyKind
from services.geofence.domain.decisions import AlertDraft, CaseContext
from services.geofence.domain.demands import Detection
from services.geofence.domain.detectors import closest_approach
from services.geofence.domain.detectors.detector import Amendment, Detector
from services.geofence.domain.entries import Ring, Target
from services.geofence.domain.kinematics import encounters, rings
from services.geofence.domain.kinematics.presence import PossiblePresence
from services.geofence.domain.kinematics.track import UNKNOWN_AFTER_MS
from services.geofence.domain.state import AnomalyKey, CaseState, State, part_by_key


class PossiblePresenceState(NamedTuple):
    """State of a possible presence of the wearer within the ring that demands a response."""

    last_ms: int
    """When positions last allowed the wearer's presence, mesh time."""
    emitted: bool
    """Whether the desks were notified."""


POSSIBLE = part_by_key("possible", PossiblePresenceState._make, outlives_episode=True)
"""Targets for which the wearer is possibly within the ring that demands a response, by key."""


def update(context: CaseContext, target: Target, ring: Ring, *, possible: PossiblePresence | None) -> None:
    """Updates the possible presence from the newest positions. Emits its beginning and its end."""
    state, case_state, case = context.state, context.case_state, context.case
    if not case.is_in_force(state.now_ms):
        return
    if possible is None or not rings.is_fresh(possible.at_ms, state.now_ms):
        return end_if_expired(context, target)
    before = POSSIBLE.of(case_state).get(target.key)
    emitted = before is not None and before.emitted
    sent = closest_approach.is_contact_predicted(case_state, target) or any(
        case_state.ring(target, ring).open for ring in case.rings if ring.responds
    )
    is_suppressed = emitted or sent or encounters.active_at(state, case, possible.at_ms) is not None
    if not is_suppressed:
        anomaly = AnomalyKey(AnomalyKind.VAGUE, (case.case_id, target.key))
        emitted = not state.was_just_emitted(anomaly, possible.at_ms)
    POSSIBLE.of(case_state)[target.key] = PossiblePresenceState(state.now_ms, emitted)
    if before is None or (emitted and not before.emitted):
        kind, demand = demands.DETECTIONS[Detection.POSSIBLY_INSIDE if emitted else Detection.POSSIBLY_INSIDE_RECORDED]
        context.alert(
            AlertDraft(
                kind,
                demand,
                possible.at_ms,
                target=target,
                ring=ring,
                cause=context.cause,
                distance_mm=possible.distance_mm,
                p=possible.p,
                anomaly=possible.anomaly,
                record_only=not emitted,
            )
        )


def end_if_expired(context: CaseContext, target: Target) -> None:
    """Ends a possible presence at a newest report, if no position has allowed the presence for 3 minutes."""
    now_ms, before = context.state.now_ms, POSSIBLE.of(context.case_state).get(target.key)
    if before and context.cause is not None and now_ms - before.last_ms >= UNKNOWN_AFTER_MS:
        _retract(context, target, now_ms, unconfirmed=False)


def amend(context: CaseContext, amendment: Amendment) -> None:
    """Retracts the possible presences of targets that a new snapshot no longer watches."""
    for target in context.case.targets:
        if not amendment.watches(target.key):
            _retract(context, target, context.state.now_ms, unconfirmed=True)


def end(context: CaseContext) -> None:
    """Retracts all possible presences of a case that ends."""
    for target in context.case.targets:
        _retract(context, target, context.case.end_ms, unconfirmed=True)


def _retract(context: CaseContext, target: Target, at_ms: int, *, unconfirmed: bool) -> None:
    before = POSSIBLE.of(context.case_state).pop(target.key, None)
    if before is None:
        return
    kind, demand = demands.DETECTIONS[Detection.POSITION_REGAINED]
    # While an episode is open, the end of a mere possibility is no all-clear.
    record_only = not before.emitted or bool(context.case_state.episode_id)
    context.alert(
        AlertDraft(
            kind,
            demand,
            at_ms,
            target=target,
            cause=context.cause,
            record_only=record_only,
            unconfirmed=unconfirmed,
        )
    )


def range_mm(_: State, case_state: CaseState) -> float:
    """All fixes, while the wearer is possibly within a ring."""
    return math.inf if POSSIBLE.of(case_state) else 0


DETECTOR = Detector(on_amend=amend, on_end=end, range_mm=range_mm, parts=(POSSIBLE,))
