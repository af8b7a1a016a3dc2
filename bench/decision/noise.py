"""Noise model of the decision-quality study: what a device would report at each moment of a play, whatever its interval.

All noise is a function of time, and never of the number of reports. So devices with different intervals, and a device whose
interval is changed by commands, meet the same errors, jumps, gaps and delays, and can be compared in pairs.

- **Accuracy**: each device has an accuracy level between 5 and 50 m, log-uniformly distributed, which changes six times an hour.
  The error is a two-dimensional normal distribution whose 68 % radius is the level. It is correlated over 30 s, as a receiver's
  error is between houses. The reported accuracy is the level; for one level in ten it is half of the level, and for one in ten its
  double.
- **Jumps**: one in two hours, as in the tracks themselves (118 in 234 h). A jump lasts 15, 30 or 45 s, and puts all positions
  meanwhile 200 to 2,000 m off. A device that reports each 15 s sees one to three reports of it. Half of the jumps are undeclared;
  the others report the offset as their accuracy, as a cell position does.
- **Gaps**: two an hour in which nothing is reported and no command arrives. They last 30 to 180 s (`Gaps.SHORT`), or 30 s to 8 min
  (`Gaps.LONG`). The short gaps end when a silence of 180 s would begin, which flatters each rule that waits a little longer.
- **Delay**: about a second. One report in fifty arrives 5 to 30 s later. Twice an hour the network holds all reports and commands
  of 60 s, and delivers them together at the end of that time.
- **Duplicates**: one report in fifty arrives a second time within a minute.

Each kind of noise has a random generator of its own, seeded with the play's name, the device and the number of the draw, so the two
kinds of gap differ in nothing but gaps. Draw 1 was fixed beforehand.
"""

from __future__ import annotations

import enum
import hashlib
import math
import random
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from bench.decision.placement import Play, Spot, Way, moved

SEED = "decision-quality-2"
"""Part of the seed of each draw, with the draw's number."""
TAG, PHONE = "tag", "phone"
PHONE_INTERVAL_MS = 60_000
ACCURACY_M = (5.0, 50.0)
LEVELS_PER_H = 6.0
JUMPS_PER_H = 0.5
GAPS_PER_H = 2.0
HELD_PER_H = 2.0
HELD_MS = 60_000
JUMP_M = (200.0, 2_000.0)
JUMP_LASTS_MS = (15_000, 30_000, 45_000)
WRONG_FACTORS = (1.0,) * 8 + (0.5, 2.0)
LATE_ONE_IN = DUPLICATE_ONE_IN = 50
LATE_MS = (5_000, 30_000)
DUPLICATE_MS = (1, 60_000)
ERROR_LASTS_S = 30.0
PHASE_MS = 60_000
"""Maximum time to the first report of a device. Constant intervals divide it, so the sparser reports are among the denser ones."""
R68_PER_SIGMA = math.sqrt(-2 * math.log(0.32))
_H_MS = 3_600_000
_CORRELATION = math.exp(-1 / ERROR_LASTS_S)
_INNOVATION = math.sqrt(1 - _CORRELATION * _CORRELATION)


class Gaps(enum.Enum):
    """Regime of gaps, with the range of their durations, ms."""

    SHORT = (30_000, 180_000)
    LONG = (30_000, 480_000)


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


class Period(NamedTuple):
    """An interval of time."""

    start_ms: int
    end_ms: int
    """Exclusive end."""


class _Level(NamedTuple):
    level_m: float
    reported_m: float


class _Jump(NamedTuple):
    north_m: float
    east_m: float
    is_declared: bool


