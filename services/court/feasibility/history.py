"""A wearer's past days as entries of a log: the time that they cover, visits near those whom an order protects, and usual stays.

No I/O, no clock.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from services.geofence.domain.entries import Body, Case, Encounter, Positions, Target
from services.geofence.domain.geometry import Vector, ecef_mm
from services.geofence.domain.kinematics import rings
from services.geofence.domain.kinematics.fixes import Fix
from services.geofence.domain.kinematics.rings import Sides, Stretch, add_stretch, overlaps, without
from services.geofence.domain.kinematics.track import UNKNOWN_AFTER_MS, Track

DAY_MS = 86_400_000
BREAK_MS = DAY_MS
"""Longest gap between two positions of the wearer that counts as silence, ms. A longer one is a break of the history, for which
nothing can be expected."""


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """What arrived at one moment of a history, as an entry of a log."""

    stamp_ms: int
    """When it arrived, milliseconds since 1970 UTC."""
    body: Body


@dataclass(frozen=True, slots=True)
class History:
    """Reports of a wearer's tags, and perhaps of protective devices, in order of arrival."""

    entries: tuple[HistoryEntry, ...]
    tag_ids: tuple[str, ...]
    """Tags of the wearer."""

    def tracks(self) -> dict[str, Track]:
        """Returns the track of each device that reported a position."""
        tracks: dict[str, Track] = {}
        for entry in self.entries:
            if isinstance(entry.body, Positions):
                for device_id, fix in _fixes(entry.body, entry.stamp_ms):
                    tracks.setdefault(device_id, Track()).add(fix)
        return tracks

    def tag_fixes(self) -> list[Fix]:
        """Returns the positions of all tags, in order of time."""
        tracks = self.tracks()
        return sorted(fix for tag_id in self.tag_ids if tag_id in tracks for fix in tracks[tag_id].fixes)


@dataclass(frozen=True, slots=True)
class Coverage:
    """The time for which a history says something."""

    from_ms: int
    until_ms: int
    breaks: tuple[Stretch, ...]
    """Gaps of more than BREAK_MS between two positions of the wearer."""

    @property
    def days(self) -> float:
        """Length without the breaks, days."""
        broken_ms = sum(until_ms - from_ms for from_ms, until_ms in self.breaks)
        return (self.until_ms - self.from_ms - broken_ms) / DAY_MS

    def includes(self, at_ms: int) -> bool:
        """Returns whether a moment is covered."""
        if not self.from_ms <= at_ms <= self.until_ms:
            return False
        return not any(from_ms < at_ms < until_ms for from_ms, until_ms in self.breaks)


def coverage_of(fixes: Sequence[Fix]) -> Coverage:
    """The time that the wearer's positions cover. There must be at least one."""
    breaks = tuple(
        (before.time_ms, fix.time_ms) for before, fix in pairwise(fixes) if fix.time_ms - before.time_ms > BREAK_MS
    )
    return Coverage(fixes[0].time_ms, fixes[-1].time_ms, breaks)


def _fixes(batch: Positions, stamp_ms: int) -> Iterator[tuple[str, Fix]]:
    for i, device_id in enumerate(batch.device_ids):
        fix_ms = batch.fix_times_ms[i]
        x_mm, y_mm, z_mm = ecef_mm(batch.lat_e7[i], batch.lon_e7[i])
        yield (
            device_id,
            Fix(
                time_ms=min(fix_ms, stamp_ms),
                fix_ms=fix_ms,
                report_id=batch.report_ids[i],
                x_mm=x_mm,
                y_mm=y_mm,
                z_mm=z_mm,
                accuracy_mm=batch.accuracy_mm[i],
            ),
        )


SAME_VISIT_MS = 600_000
"""Stays within a ring that are at most this far apart are one visit: the wearer walks along its edge."""
KOREA_MS = 9 * 3_600_000


class Visit(NamedTuple):
    """A stay within the widest ring that demands a response, which no exception of the order allows. Sorts by its start."""

    from_ms: int
    until_ms: int
    target_id: str


def visits_of(case: Case, tracks: Mapping[str, Track], radius_mm: int) -> list[Visit]:
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


