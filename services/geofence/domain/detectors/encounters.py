"""Authorised encounters: during an active encounter, an approach is recorded and the person is warned, but nobody is sent.

An encounter at a place is active only while a recent position shows the wearer there.
"""

from __future__ import annotations

from services.geofence.domain.entries import Case, Encounter
from services.geofence.domain.geometry import Vector
from services.geofence.domain.kinematics import plausibility
from services.geofence.domain.kinematics.track import Track
from services.geofence.domain.state import State

KOREA_MS = 9 * 3_600_000
"""Korea is this far ahead of UTC, all year."""
DAY_MS = 86_400_000

EDGE_TIMES = 2
"""A position shows a wearer within a place if it is at most this many times its accuracy beyond the place's edge."""
MAX_EDGE_MM = 50_000
"""Greatest such distance, mm: a vague position mustn't allow a street."""


def active_at(state: State, case: Case, at_ms: int) -> Encounter | None:
    """The encounter that allows the wearer to be near at a moment, if any."""
    return next(
        (encounter for encounter in case.encounters if _ends_ms(state, case, encounter, at_ms=at_ms) is not None), None
    )


def active_until_ms(state: State, case: Case, at_ms: int) -> int | None:
    """Latest end, ms, of the encounters that are active at a moment, as far as it is known; None if none is active."""
    ends = [_ends_ms(state, case, encounter, at_ms=at_ms) for encounter in case.encounters]
    return max((end_ms for end_ms in ends if end_ms is not None), default=None)


def _ends_ms(state: State, case: Case, encounter: Encounter, *, at_ms: int) -> int | None:
    """End, ms, of an encounter that is active at a moment, as far as it is known; None if the encounter isn't active then."""
    end_ms = _until_ms(encounter, at_ms)
    if end_ms is None or not encounter.places:
        return end_ms
    known_ms = [
        known.recent[-1].time_ms + track.unknown_after_ms()
        for track in (state.tracks[tag_id] for tag_id in case.tag_device_ids if tag_id in state.tracks)
        if (known := _known(state, track, at_ms)).recent
        and (point := _point(known, at_ms, unknown_after_ms=track.unknown_after_ms()))
        and any(shape.distance_mm(point) <= _edge_mm(known, at_ms) for shape in encounter.places)
    ]
    return min(end_ms, max(known_ms)) if known_ms else None


def _known(state: State, track: Track, at_ms: int) -> Track:
    """The positions that say where a device was at a moment: those that are believed."""
    if not track.recent:
        return track
    until_ms = at_ms if at_ms < track.recent[-1].time_ms else None
    return plausibility.believed(track, at_ms, until_ms, bound_mps=state.rules.reach_mps)


def _edge_mm(track: Track, at_ms: int) -> int:
    """How far beyond the edge of a place a position may be that shows the wearer within it, mm."""
    return min(MAX_EDGE_MM, EDGE_TIMES * track.accuracy_at(at_ms))


def allows(case: Case, at_ms: int, point: Vector) -> bool:
    """Whether an encounter allowed the wearer to be at a point at a moment, even a moment long ago."""
    return any(
        _until_ms(encounter, at_ms) is not None
        and (not encounter.places or any(shape.distance_mm(point) == 0 for shape in encounter.places))
        for encounter in case.encounters
    )


def _until_ms(encounter: Encounter, at_ms: int) -> int | None:
    """End, ms, of an encounter whose times cover a moment; None if they don't."""
    if not encounter.from_ms <= at_ms < encounter.until_ms:
        return None
    if not encounter.daily_until_s:
        return encounter.until_ms
    midnight_ms = at_ms - (at_ms + KOREA_MS) % DAY_MS
    if not midnight_ms + encounter.daily_from_s * 1000 <= at_ms < midnight_ms + encounter.daily_until_s * 1000:
        return None
    return min(encounter.until_ms, midnight_ms + encounter.daily_until_s * 1000)


def _point(track: Track, at_ms: int, *, unknown_after_ms: int) -> Vector | None:
    """Where a device was at a moment; None if that is unknown."""
    last = track.last()
    if last is None or at_ms >= last.time_ms + unknown_after_ms:
        return None
    if at_ms >= last.time_ms:
        return last.point
    before, after = track.round(at_ms)
    if before is None or after is None or after.time_ms - before.time_ms > unknown_after_ms:
        return None
    piece = next(track.assumed(at_ms, at_ms), None)
    return piece.at(at_ms) if piece else None
