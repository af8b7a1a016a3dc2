"""Journeys in a plane: paces with stops, streets with corners, and ways around a home. Pure.

A point is a complex number: metres east and north of the protected person's home, which is 0.
"""

from __future__ import annotations

import cmath
import enum
import math
import random
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

CLEAR_M = (190.0, 280.0)
"""How far around the protected person's home a wearer goes who keeps away from it."""
_ARC = math.radians(30)
"""Maximum angle between two corners of a way around."""


class _Speeds(NamedTuple):
    speed_mps: tuple[float, float]
    stretch_m: tuple[float, float]
    """Length after which the speed changes and a stop is possible."""
    stops_one_in: float
    """Share of the stretches that end with a stop."""
    stop_s: tuple[float, float]


class Pace(enum.Enum):
    """How somebody travels."""

    WALK = _Speeds((1.1, 1.6), (100, 350), 0.3, (5, 45))
    CAR = _Speeds((7, 14), (200, 600), 0.35, (8, 60))
    BUS = _Speeds((6, 11), (300, 550), 0.9, (12, 40))
    TRAIN = _Speeds((20, 33), (1_500, 2_500), 0.9, (25, 45))
    MOTORWAY = _Speeds((20, 30), (2_000, 5_000), 0.02, (20, 120))


class Doing(NamedTuple):
    """What somebody does from a moment on."""

    from_s: float
    what: str


class Diary:
    """Where somebody is, and what they do: points in order of time, with straight lines between them."""

    def __init__(self, home: complex, rng: random.Random, what: str) -> None:
        self.points: list[tuple[float, complex]] = [(0.0, home)]
        self.doings = [Doing(0.0, what)]
        self._rng = rng

    @property
    def now_s(self) -> float:
        """Time of the newest point, s."""
        return self.points[-1][0]

    @property
    def here(self) -> complex:
        """The newest point."""
        return self.points[-1][1]

    def stay(self, until_s: float, what: str) -> None:
        """Stays at the newest point until a moment; a moment that has passed changes nothing."""
        if until_s > self.now_s:
            self.doings.append(Doing(self.now_s, what))
            self.points.append((until_s, self.here))

    def go(self, route: Sequence[complex], pace: Pace, what: str) -> None:
        """Goes through all points of a route."""
        rng, speeds = self._rng, pace.value
        self.doings.append(Doing(self.now_s, what))
        for start, end in pairwise([self.here, *route]):
            long_m, gone_m = abs(end - start), 0.0
            while gone_m < long_m:
                stretch_m = min(rng.uniform(*speeds.stretch_m), long_m - gone_m)
                gone_m = gone_m + stretch_m if long_m - gone_m - stretch_m > 1 else long_m
                there_s = self.now_s + stretch_m / rng.uniform(*speeds.speed_mps)
                self.points.append((there_s, start + (end - start) * (gone_m / long_m)))
                if gone_m < long_m and rng.random() < speeds.stops_one_in:
                    self.points.append((self.now_s + rng.uniform(*speeds.stop_s), self.here))


def route(start: complex, end: complex, rng: random.Random, *, grid: float) -> list[complex]:
    """A way from one point to another, without the start: straight or by one corner of a grid of streets, and around her home.

    `grid` is the bearing of the streets, radians. The way keeps `CLEAR_M` from her home, or as much as its ends allow.
    """
    points = [start, end]
    if rng.random() < 0.6:
        turned = (end - start) * cmath.rect(1, -grid)
        first = turned.real if rng.random() < 0.5 else turned.imag * 1j
        points.insert(1, start + first * cmath.rect(1, grid))
    clear_m = rng.uniform(*CLEAR_M)
    points = [_outside(point, clear_m) if 0 < i < len(points) - 1 else point for i, point in enumerate(points)]
    return [point for leg in pairwise(points) for point in around(*leg, clear_m)]


def around(start: complex, end: complex, clear_m: float) -> list[complex]:
    """A way from one point to another that keeps a distance from 0, without the start: straight, or by tangents and an arc."""
    radius_m = min(clear_m, abs(start) - 1, abs(end) - 1)
    if _nearest_m(start, end) >= radius_m:
        return [end]
    turn = cmath.phase(end / start)
    side = 1 if turn >= 0 else -1
    first, last = math.acos(radius_m / abs(start)), abs(turn) - math.acos(radius_m / abs(end))
    count = max(1, math.ceil((last - first) / _ARC))
    step = (last - first) / count
    # Chords of a wider circle touch the circle that the way may not enter.
    wide = start / abs(start) * radius_m / math.cos(step / 2)
    return [*(wide * cmath.rect(1, side * (first + step * (i + 0.5))) for i in range(count)), end]


def _outside(point: complex, clear_m: float) -> complex:
    return point if abs(point) >= clear_m + 2 else cmath.rect(clear_m + 2, cmath.phase(point))


def _nearest_m(start: complex, end: complex) -> float:
    """Minimum distance of a line from 0."""
    way = end - start
    if way == 0:
        return abs(start)
    fraction = min(max(-(start * way.conjugate()).real / abs(way) ** 2, 0), 1)
    return abs(start + fraction * way)
