"""Plays of the decision-quality study: real tracks as wearers, and the placement of protected persons and places.

**Truth.** A leg is the part of a GeoLife track between two gaps of more than 3 minutes; legs of 10 minutes and more are
used. A fix is dropped where no road vehicle (60 m/s) could have reached it from the previous fix. Between fixes the
wearer moves in a straight line. A leg counts as the truth: its errors shift the real path by metres, and the distances
below refer to the leg.

**Placement.** For each leg a home is placed at each distance of `SIDE_DISTANCES_M`, at a right angle to the way, on a
random side of a random moment of the leg. These homes are on the way, within the ring of 100 m, or at 120 to 300 m, like
neighbours of the way whom nobody approaches. One more home lies straight ahead of the leg's end, at a random distance of
`BEYOND_M`: there somebody comes nearer and stays away. One more is far away, 1 to 20 km, log-uniformly distributed. A
random half of the homes are protected places; in the others a protected person is at home with her phone. A play covers
the leg for 20 minutes before and after the moment, or all of it for a far home. Each session of `pairs.csv` is two
people who carried recorders and came within 2 km of each other. It is played from 10 minutes before it to 10 minutes
after it, once with each of the two as the wearer.

**Why this is representative.** The ways, stops, turns and speeds are those of real people on foot, by bicycle, car and
train. More than half of the homes are near misses, where a rule by distance alone sends patrols for nothing; the rest are
breaches. The pairs walk together, meet and pass. The plays aren't a sample of wearers: most wearers never come so near
to a person whom they may not approach, so they say nothing of rates per day. Everything follows from the tracks
and from the names below; nothing was selected by its result.
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
"""Part of the seed of each random choice."""
SIDE_DISTANCES_M = (0, 20, 40, 70, 120, 150, 200, 250, 300)
BEYOND_M = (0, 50, 120, 200, 300)
FAR_M = (1_000.0, 20_000.0)
PLACE_RADIUS_M = 30
"""Radius of a protected place, which is a circle; distances are measured to its edge."""
GAP_MS = 180_000
"""Maximum time between two fixes of a leg; in a longer gap the position is unknown."""
MIN_LEG_MS = 600_000
MIN_PAIR_MS = 120_000
FASTEST_MPS = 60.0
AROUND_MS = 1_200_000
AROUND_SESSION_MS = 600_000
_A_M, _E2 = 6_378_137.0, 6.69437999014e-3
"""WGS84: semi-major axis in metres, and the square of the eccentricity."""


class Spot(NamedTuple):
    """Position of somebody at a moment."""

    at_ms: int
    lat_e7: int
    lon_e7: int


Way = tuple[Spot, ...]
"""Path of somebody: positions in order of time, with straight lines between them."""


@dataclass(frozen=True, slots=True)
class Play:
    """A wearer on the way, and the person or place that one order protects."""

    name: str
    kind: str
    """`pair`, `beside-<m>`, `beyond-<m>` or `far`."""
    wearer: str
    """Person of the track."""
    way: Way
    other: Way
    """Path of the protected person or place, over the same time as `way`."""
    is_place: bool


def metres_per_e7(lat_e7: int) -> tuple[float, float]:
    """Length of 1e-7 degrees northward and eastward at a latitude, m."""
    lat = math.radians(lat_e7 / 1e7)
    w2 = 1 - _E2 * math.sin(lat) ** 2
    e7 = math.radians(1e-7)
    return _A_M * (1 - _E2) / w2**1.5 * e7, _A_M / math.sqrt(w2) * math.cos(lat) * e7


def moved(spot: Spot, north_m: float, east_m: float) -> Spot:
    """A position shifted by an offset in metres."""
    north, east = metres_per_e7(spot.lat_e7)
    return Spot(spot.at_ms, spot.lat_e7 + round(north_m / north), spot.lon_e7 + round(east_m / east))


def offset_m(start: Spot, end: Spot) -> tuple[float, float]:
    """Offset from one position to another: north, east, m."""
    north, east = metres_per_e7(start.lat_e7)
    return (end.lat_e7 - start.lat_e7) * north, (end.lon_e7 - start.lon_e7) * east


def at(way: Way, at_ms: int) -> Spot:
    """Interpolated position at a moment of a way. Raises ValueError for a moment outside it."""
    for before, after in pairwise(way):
        if before.at_ms <= at_ms <= after.at_ms:
            fraction = (at_ms - before.at_ms) / (after.at_ms - before.at_ms)
            return Spot(
                at_ms,
                round(before.lat_e7 + fraction * (after.lat_e7 - before.lat_e7)),
                round(before.lon_e7 + fraction * (after.lon_e7 - before.lon_e7)),
            )
    raise ValueError(f"{at_ms} ms is outside the way, {way[0].at_ms} to {way[-1].at_ms} ms")


def cut(way: Way, from_ms: int, until_ms: int) -> Way:
    """Part of a way between two moments."""
    within = [spot for spot in way if from_ms < spot.at_ms < until_ms]
    return (at(way, from_ms), *within, at(way, until_ms))


def legs_of(path: Path) -> list[Way]:
    """Legs of a track's file."""
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
    return [tuple(leg) for leg in legs if leg and leg[-1].at_ms - leg[0].at_ms >= MIN_LEG_MS]


