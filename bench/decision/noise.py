"""Noise model of the decision-quality study: reports of a way with seeded errors, jumps, gaps, delays, disorder and duplicates.

- **Accuracy**: each device has an accuracy level between 5 and 50 m, log-uniformly distributed, which changes six times
  an hour. The error is a two-dimensional normal distribution whose 68 % radius is the level. It is correlated over about
  30 s, as a receiver's error is between houses. The reported accuracy is the level; for one level in ten it is half of
  the level, and for one in ten its double.
- **Jumps**: one in two hours, as in the tracks themselves (118 in 234 h). A jump is one to three reports that are 200 to
  2,000 m off. Half of the jumps are undeclared; the others report the offset as their accuracy, as a cell position does.
- **Gaps**: two an hour, 30 to 180 s without a report.
- **Delay**: about a second. One report in fifty arrives 5 to 30 s later, which is after the next one. Twice an hour all
  reports of 60 s arrive together at the end of that time.
- **Duplicates**: one report in fifty arrives a second time within a minute.

A tag reports every `every_ms`. A phone, at home or on the way, reports every minute. The random generator is seeded with
the play's name, the device, the interval and the number of the draw. Draw 1 was fixed beforehand.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import NamedTuple

from bench.decision.placement import Play, Spot, Way, moved

SEED = "decision-quality"
"""Part of the seed of each draw, with the draw's number."""
TAG, PHONE = "tag", "phone"
PHONE_INTERVAL_MS = 60_000
ACCURACY_M = (5.0, 50.0)
LEVELS_PER_H, JUMPS_PER_H, GAPS_PER_H, HELD_PER_H = 6.0, 0.5, 2.0, 2.0
GAP_MS = (30_000, 180_000)
HELD_MS = 60_000
JUMP_M = (200.0, 2_000.0)
WRONG_FACTORS = (1.0,) * 8 + (0.5, 2.0)
LATE_ONE_IN = DUPLICATE_ONE_IN = 50
LATE_MS = (5_000, 30_000)
ERROR_LASTS_MS = 30_000
R68_PER_SIGMA = math.sqrt(-2 * math.log(0.32))
_H_MS = 3_600_000


class Report(NamedTuple):
    """A reported position; sorts by arrival."""

    arrived_ms: int
    device: str
    number: int
    """Number of the report of the device; a duplicate has the same number."""
    fix_ms: int
    lat_e7: int
    lon_e7: int
    accuracy_mm: int


def reports(play: Play, every_ms: int, draw: int = 1) -> list[Report]:
    """All reports of both sides in order of arrival. `draw` is the number of the draw of the noise, from 1 on."""
    arrivals = _device(play.name, TAG, play.way, every_ms=every_ms, draw=draw)
    if not play.is_place:
        arrivals += _device(play.name, PHONE, play.other, every_ms=PHONE_INTERVAL_MS, draw=draw)
    return sorted(arrivals)


def _device(name: str, device: str, way: Way, *, every_ms: int, draw: int) -> list[Report]:
    rng = random.Random(f"{SEED}-{draw} {name} {device} {every_ms}")
    from_ms, until_ms = way[0].at_ms, way[-1].at_ms
    gaps = list(_random_intervals(rng, from_ms, until_ms, per_h=GAPS_PER_H, length_ms=GAP_MS))
    held = list(_random_intervals(rng, from_ms, until_ms, per_h=HELD_PER_H, length_ms=(HELD_MS, HELD_MS)))
    errors = _Errors(rng)
    arrivals = []
    for number, spot in enumerate(_sampled(way, from_ms + rng.randint(0, min(every_ms, until_ms - from_ms)), every_ms)):
        observed, accuracy_mm = errors.observe(spot)
        if any(start_ms <= spot.at_ms < end_ms for start_ms, end_ms in gaps):
            continue
        arrived_ms = spot.at_ms + round(rng.expovariate(1) * 1000)
        if rng.randrange(LATE_ONE_IN) == 0:
            arrived_ms += rng.randint(*LATE_MS)
        for start_ms, end_ms in held:
            if start_ms <= arrived_ms < end_ms:
                arrived_ms = end_ms
        report = Report(
            arrived_ms=arrived_ms,
            device=device,
            number=number,
            fix_ms=spot.at_ms,
            lat_e7=observed.lat_e7,
            lon_e7=observed.lon_e7,
            accuracy_mm=accuracy_mm,
        )
        arrivals.append(report)
        if rng.randrange(DUPLICATE_ONE_IN) == 0:
            arrivals.append(report._replace(arrived_ms=arrived_ms + rng.randint(1, 60_000)))
    return arrivals


