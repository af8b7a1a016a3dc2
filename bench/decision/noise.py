"""What devices report of a way in the study of the decision's quality: seeded errors, jumps, gaps, delay, disorder,
duplicates.

- **Accuracy**: for each device one after the other of levels between 5 and 50 m, as likely within each doubling, six an
  hour. The error is a normal one in two dimensions whose 68 % radius is the level, and holds on for about 30 s, as a
  receiver's does between houses. What is reported is the level; for one level in ten half of it, and for one in ten its
  double.
- **Jumps**: one in two hours, as in the tracks themselves (118 in 234 h); one to three reports that are 200 to 2,000 m
  off, half of the time without saying so, half of the time with that distance as their accuracy, as of a cell.
- **Gaps**: two an hour, 30 to 180 s without a report.
- **Delay**: about a second; one report in fifty comes 5 to 30 s later, which is after the next one; twice an hour what
  60 s brought comes at once at their end.
- **Duplicates**: one report in fifty comes again within a minute.

A tag reports each `every_ms`. A phone at home or on the way reports each minute. Everything is drawn from the play's
name, the device and the interval, and from which draw it is: the first is the one that was fixed beforehand.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import NamedTuple

from bench.decision.placement import Play, Spot, Way, moved

SEED = "decision-quality"
"""Goes into each draw, with its number."""
TAG, PHONE = "tag", "phone"
PHONE_EVERY_MS = 60_000
ACCURACY_M = (5.0, 50.0)
LEVELS_PER_H, JUMPS_PER_H, GAPS_PER_H, HELD_PER_H = 6.0, 0.5, 2.0, 2.0
GAP_MS = (30_000, 180_000)
HELD_MS = 60_000
JUMP_M = (200.0, 2_000.0)
WRONG_FACTORS = (1.0,) * 8 + (0.5, 2.0)
LATE_ONE_IN = AGAIN_ONE_IN = 50
LATE_MS = (5_000, 30_000)
ERROR_LASTS_MS = 30_000
R68_PER_SIGMA = math.sqrt(-2 * math.log(0.32))
_H_MS = 3_600_000


class Report(NamedTuple):
    """A position as it arrives; sorts by arrival."""

    arrived_ms: int
    device: str
    number: int
    """Which report of the device it is; one that comes again has the same."""
    fix_ms: int
    lat_e7: int
    lon_e7: int
    accuracy_mm: int


def reports(play: Play, every_ms: int, draw: int = 1) -> list[Report]:
    """All reports of both sides in the order of their arrival; `draw` says which draw of the noise, from 1 on."""
    found = _device(play.name, TAG, play.way, every_ms, draw)
    if not play.is_place:
        found += _device(play.name, PHONE, play.other, PHONE_EVERY_MS, draw)
    return sorted(found)


def _device(name: str, device: str, way: Way, every_ms: int, draw: int) -> list[Report]:
    rng = random.Random(f"{SEED}-{draw} {name} {device} {every_ms}")
    from_ms, until_ms = way[0].at_ms, way[-1].at_ms
    gaps = list(_stretches(rng, from_ms, until_ms, GAPS_PER_H, GAP_MS))
    held = list(_stretches(rng, from_ms, until_ms, HELD_PER_H, (HELD_MS, HELD_MS)))
    errors = _Errors(rng)
    found = []
    for number, spot in enumerate(_every(way, from_ms + rng.randint(0, min(every_ms, until_ms - from_ms)), every_ms)):
        seen, accuracy_mm = errors.see(spot)
        if any(start_ms <= spot.at_ms < end_ms for start_ms, end_ms in gaps):
            continue
        arrived_ms = spot.at_ms + round(rng.expovariate(1) * 1000)
        if rng.randrange(LATE_ONE_IN) == 0:
            arrived_ms += rng.randint(*LATE_MS)
        for start_ms, end_ms in held:
            if start_ms <= arrived_ms < end_ms:
                arrived_ms = end_ms
        report = Report(arrived_ms, device, number, spot.at_ms, seen.lat_e7, seen.lon_e7, accuracy_mm)
        found.append(report)
        if rng.randrange(AGAIN_ONE_IN) == 0:
            found.append(report._replace(arrived_ms=arrived_ms + rng.randint(1, 60_000)))
    return found


class _Errors:
    """The receiver: where it believes itself to be."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._at_ms: int | None = None
        self._north = self._east = 0.0
        """Error in standard deviations."""
        self._level_m = 0.0
        self._reported_m = 0.0
        self._jump: tuple[float, float, bool] | None = None
        """Metres north and east, and whether it says so."""
        self._jumps_left = 0

    def see(self, spot: Spot) -> tuple[Spot, int]:
        """The spot as reported, and the accuracy, mm."""
        rng = self._rng
        passed_ms = 0 if self._at_ms is None else spot.at_ms - self._at_ms
        if self._at_ms is None or rng.random() < passed_ms / _H_MS * LEVELS_PER_H:
            least_m, most_m = ACCURACY_M
            self._level_m = least_m * (most_m / least_m) ** rng.random()
            self._reported_m = self._level_m * rng.choice(WRONG_FACTORS)
        keeps = 0.0 if self._at_ms is None else math.exp(-passed_ms / ERROR_LASTS_MS)
        fresh = math.sqrt(1 - keeps * keeps)
        self._north = keeps * self._north + fresh * rng.gauss(0, 1)
        self._east = keeps * self._east + fresh * rng.gauss(0, 1)
        self._at_ms = spot.at_ms
        sigma_m = self._level_m / R68_PER_SIGMA
        seen = moved(spot, self._north * sigma_m, self._east * sigma_m)
        if not self._jumps_left and rng.random() < passed_ms / _H_MS * JUMPS_PER_H:
            self._jumps_left = rng.randint(1, 3)
            off_m, bearing = rng.uniform(*JUMP_M), rng.uniform(0, 2 * math.pi)
            self._jump = off_m * math.cos(bearing), off_m * math.sin(bearing), rng.random() < 0.5
        if self._jumps_left and self._jump:
            self._jumps_left -= 1
            north_m, east_m, says_so = self._jump
            vague_m = math.hypot(north_m, east_m) if says_so else self._reported_m
            return moved(seen, north_m, east_m), round(vague_m * 1000)
        return seen, round(self._reported_m * 1000)


def _stretches(
    rng: random.Random, from_ms: int, until_ms: int, per_h: float, long_ms: tuple[int, int]
) -> Iterator[tuple[int, int]]:
    at_ms = from_ms + round(rng.expovariate(per_h) * _H_MS)
    while at_ms < until_ms:
        end_ms = at_ms + rng.randint(*long_ms)
        yield at_ms, end_ms
        at_ms = end_ms + round(rng.expovariate(per_h) * _H_MS)


def _every(way: Way, from_ms: int, every_ms: int) -> Iterator[Spot]:
    """Where somebody truly is, each so often."""
    i = 0
    for at_ms in range(from_ms, way[-1].at_ms + 1, every_ms):
        while way[i + 1].at_ms < at_ms:
            i += 1
        before, after = way[i], way[i + 1]
        part = (at_ms - before.at_ms) / (after.at_ms - before.at_ms)
        yield Spot(
            at_ms,
            round(before.lat_e7 + part * (after.lat_e7 - before.lat_e7)),
            round(before.lon_e7 + part * (after.lon_e7 - before.lon_e7)),
        )
