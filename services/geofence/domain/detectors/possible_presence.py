"""What is possible and not likely: that a wearer is within the ring that demands a response. It is told and sends nobody.

A position that no second one has confirmed, one that is too vague, or good ones at the edge of what their accuracy allows: the desks
are told of them where nobody was sent yet, also of whoever is known to be within a wider ring; the record has them all.
"""

from __future__ import annotations

from services.geofence.domain import demands
from services.geofence.domain.alerts import AnomalyKind, CausingReport
from services.geofence.domain.decisions import Decisions
from services.geofence.domain.demands import Found
from services.geofence.domain.detectors import encounters
from services.geofence.domain.entries import Demand, Ring, Target
from services.geofence.domain.kinematics import rings
from services.geofence.domain.kinematics.presence import Maybe
from services.geofence.domain.kinematics.track import UNKNOWN_AFTER_MS
from services.geofence.domain.state import TOLD, CaseState, Possible


def look(
    decisions: Decisions, case_state: CaseState, target: Target, ring: Ring, maybe: Maybe | None, cause: CausingReport
) -> None:
    """Notes what the newest positions allow: told at its beginning, and at its end."""
    state, case = decisions.state, case_state.case
    if not case.valid_from_ms <= state.now_ms < case.valid_until_ms:
        return
    if maybe is None or not rings.is_fresh(maybe.at_ms, state.now_ms):
        is_over(decisions, case_state, target, cause)
        return
    before = case_state.possible.get(target.key)
    told = before is not None and before.told
    sent = case_state.closing.get(target.key) == TOLD or any(
        case_state.ring(target, ring).open for ring in case.rings if ring.action is Demand.RESPOND
    )
    quiet = told or sent or encounters.holding(state, case, maybe.at_ms) is not None
    if not quiet:
        told = not state.is_odd_again(AnomalyKind.VAGUE, f"{case.case_id} {target.key}", maybe.at_ms)
    case_state.possible[target.key] = Possible(state.now_ms, told)
    if before is None or (told and not before.told):
        kind, demand = demands.FOUND[Found.MAYBE_INSIDE if told else Found.MAYBE_INSIDE_UNTOLD]
        decisions.alert(
            case_state,
            kind,
            demand,
            maybe.at_ms,
            target=target,
            ring=ring,
            cause=cause,
            distance_mm=maybe.distance_mm,
            p=maybe.p,
            anomaly=maybe.anomaly,
            to_nobody=not told,
        )


def is_over(decisions: Decisions, case_state: CaseState, target: Target, cause: CausingReport | None) -> None:
    """Takes it back once nothing has allowed it for 3 minutes; `cause` is the newest report, None where an older one came."""
    before = case_state.possible.get(target.key)
    if before and cause is not None and decisions.state.now_ms - before.last_ms >= UNKNOWN_AFTER_MS:
        del case_state.possible[target.key]
        _take_back(decisions, case_state, target, before, decisions.state.now_ms, cause)


def close(decisions: Decisions, case_state: CaseState, at_ms: int, keys: set[str] | None = None) -> None:
    """Takes back what was told of targets (None: of all) that nobody asks about any more."""
    for target in case_state.case.targets:
        if keys is None or target.key in keys:
            before = case_state.possible.pop(target.key, None)
            if before:
                _take_back(decisions, case_state, target, before, at_ms, None)


def _take_back(
    decisions: Decisions,
    case_state: CaseState,
    target: Target,
    before: Possible,
    at_ms: int,
    cause: CausingReport | None,
) -> None:
    kind, demand = demands.FOUND[Found.SEEN_AGAIN]
    # Where the desks know of more than was told here, its end is no all-clear.
    to_nobody = not before.told or bool(case_state.episode_id)
    decisions.alert(case_state, kind, demand, at_ms, target=target, cause=cause, to_nobody=to_nobody)