STAY_MM = 100_000
"""Greatest distance from the first position of a stay, mm."""
MIN_STAY_MS = 1_200_000
"""Least length of a stay: 20 minutes."""
SAME_PLACE_MM = 150_000
"""Stays whose middles are at most this far apart are at one place, mm."""
MIN_DAYS = 3
"""Least number of days with a stay at a place that counts as a habit."""
MAX_PLACES = 4
SLOT_S = 1_800
"""Hours of the day are rounded to half hours."""
SLOTS = 86_400 // SLOT_S
MOSTLY = 0.9
"""Share of the time at a place that its hours must contain."""
MAX_WINDOW_S = 57_600
"""Longest window of hours; a place that needs a longer one is allowed at all hours."""


@dataclass(frozen=True, slots=True)
class Stay:
    """A place where the wearer stays on several days."""

    middle: Vector
    """Earth-centred coordinates, mm."""
    days: int
    """Number of days (Korea) with a stay."""
    total_ms: int
    daily_from_s: int
    """Beginning of the usual hours, seconds after midnight in Korea."""
    daily_until_s: int
    """End of the usual hours, exclusive. Both are 0 if the wearer is there at all hours."""


def stays_of(fixes: Sequence[Fix]) -> list[Stay]:
    """Returns the MAX_PLACES places with most time among those with stays on at least MIN_DAYS days, longest first."""
    places: list[tuple[Vector, list[Stretch]]] = []
    for middle, stretch in _stay_points(fixes):
        near = next((spans for other, spans in places if math.dist(other, middle) <= SAME_PLACE_MM), None)
        if near is None:
            places.append((middle, [stretch]))
        else:
            near.append(stretch)
    known = [_stay(middle, spans) for middle, spans in places]
    habits = [stay for stay in known if stay.days >= MIN_DAYS]
    return sorted(habits, key=lambda stay: -stay.total_ms)[:MAX_PLACES]


def _stay_points(fixes: Sequence[Fix]) -> Iterator[tuple[Vector, Stretch]]:
    """Stays of at least 20 minutes within 100 m of their first position. A break of the history ends a stay."""
    start = 0
    while start < len(fixes):
        end = start
        while (
            end + 1 < len(fixes)
            and math.dist(fixes[start].point, fixes[end + 1].point) <= STAY_MM
            and fixes[end + 1].time_ms - fixes[end].time_ms <= BREAK_MS
        ):
            end += 1
        if fixes[end].time_ms - fixes[start].time_ms < MIN_STAY_MS:
            start += 1
            continue
        points = [fix.point for fix in fixes[start : end + 1]]
        middle = tuple(sum(axis) / len(points) for axis in zip(*points, strict=True))
        yield (middle[0], middle[1], middle[2]), (fixes[start].time_ms, fixes[end].time_ms)
        start = end + 1


def _stay(middle: Vector, spans: Sequence[Stretch]) -> Stay:
    slots_ms = [0] * SLOTS
    days = set()
    for from_ms, until_ms in spans:
        for at_ms in range(from_ms, until_ms, SLOT_S * 1000 // 6):
            slots_ms[(at_ms + KOREA_MS) % DAY_MS // (SLOT_S * 1000)] += 1
            days.add((at_ms + KOREA_MS) // DAY_MS)
    daily_from_s, daily_until_s = _usual_hours(slots_ms)
    return Stay(
        middle=middle,
        days=len(days),
        total_ms=sum(until_ms - from_ms for from_ms, until_ms in spans),
        daily_from_s=daily_from_s,
        daily_until_s=daily_until_s,
    )


def _usual_hours(slots: Sequence[int]) -> tuple[int, int]:
    """The shortest window of half hours that holds most of the time; (0, 0) if it is long or needs to pass midnight."""
    needed = MOSTLY * sum(slots)
    for length in range(1, MAX_WINDOW_S // SLOT_S + 1):
        for first in range(SLOTS - length + 1):
            if sum(slots[first : first + length]) >= needed:
                return first * SLOT_S, (first + length) * SLOT_S
    return 0, 0
