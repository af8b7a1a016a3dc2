"""Months of the contact study: a wearer who lives at least 2 km from the protected person's home, which nobody tells him. Pure.

**The wearer** lives 2 to 6 km from her home. From Monday to Friday he works 4 to 12 km from his home. On most evenings and at the
weekend he goes out: to shops near his home, and to places anywhere within 8 km of his home, on foot or by car, so that his ways cross
hers.

**The protected person** works on weekdays at a place that the order names to him, 3 to 5 km from her home, and goes out once or twice a
day, on foot or by car. Her home is secret: the order doesn't name it.

Everything follows from the names below. Journeys are those of the burden study (`bench.burden.journeys`).
"""

from __future__ import annotations

import cmath
import math
import random
from bisect import bisect_right
from dataclasses import dataclass
from typing import NamedTuple

from bench.burden.journeys import Diary, Pace, route
from bench.burden.lives import HER_HOME, START_MS
from bench.decision.placement import moved

SEED = "contact-1"
"""Part of the seed of each random choice."""
DAYS = 30
HOME_M = (2_000.0, 6_000.0)
"""Distance of his home from hers."""
SPREAD_M = 8_000.0
"""The wearer knows that she lives within this distance of his home, and goes to places within it."""
INTERVAL_S = 165
"""Interval of all reports, s: positions at most 180 s apart are joined by a line."""
REPORTING_S = (6.5 * 3_600.0, 23.5 * 3_600.0)
"""Time of the day in which there are reports. At night nobody moves, and the rule makes no contacts."""
ERROR_M = 8.0
"""Standard deviation of positions along each axis."""
_DAY_S, _H_S = 86_400.0, 3_600.0


class Sighting(NamedTuple):
    """A position of somebody."""

    at_s: float
    """Seconds after the start."""
    point: complex
    """Metres east and north of her home."""


@dataclass(frozen=True)
class Month:
    """A month of both sides."""

    name: str
    home: complex
    """His home."""
    work: complex
    """Her place of work, which the order names."""
    wearer: tuple[Sighting, ...]
    """What his tag reports."""
    person: tuple[Sighting, ...]
    """What her phone reports."""


def month(seed: int) -> Month:
    """The month with this seed."""
    name = f"{SEED} {seed}"
    rng = random.Random(name)
    home, work = _ring(rng, *HOME_M), _ring(rng, 3_000, 5_000)
    his, hers = _wearer(random.Random(f"{name} wearer"), home), _person(random.Random(f"{name} person"), work)
    return Month(name, home, work, _reports(f"{name} tag", his), _reports(f"{name} phone", hers))


def e7(point: complex) -> tuple[int, int]:
    """Latitude and longitude of a point, 1e-7 degrees."""
    spot = moved(HER_HOME, point.imag, point.real)
    return spot.lat_e7, spot.lon_e7


def ms(at_s: float) -> int:
    """A moment of a month, milliseconds since 1970 UTC. Each month begins at midnight in Korea."""
    return START_MS - 9 * 3_600_000 + round(at_s * 1000)


def _wearer(rng: random.Random, home: complex) -> Diary:
    diary, grid = Diary(home, rng, "at home"), rng.uniform(0, math.pi / 2)
    work, shops = home + _ring(rng, 4_000, 12_000), [home + _ring(rng, 400, 1_500) for _ in range(3)]
    haunts = [home + _ring(rng, 0, SPREAD_M) for _ in range(6)]

    def go(end: complex, pace: Pace) -> None:
        diary.go(route(diary.here, end, rng, grid=grid), pace, "out")

    def outing(day: int, hour: float) -> None:
        begin_s = max(day * _DAY_S + hour * _H_S, diary.now_s + 600)
        if begin_s > day * _DAY_S + 21.5 * _H_S:
            return
        diary.stay(begin_s, "at home")
        near = rng.random() < 0.4
        end = rng.choice(shops) if near else rng.choice([*haunts, home + _ring(rng, 0, SPREAD_M)])
        pace = Pace.WALK if abs(end - home) < 1_200 else Pace.CAR
        go(end, pace)
        if rng.random() < 0.4:
            go(end + _ring(rng, 200, 900), Pace.WALK)
        diary.stay(diary.now_s + rng.uniform(600, 5_400), "out")
        go(home, pace)

    for day in range(DAYS):
        if day % 7 < 5:
            diary.stay(day * _DAY_S + rng.uniform(6.75, 8.5) * _H_S, "at home")
            go(work, Pace.CAR)
            diary.stay(day * _DAY_S + rng.uniform(17, 18.5) * _H_S, "at work")
            go(home, Pace.CAR)
            if rng.random() < 0.7:
                outing(day, rng.uniform(19, 20.5))
        else:
            for hours in ((9, 12), (13, 16), (17, 20)):
                if rng.random() < 0.75:
                    outing(day, rng.uniform(*hours))
    diary.stay(DAYS * _DAY_S, "at home")
    return diary


def _person(rng: random.Random, work: complex) -> Diary:
    diary = Diary(0, rng, "at home")
    for day in range(DAYS):
        if day % 7 < 5:
            diary.stay(day * _DAY_S + rng.uniform(7.5, 9) * _H_S, "at home")
            diary.go([work], Pace.CAR, "out")
            diary.stay(day * _DAY_S + rng.uniform(17, 18) * _H_S, "at work")
            diary.go([0], Pace.CAR, "out")
        for hours in ((10, 13), (14, 18)) if day % 7 >= 5 else ((18.5, 20),):
            begin_s = day * _DAY_S + rng.uniform(*hours) * _H_S
            if rng.random() < 0.6 and begin_s > diary.now_s:
                diary.stay(begin_s, "at home")
                by_car = rng.random() < 0.5
                diary.go(
                    [_ring(rng, 1_500, 6_000) if by_car else _ring(rng, 250, 1_000)],
                    Pace.CAR if by_car else Pace.WALK,
                    "out",
                )
                diary.stay(diary.now_s + rng.uniform(600, 5_400), "out")
                diary.go([0], Pace.CAR if by_car else Pace.WALK, "out")
    diary.stay(DAYS * _DAY_S, "at home")
    return diary


def _reports(name: str, diary: Diary) -> tuple[Sighting, ...]:
    rng = random.Random(name)
    times = [at_s for at_s, _ in diary.points]
    reports = []
    for n in range(int(DAYS * _DAY_S / INTERVAL_S)):
        at_s = n * INTERVAL_S + rng.uniform(0, 10)
        if not REPORTING_S[0] <= n * INTERVAL_S % _DAY_S < REPORTING_S[1]:
            continue
        after = min(max(bisect_right(times, at_s), 1), len(times) - 1)
        (from_s, start), (to_s, end) = diary.points[after - 1], diary.points[after]
        share = (at_s - from_s) / (to_s - from_s) if to_s > from_s else 1.0
        point = start + (end - start) * share
        reports.append(Sighting(at_s, point + complex(rng.gauss(0, ERROR_M), rng.gauss(0, ERROR_M))))
    return tuple(reports)


def _ring(rng: random.Random, from_m: float, to_m: float) -> complex:
    """A random offset; each point of the ring is as likely."""
    return cmath.rect(math.sqrt(rng.uniform(from_m**2, to_m**2)), rng.uniform(0, 2 * math.pi))
