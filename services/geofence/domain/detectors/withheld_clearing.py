"""Withheld all-clears: positions say that a wearer left a ring, but no vehicle can have travelled there from inside the ring.

The ring stays entered. The desks are notified, once for each target, that the positions may be spoofed. Four events end the
withholding:

- A vehicle can have made the movement after all. The ring then clears as usual.
- The positions are within the ring again. The ring's demand is then emitted once more, because a desk may have closed its
  assignment meanwhile.
- The device is replaced.
- The order ends.

A *way* (`travel_feasibility.Way`) starts at one known position of a device and is extended position by position. It says which
positions a vehicle can have reached. When a track drops its oldest positions, `keep` stores the ways that are still needed.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator
from typing import NamedTuple

from services.geofence.domain import demands
from services.geofence.domain.alerts import AlertKind, CausingReport
from services.geofence.domain.decisions import Decisions
from services.geofence.domain.demands import Detection
from services.geofence.domain.detectors import encounters
from services.geofence.domain.entries import Case, Demand, Ring, Target
from services.geofence.domain.kinematics import plausibility, probability, rings, travel_feasibility
from services.geofence.domain.kinematics.track import Fix, Track
from services.geofence.domain.kinematics.travel_feasibility import Way
from services.geofence.domain.state import CaseState, State


class Pair(NamedTuple):
    """A tag and a device of the target, both of which have reported."""

    tag_id: str
    wearer: Track
    device_id: str | None
    """None for a place, which has no device."""
    device: Track | None

    @property
    def sides(self) -> Iterator[tuple[str, Track]]:
        """Device id and track of each side; only the tag's if the target is a place."""
        yield self.tag_id, self.wearer
        if self.device_id is not None and self.device is not None:
            yield self.device_id, self.device


def implausible_departure_ms(state: State, case_state: CaseState, target: Target, *, ring: Ring) -> int | None:
    """Earliest time, ms, of an implausible position (`Way.since_ms`), over the sides that have ways but none that a vehicle can have
    made. None if there is no such side. Only pairs with fresh positions count.
    """
    since_times_ms = [
        min(way.since_ms for way in ways)
        for pair in _fresh_pairs(state, case_state.case, target)
        for ways in _ways_since_entry(state, case_state, target, ring=ring, pair=pair)
        if ways and not any(way.is_believed for way in ways)
    ]
    return min(since_times_ms, default=None)


def is_too_soon(state: State, case_state: CaseState, target: Target, *, ring: Ring) -> bool:
    """Whether the positions that a vehicle can have reached are too few or too recent to clear the ring.

    After an implausible departure, only positions from `Way.regained_ms` on count for clearing. From that time on, a vehicle can
    have made the movement.
    """
    since_ms = case_state.ring(target, ring).since_ms or 0
    for pair in _fresh_pairs(state, case_state.case, target):
        until_ms = rings.known_until(pair.wearer, pair.device) or 0
        for ways in _ways_since_entry(state, case_state, target, ring=ring, pair=pair):
            regained_ms = min((way.regained_ms for way in ways if way.is_believed), default=0)
            if not regained_ms:
                continue
            if until_ms - state.rules.clear_after_ms < regained_ms:
                return True
            sides = (pair.wearer, pair.device)
            if ring.action is Demand.RESPOND and (
                rings.agree_from_ms(sides, max(since_ms, regained_ms), until_ms) is None
            ):
                return True
    return False


def stays_unseen(
    decisions: Decisions, case_state: CaseState, target: Target, *, last: Fix, cause: CausingReport | None
) -> bool:
    """Handles the new position of a wearer who was unseen near a target. Returns True if the wearer still counts as unseen.

    That is so if no vehicle can have reached the new position in time, and a response was demanded for the target. Emits that the
    all-clear is withheld, or that it no longer is.
    """
    state = decisions.state
    if case_state.near.get(target.key) is not Demand.RESPOND:
        return False
    for device_id in case_state.case.tag_device_ids:
        kept = case_state.ways.get(_unseen_key(target, device_id))
        track = state.tracks.get(device_id)
        if kept is None or track is None or not track.fixes or track.fixes[-1] is not last:
            continue
        way = _follow_from(kept[0], track.fixes)
        if not way.is_believed:
            emit_withheld(
                decisions, case_state, target, ring=None, since_ms=way.since_ms, cause=cause, distance_mm=None
            )
            return True
    end_withholding(decisions, case_state, target, ring=None, cause=cause)
    _drop(case_state, _withholding_key(target, None))
    return False