class _Errors:
    """Error model of a receiver: the position that it measures instead of the true one."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._at_ms: int | None = None
        self._north = self._east = 0.0
        """Present error north and east, in standard deviations."""
        self._level_m = 0.0
        self._reported_m = 0.0
        self._jump: tuple[float, float, bool] | None = None
        """Present jump: metres north and east, and whether the reported accuracy declares it."""
        self._jumps_left = 0

    def observe(self, spot: Spot) -> tuple[Spot, int]:
        """Measured position for a true one, and the reported accuracy, mm."""
        rng = self._rng
        passed_ms = 0 if self._at_ms is None else spot.at_ms - self._at_ms
        if self._at_ms is None or rng.random() < passed_ms / _H_MS * LEVELS_PER_H:
            min_m, max_m = ACCURACY_M
            self._level_m = min_m * (max_m / min_m) ** rng.random()
            self._reported_m = self._level_m * rng.choice(WRONG_FACTORS)
        correlation = 0.0 if self._at_ms is None else math.exp(-passed_ms / ERROR_LASTS_MS)
        innovation = math.sqrt(1 - correlation * correlation)
        self._north = correlation * self._north + innovation * rng.gauss(0, 1)
        self._east = correlation * self._east + innovation * rng.gauss(0, 1)
        self._at_ms = spot.at_ms
        sigma_m = self._level_m / R68_PER_SIGMA
        observed = moved(spot, self._north * sigma_m, self._east * sigma_m)
        if not self._jumps_left and rng.random() < passed_ms / _H_MS * JUMPS_PER_H:
            self._jumps_left = rng.randint(1, 3)
            off_m, bearing = rng.uniform(*JUMP_M), rng.uniform(0, 2 * math.pi)
            self._jump = off_m * math.cos(bearing), off_m * math.sin(bearing), rng.random() < 0.5
        if self._jumps_left and self._jump:
            self._jumps_left -= 1
            north_m, east_m, is_declared = self._jump
            declared_m = math.hypot(north_m, east_m) if is_declared else self._reported_m
            return moved(observed, north_m, east_m), round(declared_m * 1000)
        return observed, round(self._reported_m * 1000)


def _random_intervals(
    rng: random.Random, from_ms: int, until_ms: int, *, per_h: float, length_ms: tuple[int, int]
) -> Iterator[tuple[int, int]]:
    at_ms = from_ms + round(rng.expovariate(per_h) * _H_MS)
    while at_ms < until_ms:
        end_ms = at_ms + rng.randint(*length_ms)
        yield at_ms, end_ms
        at_ms = end_ms + round(rng.expovariate(per_h) * _H_MS)


def _sampled(way: Way, from_ms: int, every_ms: int) -> Iterator[Spot]:
    """True positions along a way, one every `every_ms`."""
    i = 0
    for at_ms in range(from_ms, way[-1].at_ms + 1, every_ms):
        while way[i + 1].at_ms < at_ms:
            i += 1
        before, after = way[i], way[i + 1]
        fraction = (at_ms - before.at_ms) / (after.at_ms - before.at_ms)
        yield Spot(
            at_ms,
            round(before.lat_e7 + fraction * (after.lat_e7 - before.lat_e7)),
            round(before.lon_e7 + fraction * (after.lon_e7 - before.lon_e7)),
        )
