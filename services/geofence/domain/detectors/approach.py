"""Approach: enters the rings that a wearer is or was within, and notes where a presence within a ring is merely possible.

Reports may arrive in any order. A ring that was cleared before is entered on a late report only if nobody was notified of that
presence.

A wearer may be within the ring that demands a response although it isn't likely. The reason is an unconfirmed position, a vague
position, or a good position at the edge of its accuracy. Nobody is sent. The desks are notified if nobody was sent to the target
before, even if the wearer is known to be within a wider ring. Every possible presence is recorded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from services.geofence.domain import demands
from services.geofence.domain.alerts import AnomalyKind
from services.geofence.domain.decisions import AlertDraft, Amendment, CaseContext, Detector, Movement
from services.geofence.domain.demands import AlertKind, AlertType, Detection
from services.geofence.domain.detectors import accounts, closest_approach, distances, encounters, first_contact
from services.geofence.domain.entries import Ring, Target
from services.geofence.domain.geometry import BOUND_ALLOWANCE_MM
from services.geofence.domain.kinematics import accuracy, plausibility, presence, rings
from services.geofence.domain.kinematics.presence import PossiblePresence, RingEntry
from services.geofence.domain.kinematics.rings import Sides
from services.geofence.domain.kinematics.track import MAX_PREDICTION_MM, UNKNOWN_AFTER_MS, Piece, is_recent
from services.geofence.domain.pairs import moved_pairs
from services.geofence.domain.state import AnomalyKey, CaseState, State, part_by_key


class PossiblePresenceState(NamedTuple):
    """State of a possible presence of the wearer within the ring that demands a response."""

    last_ms: int
    """When positions last allowed the wearer's presence, mesh time."""
    notified: bool
    """Whether the desks were notified."""


POSSIBLE = part_by_key("possible", PossiblePresenceState._make, outlives_episode=True)
"""Targets for which the wearer is possibly within the ring that demands a response, by key."""


@dataclass(slots=True)
class _Evaluation:
    """The evaluation of a target's rings for one pair of devices, in a stretch of time."""

    target: Target
    sides: Sides
    from_ms: int
    lookback_ms: int
    """Start of the stretch for a ring that demands a response. It may be before `from_ms`: a fix that confirms an earlier fix also
    confirms the movement to that one."""
    until_ms: int
    is_newest: bool
    """Whether the reported fix is the newest of its device."""
    _least_mm: float | None = None
    _ways: list[list[Piece]] | None = None

    def first_within(self, ring: Ring, from_ms: int) -> RingEntry | None:
        """The first moment, from `from_ms` on, at which the assumed movement is within a ring; None if there is none. Call this for
        the widest ring first, because narrower rings reuse these movements."""
        if self._least_mm is None:
            shape = self.target.shape
            self._least_mm = rings.least_apart_mm(self.sides, shape, from_ms=self.from_ms, until_ms=self.until_ms)
        if self._least_mm - BOUND_ALLOWANCE_MM > ring.radius_mm:
            return None
        if self._ways is None:
            ways = rings.assumed(self.sides, self.from_ms, self.until_ms)
            self._ways = ways if rings.may_reach(ways, self.target.shape, ring.radius_mm) else []
        entries = (_entry_on_way(self.sides, way, self.target, ring=ring, from_ms=from_ms) for way in self._ways)
        return next((entry for entry in entries if entry), None)


def check_fix(context: CaseContext, movement: Movement) -> None:
    """Enters the rings that the wearer was or is within during a movement of one of the devices.

    A ring that demands a response is entered only on believed positions of both sides. A merely possible presence within that ring is
    emitted as such.
    """
    for target, sides in moved_pairs(context.state, context.case, movement.device_id):
        _check_target(context, target, sides, movement=movement)


def _check_target(context: CaseContext, target: Target, sides: Sides, *, movement: Movement) -> None:
    case = context.case
    from_ms = movement.from_ms
    is_newest = movement.until_ms is None
    lookback_ms = from_ms if context.cause is None else plausibility.lookback_ms(sides, from_ms)
    # Skip this bound after a position jump: the device may still be at its previous position, whichever direction it jumped.
    if _is_unreachable(sides, target, case.rings[0].radius_mm, from_ms=lookback_ms) and not (
        is_newest and any(plausibility.has_jumped(side) for side in sides if side)
    ):
        if is_newest:
            _end_possible_if_expired(context, target)
        return
    known_ms = max([side.recent[-1][0] for side in sides if side])
    until_ms = known_ms if movement.until_ms is None else movement.until_ms
    if case.is_over(until_ms):
        until_ms = case.end_ms - 1
    evaluation = _Evaluation(
        target=target,
        sides=sides,
        from_ms=max(from_ms, case.valid_from_ms),
        lookback_ms=max(lookback_ms, case.valid_from_ms),
        until_ms=until_ms,
        is_newest=is_newest,
    )
    if evaluation.from_ms <= evaluation.until_ms:
        for ring in case.rings:
            _check_ring(context, ring, evaluation)


