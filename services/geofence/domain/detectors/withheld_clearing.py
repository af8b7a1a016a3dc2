"""Withheld all-clears: positions say that a wearer left a ring, but no vehicle can have travelled there from inside the ring, or no
receiver can have measured the way out.

The ring stays entered. The desks are notified, once for each target, that the positions may be spoofed. Four events end the
withholding:

- A vehicle can have made the movement after all, and the newest positions repeat nothing. The ring then clears as usual.
- The positions are within the ring again. The ring's demand is then emitted once more, because a desk may have closed its
  assignment meanwhile.
- The device is replaced.
- The order ends.

Each side's way is followed from the last moment inside the ring. A *way* (`travel_feasibility.Way`) starts at one known position of a
device and is extended position by position. It says which positions a vehicle can have reached. A track drops its oldest positions
after some hours. `keep` then stores what later decisions need of them: the way through the dropped positions, and the last near moment
of the pair. The other side may still have its positions from that moment on, so each side is followed through its track or through its
stored way, whichever reaches back far enough.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator
from typing import Any, NamedTuple

from services.geofence.domain.decisions import AlertDraft, CaseContext, Detector
from services.geofence.domain.demands import AlertKind, AlertType, Detection
from services.geofence.domain.detectors import anomalies, encounters
from services.geofence.domain.entries import Demand, Ring, Target
from services.geofence.domain.kinematics import accuracy, plausibility, rings, travel_feasibility
from services.geofence.domain.kinematics.fixes import Fix
from services.geofence.domain.kinematics.rings import Sides
from services.geofence.domain.kinematics.track import Track
from services.geofence.domain.kinematics.travel_feasibility import Way
from services.geofence.domain.pairs import DevicePair, Pair, all_pairs, fresh_pairs
from services.geofence.domain.state import CasePart, CaseState, State


def implausible_departure_ms(state: State, case_state: CaseState, target: Target, *, ring: Ring) -> int | None:
    """Earliest time, ms, since which positions claim a departure that can't be true; None if there is no such departure.

    A side claims such a departure if it has ways and a vehicle can have made none of them. A tag also does if its positions on the way
    repeat earlier ones or each other. Only pairs with fresh positions count.
    """
    since_times_ms = []
    was_notified = _clearing_key(target, ring) in WITHHELD.of(case_state)
    for pair in fresh_pairs(state, case_state.case, target):
        near = last_near(state, case_state, target, ring=ring, pair=pair)
        for ways in since_near(case_state, target, ring=ring, pair=pair, near=near):
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
    for pair in fresh_pairs(state, case_state.case, target):
        until_ms = rings.known_until(pair.sides) or 0
        near = last_near(state, case_state, target, ring=ring, pair=pair)
        for ways in since_near(case_state, target, ring=ring, pair=pair, near=near):
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
        way = travel_feasibility.follow_on(kept[0], track.fixes)
        if way.false:
            emit_withheld(context, target, None, since_ms=way.false.since_ms, distance_mm=None)
            return way.last
    end_withholding(context, target, None)
    _forget_ways(case_state, _clearing_key(target, None))
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
    detection = Detection.LEFT_BY_JUMP_REPEATED if repeated else Detection.LEFT_BY_JUMP
    context.alert(
        AlertDraft(
            detection.alert_type,
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
        context.alert(
            AlertDraft(
                Detection.WAY_FOUND.alert_type,
                context.state.now_ms,
                target=target,
                ring=ring,
                cause=context.cause,
                record_only=True,
            )
        )


def emit_reentry(context: CaseContext, target: Target, ring: Ring) -> None:
    """Emits the ring's demand once more, if its all-clear was withheld and positions are within the ring again."""
    state, case = context.state, context.case
    if WITHHELD.of(context.case_state).get(_clearing_key(target, ring)) is None:
        return
    for pair in fresh_pairs(state, case, target):
        distance_mm = rings.newest_apart_mm(pair.sides, target.shape)
        tracks = [track for _, track in pair.tracks]
        if distance_mm > ring.radius_mm or not plausibility.are_newest_believed(tracks, state.rules.reach_mps):
            continue
        end_withholding(context, target, ring)
        at_ms = max(track.recent[-1].time_ms for track in tracks)
        if encounters.active_at(state, case, at_ms) is None:
            accuracies = tuple(track.recent[-1].accuracy_mm for track in tracks)
            context.alert(
                AlertDraft(
                    AlertType(AlertKind.RING_ENTERED, ring.action),
                    at_ms,
                    target=target,
                    ring=ring,
                    cause=context.cause,
                    distance_mm=distance_mm,
                    p=accuracy.p_inside(distance_mm, ring.radius_mm, accuracies),
                )
            )
        return


