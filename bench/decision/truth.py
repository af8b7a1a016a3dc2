"""True distance between the two sides of a play, in continuous time. Pure; independent of the geometry that decides."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bench.decision.placement import PLACE_RADIUS_M, Play, Way, metres_per_e7

Stretch = tuple[int, int]
"""Start and end of an interval, ms."""
Points = NDArray[np.float64]
"""Points or offsets, one a row: north and east."""
Fractions = NDArray[np.float64]


class Truth:
    """True distance from the wearer to the person, or to the edge of the place, at each moment of a play."""

    def __init__(self, play: Play) -> None:
        self._edge_m = PLACE_RADIUS_M if play.is_place else 0
        north, east = metres_per_e7(play.other[0].lat_e7)
        times_ms = sorted({spot.at_ms for way in (play.way, play.other) for spot in way})
        wearer, other = _at_each(play.way, times_ms), _at_each(play.other, times_ms)
        self._times_ms = np.array(times_ms, np.int64)
        self._apart = (wearer - other) * (north, east)
        """Offset of the wearer from the other side at each time, north and east, m."""
        self._within: dict[float, list[tuple[float, float]]] = {}

    def within(self, radius_m: float, from_ms: int = 0) -> list[Stretch]:
        """Intervals in which the distance was at most `radius_m`, from `from_ms` on."""
        if radius_m not in self._within:
            self._within[radius_m] = self._stretches(radius_m)
        return [(max(round(a), from_ms), round(b)) for a, b in self._within[radius_m] if b >= from_ms]

    def at_m(self, at_ms: int) -> float:
        """Distance at a moment, m. A moment before or after the play counts as its start or end."""
        return self.min_m(at_ms, at_ms)

    def min_m(self, from_ms: int, until_ms: int) -> float:
        """Minimum distance between two moments, m."""
        times_ms = self._times_ms
        from_ms, until_ms = np.clip((from_ms, until_ms), times_ms[0], times_ms[-1])
        first = max(int(np.searchsorted(times_ms, from_ms, "right")) - 1, 0)
        last = min(int(np.searchsorted(times_ms, until_ms)) + 1, len(times_ms))
        own_ms, own = times_ms[first:last], self._apart[first:last]
        limits = np.column_stack([np.interp((from_ms, until_ms), own_ms, own[:, axis]) for axis in (0, 1)])
        points = np.vstack([limits[:1], own[(own_ms > from_ms) & (own_ms < until_ms)], limits[1:]])
        return max(0.0, _min_distance_m(points[:-1], points[1:]) - self._edge_m)

    def _stretches(self, radius_m: float) -> list[tuple[float, float]]:
        """Intervals within a radius, ms, in fractions of a millisecond."""
        movements, enters, leaves = _inside(self._apart[:-1], self._apart[1:], radius_m + self._edge_m)
        starts_ms, long_ms = self._times_ms[movements], np.diff(self._times_ms)[movements]
        stretches: list[tuple[float, float]] = []
        for enters_ms, leaves_ms in zip(
            (starts_ms + enters * long_ms).tolist(), (starts_ms + leaves * long_ms).tolist(), strict=True
        ):
            if stretches and enters_ms - stretches[-1][1] < 1:
                stretches[-1] = (stretches[-1][0], leaves_ms)
            else:
                stretches.append((enters_ms, leaves_ms))
        return stretches


def _at_each(way: Way, times_ms: list[int]) -> Points:
    """Latitude and longitude of a way at each time, 1e-7 degrees."""
    spots = np.array(way, np.float64)
    return np.column_stack([np.interp(times_ms, spots[:, 0], spots[:, axis]) for axis in (1, 2)])


def _min_distance_m(starts: Points, ends: Points) -> float:
    """Minimum distance from the origin to any of several movements."""
    way = ends - starts
    square = (way * way).sum(axis=1)
    fraction = np.clip(-(starts * way).sum(axis=1) / np.where(square == 0, 1, square), 0, 1)
    nearest = starts + fraction[:, np.newaxis] * way
    return float(np.hypot(nearest[:, 0], nearest[:, 1]).min())


def _inside(starts: Points, ends: Points, radius_m: float) -> tuple[NDArray[np.int64], Fractions, Fractions]:
    """Movements that lie partly within a circle around the origin: their indices, and the first and last fraction (0 to 1) within."""
    way = ends - starts
    a, b = (way * way).sum(axis=1), (starts * way).sum(axis=1)
    c = (starts * starts).sum(axis=1) - radius_m * radius_m
    moves = a > 0
    root = np.sqrt(np.maximum(b * b - a * c, 0))
    divisor = np.where(moves, a, 1)
    enters = np.where(moves, np.maximum(0, (-b - root) / divisor), 0)
    leaves = np.where(moves, np.minimum(1, (-b + root) / divisor), 1)
    is_inside = np.where(moves, (b * b >= a * c) & (enters <= leaves), c <= 0)
    movements = np.flatnonzero(is_inside)
    return movements, enters[movements], leaves[movements]