class Receiver:
    """A device in one draw of the noise: what it would report at each moment of its way, and when a command reaches it."""

    def __init__(self, name: str, device: str, way: Way, *, draw: int, gaps: Gaps) -> None:
        self._device, self._way = device, way
        self._from_ms, self._until_ms = way[0].at_ms, way[-1].at_ms
        self._times_ms = [spot.at_ms for spot in way]
        seed = f"{SEED}-{draw} {name} {device}"
        rng = random.Random(f"{seed} phase")
        self._phase_ms = rng.randrange(min(PHASE_MS, self._until_ms - self._from_ms))
        self._level_times_ms, self._levels = self._draw_levels(random.Random(f"{seed} levels"))
        self._jumps, self._offsets = self._draw_jumps(random.Random(f"{seed} jumps"))
        self._gaps = [*self._periods(random.Random(f"{seed} {gaps.name}"), GAPS_PER_H, gaps.value)]
        self._held = [*self._periods(random.Random(f"{seed} held"), HELD_PER_H, (HELD_MS, HELD_MS))]
        self._draw_seconds(int.from_bytes(hashlib.sha256(f"{seed} seconds".encode()).digest()))

    def first_ms(self, every_ms: int) -> int:
        """Time of the first fix of a device that reports at an interval."""
        return self._from_ms + self._phase_ms % every_ms

    def is_in_gap(self, at_ms: int) -> bool:
        """Whether nothing passes between the device and the network at a moment."""
        return _period_at(self._gaps, at_ms) is not None

    def reachable_ms(self, at_ms: int, delay_ms: int) -> int:
        """When a command arrives that is sent at a moment and takes `delay_ms`; a gap or a hold of the network delays it."""
        arrives_ms = at_ms + delay_ms
        while period := _period_at(self._gaps, arrives_ms):
            arrives_ms = period.end_ms + delay_ms
        held = _period_at(self._held, arrives_ms)
        return held.end_ms if held else arrives_ms

    def seconds_to_fix(self, at_ms: int) -> float:
        """A random time that belongs to a moment, 0 to 1: how long a position on demand takes."""
        return self._demand[self._second(at_ms)]

    def constant(self, every_ms: int) -> list[Report]:
        """All reports of a device that reports at a constant interval, in order of fixes."""
        times_ms = range(self.first_ms(every_ms), self._until_ms + 1, every_ms)
        return [report for number, at_ms in enumerate(times_ms) for report in self.reports(at_ms, number)]

    def reports(self, at_ms: int, number: int) -> list[Report]:
        """Reports that arrive of a fix at a moment: none in a gap, else one, or two if it is duplicated."""
        if self.is_in_gap(at_ms):
            return []
        second = self._second(at_ms)
        arrived_ms = at_ms + self._delays_ms[second]
        if held := _period_at(self._held, arrived_ms):
            arrived_ms = held.end_ms
        observed, accuracy_mm = self._observe(at_ms, second)
        report = Report(
            arrived_ms=arrived_ms,
            device=self._device,
            number=number,
            fix_ms=at_ms,
            lat_e7=observed.lat_e7,
            lon_e7=observed.lon_e7,
            accuracy_mm=accuracy_mm,
        )
        duplicated_ms = self._duplicated_ms[second]
        return [report, report._replace(arrived_ms=arrived_ms + duplicated_ms)] if duplicated_ms else [report]

    def _second(self, at_ms: int) -> int:
        return (at_ms - self._from_ms) // 1000

    def _observe(self, at_ms: int, second: int) -> tuple[Spot, int]:
        """Measured position at a moment, and the reported accuracy, mm."""
        level = self._levels[bisect_right(self._level_times_ms, at_ms) - 1]
        sigma_m = level.level_m / R68_PER_SIGMA
        north_m = self._north[second] * sigma_m
        east_m = self._east[second] * sigma_m
        reported_m = level.reported_m
        if period := _period_at(self._jumps, at_ms):
            jump = self._offsets[period]
            north_m, east_m = north_m + jump.north_m, east_m + jump.east_m
            if jump.is_declared:
                reported_m = math.hypot(jump.north_m, jump.east_m)
        return moved(self._true(at_ms), north_m, east_m), round(reported_m * 1000)

    def _true(self, at_ms: int) -> Spot:
        i = min(max(bisect_right(self._times_ms, at_ms), 1), len(self._way) - 1)
        before, after = self._way[i - 1], self._way[i]
        fraction = (at_ms - before.at_ms) / (after.at_ms - before.at_ms)
        return Spot(
            at_ms,
            round(before.lat_e7 + fraction * (after.lat_e7 - before.lat_e7)),
            round(before.lon_e7 + fraction * (after.lon_e7 - before.lon_e7)),
        )

    def _draw_levels(self, rng: random.Random) -> tuple[list[int], list[_Level]]:
        times_ms, levels = [], []
        at_ms = self._from_ms
        while at_ms <= self._until_ms:
            min_m, max_m = ACCURACY_M
            level_m = min_m * (max_m / min_m) ** rng.random()
            times_ms.append(at_ms)
            levels.append(_Level(level_m, level_m * rng.choice(WRONG_FACTORS)))
            at_ms += max(1, round(rng.expovariate(LEVELS_PER_H) * _H_MS))
        return times_ms, levels

    def _draw_jumps(self, rng: random.Random) -> tuple[list[Period], dict[Period, _Jump]]:
        jumps = {}
        at_ms = self._from_ms + round(rng.expovariate(JUMPS_PER_H) * _H_MS)
        while at_ms < self._until_ms:
            period = Period(at_ms, at_ms + rng.choice(JUMP_LASTS_MS))
            off_m, bearing = rng.uniform(*JUMP_M), rng.uniform(0, 2 * math.pi)
            jumps[period] = _Jump(off_m * math.cos(bearing), off_m * math.sin(bearing), rng.random() < 0.5)
            at_ms = period.end_ms + round(rng.expovariate(JUMPS_PER_H) * _H_MS)
        return list(jumps), jumps

    def _periods(self, rng: random.Random, per_h: float, length_ms: tuple[int, int]) -> Iterator[Period]:
        at_ms = self._from_ms + round(rng.expovariate(per_h) * _H_MS)
        while at_ms < self._until_ms:
            period = Period(at_ms, at_ms + rng.randint(*length_ms))
            yield period
            at_ms = period.end_ms + round(rng.expovariate(per_h) * _H_MS)

    def _draw_seconds(self, seed: int) -> None:
        """Draws all noise that belongs to single seconds: errors in standard deviations, delays, duplicates."""
        rng = np.random.Generator(np.random.PCG64(seed))
        count = self._second(self._until_ms) + 1
        normals = rng.standard_normal((2, count))
        normals[:, 1:] *= _INNOVATION
        self._north, self._east = (
            list(accumulate(row.tolist(), lambda error, innovation: _CORRELATION * error + innovation))
            for row in normals
        )
        late_ms = rng.integers(*LATE_MS, count, endpoint=True) * (rng.random(count) < 1 / LATE_ONE_IN)
        self._delays_ms: list[int] = (np.rint(rng.exponential(1000, count)).astype(np.int64) + late_ms).tolist()
        duplicated_ms = rng.integers(*DUPLICATE_MS, count, endpoint=True)
        self._duplicated_ms: list[int] = (duplicated_ms * (rng.random(count) < 1 / DUPLICATE_ONE_IN)).tolist()
        """Delay of the duplicate of a report, ms, by second; 0 where there is none."""
        self._demand: list[float] = rng.random(count).tolist()


