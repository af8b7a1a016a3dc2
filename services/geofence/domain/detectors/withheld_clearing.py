"""Withheld all-clears: positions say that a wearer left a ring, but no vehicle can have travelled there from inside the ring, or no
receiver can have measured the way out.

The ring stays entered. The desks are notified, once for each target, that the positions may be spoofed. Four events end the
withholding:

- A vehicle can have made the movement after all, and the newest positions repeat nothing. The ring then clears as usual.
- The positions are within the ring again. The ring's demand is then emitted once more, because a desk may have closed its
  assignment meanwhile.
- The device is replaced.
- The order ends.

A *way* (`spoofing.travel_feasibility.Way`) starts at one known position of a device and is extended position by position. It says which
positions a vehicle can have reached. When a track drops its oldest positions, `keep` stores the ways that are still needed.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator
from typing import NamedTuple

from services.geofence.domain import demands
from services.geofence.domain.decisions import AlertDraft, CaseContext
from services.geofence.domain.demands import AlertKind, Detection
from services.geofence.domain.detectors import anomalies
from services.geofence.domain.detectors.detector import Detector
from services.geofence.domain.entries import Case, Demand, Ring, Target
from services.geofence.domain.kinematics import accuracy, encounters, plausibility, probability, rings
from services.geofence.domain.kinematics.rings import Sides
from services.geofence.domain.kinematics.track import Track
from services.geofence.domain.spoofing import keys, travel_feasibility
from services.geofence.domain.spoofing.keys import ClearingKey, DevicePair, WayKey
from services.geofence.domain.spoofing.travel_feasibility import Way
from services.geofence.domain.state import CasePart, CaseState, State
from services.geofence.domain.tracks.fixes import Fix

START_MS = 180_000
"""How long after its first position a receiver may still report its previous location, ms: a tag must give its position within 3
minutes (NIJ Standard 1004.00, location on demand)."""
DENSE_START_MS = 60_000
"""The same time for a device that has reported more than AGREEING_FIXES positions, ms: a minute and four positions also clear a
ring."""
_START_BY_TIME_VERSION = 15


class Pair(NamedTuple):
    """A tag and a device of the target, both of which have reported."""

    devices: DevicePair
    sides: Sides

    @property
    def tracks(self) -> Iterator[tuple[str, Track]]:
        """Device id and track of each side; only the tag's if the target is a place."""
        yield self.devices.tag_id, self.sides.wearer
        if self.devices.device_id is not None and self.sides.device is not None:
            yield self.devices.device_id, self.sides.device


WITHHELD = CasePart("withheld", new=dict, encode=keys.withheld_to_json, decode=keys.withheld_of)
"""Withheld all-clears, each with the time, ms, since which positions claim a movement that no vehicle can have made. None if the
withholding is over: the desks were notified of it in this episode."""
WAYS = CasePart("ways", new=dict, encode=keys.ways_to_json, decode=keys.ways_of)
"""Ways that start at the last position inside a ring, or at the last position of an unseen wearer. They lead through positions that
the tracks have dropped since."""


def implausible_departure_ms(state: State, case_state: CaseState, target: Target, *, ring: Ring) -> int | None:
    """Earliest time, ms, since which positions claim a departure that can't be true; None if there is no such departure.

    A side claims such a departure if it has ways and a vehicle can have made none of them. A tag also does if its positions on the way
    repeat earlier ones or each other. Only pairs with fresh positions count.
    """
    since_times_ms = []
    was_notified = _clearing_key(target, ring) in WITHHELD.of(case_state)
    for pair in _fresh_pairs(state, case_state.case, target):
        for ways in _ways_since_entry(state, case_state, target, ring=ring, pair=pair):
            false = [way.false.since_ms for way in ways if way.false]
            if ways and len(false) == len(ways):
                since_times_ms.append(min(false))
        from_ms = _from_ms(state, case_state, target, ring=ring, sides=pair.sides)
        if from_ms is not None:
            tag_id, track = pair.devices.tag_id, pair.sides.wearer
            repeated_ms = anomalies.repeated_since_ms(
                case_state, tag_id, track, from_ms=from_ms, was_notified=was_notified
            )
            since_times_ms += [repeated_ms] if repeated_ms is not None else []
    return min(since_times_ms, default=None)


