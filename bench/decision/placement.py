"""Who is followed where in the study of the decision's quality: real tracks as wearers, and whom each order protects.

**Truth.** A GeoLife track between two gaps of more than 3 minutes is a leg; legs of 10 minutes and more are used. A fix
that nothing on a road could have travelled to since the one before (60 m/s) is left out, and between fixes the wearer
moves in a straight line. What a leg says is taken for the truth: its own errors move real paths by metres, and the
distances below are told of the path.

**Placement.** For each leg a home is put at each distance of `BESIDE_M`, at a right angle to the way, on a side that is
drawn, beside a moment of the leg that is drawn: on the way, within the ring of 100 m, and at 120 to 300 m, where people
live who are neighbours of the way and are never approached. One more lies straight on beyond the leg's end, at a
distance of `BEYOND_M` that is drawn, where somebody comes nearer and stays away; one is far off, 1 to 20 km, as likely
within each doubling. Half of the homes, drawn, are a protected place; in the other half a protected person is at home
with her phone. Of a leg 20 minutes before and after the moment are played, of one with a far home all. Each session of
`pairs.csv`, two people who carried recorders and came within 2 km of each other, is played from 10 minutes before it to
10 minutes after it, once with each of the two as the wearer.

**Why this is representative.** The ways, stops, turns and speeds are people's own, on foot, by bicycle, car and train;
more than half of the homes are near misses, which is where a rule by distance alone sends patrols for nothing, and the
rest are breaches; the pairs walk together, meet and pass. It isn't a sample of wearers: most of them are never so near
to whom they may not approach, so rates per day come from `bench.silence`. Everything follows from the tracks and from
the names below; nothing is chosen by what comes of it.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

SEED = "decision-quality-1"
"""Goes into each draw."""
BESIDE_M = (0, 20, 40, 70, 120, 150, 200, 250, 300)
BEYOND_M = (0, 50, 120, 200, 300)
FAR_M = (1_000.0, 20_000.0)
PLACE_RADIUS_M = 30
"""A protected place is a circle; distances are those to its edge."""
GAP_MS = 180_000
"""Beyond it nothing is known of where somebody was."""
LEG_LEAST_MS = 600_000
PAIR_LEAST_MS = 120_000
FASTEST_MPS = 60.0
AROUND_MS = 1_200_000
AROUND_SESSION_MS = 600_000
_A_M, _E2 = 6_378_137.0, 6.69437999014e-3
"""WGS84."""


class Spot(NamedTuple):
    """Where somebody is at a moment."""

    at_ms: int
    lat_e7: int
    lon_e7: int


Way = tuple[Spot, ...]
"""In order of time; straight lines between."""


@dataclass(frozen=True, slots=True)
class Play:
    """A wearer on the way, and whom or what one order protects from them."""

    name: str
    kind: str
    """`pair`, `beside-<m>`, `beyond-<m>` or `far`."""
    wearer: str
    """Whose track it is."""
    way: Way
    other: Way
    """The protected person's or place's, from the same moment to the same moment."""
    is_place: bool


def metres_per_e7(lat_e7: int) -> tuple[float, float]:
    """Length of 1e-7 degrees northward and eastward at a latitude, m."""
    lat = math.radians(lat_e7 / 1e7)
    w2 = 1 - _E2 * math.sin(lat) ** 2
    e7 = math.radians(1e-7)
    return _A_M * (1 - _E2) / w2**1.5 * e7, _A_M / math.sqrt(w2) * math.cos(lat) * e7


def moved(spot: Spot, north_m: float, east_m: float) -> Spot:
    """The spot so far off."""
    north, east = metres_per_e7(spot.lat_e7)
    return Spot(spot.at_ms, spot.lat_e7 + round(north_m / north), spot.lon_e7 + round(east_m / east))


def offset_m(start: Spot, end: Spot) -> tuple[float, float]:
    """From one spot to another: north, east, m."""
    north, east = metres_per_e7(start.lat_e7)
    return (end.lat_e7 - start.lat_e7) * north, (end.lon_e7 - start.lon_e7) * east


def at(way: Way, at_ms: int) -> Spot:
    """Where somebody is at a moment of their way."""
    for before, after in pairwise(way):
        if before.at_ms <= at_ms <= after.at_ms:
            part = (at_ms - before.at_ms) / (after.at_ms - before.at_ms)
            return Spot(
                at_ms,
                round(before.lat_e7 + part * (after.lat_e7 - before.lat_e7)),
                round(before.lon_e7 + part * (after.lon_e7 - before.lon_e7)),
            )
    raise ValueError(f"{at_ms} is outside the way")


def cut(way: Way, from_ms: int, until_ms: int) -> Way:
    """The stretch between two moments of the way."""
    within = [spot for spot in way if from_ms < spot.at_ms < until_ms]
    return (at(way, from_ms), *within, at(way, until_ms))


def legs_of(path: Path) -> list[Way]:
    """The legs of a track's file."""
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        fixes: dict[int, Spot] = {}
        for row in csv.DictReader(file):
            at_ms = round(float(row["epoch_s"]) * 1000)
            fixes.setdefault(at_ms, Spot(at_ms, round(float(row["lat_deg"]) * 1e7), round(float(row["lon_deg"]) * 1e7)))
    legs: list[list[Spot]] = [[]]
    for _, spot in sorted(fixes.items()):
        last = legs[-1][-1] if legs[-1] else None
        if last is not None and spot.at_ms - last.at_ms > GAP_MS:
            legs.append([])
        elif last is not None and math.hypot(*offset_m(last, spot)) * 1000 > FASTEST_MPS * (spot.at_ms - last.at_ms):
            continue
        legs[-1].append(spot)
    return [tuple(leg) for leg in legs if leg and leg[-1].at_ms - leg[0].at_ms >= LEG_LEAST_MS]


