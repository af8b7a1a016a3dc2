"""When a wearer truly was near the protected persons and places of an order, by the wearer's own track. No I/O, no clock."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from services.cli.feasibility.history import BREAK_MS, DAY_MS
from services.geofence.domain.entries import Case, Encounter, Target
from services.geofence.domain.kinematics import rings
from services.geofence.domain.kinematics.intervals import Stretch, add_stretch, overlaps, without
from services.geofence.domain.kinematics.rings import Sides
from services.geofence.domain.kinematics.track import UNKNOWN_AFTER_MS, Track
from services.geofence.domain.tracks.fixes import Fix

SAME_VISIT_MS = 600_000
"""Stays within a ring that are at most this far apart are one visit: the wearer walks along its edge."""
KOREA_MS = 9 * 3_600_000


class Visit(NamedTuple):
    """A stay within the widest ring that demands a response, which no exception of the order allows. Sorts by its start."""

    from_ms: int
    until_ms: int
    target_id: str


def visits(case: Case, tracks: Mapping[str, Track], radius_mm: int) -> list[Visit]:
    """Stays of the wearer within a radius of each target, by the lines between neighbouring positions.

    Positions more than 3 minutes apart aren't joined, as in the decision. Stays that an authorised encounter of the case allows are
    left out.
    """
    found = []
    for target in case.targets:
        inside: list[Stretch] = []
        for sides in _sides(case, target, tracks):
            _add_inside(inside, sides, target, radius_mm=radius_mm)
        unlawful = without(inside, _authorised(case, tracks))
        found += [Visit(from_ms, until_ms, target.target_id) for from_ms, until_ms in _merged(unlawful)]
    return sorted(found)


def unseen_within_reach_ms(
    case: Case, tracks: Mapping[str, Track], radius_mm: int, *, reach_mps: int, fixes: Sequence[Fix]
) -> int:
    """Time for which the wearer's position is unknown and the wearer may be within a radius of a target, ms.

    In a gap between two positions the wearer is somewhere between them: at each moment no farther from the first one, and from the
    second one, than the speed bound allows. A gap longer than BREAK_MS isn't counted. The accuracies count in favour of presence.
    """
    total_ms = 0
    for before, after in pairwise(fixes):
        gap_ms = after.time_ms - before.time_ms
        if not UNKNOWN_AFTER_MS < gap_ms <= BREAK_MS:
            continue
        reachable: list[Stretch] = []
        for target in case.targets:
            ends = _missing_mm(before, target, tracks), _missing_mm(after, target, tracks)
            if ends[0] is None or ends[1] is None:
                continue
            # Millimetres by metres a second are milliseconds.
            from_ms = before.time_ms + max(UNKNOWN_AFTER_MS, round((ends[0] - radius_mm) / reach_mps))
            until_ms = after.time_ms - max(0, round((ends[1] - radius_mm) / reach_mps))
            if from_ms < until_ms:
                add_stretch(reachable, from_ms, until_ms)
        total_ms += sum(until_ms - from_ms for from_ms, until_ms in reachable)
    return total_ms


def _missing_mm(fix: Fix, target: Target, tracks: Mapping[str, Track]) -> float | None:
    """Distance of a position from a target, less the accuracies, mm. None if the person's position isn't known by then."""
    if not target.is_person:
        return target.shape.distance_mm(fix.point) - fix.accuracy_mm
    known = [seen for id_ in target.device_ids if id_ in tracks and (seen := _last_before(tracks[id_], fix.time_ms))]
    if not known:
        return None
    seen = max(known)
    apart = fix.x_mm - seen.x_mm, fix.y_mm - seen.y_mm, fix.z_mm - seen.z_mm
    return target.shape.distance_mm(apart) - fix.accuracy_mm - seen.accuracy_mm


def _last_before(track: Track, at_ms: int) -> Fix | None:
    index = track.count_before(at_ms + 1, 0)
    return track.fixes[index] if track.fixes and track.fixes[index].time_ms <= at_ms else None


def _sides(case: Case, target: Target, tracks: Mapping[str, Track]) -> Iterator[Sides]:
    tags = [tracks[id_] for id_ in case.tag_device_ids if id_ in tracks]
    for tag in tags:
        if not target.is_person:
            yield Sides(tag, None)
        for id_ in target.device_ids:
            if id_ in tracks:
                yield Sides(tag, tracks[id_])


def _add_inside(inside: list[Stretch], sides: Sides, target: Target, *, radius_mm: int) -> None:
    from_ms, until_ms = sides.wearer.fixes[0].time_ms, sides.wearer.fixes[-1].time_ms
    rings.measure_inside(
        inside,
        None,
        target.shape,
        radius_mm=radius_mm,
        pieces=rings.joined(sides, from_ms, until_ms),
        spans=[(from_ms, until_ms)],
    )


def _merged(stretches: Sequence[Stretch]) -> list[Stretch]:
    merged: list[Stretch] = []
    for from_ms, until_ms in stretches:
        if merged and from_ms - merged[-1][1] <= SAME_VISIT_MS:
            merged[-1] = merged[-1][0], max(merged[-1][1], until_ms)
        else:
            merged.append((from_ms, until_ms))
    return merged


def _authorised(case: Case, tracks: Mapping[str, Track]) -> list[Stretch]:
    """Time at which an authorised encounter allows the wearer to be near."""
    allowed: list[Stretch] = []
    tags = [tracks[id_] for id_ in case.tag_device_ids if id_ in tracks]
    for encounter in case.encounters:
        for tag in tags:
            for stretch in _at_places(encounter, tag):
                for window in _windows(encounter, *stretch):
                    add_stretch(allowed, *window)
    return allowed


def _at_places(encounter: Encounter, tag: Track) -> list[Stretch]:
    """Time that a tag spent at the places of an encounter; its whole track if the encounter holds anywhere."""
    from_ms, until_ms = tag.fixes[0].time_ms, tag.fixes[-1].time_ms
    if not encounter.places:
        return [(from_ms, until_ms)]
    stretches: list[Stretch] = []
    for shape in encounter.places:
        pieces = tag.joined(from_ms, until_ms)
        rings.measure_inside(stretches, None, shape, radius_mm=0, pieces=pieces, spans=[(from_ms, until_ms)])
    return stretches


def _windows(encounter: Encounter, from_ms: int, until_ms: int) -> Iterator[Stretch]:
    """The parts of a stretch in which an encounter holds, by its dates and its hours of the day in Korea."""
    low_ms, high_ms = max(from_ms, encounter.from_ms), min(until_ms, encounter.until_ms)
    if not encounter.daily_until_s:
        if low_ms <= high_ms:
            yield low_ms, high_ms
        return
    first_ms = low_ms - (low_ms + KOREA_MS) % DAY_MS
    daily = [
        (midnight_ms + encounter.daily_from_s * 1000, midnight_ms + encounter.daily_until_s * 1000)
        for midnight_ms in range(first_ms, high_ms + 1, DAY_MS)
    ]
    yield from overlaps(daily, low_ms, high_ms)
