"""Pairs of devices, one of each side: which are compared about a target, and how far apart the two sides are.

How far apart they are has four answers. `apart` and `recent_apart_mm` take one device of each side, that with the newest position;
`recent_apart_mm` gives no answer by old positions. `nearest` and `claimed_mm` take the pair with the least distance: `nearest` by fresh
positions, at two moments, and `claimed_mm` by the newest positions, however old.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from services.geofence.domain.entries import Case, Target
from services.geofence.domain.kinematics import rings
from services.geofence.domain.kinematics.fixes import AFTER_ALL_MS, Fix
from services.geofence.domain.kinematics.rings import Sides
from services.geofence.domain.kinematics.track import Track, is_recent
from services.geofence.domain.state import State


class DevicePair(NamedTuple):
    """A tag and a device of the target."""

    tag_id: str
    device_id: str | None
    """None for a place, which has no device."""


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


class Apart(NamedTuple):
    """The distance between a position of the wearer and a target."""

    mm: float
    there: Fix | None
    """The newest fix of the person's devices; None for a place."""


class Nearest(NamedTuple):
    """The least distance between the wearer's and the person's devices."""

    mm: float
    at_ms: int
    """Moment at which the two were so near."""


def all_pairs(state: State, case: Case, target: Target) -> list[Pair]:
    """The pairs of a tag and a device of the target that have both reported, however long ago."""
    tags = _located(state, case.tag_device_ids)
    if not target.is_person:
        return [Pair(DevicePair(tag_id, None), Sides(tag, None)) for tag_id, tag in tags]
    devices = _located(state, target.device_ids)
    return [
        Pair(DevicePair(tag_id, device_id), Sides(tag, device)) for tag_id, tag in tags for device_id, device in devices
    ]


def fresh_pairs(state: State, case: Case, target: Target) -> list[Pair]:
    """The pairs of devices whose newest positions still show where they are."""
    return [pair for pair in all_pairs(state, case, target) if pair.sides.are_fresh(state.now_ms)]


def moved_pairs(state: State, case: Case, device_id: str) -> Iterator[tuple[Target, Sides]]:
    """Each target with the pairs of which a device of the case is part that has just reported."""
    tracks = state.tracks
    moved = tracks.get(device_id)
    if moved is None or not moved.recent:
        return
    is_tag = device_id in case.tag_device_ids
    for target in case.targets:
        if is_tag and not target.is_person:
            yield target, Sides(moved, None)
            continue
        other_ids = target.device_ids if is_tag else case.tag_device_ids if device_id in target.device_ids else ()
        for other_id in other_ids:
            other = tracks.get(other_id)
            if other is not None and other.recent:
                yield target, Sides(moved, other) if is_tag else Sides(other, moved)


def _located(state: State, device_ids: tuple[str, ...]) -> list[tuple[str, Track]]:
    """The devices that have reported a position, with their tracks."""
    return [(id_, track) for id_ in device_ids if (track := state.tracks.get(id_)) is not None and track.recent]


def apart(state: State, here: Fix, target: Target) -> Apart | None:
    """The distance between a position of the wearer and a target, by the person's newest position. None if the person has none."""
    there = state.last_fix(target.device_ids) if target.is_person else None
    if target.is_person and there is None:
        return None
    return Apart(rings.apart_mm(here, there, target.shape), there)


def recent_apart_mm(state: State, case: Case, target: Target, *, before_ms: int = AFTER_ALL_MS) -> float | None:
    """Distance between the wearer and a target by their newest positions before a moment, mm; None if a side has none or old ones."""
    here = _recent_before(state, case.tag_device_ids, before_ms)
    there = _recent_before(state, target.device_ids, before_ms) if target.is_person else None
    if here is None or (target.is_person and there is None):
        return None
    return rings.apart_mm(here, there, target.shape)


def _recent_before(state: State, device_ids: tuple[str, ...], before_ms: int) -> Fix | None:
    """The newest position before a moment of the device that reported last; None if it was older than 3 minutes then."""
    track = state.last_track(device_ids)
    fix = track.last_before(before_ms) if track else None
    return fix if fix and is_recent(fix.time_ms, min(before_ms, state.now_ms)) else None


def nearest(state: State, case: Case, person: Target) -> Nearest | None:
    """The least distance between the wearer's and a person's devices. Only fresh positions count; None if no pair has them.

    Each pair is compared by the newest positions, and at the newest moment at which both positions are known: two people in one vehicle
    who report in turn are near each other, however far apart their newest positions are.
    """
    candidates = []
    for _, sides in fresh_pairs(state, case, person):
        times_ms = [side.recent[-1].time_ms for side in sides if side]
        candidates.append(Nearest(rings.newest_apart_mm(sides, person.shape), max(times_ms)))
        if (known := rings.relative_at(sides, min(times_ms))) is not None:
            candidates.append(Nearest(math.hypot(*known), min(times_ms)))
    return min(candidates, default=None)


def claimed_mm(state: State, case: Case, target: Target) -> float:
    """Least distance between the wearer and a target that the newest positions claim, mm. Both sides must have a position."""
    return min(rings.newest_apart_mm(sides, target.shape) for _, sides in all_pairs(state, case, target))