def _check_ring(context: CaseContext, ring: Ring, evaluation: _Evaluation) -> None:
    case_state = context.case_state
    cause = context.cause
    target = evaluation.target
    from_ms, until_ms = evaluation.from_ms, evaluation.until_ms
    ring_state = case_state.ring(target, ring)
    # Without a causing report, a decision is never late: it is the same whenever the log reaches its moment.
    is_late = cause is not None and not evaluation.is_newest
    if cause is not None and ring_state.closed and from_ms < ring_state.bound_ms:
        accounts.note_report(context.state, case_state, ring_state, from_ms=from_ms, until_ms=until_ms)
    if ring_state.open:
        if is_late and accounts.is_inside(evaluation.sides, target, ring, from_ms=from_ms, until_ms=until_ms):
            ring_state.late_ms = context.state.now_ms
    elif is_late and ring_state.closed:
        _check_late(context, ring, evaluation)
    elif ring.responds:
        _check_response_ring(context, ring, evaluation)
    elif entry := evaluation.first_within(ring, ring_state.bound_ms):
        _enter(context, target, ring, entry=entry, late=is_late)


def _check_response_ring(context: CaseContext, ring: Ring, evaluation: _Evaluation) -> None:
    """Enters a ring that demands a response, or emits that a presence within it is possible."""
    target, is_newest = evaluation.target, evaluation.is_newest
    seen = presence.evaluate(
        context.state.rules,
        evaluation.sides,
        target,
        ring=ring,
        from_ms=max(evaluation.lookback_ms, context.case_state.ring(target, ring).bound_ms),
        until_ms=evaluation.until_ms,
        newest=is_newest,
    )
    if seen.entered:
        _enter(context, target, ring, entry=seen.entered, late=context.cause is not None and not is_newest)
    elif is_newest and context.cause is not None:
        _update_possible(context, target, ring, possible=seen.possible)


def _check_late(context: CaseContext, ring: Ring, evaluation: _Evaluation) -> None:
    """Enters a ring on a late report that proves a presence that nobody was notified of.

    The ring was cleared before, and isn't open now.
    """
    target, sides = evaluation.target, evaluation.sides
    ring_state = context.case_state.ring(target, ring)
    responds = ring.responds
    from_ms = evaluation.lookback_ms if responds else evaluation.from_ms
    for low_ms, high_ms in accounts.unnotified(ring_state, from_ms, evaluation.until_ms):
        if responds:
            entry = presence.evaluate(
                context.state.rules, sides, target, ring=ring, from_ms=low_ms, until_ms=high_ms, newest=False
            ).entered
        else:
            ways = rings.assumed(sides, low_ms, high_ms)
            entries = (_entry_on_way(sides, way, target, ring=ring, from_ms=low_ms) for way in ways)
            entry = next((entry for entry in entries if entry and entry.at_ms <= high_ms), None)
        if entry:
            if entry.at_ms < ring_state.bound_ms:
                accounts.release(ring_state, entry.at_ms)
            return _enter(context, target, ring, entry=entry, late=True)


def _entry_on_way(sides: Sides, way: list[Piece], target: Target, *, ring: Ring, from_ms: int) -> RingEntry | None:
    """The first moment at which one way that both sides may have gone is within a ring; None if it never is."""
    first = next(rings.moments_within(way, target.shape, ring.radius_mm, from_ms=from_ms), None)
    if first is None:
        return None
    at_ms, distance_mm = first
    accuracies_mm = tuple(side.accuracy_at(at_ms) for side in sides if side)
    return RingEntry(at_ms, distance_mm, accuracy.p_inside(distance_mm, ring.radius_mm, accuracies_mm))


def _enter(context: CaseContext, target: Target, ring: Ring, *, entry: RingEntry, late: bool) -> None:
    """Enters a ring. `late` means that newer reports arrived before the report that caused the entry."""
    state = context.state
    case_state = context.case_state
    at_ms = entry.at_ms
    ring_state = case_state.ring(target, ring)
    ring_state.enter(at_ms, entry.distance_mm, at_ms if context.cause is None else state.now_ms)
    if late:
        ring_state.late_ms = state.now_ms
    demand = ring.action
    allowed = encounters.active_at(state, case_state.case, at_ms) if demand > demands.MUTED_DEMAND else None
    if allowed:
        ring_state.muted, demand = True, demands.MUTED_DEMAND
    if ring.responds:
        POSSIBLE.of(case_state).pop(target.key, None)
    is_past = late or (context.cause is not None and state.now_ms - at_ms >= UNKNOWN_AFTER_MS)
    context.alert(
        AlertDraft(
            AlertType(AlertKind.RING_ENTERED, demand),
            at_ms,
            target=target,
            ring=ring,
            cause=context.cause,
            distance_mm=entry.distance_mm,
            p=entry.p,
            encounter=allowed,
            is_known_stay=distances.is_known_stay(context, target, ring),
            contact=first_contact.of_entry(context, target, ring, demand=demand, is_past=is_past),
        )
    )


