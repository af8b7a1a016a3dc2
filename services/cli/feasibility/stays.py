"""Places where a wearer stays again and again, such as home and work: candidates for an exception of the order. No I/O, no clock.

Stays are found as stay points (Li et al., Mining user similarity based on location history, ACM GIS 2008).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from services.cli.feasibility.history import BREAK_MS, DAY_MS
from services.cli.feasibility.presence import KOREA_MS
from services.geofence.domain.kinematics.geometry import Vector
from services.geofence.domain.kinematics.intervals import Stretch
from services.geofence.domain.tracks.fixes import Fix

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


def stays(fixes: Sequence[Fix]) -> list[Stay]:
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