def is_too_soon(state: State, case_state: CaseState, target: Target, *, ring: Ring) -> bool:
    """Whether the positions that a vehicle can have reached are too few or too recent to clear the ring.

    After an implausible departure, only positions from `Way.regained_ms` on count for clearing. From that time on, a vehicle can
    have made the movement.
    """
    since_ms = case_state.ring(target, ring).since_ms or 0
    for pair in _fresh_pairs(state, case_state.case, target):
        until_ms = rings.known_until(pair.sides) or 0
        for ways in _ways_since_entry(state, case_state, target, ring=ring, pair=pair):
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
        kept = WAYS.of(case_state).get(_unseen_key(target, device_id))
        track = state.tracks.get(device_id)
        if kept is None or track is None or not track.recent or track.recent[-1] is not last:
            continue
        way = _follow_from(kept[0], track.fixes)
        if way.false:
            emit_withheld(context, target, None, since_ms=way.false.since_ms, distance_mm=None)
            return way.last
    end_withholding(context, target, None)
    _drop_ways(case_state, ClearingKey(target.key, None))
    return None


def keep_last(state: State, case_state: CaseState, target: Target, *, last: Fix | None) -> None:
    """Keeps the last known position of an unseen wearer, if the desks were notified that the wearer may be near the target."""
    if case_state.near.get(target.key, 0) < Demand.NOTIFY or last is None:
        return
    for device_id in case_state.case.tag_device_ids:
        track = state.tracks.get(device_id)
        if track and track.recent and track.recent[-1] is last:
            WAYS.of(case_state)[_unseen_key(target, device_id)] = [
                travel_feasibility.own_way(track.fixes, len(track.fixes) - 1)
            ]


def emit_withheld(
    context: CaseContext, target: Target, ring: Ring | None, *, since_ms: int, distance_mm: float | None
) -> None:
    """Notifies the desks that an all-clear is withheld, and why.

    The desks get one such alert for each target of an episode. Later ones are emitted for the record only.
    """
    withheld, key = WITHHELD.of(context.case_state), _clearing_key(target, ring)
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
    withheld, key = WITHHELD.of(context.case_state), _clearing_key(target, ring)
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
    if WITHHELD.of(context.case_state).get(_clearing_key(target, ring)) is None:
        return
    for pair in _fresh_pairs(state, case, target):
        newest_position = rings.newest(pair.sides)
        distance_mm = target.shape.distance_mm(newest_position)
        tracks = [track for _, track in pair.tracks]
        if distance_mm > ring.radius_mm or not all(
            plausibility.is_newest_believed(track, state.rules.reach_mps) for track in tracks
        ):
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
    for pair in _fresh_pairs(state, case_state.case, target):
        from_ms = _from_ms(state, case_state, target, ring=ring, sides=pair.sides)
        if from_ms is not None:
            anomalies.keep_departure(case_state, pair.devices.tag_id, pair.sides.wearer, from_ms=from_ms)


def forget(case_state: CaseState, target: Target, ring: Ring) -> None:
    """Drops the kept ways of a ring that is cleared."""
    key = _clearing_key(target, ring)
    WITHHELD.of(case_state).pop(key, None)
    _drop_ways(case_state, key)


def keep(state: State, case_state: CaseState, device_id: str, *, dropped: list[Fix]) -> None:
    """Extends the stored ways that open rings and unseen wearers still need by `dropped`: the oldest positions of a device, which
    its track is about to drop.
    """
    ways = WAYS.of(case_state)
    for target in case_state.case.targets:
        unseen = _unseen_key(target, device_id)
        if unseen in ways:
            ways[unseen] = [_follow_from(way, dropped) for way in ways[unseen]]
        for ring in case_state.case.rings:
            if not case_state.ring(target, ring).open:
                continue
            for pair in _pairs(state, case_state.case, target):
                if any(side_id == device_id for side_id, _ in pair.tracks):
                    key = WayKey(_clearing_key(target, ring), pair.devices, device_id)
                    from_ms = _from_ms(state, case_state, target, ring=ring, sides=pair.sides)
                    _keep_pair(ways, key, from_ms, dropped=dropped)


def _keep_pair(ways: dict[WayKey, list[Way]], key: WayKey, from_ms: int | None, *, dropped: list[Fix]) -> None:
    if from_ms is None:
        if key in ways:
            ways[key] = [travel_feasibility.follow(way, dropped) for way in ways[key]]
    elif from_ms <= dropped[-1].time_ms:
        ways[key] = travel_feasibility.ways(dropped, from_ms)
    else:
        ways.pop(key, None)


