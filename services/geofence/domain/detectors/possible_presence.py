"""Possible presence: a wearer may be within the ring that demands a response, but it isn't likely.

The desks are notified, and nobody is sent. The reason is a position without confirmation, a vague one, or a good one at the edge of
its accuracy. The desks are notified if nobody was sent yet, also when the wearer is known to be within a wider ring. The record has
all cases.
"""

from __future__ import annotations

from services.geofence.domain import demands
from services.geofence.domain.alerts import AnomalyKind, CausingReport
from services.geofence.domain.decisions import Decisions
from services.geofence.domain.demands import Detection
from services.geofence.domain.detectors import encounters
from services.geofence.domain.entries import Demand, Ring, Target
from services.geofence.domain.kinematics import rings
from services.geofence.domain.kinematics.presence import PossiblePresence
from services.geofence.domain.kinematics.track import UNKNOWN_AFTER_MS
from services.geofence.domain.state import CONTACT_EMITTED, CaseState, PossiblePresenceState


def update(
    decisions: Decisions,
    case_state: CaseState,
    target: Target,
    *,
    ring: Ring,
    possible: PossiblePresence | None,
    cause: CausingReport,
) -> None:
    """Updates the possible presence from the newest positions. Emits its beginning and its end."""
    state, case = decisions.state, case_state.case
    if not case.valid_from_ms <= state.now_ms < case.valid_until_ms:
        return
    if possible is None or not rings.is_fresh(possible.at_ms, state.now_ms):
        end_if_expired(decisions, case_state, target, cause=cause)
        return
    before = case_state.possible.get(target.key)
    emitted = before is not None and before.emitted
    sent = case_state.approaching_since_ms.get(target.key) == CONTACT_EMITTED or any(
        case_state.ring(target, ring).open for ring in case.rings if ring.action is Demand.RESPOND
    )
    is_suppressed = emitted or sent or encounters.active_at(state, case, possible.at_ms) is not None
    if not is_suppressed:
        emitted = not state.was_just_emitted(AnomalyKind.VAGUE, f"{case.case_id} {target.key}", possible.at_ms)
    case_state.possible[target.key] = PossiblePresenceState(state.now_ms, emitted)
    if before is None or (emitted and not before.emitted):
        kind, demand = demands.DETECTIONS[Detection.POSSIBLY_INSIDE if emitted else Detection.POSSIBLY_INSIDE_RECORDED]
        decisions.alert(
            case_state,
            kind,
            demand,
            at_ms=possible.at_ms,
            target=target,
            ring=ring,
            cause=cause,
            distance_mm=possible.distance_mm,
            p=possible.p,
            anomaly=possible.anomaly,
            record_only=not emitted,
        )


def end_if_expired(decisions: Decisions, case_state: CaseState, target: Target, *, cause: CausingReport | None) -> None:
    """Ends a possible presence once nothing has allowed it for 3 minutes.

    `cause` is the newest report; None if an older one arrived.
    """
    before = case_state.possible.get(target.key)
    if before and cause is not None and decisions.state.now_ms - before.last_ms >= UNKNOWN_AFTER_MS:
        del case_state.possible[target.key]
        _retract(decisions, case_state, target, before=before, at_ms=decisions.state.now_ms, cause=cause)


def close(decisions: Decisions, case_state: CaseState, at_ms: int, *, keys: set[str] | None = None) -> None:
    """Retracts the possible presences of targets (None: of all targets) that the order no longer asks about."""
    for target in case_state.case.targets:
        if keys is None or target.key in keys:
            before = case_state.possible.pop(target.key, None)
            if before:
                _retract(decisions, case_state, target, before=before, at_ms=at_ms, cause=None)


def _retract(
    decisions: Decisions,
    case_state: CaseState,
    target: Target,
    *,
    before: PossiblePresenceState,
    at_ms: int,
    cause: CausingReport | None,
) -> None:
    kind, demand = demands.DETECTIONS[Detection.POSITION_REGAINED]
    # While an episode is open, the end of a mere possibility is no all-clear.
    record_only = not before.emitted or bool(case_state.episode_id)
    decisions.alert(case_state, kind, demand, at_ms=at_ms, target=target, cause=cause, record_only=record_only)
