"""Withheld all-clears: positions say that a wearer left a ring, but no vehicle can have travelled there from inside the ring, or no
receiver can have measured the way out.

The ring stays entered. The desks are notified, once for each target, that the positions may be spoofed. Four events end the
withholding:

- A vehicle can have made the movement after all, and the newest positions repeat nothing. The ring then clears as usual.
- The positions are within the ring again. The ring's demand is then emitted once more, because a desk may have closed its
  assignment meanwhile.
- The device is replaced.
- The order ends.

Each side's way is followed from the last moment inside the ring (`spoofing/ways_out.py`), also once the positions of that time were
dropped.
"""

from __future__ import annotations

from services.geofence.domain import demands
from services.geofence.domain.decisions import AlertDraft, CaseContext
from services.geofence.domain.demands import AlertKind, Detection
from services.geofence.domain.detectors import anomalies
from services.geofence.domain.detectors.detector import Detector
from services.geofence.domain.entries import Demand, Ring, Target
from services.geofence.domain.kinematics import encounters, plausibility, probability, rings
from services.geofence.domain.spoofing import keys, travel_feasibility, ways_out
from services.geofence.domain.spoofing.ways_out import WAYS
from services.geofence.domain.state import CasePart, CaseState, State
from services.geofence.domain.tracks.fixes import Fix

WITHHELD = CasePart("withheld", new=dict, encode=keys.withheld_to_json, decode=keys.withheld_of)
"""Withheld all-clears, each with the time, ms, since which positions claim a movement that no vehicle can have made. None if the
withholding is over: the desks were notified of it in this episode."""


def implausible_departure_ms(state: State, case_state: CaseState, target: Target, *, ring: Ring) -> int | None:
    """Earliest time, ms, since which positions claim a departure that can't be true; None if there is no such departure.

    A side claims such a departure if it has ways and a vehicle can have made none of them. A tag also does if its positions on the way
    repeat earlier ones or each other. Only pairs with fresh positions count.
    """
    since_times_ms = []
    was_notified = ways_out.clearing_key(target, ring) in WITHHELD.of(case_state)
    for pair in ways_out.fresh_pairs(state, case_state.case, target):
        near = ways_out.last_near(state, case_state, target, ring=ring, pair=pair)
        for ways in ways_out.since_near(state, case_state, target, ring=ring, pair=pair, near=near):
            false = [way.false.since_ms for way in ways if way.false]
            if ways and len(false) == len(ways):
                since_times_ms.append(min(false))
        if near is not None:
            tag_id, track = pair.devices.tag_id, pair.sides.wearer
            repeated_ms = anomalies.repeated_since_ms(
                case_state, tag_id, track, from_ms=near.at_ms, was_notified=was_notified
            )
            since_times_ms += [repeated_ms] if repeated_ms is not None else []
    return min(since_times_ms, default=None)


def is_too_soon(state: State, case_state: CaseState, target: Target, *, ring: Ring) -> bool:
    """Whether the positions that a vehicle can have reached are too few or too recent to clear the ring.

    After an implausible departure, only positions from `Way.regained_ms` on count for clearing. From that time on, a vehicle can
    have made the movement.
    """
    since_ms = case_state.ring(target, ring).since_ms or 0
    for pair in ways_out.fresh_pairs(state, case_state.case, target):
        until_ms = rings.known_until(pair.sides) or 0
        near = ways_out.last_near(state, case_state, target, ring=ring, pair=pair)
        for ways in ways_out.since_near(state, case_state, target, ring=ring, pair=pair, near=near):
            believed = [way for way in ways if way.is_believed]
            regained = [way.regained_ms for way in believed if way.regained_ms is not None]
            if not regained or len(regained) < len(believed):
                continue
            regained_ms = min(regained)
            if until_ms - state.rules.clear_after_ms < regained_ms:
                return True
            if ring.action is Demand.RESPOND and (
                rings.agree_from_ms(pair.sides, max(since_ms, regained_ms), until_ms) is None
            ):
                return True
    return False


def believed_unseen(context: CaseContext, target: Target, last: Fix) -> Fix | None:
    """Handles the new position of a wearer who was unseen near a target. Returns None if the wearer is seen.

    If the desks were notified for the target and no vehicle can have reached the new position in time, the wearer still counts as
    unseen since the last believed position, which is the result. Emits that the all-clear is withheld, or no longer withheld.
    """
    state, case_state = context.state, context.case_state
    if case_state.near.get(target.key, 0) < Demand.NOTIFY:
        return None
    for device_id in context.case.tag_device_ids:
        kept = WAYS.of(case_state).get(ways_out.unseen_key(target, device_id))
        track = state.tracks.get(device_id)
        if kept is None or track is None or not track.recent or track.recent[-1] is not last:
            continue
        way = travel_feasibility.follow_on(kept[0], track.fixes)
        if way.false:
            emit_withheld(context, target, None, since_ms=way.false.since_ms, distance_mm=None)
            return way.last
    end_withholding(context, target, None)
    ways_out.forget(case_state, ways_out.clearing_key(target, None))
    return None


