"""Approach: enters the rings that a wearer is or was within. Reports may arrive in any order. A ring that was cleared before is
entered on a late report only if nobody was notified of that presence."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from services.geofence.domain import accounts, demands
from services.geofence.domain.contacts import first_contact
from services.geofence.domain.decisions import AlertDraft, CaseContext
from services.geofence.domain.demands import AlertKind
from services.geofence.domain.detectors import distances, possible_presence
from services.geofence.domain.detectors.detector import Detector, Movement
from services.geofence.domain.entries import Case, Ring, Target
from services.geofence.domain.kinematics import encounters, plausibility, presence, probability, rings
from services.geofence.domain.kinematics.geometry import BOUND_ALLOWANCE_MM
from services.geofence.domain.kinematics.presence import RingEntry
from services.geofence.domain.kinematics.rings import Sides
from services.geofence.domain.kinematics.track import MAX_PREDICTION_MM, UNKNOWN_AFTER_MS, Piece
from services.geofence.domain.state import CaseState, State


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
    newest: bool
    """Whether the reported fix is the newest of its device."""
    over_ms: int
    """Least time over which the velocity of a prediction is measured."""
    _least_mm: float | None = None
    _ways: list[list[Piece]] | None = None

    def first_within(self, ring: Ring, from_ms: int) -> RingEntry | None:
        """The first moment, from `from_ms` on, at which the assumed movement is within a ring; None if there is none. Call this for
        the widest ring first, because narrower rings reuse these movements."""
        if self._least_mm is None:
            self._least_mm = _min_distance_mm(
                self.sides, self.target, self.from_ms, until_ms=self.until_ms, over_ms=self.over_ms
            )
        if self._least_mm > ring.radius_mm:
            return None
        if self._ways is None:
            ways = rings.assumed(self.sides, self.from_ms, self.until_ms, over_ms=self.over_ms)
            self._ways = ways if rings.may_reach(ways, self.target.shape, ring.radius_mm) else []
        entries = (_first_within(self.sides, way, self.target, ring=ring, from_ms=from_ms) for way in self._ways)
        return next((entry for entry in entries if entry), None)


def check_fix(context: CaseContext, movement: Movement) -> None:
    """Enters the rings that the wearer was or is within during a movement of one of the devices.

    A ring that demands a response is entered only on believed positions of both sides. A merely possible presence within that ring is
    emitted as such.
    """
    tracks = context.state.tracks
    for target, tag_id, device_id in _pairs(context.case, movement.device_id):
        wearer = tracks.get(tag_id)
        device = None if device_id is None else tracks.get(device_id)
        if wearer and wearer.recent and (device_id is None or (device and device.recent)):
            _check_target(context, target, Sides(wearer, device), movement=movement)


def _pairs(case: Case, device_id: str) -> Iterator[tuple[Target, str, str | None]]:
    """Yields a target, a tag and a device of the target (None for a place) for each pair that contains the moved device."""
    if device_id in case.tag_device_ids:
        for target in case.targets:
            for other_id in target.device_ids if target.is_person else (None,):
                yield target, device_id, other_id
        return
    for target in case.targets:
        if device_id in target.device_ids:
            for tag_id in case.tag_device_ids:
                yield target, tag_id, device_id


def _check_target(context: CaseContext, target: Target, sides: Sides, *, movement: Movement) -> None:
    case, from_ms, newest = context.case, movement.from_ms, movement.until_ms is None
    lookback_ms = from_ms if context.cause is None else plausibility.lookback_ms(sides, from_ms)
    # Skip this bound after a position jump: the device may still be at its previous position, whichever direction it jumped.
    if _is_unreachable(sides, target, case.rings[0].radius_mm, from_ms=lookback_ms) and not (
        newest and any(plausibility.has_jumped(side) for side in sides if side)
    ):
        if newest:
            possible_presence.end_if_expired(context, target)
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
        newest=newest,
        over_ms=presence.predict_over_ms(context.state),
    )
    if evaluation.from_ms <= evaluation.until_ms:
        for ring in case.rings:
            _check_ring(context, ring, evaluation)


def _check_ring(context: CaseContext, ring: Ring, evaluation: _Evaluation) -> None:
    case_state, cause, target = context.case_state, context.cause, evaluation.target
    from_ms, until_ms = evaluation.from_ms, evaluation.until_ms
    ring_state = case_state.ring(target, ring)
    # Without a causing report, a decision is never late: it is the same whenever the log reaches its moment.
    is_late = cause is not None and not evaluation.newest
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
    target, newest = evaluation.target, evaluation.newest
    seen = presence.evaluate(
        context.state,
        evaluation.sides,
        target,
        ring=ring,
        from_ms=max(evaluation.lookback_ms, context.case_state.ring(target, ring).bound_ms),
        until_ms=evaluation.until_ms,
        newest=newest,
    )
    if seen.entered:
        _enter(context, target, ring, entry=seen.entered, late=context.cause is not None and not newest)
    elif newest and context.cause is not None:
        possible_presence.update(context, target, ring, possible=seen.possible)


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
                context.state, sides, target, ring=ring, from_ms=low_ms, until_ms=high_ms, newest=False
            ).entered
        else:
            ways = rings.assumed(sides, low_ms, high_ms, over_ms=evaluation.over_ms)
            entries = (_first_within(sides, way, target, ring=ring, from_ms=low_ms) for way in ways)
            entry = next((entry for entry in entries if entry and entry.at_ms <= high_ms), None)
        if entry:
            if entry.at_ms < ring_state.bound_ms:
                accounts.release(ring_state, entry.at_ms)
            return _enter(context, target, ring, entry=entry, late=True)


def _first_within(sides: Sides, way: list[Piece], target: Target, *, ring: Ring, from_ms: int) -> RingEntry | None:
    """The first moment of a movement within a ring."""
    first = next(rings.moments_within(way, target.shape, ring.radius_mm, from_ms=from_ms), None)
    if first is None:
        return None
    at_ms, distance_mm = first
    accuracies_mm = tuple(side.accuracy_at(at_ms) for side in sides if side)
    return RingEntry(at_ms, distance_mm, probability.inside(distance_mm, ring.radius_mm, accuracies_mm))


def _enter(context: CaseContext, target: Target, ring: Ring, *, entry: RingEntry, late: bool) -> None:
    """Enters a ring. `late` means that newer reports arrived before the report that caused the entry."""
    state, case_state, at_ms = context.state, context.case_state, entry.at_ms
    ring_state = case_state.ring(target, ring)
    ring_state.enter(at_ms, entry.distance_mm, at_ms if context.cause is None else state.now_ms)
    if late:
        ring_state.late_ms = state.now_ms
    demand = demands.of_ring(ring.action, entered=True)
    allowed = encounters.active_at(state, case_state.case, at_ms) if demand > demands.MUTED_DEMAND else None
    if allowed:
        ring_state.muted, demand = True, demands.MUTED_DEMAND
    if ring.responds:
        possible_presence.POSSIBLE.of(case_state).pop(target.key, None)
    is_past = late or (context.cause is not None and state.now_ms - at_ms >= UNKNOWN_AFTER_MS)
    context.alert(
        AlertDraft(
            AlertKind.RING_ENTERED,
            demand,
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


def _min_distance_mm(sides: Sides, target: Target, from_ms: int, *, until_ms: int, over_ms: int) -> float:
    """A lower bound, mm, of the distance between both sides on all their assumed movements since a moment."""
    wearer, device = sides
    here = wearer.recent[-1].point
    if device is None:
        return target.shape.distance_bound_mm(here) - wearer.path_since_mm(from_ms) - BOUND_ALLOWANCE_MM
    least_mm = math.dist(here, device.recent[-1].point) - BOUND_ALLOWANCE_MM
    for track in (wearer, device):
        least_mm -= track.path_since_mm(from_ms)
        if ahead := track.predicted(until_ms, over_ms):
            least_mm -= math.dist(ahead.start, ahead.end)
    return least_mm


def range_mm(state: State, case_state: CaseState) -> float:
    """The radius of the widest ring, plus the distance that a wearer may be away from the newest position."""
    return case_state.case.rings[0].radius_mm + presence.max_travel_mm(state.rules)


DETECTOR = Detector(on_fix=check_fix, range_mm=range_mm)
