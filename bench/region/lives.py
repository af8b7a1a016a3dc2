"""Weeks of a wearer who lives at least 2 km from the protected person, comes near her on purpose, and is seen on her map. Pure.

The wearer lives 2 to 6 km from her home, works elsewhere, and goes out. Once or twice
a week he goes to her home, where she mostly is: from his home, from work, or from another place, by streets. He stays for 5 to 25
minutes within 400 m of it, at several places, and goes home or elsewhere. All follows from the seed.
"""

from __future__ import annotations

import cmath
import math
import random
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from bench.burden.journeys import Diary, Pace, route
from bench.burden.lives import HER_HOME, START_MS
from bench.decision.placement import moved

SEED = "region-1"
DAYS = 7
HOME_M = (2_000.0, 6_000.0)
"""Distance of his home from hers."""
SPREAD_M = 8_000.0
APPROACHES = (1, 2)
"""Number of times a week that he goes to her: in France, a wearer triggers an alarm 0.8 times a week, of whatever cause."""
NEAR_M = 3_000.0
"""Within this distance of each other both devices report each 15 s, else each 160 s."""
NEAR_INTERVAL_S, FAR_INTERVAL_S = 15, 160
ERROR_M = 8.0
_DAY_S, _H_S = 86_400.0, 3_600.0


class Sample(NamedTuple):
    """Both sides' reports at a moment."""

    at_s: float
    wearer: complex
    """Metres east and north of her home, with a receiver's error."""
    person: complex


@dataclass(frozen=True)
class Week:
    """A week of both sides."""

    name: str
    home: complex
    """His home."""
    samples: tuple[Sample, ...]


def e7(point: complex) -> tuple[int, int]:
    """Latitude and longitude of a point, 1e-7 degrees."""
    spot = moved(HER_HOME, point.imag, point.real)
    return spot.lat_e7, spot.lon_e7


def ms(at_s: float) -> int:
    """A moment of a week, milliseconds since 1970 UTC. Each week begins at midnight in Korea."""
    return START_MS - 9 * 3_600_000 + round(at_s * 1000)


def week(seed: int, approaches: tuple[int, int] = APPROACHES) -> Week:
    """The week with this seed."""
    name = f"{SEED} {seed}"
    rng = random.Random(name)
    home, work = ring(rng, *HOME_M), ring(rng, 3_000, 5_000)
    his = _wearer(random.Random(f"{name} wearer"), home, approaches)
    hers = _person(random.Random(f"{name} person"), work)
    return Week(name, home, tuple(_samples(random.Random(f"{name} errors"), _At(his), _At(hers))))


def ring(rng: random.Random, from_m: float, to_m: float) -> complex:
    """A random offset; each point of the ring is as likely."""
    return cmath.rect(math.sqrt(rng.uniform(from_m**2, to_m**2)), rng.uniform(0, 2 * math.pi))


def _wearer(rng: random.Random, home: complex, approaches: tuple[int, int]) -> Diary:
    diary, grid = Diary(home, rng, "at home"), rng.uniform(0, math.pi / 2)
    work = home + ring(rng, 4_000, 12_000)
    haunts = [home + ring(rng, 400, SPREAD_M) for _ in range(8)]
    evenings = set(rng.sample(range(DAYS), rng.randint(*approaches)))

    def go(end: complex, pace: Pace = Pace.CAR) -> None:
        diary.go(route(diary.here, end, rng, grid=grid), pace, "out")

    def visit() -> None:
        """Goes near her home, and stays there at several places."""
        car_park = ring(rng, 100, 400)
        go(car_park)
        until_s = diary.now_s + rng.uniform(300, 1_500)
        while diary.now_s < until_s:
            go(ring(rng, 40, 300), Pace.WALK)
            diary.stay(diary.now_s + rng.uniform(60, 400), "out")
        go(car_park, Pace.WALK)

    for day in range(DAYS):
        is_weekday = day % 7 < 5
        if is_weekday:
            diary.stay(day * _DAY_S + rng.uniform(6.75, 8.5) * _H_S, "at home")
            go(work)
            diary.stay(day * _DAY_S + rng.uniform(17, 18.5) * _H_S, "at work")
        else:
            diary.stay(day * _DAY_S + rng.uniform(10, 15) * _H_S, "at home")
        comes = day in evenings
        chance = rng.random()
        if not comes or chance < 0.35:
            go(home)
            diary.stay(diary.now_s + rng.uniform(600, 5_400), "at home")
        elif chance < 0.65:
            go(rng.choice(haunts))
            diary.stay(diary.now_s + rng.uniform(600, 3_600), "out")
        if comes:
            visit()
        if (comes and rng.random() < 0.5) or (not comes and rng.random() < 0.6):
            go(rng.choice(haunts))
            diary.stay(diary.now_s + rng.uniform(600, 3_600), "out")
        go(home)
    diary.stay(DAYS * _DAY_S, "at home")
    return diary


def _person(rng: random.Random, work: complex) -> Diary:
    diary = Diary(0, rng, "at home")
    for day in range(DAYS):
        if day % 7 < 5:
            diary.stay(day * _DAY_S + rng.uniform(7.5, 9) * _H_S, "at home")
            diary.go([work], Pace.CAR, "out")
            diary.stay(day * _DAY_S + rng.uniform(16, 17.5) * _H_S, "at work")
            diary.go([0], Pace.CAR, "out")
    diary.stay(DAYS * _DAY_S, "at home")
    return diary


class _At:
    """Where somebody is at each moment of a diary."""

    def __init__(self, diary: Diary) -> None:
        self._points, self._times = diary.points, [at_s for at_s, _ in diary.points]

    def __call__(self, at_s: float) -> complex:
        after = min(max(bisect_right(self._times, at_s), 1), len(self._points) - 1)
        (from_s, start), (to_s, end) = self._points[after - 1], self._points[after]
        share = min(1.0, (at_s - from_s) / (to_s - from_s)) if to_s > from_s else 1.0
        return start + (end - start) * share


def _samples(rng: random.Random, his: _At, hers: _At) -> Iterator[Sample]:
    at_s = 0.0
    while at_s < DAYS * _DAY_S:
        wearer, person = his(at_s), hers(at_s)
        yield Sample(at_s, wearer + _error(rng), person + _error(rng))
        at_s += NEAR_INTERVAL_S if abs(wearer - person) <= NEAR_M else FAR_INTERVAL_S


def _error(rng: random.Random) -> complex:
    return complex(rng.gauss(0, ERROR_M), rng.gauss(0, ERROR_M))