def keep_last(state: State, case_state: CaseState, target: Target, *, last: Fix | None) -> None:
    """Keeps the last known position of an unseen wearer, if the desks were notified that the wearer may be near the target."""
    if case_state.near.get(target.key, 0) < Demand.NOTIFY or last is None:
        return
    for device_id in case_state.case.tag_device_ids:
        track = state.tracks.get(device_id)
        if track and track.recent and track.recent[-1] is last:
            WAYS.of(case_state)[ways_out.unseen_key(target, device_id)] = [
                travel_feasibility.own_way(track.fixes, len(track.fixes) - 1)
            ]


def emit_withheld(
    context: CaseContext, target: Target, ring: Ring | None, *, since_ms: int, distance_mm: float | None
) -> None:
    """Notifies the desks that an all-clear is withheld, and why.

    The desks get one such alert for each target of an episode. Later ones are emitted for the record only.
    """
    withheld, key = WITHHELD.of(context.case_state), ways_out.clearing_key(target, ring)
    if withheld.get(key) is not None:
        return
    repeated = any(earlier.target_key == target.key for earlier in withheld)
    withheld[key] = since_ms
    kind, demand = demands.DETECTIONS[Detection.LEFT_BY_JUMP_REPEATED if repeated else Detection.LEFT_BY_JUMP]
    context.alert(
        AlertDraft(
            kind,
            demand,
            since_ms,
            target=target,
            ring=ring,
            cause=context.cause,
            distance_mm=distance_mm,
            due_ms=context.state.now_ms,
            record_only=repeated,
        )
    )


def end_withholding(context: CaseContext, target: Target, ring: Ring | None) -> None:
    """Emits, for the record only, that the all-clear is no longer withheld. The legs stand down at RING_CLEARED, not at this alert."""
    withheld, key = WITHHELD.of(context.case_state), ways_out.clearing_key(target, ring)
    if withheld.get(key) is not None:
        withheld[key] = None
        kind, demand = demands.DETECTIONS[Detection.WAY_FOUND]
        context.alert(
            AlertDraft(
                kind, demand, context.state.now_ms, target=target, ring=ring, cause=context.cause, record_only=True
            )
        )


def emit_reentry(context: CaseContext, target: Target, ring: Ring) -> None:
    """Emits the ring's demand once more, if its all-clear was withheld and positions are within the ring again."""
    state, case = context.state, context.case
    if WITHHELD.of(context.case_state).get(ways_out.clearing_key(target, ring)) is None:
        return
    for pair in ways_out.fresh_pairs(state, case, target):
        newest_position = rings.newest(pair.sides)
        distance_mm = target.shape.distance_mm(newest_position)
        tracks = [track for _, track in pair.tracks]
        if distance_mm > ring.radius_mm or not plausibility.are_newest_believed(tracks, state.rules.reach_mps):
            continue
        end_withholding(context, target, ring)
        at_ms = max(track.recent[-1].time_ms for track in tracks)
        if encounters.active_at(state, case, at_ms) is None:
            accuracies = tuple(track.recent[-1].accuracy_mm for track in tracks)
            context.alert(
                AlertDraft(
                    AlertKind.RING_ENTERED,
                    demands.of_ring(ring.action, entered=True),
                    at_ms,
                    target=target,
                    ring=ring,
                    cause=context.cause,
                    distance_mm=distance_mm,
                    p=probability.inside(distance_mm, ring.radius_mm, accuracies),
                )
            )
        return


def keep_departure(state: State, case_state: CaseState, target: Target, *, ring: Ring) -> None:
    """Keeps the positions of the tags on their way out of a ring that is cleared."""
    for pair in ways_out.fresh_pairs(state, case_state.case, target):
        from_ms = ways_out.known_near_ms(state, case_state, target, ring=ring, sides=pair.sides)
        if from_ms is not None:
            anomalies.keep_departure(case_state, pair.devices.tag_id, pair.sides.wearer, from_ms=from_ms)


def forget(case_state: CaseState, target: Target, ring: Ring) -> None:
    """Drops what is stored for a ring that is cleared."""
    key = ways_out.clearing_key(target, ring)
    WITHHELD.of(case_state).pop(key, None)
    ways_out.forget(case_state, key)


WHY = {
    Detection.LEFT_BY_JUMP: (
        "no vehicle is fast enough to get from where the ring was entered to the positions outside it, or these positions repeat "
        "earlier ones or each other, which no receiver measures: the ring stays entered"
    ),
    Detection.WAY_FOUND: (
        "a vehicle can have gone that way by now, the positions repeat nothing any more, or they are back inside; notifies nobody, "
        "as it may be repeated"
    ),
}
DETECTOR = Detector(parts=(WITHHELD, WAYS, ways_out.LAST_NEAR, anomalies.DEPARTED), why=WHY)