def plays(folder: Path) -> list[Play]:
    """The whole set, from the folder of the tracks."""
    legs = {path.name[:3]: legs_of(path) for path in sorted(folder.glob("[0-9]*.csv.gz"))}
    found = [play for wearer, own in legs.items() for i, leg in enumerate(own) for play in _homes(wearer, i, leg)]
    return [*found, *_sessions(folder / "pairs.csv", legs)]


def digest(made: list[Play]) -> str:
    """What two sets have in common only where they are the same."""
    said = hashlib.sha256()
    for play in made:
        said.update(repr((play.name, play.kind, play.wearer, play.is_place, play.way, play.other)).encode())
    return said.hexdigest()


def _homes(wearer: str, number: int, leg: Way) -> Iterator[Play]:
    for beside_m in BESIDE_M:
        rng = random.Random(f"{SEED} {wearer} {number} beside {beside_m}")
        moment_ms = rng.randint(leg[0].at_ms, leg[-1].at_ms)
        north, east = _ahead(leg, moment_ms)
        side = rng.choice((-1, 1))
        is_place = rng.random() < 0.5
        far_m = beside_m + (PLACE_RADIUS_M if is_place and beside_m else 0)
        home = moved(at(leg, moment_ms), -side * east * far_m, side * north * far_m)
        yield _stay(f"beside-{beside_m}", wearer, number, _around(leg, moment_ms), home, is_place)
    rng = random.Random(f"{SEED} {wearer} {number} beyond")
    beyond_m = rng.choice(BEYOND_M)
    is_place = rng.random() < 0.5
    north, east = _ahead(leg, leg[-1].at_ms)
    far_m = beyond_m + (PLACE_RADIUS_M if is_place and beyond_m else 0)
    home = moved(leg[-1], north * far_m, east * far_m)
    yield _stay(f"beyond-{beyond_m}", wearer, number, _around(leg, leg[-1].at_ms), home, is_place)
    rng = random.Random(f"{SEED} {wearer} {number} far")
    least_m, most_m = FAR_M
    off_m, bearing = least_m * (most_m / least_m) ** rng.random(), rng.uniform(0, 2 * math.pi)
    home = moved(leg[0], off_m * math.cos(bearing), off_m * math.sin(bearing))
    yield _stay("far", wearer, number, leg, home, rng.random() < 0.5)


def _stay(kind: str, wearer: str, number: int, way: Way, home: Spot, is_place: bool) -> Play:
    other = (home._replace(at_ms=way[0].at_ms), home._replace(at_ms=way[-1].at_ms))
    return Play(f"{wearer}/{number}/{kind}", kind, wearer, way, other, is_place)


def _around(leg: Way, moment_ms: int) -> Way:
    return cut(leg, max(leg[0].at_ms, moment_ms - AROUND_MS), min(leg[-1].at_ms, moment_ms + AROUND_MS))


def _ahead(leg: Way, moment_ms: int) -> tuple[float, float]:
    """Direction of the way in the minute before and after a moment, north and east; north where it doesn't lead anywhere."""
    start, end = at(leg, max(leg[0].at_ms, moment_ms - 60_000)), at(leg, min(leg[-1].at_ms, moment_ms + 60_000))
    north, east = offset_m(start, end)
    long_m = math.hypot(north, east)
    return (north / long_m, east / long_m) if long_m > 1 else (1.0, 0.0)


def _sessions(path: Path, legs: dict[str, list[Way]]) -> Iterator[Play]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: (row["a"], row["b"], float(row["t0"])))
    played_ms: dict[tuple[str, str], int] = {}
    """By wearer and person: until when."""
    for row in rows:
        from_ms = round(float(row["t0"]) * 1000) - AROUND_SESSION_MS
        until_ms = round(float(row["t1"]) * 1000) + AROUND_SESSION_MS
        for wearer, person in ((row["a"], row["b"]), (row["b"], row["a"])):
            begin_ms = max(from_ms, played_ms.get((wearer, person), 0))
            played_ms[wearer, person] = until_ms
            for own in legs[wearer]:
                for hers in legs[person]:
                    start_ms = max(begin_ms, own[0].at_ms, hers[0].at_ms)
                    end_ms = min(until_ms, own[-1].at_ms, hers[-1].at_ms)
                    if end_ms - start_ms >= PAIR_LEAST_MS:
                        name = f"{wearer}/{person}/{start_ms}/pair"
                        yield Play(name, "pair", wearer, cut(own, start_ms, end_ms), cut(hers, start_ms, end_ms), False)