def _follow_from(way: Way, fixes: list[Fix]) -> Way:
    return travel_feasibility.follow(way, fixes[bisect_left(fixes, (way.last.time_ms + 1,)) :])


def _drop_ways(case_state: CaseState, clearing: ClearingKey) -> None:
    ways = WAYS.of(case_state)
    for key in [key for key in ways if key.clearing == clearing]:
        del ways[key]


def _clearing_key(target: Target, ring: Ring | None) -> ClearingKey:
    return ClearingKey(target.key, ring.radius_mm if ring else None)


def _unseen_key(target: Target, device_id: str) -> WayKey:
    return WayKey(ClearingKey(target.key, None), None, device_id)


def _pairs(state: State, case: Case, target: Target) -> Iterator[Pair]:
    for tag_id in case.tag_device_ids:
        wearer = state.tracks.get(tag_id)
        if wearer is None or not wearer.recent:
            continue
        if not target.is_person:
            yield Pair(DevicePair(tag_id, None), Sides(wearer, None))
        for device_id in target.device_ids:
            device = state.tracks.get(device_id)
            if device is not None and device.recent:
                yield Pair(DevicePair(tag_id, device_id), Sides(wearer, device))


def _fresh_pairs(state: State, case: Case, target: Target) -> Iterator[Pair]:
    for pair in _pairs(state, case, target):
        if rings.are_fresh(pair.sides, state.now_ms):
            yield pair


def _ways_since_entry(
    state: State, case_state: CaseState, target: Target, *, ring: Ring, pair: Pair
) -> Iterator[list[Way]]:
    """Yields the ways of each side that start at the last moment inside the ring. A side has none if no position of that time is known,
    or if the device is too new.

    A side may have two ways. The first starts at its position at that moment. If that position may be an error of the receiver, a
    second way starts at an earlier position.
    """
    from_ms = _from_ms(state, case_state, target, ring=ring, sides=pair.sides)
    for device_id, track in pair.tracks:
        if from_ms is not None:
            # The previous location of a device that has just started is no place from which a vehicle must have come.
            is_known = not _has_just_started(state, track, from_ms)
            yield travel_feasibility.ways(track.fixes, from_ms) if is_known else []
        else:
            key = WayKey(_clearing_key(target, ring), pair.devices, device_id)
            yield [travel_feasibility.follow(way, track.fixes) for way in WAYS.of(case_state).get(key, [])]


def _has_just_started(state: State, track: Track, from_ms: int) -> bool:
    """Whether all positions of a device before a moment may be its previous location, because its receiver had just started.

    Time decides, and the number of positions only together with it. A phone that reports each second repeats its previous location five
    times in four seconds. A tag that reports every two minutes has run for six minutes at its fourth position.
    """
    fixes = track.fixes
    count = bisect_left(fixes, (from_ms,))
    if state.log_version < _START_BY_TIME_VERSION:
        return not track.is_truncated and count <= rings.AGREEING_FIXES
    ran_ms = fixes[max(0, count - 1)].time_ms - track.known_since_ms
    return ran_ms < (DENSE_START_MS if count > rings.AGREEING_FIXES else START_MS)


def _from_ms(state: State, case_state: CaseState, target: Target, *, ring: Ring, sides: Sides) -> int | None:
    """The last moment at which the two sides were too near for the ring to count as left.

    None if no position of that time is known any more.
    """
    since_ms = case_state.ring(target, ring).since_ms or 0
    tracks = [side for side in sides if side]
    vague_mm = sum(map(accuracy.credible_mm, tracks))
    near_mm = ring.radius_mm + state.rules.clear_margin_of(ring.radius_mm) + vague_mm
    for piece in reversed(rings.assumed_to_stay(sides, since_ms, state.now_ms)):
        if target.shape.distance_bound_mm(piece.start) - math.dist(piece.start, piece.end) > near_mm:
            continue
        spans = target.shape.within(piece.start, piece.end, near_mm)
        if spans:
            return piece.from_ms + round(spans[-1][1] * (piece.to_ms - piece.from_ms))
    # No piece was near enough, because the ring was entered on the probability of being inside, or on a predicted approach.
    return since_ms if since_ms >= max(track.first_ms for track in tracks) else None


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
DETECTOR = Detector(parts=(WITHHELD, WAYS, anomalies.DEPARTED), why=WHY)