def _is_unreachable(sides: Sides, target: Target, radius_mm: int, *, from_ms: int) -> bool:
    """Whether both sides were surely farther apart than a radius since `from_ms`. This cheap bound says yes for nearly all reports."""
    wearer, device = sides
    here = wearer.recent[-1].point
    if device is None:
        apart_mm = target.shape.distance_bound_mm(here)
        return (
            apart_mm - wearer.longest_way_mm(from_ms) > radius_mm
            or apart_mm - wearer.path_since_mm(from_ms) > radius_mm
        )
    apart_mm = math.dist(here, device.recent[-1].point)
    if apart_mm <= radius_mm + MAX_PREDICTION_MM:
        return False
    beyond_mm = apart_mm - MAX_PREDICTION_MM
    return (
        beyond_mm - wearer.longest_way_mm(from_ms) - device.longest_way_mm(from_ms) > radius_mm
        or beyond_mm - wearer.path_since_mm(from_ms) - device.path_since_mm(from_ms) > radius_mm
    )


def range_mm(state: State, case_state: CaseState) -> float:
    """The radius of the widest ring, plus the distance that a wearer may be away from the newest position."""
    return case_state.case.rings[0].radius_mm + presence.max_travel_mm(state.rules)


# ── possible presence ────────────────────────────────────────────────────────────────────────────────────────────────


def _update_possible(context: CaseContext, target: Target, ring: Ring, *, possible: PossiblePresence | None) -> None:
    """Updates the possible presence from the newest positions. Emits its beginning and its end."""
    state = context.state
    case_state = context.case_state
    case = context.case
    if not case.is_in_force(state.now_ms):
        return
    if possible is None or not is_recent(possible.at_ms, state.now_ms):
        return _end_possible_if_expired(context, target)
    before = POSSIBLE.of(case_state).get(target.key)
    notified = before is not None and before.notified
    sent = closest_approach.is_contact_predicted(case_state, target) or case_state.is_response_open(target)
    is_suppressed = notified or sent or encounters.active_at(state, case, possible.at_ms) is not None
    if not is_suppressed:
        anomaly = AnomalyKey(AnomalyKind.VAGUE, (case.case_id, target.key))
        notified = not state.was_just_emitted(anomaly, possible.at_ms)
    POSSIBLE.of(case_state)[target.key] = PossiblePresenceState(state.now_ms, notified)
    if before is None or (notified and not before.notified):
        detection = Detection.POSSIBLY_INSIDE if notified else Detection.POSSIBLY_INSIDE_RECORDED
        context.alert(
            AlertDraft(
                detection.alert_type,
                possible.at_ms,
                target=target,
                ring=ring,
                cause=context.cause,
                distance_mm=possible.distance_mm,
                p=possible.p,
                anomaly=possible.anomaly,
                record_only=not notified,
            )
        )


def _end_possible_if_expired(context: CaseContext, target: Target) -> None:
    """Ends a possible presence at a newest report, if no position has allowed the presence for 3 minutes."""
    now_ms, before = context.state.now_ms, POSSIBLE.of(context.case_state).get(target.key)
    if before and context.cause is not None and now_ms - before.last_ms >= UNKNOWN_AFTER_MS:
        _retract_possible(context, target, now_ms, unconfirmed=False)


def retract_unwatched(context: CaseContext, amendment: Amendment) -> None:
    """Retracts the possible presences of targets that a new snapshot no longer watches."""
    for target in context.case.targets:
        if not amendment.watches(target.key):
            _retract_possible(context, target, context.state.now_ms, unconfirmed=True)


def retract_all(context: CaseContext) -> None:
    """Retracts all possible presences of a case that ends."""
    for target in context.case.targets:
        _retract_possible(context, target, context.case.end_ms, unconfirmed=True)


def _retract_possible(context: CaseContext, target: Target, at_ms: int, *, unconfirmed: bool) -> None:
    before = POSSIBLE.of(context.case_state).pop(target.key, None)
    if before is None:
        return
    # While an episode is open, the end of a mere possibility is no all-clear.
    record_only = not before.notified or bool(context.case_state.episode_id)
    context.alert(
        AlertDraft(
            Detection.POSITION_REGAINED.alert_type,
            at_ms,
            target=target,
            cause=context.cause,
            record_only=record_only,
            unconfirmed=unconfirmed,
        )
    )


def possible_range_mm(_: State, case_state: CaseState) -> float:
    """All fixes, while the wearer is possibly within a ring."""
    return math.inf if POSSIBLE.of(case_state) else 0


DETECTOR = Detector(on_fix=check_fix, range_mm=range_mm)
POSSIBLE_PRESENCE = Detector(
    on_amend=retract_unwatched, on_end=retract_all, range_mm=possible_range_mm, parts=(POSSIBLE,)
)