def keep_last(state: State, case_state: CaseState, target: Target, *, last: Fix | None) -> None:
    """Keeps the last known position of an unseen wearer, if a response was demanded because the wearer may be near the target."""
    if case_state.near.get(target.key) is not Demand.RESPOND or last is None:
        return
    for device_id in case_state.case.tag_device_ids:
        track = state.tracks.get(device_id)
        if track and track.fixes and track.fixes[-1] is last:
            case_state.ways[_unseen_key(target, device_id)] = [
                travel_feasibility.own_way(track.fixes, len(track.fixes) - 1)
            ]


def emit_withheld(
    decisions: Decisions,
    case_state: CaseState,
    target: Target,
    *,
    ring: Ring | None,
    since_ms: int,
    cause: CausingReport | None,
    distance_mm: float | None,
) -> None:
    """Notifies the desks that an all-clear is withheld, and why.

    The desks get one such alert for each target of an episode. Later ones are emitted for the record only.
    """
    key = _withholding_key(target, ring)
    if case_state.withheld.get(key):
        return
    repeated = any(key_before.startswith(f"{target.key} ") for key_before in case_state.withheld)
    case_state.withheld[key] = since_ms
    kind, demand = demands.DETECTIONS[Detection.LEFT_BY_JUMP_REPEATED if repeated else Detection.LEFT_BY_JUMP]
    decisions.alert(
        case_state,
        kind,
        demand,
        at_ms=since_ms,
        target=target,
        ring=ring,
        cause=cause,
        distance_mm=distance_mm,
        due_ms=decisions.state.now_ms,
        record_only=repeated,
    )


def end_withholding(
    decisions: Decisions, case_state: CaseState, target: Target, *, ring: Ring | None, cause: CausingReport | None
) -> None:
    """Emits, for the record only, that the all-clear is no longer withheld. The legs stand down at RING_CLEARED, not at this alert."""
    key = _withholding_key(target, ring)
    if case_state.withheld.get(key):
        case_state.withheld[key] = 0  # it was withheld in this episode, and is no longer
        kind, demand = demands.DETECTIONS[Detection.WAY_FOUND]
        decisions.alert(
            case_state,
            kind,
            demand,
            at_ms=decisions.state.now_ms,
            target=target,
            ring=ring,
            cause=cause,
            record_only=True,
        )


def emit_reentry(
    decisions: Decisions, case_state: CaseState, target: Target, *, ring: Ring, cause: CausingReport | None
) -> None:
    """Emits the ring's demand once more, if its all-clear was withheld and positions are within the ring again."""
    state, case = decisions.state, case_state.case
    if not case_state.withheld.get(_withholding_key(target, ring)):
        return
    for pair in _fresh_pairs(state, case, target):
        newest_position = rings.newest(pair.wearer, pair.device)
        distance_mm = target.shape.least(newest_position, newest_position)
        tracks = [track for _, track in pair.sides]
        if distance_mm > ring.radius_mm or not all(
            plausibility.is_newest_believed(track, state.rules.reach_mps) for track in tracks
        ):
            continue
        end_withholding(decisions, case_state, target, ring=ring, cause=cause)
        at_ms = max(track.fixes[-1].time_ms for track in tracks)
        if encounters.active_at(state, case, at_ms) is None:
            accuracies = tuple(track.fixes[-1].accuracy_mm for track in tracks)
            decisions.alert(
                case_state,
                AlertKind.RING_ENTERED,
                demands.of_ring(ring.action, entered=True),
                at_ms=at_ms,
                target=target,
                ring=ring,
                cause=cause,
                distance_mm=distance_mm,
                p=probability.inside(distance_mm, ring.radius_mm, accuracies),
            )
        return


def forget(case_state: CaseState, target: Target, ring: Ring) -> None:
    """Drops the kept ways of a ring that is cleared."""
    key = _withholding_key(target, ring)
    case_state.withheld.pop(key, None)
    _drop(case_state, key)


def keep(state: State, case_state: CaseState, device_id: str, *, dropped: list[Fix]) -> None:
    """Extends the stored ways that open rings and unseen wearers still need by `dropped`: the oldest positions of a device, which
    its track is about to drop.
    """
    for target in case_state.case.targets:
        unseen = _unseen_key(target, device_id)
        if unseen in case_state.ways:
            case_state.ways[unseen] = [_follow_from(way, dropped) for way in case_state.ways[unseen]]
        for ring in case_state.case.rings:
            if not case_state.ring(target, ring).open:
                continue
            for pair in _pairs(state, case_state.case, target):
                if any(side_id == device_id for side_id, _ in pair.sides):
                    _keep_pair(state, case_state, target, ring=ring, pair=pair, device_id=device_id, dropped=dropped)


