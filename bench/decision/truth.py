"""How far apart the two sides of a play truly are, in continuous time. Pure; independent of the geometry that decides."""

from __future__ import annotations

import math
from itertools import pairwise

from bench.decision.placement import PLACE_RADIUS_M, Play, Spot, Way, metres_per_e7

Stretch = tuple[int, int]
"""From and until, ms."""


class Truth:
    """The distance to the person, or to the edge of the place, at each moment of a play."""

    def __init__(self, play: Play) -> None:
        self._edge_m = PLACE_RADIUS_M if play.is_place else 0
        north, east = metres_per_e7(play.other[0].lat_e7)
        self._times_ms = sorted({spot.at_ms for way in (play.way, play.other) for spot in way})
        wearers, others = _at_each(play.way, self._times_ms), _at_each(play.other, self._times_ms)
        self._apart = [((w[0] - o[0]) * north, (w[1] - o[1]) * east) for w, o in zip(wearers, others, strict=True)]
        """North and east, m."""

    def within(self, radius_m: float, from_ms: int = 0) -> list[Stretch]:
        """When they were at most so far apart, from a moment on."""
        found: list[tuple[float, float]] = []
        for (start_ms, start), (end_ms, end) in pairwise(zip(self._times_ms, self._apart, strict=True)):
            part = _inside(start, end, radius_m + self._edge_m)
            if part is None:
                continue
            enters_ms, leaves_ms = (start_ms + one * (end_ms - start_ms) for one in part)
            if found and enters_ms - found[-1][1] < 1:
                found[-1] = (found[-1][0], leaves_ms)
            else:
                found.append((enters_ms, leaves_ms))
        return [(max(round(a), from_ms), round(b)) for a, b in found if b >= from_ms]

    def at_m(self, at_ms: int) -> float:
        """How far apart they were at a moment; at the beginning or the end where it is before or after the play."""
        return self.least_m(at_ms, at_ms)

    def least_m(self, from_ms: int, until_ms: int) -> float:
        """The least distance between two moments."""
        first_ms, last_ms = self._times_ms[0], self._times_ms[-1]
        from_ms, until_ms = (min(max(one, first_ms), last_ms) for one in (from_ms, until_ms))
        least_m = math.inf
        for (start_ms, start), (end_ms, end) in pairwise(zip(self._times_ms, self._apart, strict=True)):
            if end_ms < from_ms or start_ms > until_ms:
                continue
            parts = ((max(start_ms, min(one, end_ms)) - start_ms) / (end_ms - start_ms) for one in (from_ms, until_ms))
            a, b = (_between(start, end, part) for part in parts)
            least_m = min(least_m, _least(a, b))
        return max(0.0, least_m - self._edge_m)


def _at_each(way: Way, times_ms: list[int]) -> list[tuple[float, float]]:
    """Latitude and longitude at each of the moments, 1e-7 degrees."""
    found: list[tuple[float, float]] = []
    i = 0
    for at_ms in times_ms:
        while i + 2 < len(way) and way[i + 1].at_ms < at_ms:
            i += 1
        before, after = way[i], way[i + 1]
        part = (at_ms - before.at_ms) / (after.at_ms - before.at_ms)
        found.append(_between(_flat(before), _flat(after), part))
    return found


def _flat(spot: Spot) -> tuple[float, float]:
    return float(spot.lat_e7), float(spot.lon_e7)


def _between(start: tuple[float, float], end: tuple[float, float], part: float) -> tuple[float, float]:
    return start[0] + part * (end[0] - start[0]), start[1] + part * (end[1] - start[1])


def _least(start: tuple[float, float], end: tuple[float, float]) -> float:
    north, east = end[0] - start[0], end[1] - start[1]
    square = north * north + east * east
    part = 0.0 if square == 0 else min(1.0, max(0.0, -(start[0] * north + start[1] * east) / square))
    return math.hypot(*_between(start, end, part))


def _inside(start: tuple[float, float], end: tuple[float, float], radius_m: float) -> tuple[float, float] | None:
    """The part of a movement, 0 to 1, that is within a circle round the origin."""
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
