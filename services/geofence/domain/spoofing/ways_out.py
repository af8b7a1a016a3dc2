"""Ways out of open rings: how each side of a pair of devices came to its newest position since the two were last near each other.

A *way* (`travel_feasibility.Way`) starts at one known position of a device and is extended position by position. It says which
positions a vehicle can have reached. A track drops its oldest positions after some hours. `keep` then stores what later decisions need
of them: the way through the dropped positions, and the last near moment of the pair. The other side may still have its positions from
that moment on, so each side is followed through its track or through its stored way, whichever reaches back far enough.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator
from typing import NamedTuple

from services.geofence.domain.entries import Case, Ring, Target
from services.geofence.domain.kinematics import accuracy, rings
from services.geofence.domain.kinematics.rings import Sides
from services.geofence.domain.kinematics.track import Track
from services.geofence.domain.spoofing import keys, travel_feasibility
from services.geofence.domain.spoofing.keys import ClearingKey, DevicePair, NearKey, WayKey
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
_REMEMBERED_VERSION = 16
"""From this version of the log on, the last near moment outlasts the positions of that time, and no accuracy moves it far."""


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


WAYS = CasePart("ways", new=dict, encode=keys.ways_to_json, decode=keys.ways_of)
"""Ways that start at the last position inside a ring, or at the last position of an unseen wearer. They lead through positions that
the tracks have dropped since."""
LAST_NEAR = CasePart("last_near", new=dict, encode=keys.near_to_json, decode=keys.near_of)
"""The last near moment of each pair of devices and open ring, ms, as of the newest drop of positions of either device."""


def clearing_key(target: Target, ring: Ring | None) -> ClearingKey:
    """Key of the all-clear of a ring; of an unseen wearer if `ring` is None."""
    return ClearingKey(target.key, ring.radius_mm if ring else None)


def unseen_key(target: Target, device_id: str) -> WayKey:
    """Key of the way of an unseen wearer's tag."""
    return WayKey(clearing_key(target, None), None, device_id)


def fresh_pairs(state: State, case: Case, target: Target) -> Iterator[Pair]:
    """The pairs of devices whose newest positions still show where they are."""
    for pair in all_pairs(state, case, target):
        if rings.are_fresh(pair.sides, state.now_ms):
            yield pair


def since_near(
    state: State, case_state: CaseState, target: Target, *, ring: Ring, pair: Pair, near: NearMoment | None
) -> Iterator[list[Way]]:
    """Yields the ways of each side that start at the last near moment. A side has none if no position of that time is known, or if the
    device is too new.

    A side may have two ways. The first starts at its position at that moment. If that position may be an error of the receiver, a
    second way starts at an earlier position.
    """
    for device_id, track in pair.tracks:
        if near is not None and (near.is_in_tracks or track.first_ms < near.at_ms):
            # The previous location of a device that has just started is no place from which a vehicle must have come.
            is_known = not _has_just_started(state, track, near.at_ms)
            yield travel_feasibility.ways(track.fixes, near.at_ms) if is_known else []
        else:
            key = WayKey(clearing_key(target, ring), pair.devices, device_id)
            yield [travel_feasibility.follow(way, track.fixes) for way in WAYS.of(case_state).get(key, [])]


def last_near(state: State, case_state: CaseState, target: Target, *, ring: Ring, pair: Pair) -> NearMoment | None:
    """The last moment at which the two sides were too near for the ring to count as left.

    None if it was before the first position of a side.
    """
    known_ms = known_near_ms(state, case_state, target, ring=ring, sides=pair.sides)
    if known_ms is not None:
        return NearMoment(known_ms, is_in_tracks=True)
    if state.log_version < _REMEMBERED_VERSION:
        return None
    remembered_ms = LAST_NEAR.of(case_state).get(NearKey(clearing_key(target, ring), pair.devices))
    return None if remembered_ms is None else NearMoment(remembered_ms, is_in_tracks=False)


def known_near_ms(state: State, case_state: CaseState, target: Target, *, ring: Ring, sides: Sides) -> int | None:
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
    vague_mm = sum(_vague_mm(state, side) for side in sides if side)
    return ring.radius_mm + state.rules.clear_margin_of(ring.radius_mm) + vague_mm


def keep(state: State, device_id: str, case_ids: list[str], *, count: int) -> int:
    """Stores what later decisions about open rings and unseen wearers need of a device's oldest positions, which its track is about to
    drop. Returns how many of `count` positions the track may drop.
    """
    case_states = [case_state for case_state in map(state.cases.__getitem__, case_ids) if case_state.episode_id]
    exits = [exit_ for case_state in case_states for exit_ in _open_exits(state, case_state, device_id)]
    track = state.tracks[device_id]
    if state.log_version >= _REMEMBERED_VERSION:
        count = _without_cut(track, [exit_.near for exit_ in exits if exit_.near], count)
    if not count:
        return 0
    dropped = track.oldest(count)
    for case_state in case_states:
        ways = WAYS.of(case_state)
        for unseen in [unseen_key(target, device_id) for target in case_state.case.targets]:
            if unseen in ways:
                ways[unseen] = [travel_feasibility.follow_on(way, dropped) for way in ways[unseen]]
    for exit_ in exits:
        if exit_.near:
            LAST_NEAR.of(exit_.case_state)[exit_.key] = exit_.near.at_ms
        if state.log_version < _REMEMBERED_VERSION:
            _store_if_known(exit_, device_id, dropped=dropped)
        else:
            _store(state, exit_, device_id, dropped=dropped)
    return count


def forget(case_state: CaseState, key: ClearingKey) -> None:
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
                    yield _Exit(case_state, key=NearKey(clearing_key(target, ring), pair.devices), near=near)


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
    ways, key, near = WAYS.of(exit_.case_state), exit_.way_key(device_id), exit_.near
    track = state.tracks[device_id]
    if key in ways and (near is None or near.at_ms <= dropped[0].time_ms):
        ways[key] = [travel_feasibility.follow(way, dropped) for way in ways[key]]
    elif (
        near is not None
        and dropped[0].time_ms <= near.at_ms <= track.fixes[len(dropped)].time_ms
        and not _has_just_started(state, track, near.at_ms)
    ):
        ways[key] = travel_feasibility.ways(dropped, near.at_ms)
    else:
        ways.pop(key, None)


def _store_if_known(exit_: _Exit, device_id: str, *, dropped: list[Fix]) -> None:
    """Stores a way as logs before _REMEMBERED_VERSION do: only at a drop before which both tracks held the last near moment."""
    ways, key, near = WAYS.of(exit_.case_state), exit_.way_key(device_id), exit_.near
    if near is None:
        if key in ways:
            ways[key] = [travel_feasibility.follow(way, dropped) for way in ways[key]]
    elif near.at_ms <= dropped[-1].time_ms:
        ways[key] = travel_feasibility.ways(dropped, near.at_ms)
    else:
        ways.pop(key, None)


def _vague_mm(state: State, track: Track) -> int:
    """How far a position of a device may be beyond a ring and still count as near, mm.

    The accuracy of the newest position says little about earlier ones and is easy to fake. One of 20 km would count all of a false way
    as near, and the way would then begin at a false position.
    """
    vague_mm = accuracy.credible_mm(track)
    return vague_mm if state.log_version < _REMEMBERED_VERSION else min(vague_mm, accuracy.MAX_FLOOR_MM)


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


def all_pairs(state: State, case: Case, target: Target) -> Iterator[Pair]:
    """The pairs of a tag and a device of the target that have both reported, however long ago."""
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
