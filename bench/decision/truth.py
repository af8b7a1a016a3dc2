"""True distance between the two sides of a play, in continuous time. Pure; independent of the geometry that decides."""

from __future__ import annotations

import math
from itertools import pairwise

from bench.decision.placement import PLACE_RADIUS_M, Play, Spot, Way, metres_per_e7

Stretch = tuple[int, int]
"""Start and end of an interval, ms."""


class Truth:
    """True distance from the wearer to the person, or to the edge of the place, at each moment of a play."""

    def __init__(self, play: Play) -> None:
        self._edge_m = PLACE_RADIUS_M if play.is_place else 0
        north, east = metres_per_e7(play.other[0].lat_e7)
        self._times_ms = sorted({spot.at_ms for way in (play.way, play.other) for spot in way})
        wearers, others = _at_each(play.way, self._times_ms), _at_each(play.other, self._times_ms)
        self._apart = [((w[0] - o[0]) * north, (w[1] - o[1]) * east) for w, o in zip(wearers, others, strict=True)]
        """Offset of the wearer from the other side at each time, north and east, m."""

    def within(self, radius_m: float, from_ms: int = 0) -> list[Stretch]:
        """Intervals in which the distance was at most `radius_m`, from `from_ms` on."""
        stretches: list[tuple[float, float]] = []
        for (start_ms, start), (end_ms, end) in pairwise(zip(self._times_ms, self._apart, strict=True)):
            fraction = _inside(start, end, radius_m + self._edge_m)
            if fraction is None:
                continue
            enters_ms, leaves_ms = (start_ms + limit * (end_ms - start_ms) for limit in fraction)
            if stretches and enters_ms - stretches[-1][1] < 1:
                stretches[-1] = (stretches[-1][0], leaves_ms)
            else:
                stretches.append((enters_ms, leaves_ms))
        return [(max(round(a), from_ms), round(b)) for a, b in stretches if b >= from_ms]

    def at_m(self, at_ms: int) -> float:
        """Distance at a moment, m. A moment before or after the play counts as its start or end."""
        return self.min_m(at_ms, at_ms)

    def min_m(self, from_ms: int, until_ms: int) -> float:
        """Minimum distance between two moments, m."""
        first_ms, last_ms = self._times_ms[0], self._times_ms[-1]
        from_ms, until_ms = (min(max(at_ms, first_ms), last_ms) for at_ms in (from_ms, until_ms))
        min_m = math.inf
        for (start_ms, start), (end_ms, end) in pairwise(zip(self._times_ms, self._apart, strict=True)):
            if end_ms < from_ms or start_ms > until_ms:
                continue
            fractions = (
                (max(start_ms, min(at, end_ms)) - start_ms) / (end_ms - start_ms) for at in (from_ms, until_ms)
            )
            a, b = (_between(start, end, fraction) for fraction in fractions)
            min_m = min(min_m, _min_distance_m(a, b))
        return max(0.0, min_m - self._edge_m)


def _at_each(way: Way, times_ms: list[int]) -> list[tuple[float, float]]:
    """Latitude and longitude of a way at each time, 1e-7 degrees."""
    points: list[tuple[float, float]] = []
    i = 0
    for at_ms in times_ms:
        while i + 2 < len(way) and way[i + 1].at_ms < at_ms:
            i += 1
        before, after = way[i], way[i + 1]
        fraction = (at_ms - before.at_ms) / (after.at_ms - before.at_ms)
        points.append(_between(_flat(before), _flat(after), fraction))
    return points


def _flat(spot: Spot) -> tuple[float, float]:
    return float(spot.lat_e7), float(spot.lon_e7)


def _between(start: tuple[float, float], end: tuple[float, float], fraction: float) -> tuple[float, float]:
    return start[0] + fraction * (end[0] - start[0]), start[1] + fraction * (end[1] - start[1])


def _min_distance_m(start: tuple[float, float], end: tuple[float, float]) -> float:
    north, east = end[0] - start[0], end[1] - start[1]
    square = north * north + east * east
    fraction = 0.0 if square == 0 else min(1.0, max(0.0, -(start[0] * north + start[1] * east) / square))
    return math.hypot(*_between(start, end, fraction))


def _inside(start: tuple[float, float], end: tuple[float, float], radius_m: float) -> tuple[float, float] | None:
    """First and last fraction (0 to 1) of a movement that lies within a circle around the origin; None where none does."""
    north, east = end[0] - start[0], end[1] - start[1]
    a = north * north + east * east
    b = start[0] * north + start[1] * east
    c = start[0] * start[0] + start[1] * start[1] - radius_m * radius_m
    if a == 0:
        return (0.0, 1.0) if c <= 0 else None
    root = b * b - a * c
    if root < 0:
        return None
    enters, leaves = max(0.0, (-b - math.sqrt(root)) / a), min(1.0, (-b + math.sqrt(root)) / a)
    return (enters, leaves) if enters <= leaves else None