def plays(folder: Path) -> list[Play]:
    """All plays of the study, from the folder of the tracks."""
    legs = {path.name[:3]: legs_of(path) for path in sorted(folder.glob("[0-9]*.csv.gz"))}
    at_homes = [play for wearer, own in legs.items() for i, leg in enumerate(own) for play in _homes(wearer, i, leg)]
    return [*at_homes, *_sessions(folder / "pairs.csv", legs)]


def digest(selected: list[Play]) -> str:
    """SHA-256 of a list of plays; equal only for equal lists."""
    hashed = hashlib.sha256()
    for play in selected:
        hashed.update(repr((play.name, play.kind, play.wearer, play.is_place, play.way, play.other)).encode())
    return hashed.hexdigest()


def _homes(wearer: str, number: int, leg: Way) -> Iterator[Play]:
    for side_m in SIDE_DISTANCES_M:
        rng = random.Random(f"{SEED} {wearer} {number} beside {side_m}")
        moment_ms = rng.randint(leg[0].at_ms, leg[-1].at_ms)
        north, east = _ahead(leg, moment_ms)
        side = rng.choice((-1, 1))
        is_place = rng.random() < 0.5
        far_m = side_m + (PLACE_RADIUS_M if is_place and side_m else 0)
        home = moved(at(leg, moment_ms), -side * east * far_m, side * north * far_m)
        yield _stay(f"beside-{side_m}", wearer, number, way=_around(leg, moment_ms), home=home, is_place=is_place)
    rng = random.Random(f"{SEED} {wearer} {number} beyond")
    beyond_m = rng.choice(BEYOND_M)
    is_place = rng.random() < 0.5
    north, east = _ahead(leg, leg[-1].at_ms)
    far_m = beyond_m + (PLACE_RADIUS_M if is_place and beyond_m else 0)
    home = moved(leg[-1], north * far_m, east * far_m)
    yield _stay(f"beyond-{beyond_m}", wearer, number, way=_around(leg, leg[-1].at_ms), home=home, is_place=is_place)
    rng = random.Random(f"{SEED} {wearer} {number} far")
    min_m, max_m = FAR_M
    off_m, bearing = min_m * (max_m / min_m) ** rng.random(), rng.uniform(0, 2 * math.pi)
    home = moved(leg[0], off_m * math.cos(bearing), off_m * math.sin(bearing))
    yield _stay("far", wearer, number, way=leg, home=home, is_place=rng.random() < 0.5)


def _stay(kind: str, wearer: str, number: int, *, way: Way, home: Spot, is_place: bool) -> Play:
    other = (home._replace(at_ms=way[0].at_ms), home._replace(at_ms=way[-1].at_ms))
    return Play(name=f"{wearer}/{number}/{kind}", kind=kind, wearer=wearer, way=way, other=other, is_place=is_place)


def _around(leg: Way, moment_ms: int) -> Way:
    return cut(leg, max(leg[0].at_ms, moment_ms - AROUND_MS), min(leg[-1].at_ms, moment_ms + AROUND_MS))


def _ahead(leg: Way, moment_ms: int) -> tuple[float, float]:
    """Unit vector (north, east) of the way from a minute before to a minute after a moment; north where it doesn't move."""
    start, end = at(leg, max(leg[0].at_ms, moment_ms - 60_000)), at(leg, min(leg[-1].at_ms, moment_ms + 60_000))
    north, east = offset_m(start, end)
    long_m = math.hypot(north, east)
    return (north / long_m, east / long_m) if long_m > 1 else (1.0, 0.0)


def _sessions(path: Path, legs: dict[str, list[Way]]) -> Iterator[Play]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: (row["a"], row["b"], float(row["t0"])))
    played_ms: dict[tuple[str, str], int] = {}
    """End of the last played session, by wearer and person."""
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
                    if end_ms - start_ms >= MIN_PAIR_MS:
                        name = f"{wearer}/{person}/{start_ms}/pair"
                        yield Play(
                            name=name,
                            kind="pair",
                            wearer=wearer,
                            way=cut(own, start_ms, end_ms),
                            other=cut(hers, start_ms, end_ms),
                            is_place=False,
                        )