def keep_departure(state: State, case_state: CaseState, target: Target, *, ring: Ring) -> None:
    """Keeps the positions of the tags on their way out of a ring that is cleared."""
    for pair in fresh_pairs(state, case_state.case, target):
        from_ms = _known_near_ms(state, case_state, target, ring=ring, sides=pair.sides)
        if from_ms is not None:
            anomalies.keep_departure(case_state, pair.devices.tag_id, pair.sides.wearer, from_ms=from_ms)


def forget(case_state: CaseState, target: Target, ring: Ring) -> None:
    """Drops what is stored for a ring that is cleared."""
    key = _clearing_key(target, ring)
    WITHHELD.of(case_state).pop(key, None)
    _forget_ways(case_state, key)


# ── ways out of rings ────────────────────────────────────────────────────────────────────────────────────────────────


START_MS = 180_000
"""How long after its first position a receiver may still report its previous location, ms: a tag must give its position within 3
minutes (NIJ Standard 1004.00, location on demand)."""
DENSE_START_MS = 60_000
"""The same time for a device that has reported more than AGREEING_FIXES positions, ms: a minute and four positions also clear a
ring."""


class ClearingKey(NamedTuple):
    """Key of an all-clear."""

    target_key: str
    radius_mm: int | None
    """Radius of the ring; None for a wearer who is unseen near the target."""


class WayKey(NamedTuple):
    """Key of the ways of one device."""

    clearing: ClearingKey
    pair: DevicePair | None
    """The pair of devices that left a ring; None for an unseen wearer."""
    device_id: str


class NearKey(NamedTuple):
    """Key of the last near moment of a pair of devices."""

    clearing: ClearingKey
    pair: DevicePair


class NearMoment(NamedTuple):
    """The last moment at which two devices were near each other."""

    at_ms: int
    is_in_tracks: bool
    """Whether both tracks still hold positions of that time; otherwise the moment is remembered alone."""


class _Exit(NamedTuple):
    """A pair of devices and an open ring: what decides whether the wearer has left it."""

    case_state: CaseState
    key: NearKey
    near: NearMoment | None

    def way_key(self, device_id: str) -> WayKey:
        """Key of the ways of one of the two devices."""
        return WayKey(self.key.clearing, self.key.pair, device_id)


def _withheld_to_json(withheld: dict[ClearingKey, int | None]) -> dict[str, int]:
    """Withheld all-clears as JSON values."""
    return {_clearing_to_text(key): since_ms or 0 for key, since_ms in withheld.items()}


def _withheld_of(content: dict[str, int]) -> dict[ClearingKey, int | None]:
    """The inverse of `_withheld_to_json`."""
    return {_clearing_of(*text.split(" ")): since_ms or None for text, since_ms in content.items()}


def _ways_to_json(ways: dict[WayKey, list[Way]]) -> dict[str, Any]:
    """Ways as JSON values."""
    return {_way_to_text(key): [travel_feasibility.to_json(way) for way in known] for key, known in ways.items()}


def _ways_of(content: dict[str, Any]) -> dict[WayKey, list[Way]]:
    """The inverse of `_ways_to_json`."""
    return {_way_of(text): [travel_feasibility.of_json(way) for way in known] for text, known in content.items()}


def _near_to_json(moments_ms: dict[NearKey, int]) -> dict[str, int]:
    """Last near moments as JSON values."""
    return {f"{_clearing_to_text(key.clearing)} {_pair_to_text(key.pair)}": at_ms for key, at_ms in moments_ms.items()}


def _near_moments_of(content: dict[str, int]) -> dict[NearKey, int]:
    """The inverse of `_near_to_json`."""
    return {_near_of(*text.split(" ")): at_ms for text, at_ms in content.items()}


def _near_of(target_key: str, radius_mm: str, *pair: str) -> NearKey:
    return NearKey(_clearing_of(target_key, radius_mm), _pair_of(*pair))


def _pair_to_text(pair: DevicePair) -> str:
    return f"{pair.tag_id} {pair.device_id or ''}"


def _pair_of(tag_id: str, device_id: str) -> DevicePair:
    return DevicePair(tag_id, device_id or None)


def _clearing_to_text(key: ClearingKey) -> str:
    return f"{key.target_key} {key.radius_mm or 0}"