def _keep_pair(
    state: State,
    case_state: CaseState,
    target: Target,
    *,
    ring: Ring,
    pair: Pair,
    device_id: str,
    dropped: list[Fix],
) -> None:
    key = _pair_key(target, ring, pair, device_id=device_id)
    from_ms = _from_ms(state, case_state, target, ring=ring, pair=pair)
    if from_ms is None:
        if key in case_state.ways:
            case_state.ways[key] = [travel_feasibility.follow(way, dropped) for way in case_state.ways[key]]
    elif from_ms <= dropped[-1].time_ms:
        case_state.ways[key] = travel_feasibility.ways(dropped, from_ms)
    else:
        case_state.ways.pop(key, None)


def _follow_from(way: Way, fixes: list[Fix]) -> Way:
    return travel_feasibility.follow(way, fixes[bisect_left(fixes, (way.last.time_ms + 1,)) :])


def _drop(case_state: CaseState, key: str) -> None:
    for kept in [pair_key for pair_key in case_state.ways if pair_key.startswith(f"{key} ")]:
        del case_state.ways[kept]


def _unseen_key(target: Target, device_id: str) -> str:
    return f"{_withholding_key(target, None)} {device_id}"


def _withholding_key(target: Target, ring: Ring | None) -> str:
    """Key of a withheld all-clear. Without a ring it is that of a wearer who is unseen near the target."""
    return f"{target.key} {ring.radius_mm if ring else 0}"


def _pair_key(target: Target, ring: Ring, pair: Pair, *, device_id: str) -> str:
    return f"{_withholding_key(target, ring)} {pair.tag_id} {pair.device_id or ''} {device_id}"


def _pairs(state: State, case: Case, target: Target) -> Iterator[Pair]:
    for tag_id in case.tag_device_ids:
        wearer = state.tracks.get(tag_id)
        if wearer is None or not wearer.fixes:
            continue
        if not target.is_person:
            yield Pair(tag_id=tag_id, wearer=wearer, device_id=None, device=None)
        for device_id in target.device_ids:
            device = state.tracks.get(device_id)
            if device is not None and device.fixes:
                yield Pair(tag_id=tag_id, wearer=wearer, device_id=device_id, device=device)


def _fresh_pairs(state: State, case: Case, target: Target) -> Iterator[Pair]:
    for pair in _pairs(state, case, target):
        if rings.is_fresh(rings.known_until(pair.wearer, pair.device) or 0, state.now_ms):
            yield pair


def _ways_since_entry(
    state: State, case_state: CaseState, target: Target, *, ring: Ring, pair: Pair
) -> Iterator[list[Way]]:
    """For each side, its ways that start at the last moment inside the ring. Empty if no position of that time is known, or if the
    device is too new.

    A side may have two ways: one from its position at that moment, and a second one from an earlier position if the position at
    that moment may be an error of the receiver.
    """
    from_ms = _from_ms(state, case_state, target, ring=ring, pair=pair)
    for device_id, track in pair.sides:
        if from_ms is not None:
            # A receiver may report its previous location just after it started. So the ways of a new device count only if more than
            # AGREEING_FIXES positions precede `from_ms`.
            has_history = track.is_truncated or bisect_left(track.fixes, (from_ms,)) > rings.AGREEING_FIXES
            yield travel_feasibility.ways(track.fixes, from_ms) if has_history else []
        else:
            kept = case_state.ways.get(_pair_key(target, ring, pair, device_id=device_id), [])
            yield [travel_feasibility.follow(way, track.fixes) for way in kept]


def _from_ms(state: State, case_state: CaseState, target: Target, *, ring: Ring, pair: Pair) -> int | None:
    """The last moment at which the two sides were too near for the ring to count as left.

    None if no position of that time is known any more.
    """
    wearer, device = pair.wearer, pair.device
    since_ms = case_state.ring(target, ring).since_ms or 0
    vague_mm = wearer.fixes[-1].accuracy_mm + (device.fixes[-1].accuracy_mm if device else 0)
    near_mm = ring.radius_mm + state.rules.clear_margin_of(ring.radius_mm) + vague_mm
    for piece in reversed(rings.assumed(wearer, device, since_ms, to_ms=state.now_ms)[0]):
        if target.shape.min_distance_mm(piece.start) - math.dist(piece.start, piece.end) > near_mm:
            continue
        spans = target.shape.within(piece.start, piece.end, near_mm)
        if spans:
            return piece.from_ms + round(spans[-1][1] * (piece.to_ms - piece.from_ms))
    # No piece was near enough, because the ring was entered on the probability of being inside, or on a predicted approach.
    oldest_ms = max(track.fixes[0].time_ms for _, track in pair.sides)
    return since_ms if since_ms >= oldest_ms else None