class World:
    """Both sides of a play in one draw of the noise. It doesn't depend on the interval of the tag, so all arms share it."""

    def __init__(self, play: Play, draw: int = 1, gaps: Gaps = Gaps.SHORT) -> None:
        self.play = play
        self.draw = draw
        self.gaps = gaps
        self.tag = Receiver(play.name, TAG, play.way, draw=draw, gaps=gaps)
        self.phone: list[Report] = []
        """All reports of her phone; none where a place is protected."""
        if not play.is_place:
            phone = Receiver(play.name, PHONE, play.other, draw=draw, gaps=gaps)
            self.phone = phone.constant(PHONE_INTERVAL_MS)
        self.known_ms = self._known_ms()
        """When both sides have reported with a report of the tag each minute, so that all arms begin together; None if never."""

    def _known_ms(self) -> int | None:
        sides = [self.tag.constant(PHASE_MS)] if self.play.is_place else [self.tag.constant(PHASE_MS), self.phone]
        if not all(sides):
            return None
        known_ms = max(min(report.arrived_ms for report in side) for side in sides)
        return known_ms if known_ms < self.play.way[-1].at_ms else None


def _period_at(periods: list[Period], at_ms: int) -> Period | None:
    """The period that holds a moment."""
    i = bisect_right(periods, at_ms, key=lambda period: period.start_ms) - 1
    return periods[i] if i >= 0 and at_ms < periods[i].end_ms else None