def _clearing_of(target_key: str, radius_mm: str) -> ClearingKey:
    return ClearingKey(target_key, int(radius_mm) or None)


def _way_to_text(key: WayKey) -> str:
    pair = f"{_pair_to_text(key.pair)} " if key.pair else ""
    return f"{_clearing_to_text(key.clearing)} {pair}{key.device_id}"


def _way_of(text: str) -> WayKey:
    target_key, radius_mm, *pair, device_id = text.split(" ")
    return WayKey(_clearing_of(target_key, radius_mm), _pair_of(*pair) if pair else None, device_id)


WAYS = CasePart("ways", new=dict, encode=_ways_to_json, decode=_ways_of)
"""Ways that start at the last position inside a ring, or at the last position of an unseen wearer. They lead through positions that
the tracks have dropped since."""
LAST_NEAR = CasePart("last_near", new=dict, encode=_near_to_json, decode=_near_moments_of)
"""The last near moment of each pair of devices and open ring, ms, as of the newest drop of positions of either device."""
WITHHELD = CasePart("withheld", new=dict, encode=_withheld_to_json, decode=_withheld_of)
"""Withheld all-clears, each with the time, ms, since which positions claim a movement that no vehicle can have made. None if the
withholding is over: the desks were notified of it in this episode."""


def _clearing_key(target: Target, ring: Ring | None) -> ClearingKey:
    """Key of the all-clear of a ring; of an unseen wearer if `ring` is None."""
    return ClearingKey(target.key, ring.radius_mm if ring else None)


def _unseen_key(target: Target, device_id: str) -> WayKey:
    """Key of the way of an unseen wearer's tag."""
    return WayKey(_clearing_key(target, None), None, device_id)


def since_near(
    case_state: CaseState, target: Target, *, ring: Ring, pair: Pair, near: NearMoment | None
) -> Iterator[list[Way]]:
    """Yields the ways of each side that start at the last near moment. A side has none if no position of that time is known, or if the
    device is too new.

    A side may have two ways. The first starts at its position at that moment. If that position may be an error of the receiver, a
    second way starts at an earlier position.
    """
    for device_id, track in pair.tracks:
        if near is not None and (near.is_in_tracks or track.first_ms < near.at_ms):
            # The previous location of a device that has just started is no place from which a vehicle must have come.
            is_known = not _has_just_started(track, near.at_ms)
            yield travel_feasibility.ways(track.fixes, near.at_ms) if is_known else []
        else:
            key = WayKey(_clearing_key(target, ring), pair.devices, device_id)
            yield [travel_feasibility.follow(way, track.fixes) for way in WAYS.of(case_state).get(key, [])]


def last_near(state: State, case_state: CaseState, target: Target, *, ring: Ring, pair: Pair) -> NearMoment | None:
    """The last moment at which the two sides were too near for the ring to count as left.

    None if it was before the first position of a side.
    """
    known_ms = _known_near_ms(state, case_state, target, ring=ring, sides=pair.sides)
    if known_ms is not None:
        return NearMoment(known_ms, is_in_tracks=True)
    remembered_ms = LAST_NEAR.of(case_state).get(NearKey(_clearing_key(target, ring), pair.devices))
    return None if remembered_ms is None else NearMoment(remembered_ms, is_in_tracks=False)


def _known_near_ms(state: State, case_state: CaseState, target: Target, *, ring: Ring, sides: Sides) -> int | None:
    """The last near moment by the positions in the two tracks alone; None if the tracks hold no position of that time any more."""
    since_ms = case_state.ring(target, ring).since_ms or 0
    tracks = [side for side in sides if side]
    limit_mm = near_mm(state, ring, sides)
    for piece in reversed(rings.assumed_to_stay(sides, since_ms, state.now_ms)):
        if target.shape.distance_bound_mm(piece.start) - math.dist(piece.start, piece.end) > limit_mm:
            continue
        spans = target.shape.within(piece.start, piece.end, limit_mm)
        if spans:
            return piece.from_ms + round(spans[-1][1] * (piece.to_ms - piece.from_ms))
    # No piece was near enough, because the ring was entered on the probability of being inside, or on a predicted approach.
    return since_ms if since_ms >= max(track.first_ms for track in tracks) else None


def near_mm(state: State, ring: Ring, sides: Sides) -> int:
    """The distance within which two sides are too near for a ring to count as left, mm."""
    vague_mm = sum(_vague_mm(side) for side in sides if side)
    return state.rules.clear_beyond_mm(ring.radius_mm) + vague_mm


def keep(state: State, device_id: str, case_ids: list[str], *, count: int) -> int:
    """Stores what later decisions about open rings and unseen wearers need of a device's oldest positions, which its track is about to
    drop. Returns how many of `count` positions the track may drop.
    """
    case_states = [case_state for case_state in map(state.cases.__getitem__, case_ids) if case_state.episode_id]
    exits = [exit_ for case_state in case_states for exit_ in _open_exits(state, case_state, device_id)]
    track = state.tracks[device_id]
    count = _without_cut(track, [exit_.near for exit_ in exits if exit_.near], count)
    if not count:
        return 0
    dropped = track.oldest(count)
    for case_state in case_states:
        ways = WAYS.of(case_state)
        for unseen in [_unseen_key(target, device_id) for target in case_state.case.targets]:
            if unseen in ways:
                ways[unseen] = [travel_feasibility.follow_on(way, dropped) for way in ways[unseen]]
    for exit_ in exits:
        if exit_.near:
            LAST_NEAR.of(exit_.case_state)[exit_.key] = exit_.near.at_ms
        _store(state, exit_, device_id, dropped=dropped)
    return count


def _forget_ways(case_state: CaseState, key: ClearingKey) -> None:
    """Drops what is stored for an all-clear."""
    ways, moments_ms = WAYS.of(case_state), LAST_NEAR.of(case_state)
    for way_key in [way_key for way_key in ways if way_key.clearing == key]:
        del ways[way_key]
    for near_key in [near_key for near_key in moments_ms if near_key.clearing == key]:
        del moments_ms[near_key]


def _open_exits(state: State, case_state: CaseState, device_id: str) -> Iterator[_Exit]:
    """The open rings of a case with each pair that a device belongs to."""
    for target in case_state.case.targets:
        for ring in case_state.case.rings:
            if not case_state.ring(target, ring).open:
                continue
            for pair in all_pairs(state, case_state.case, target):
                if device_id in pair.devices:
                    near = last_near(state, case_state, target, ring=ring, pair=pair)
                    yield _Exit(case_state, key=NearKey(_clearing_key(target, ring), pair.devices), near=near)


def _without_cut(track: Track, moments: list[NearMoment], count: int) -> int:
    """How many of a device's oldest positions can be dropped without a cut through the history of a way that starts later.

    Without its history the speed at its start is unknown, and a train would explain it.
    """
    histories = [travel_feasibility.history(track.fixes, near.at_ms) for near in moments]
    while cut := [first for first, start in histories if first < count <= start]:
        count = min(cut)
    return count


def _store(state: State, exit_: _Exit, device_id: str, *, dropped: list[Fix]) -> None:
    """Stores the way through positions that are about to be dropped, if it starts at one of them or before them."""
    ways = WAYS.of(exit_.case_state)
    key = exit_.way_key(device_id)
    near = exit_.near
    track = state.tracks[device_id]
    if key in ways and (near is None or near.at_ms <= dropped[0].time_ms):
        ways[key] = [travel_feasibility.follow(way, dropped) for way in ways[key]]
    elif (
        near is not None
        and dropped[0].time_ms <= near.at_ms <= track.fixes[len(dropped)].time_ms
        and not _has_just_started(track, near.at_ms)
    ):
        ways[key] = travel_feasibility.ways(dropped, near.at_ms)
    else:
        ways.pop(key, None)


def _vague_mm(track: Track) -> int:
    """How far a position of a device may be beyond a ring and still count as near, mm.

    The accuracy of the newest position says little about earlier ones and is easy to fake. One of 20 km would count all of a false way
    as near, and the way would then begin at a false position.
    """
    return min(accuracy.credible_mm(track), accuracy.MAX_FLOOR_MM)


def _has_just_started(track: Track, from_ms: int) -> bool:
    """Whether all positions of a device before a moment may be its previous location, because its receiver had just started.

    Time decides, and the number of positions only together with it. A phone that reports each second repeats its previous location five
    times in four seconds. A tag that reports every two minutes has run for six minutes at its fourth position.
    """
    fixes = track.fixes
    count = bisect_left(fixes, (from_ms,))
    ran_ms = fixes[max(0, count - 1)].time_ms - track.known_since_ms
    return ran_ms < (DENSE_START_MS if count > rings.AGREEING_FIXES else START_MS)


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
DETECTOR = Detector(parts=(WITHHELD, WAYS, LAST_NEAR, anomalies.DEPARTED), why=WHY)
