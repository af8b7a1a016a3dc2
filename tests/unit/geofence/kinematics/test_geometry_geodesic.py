"""Distances against geodesics.

The references are GeographicLib's test set, points derived from it, and areas whose sides are followed step by step.
"""

from __future__ import annotations

import gzip
import math
import random
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from pyproj import Geod

from services.geofence.domain.geometry import PlanePolygon, ecef_mm
from tests.support.geofence.geolife import data_root

GEOD = Geod(ellps="WGS84")
WITHIN_M = 20_000.0
TOLERANCE_M = 0.1

Corners = list[tuple[float, float]]
"""Latitude and longitude, degrees."""


def rows() -> NDArray[np.float64]:
    """GeodTest-short: lat1 lon1 azi1 lat2 lon2 azi2 s12 a12 m12 S12."""
    path = data_root() / "geodesic" / "GeodTest-short.dat.gz"
    if not path.exists():
        pytest.skip(f"the geodesic test set isn't at {path}")
    with gzip.open(path, "rt") as lines:
        return np.loadtxt(lines)


def apart_m(start: tuple[float, float], end: tuple[float, float]) -> float:
    return math.dist(ecef_mm(*e7(*start)), ecef_mm(*e7(*end))) / 1000


def e7(lat_deg: float, lon_deg: float) -> tuple[int, int]:
    return round(lat_deg * 1e7), round(lon_deg * 1e7)


def test_every_row_under_20_km_agrees() -> None:
    short = [row for row in rows() if row[6] <= WITHIN_M]
    off_m = [abs(apart_m((row[0], row[1]), (row[3], row[4])) - row[6]) for row in short]
    print(f"{len(short)} rows under 20 km, at most {max(off_m):.4f} m off")
    assert len(short) == 1000
    assert max(off_m) < TOLERANCE_M


def test_points_up_to_20_km_from_every_row_agree_with_pyproj() -> None:
    table = rows()
    lat1 = table[:, 0]
    lon1 = table[:, 1]
    azimuth = table[:, 2]
    worst_m = {}
    for length_m in (1.0, 100.0, 1_000.0, 5_000.0, 10_000.0, 20_000.0):
        lon2, lat2, _ = GEOD.fwd(lon1, lat1, azimuth, np.full(len(table), length_m))
        places = zip(lat1, lon1, lat2, lon2, strict=True)
        worst_m[length_m] = max(abs(apart_m((a, b), (c, d)) - length_m) for a, b, c, d in places)
    print({length_m: round(off_m, 4) for length_m, off_m in worst_m.items()})
    assert len(table) == 10_000
    assert max(worst_m.values()) < TOLERANCE_M


def star(rng: random.Random, middle: tuple[float, float], reach_m: float, count: int) -> Corners:
    """An area whose corners are at least a third as far from the middle as `reach_m`."""
    turn = rng.uniform(0, 360)
    places = [
        GEOD.fwd(middle[1], middle[0], turn + 360 * n / count, reach_m * (1 if n == 0 else rng.uniform(0.35, 1)))
        for n in range(count)
    ]
    return [(lat, lon) for lon, lat, _ in places]


def to_sides_m(point: tuple[float, float], lines: Sequence[Corners]) -> float:
    """Least geodesic distance to the sides: each followed in 400 steps, then in 400 more round the nearest point."""
    least = math.inf
    for line in lines:
        for (lat0, lon0), (lat1, lon1) in zip([line[-1], *line[:-1]], line, strict=True):
            azimuth, _, length_m = GEOD.inv(lon0, lat0, lon1, lat1)
            low_m, high_m = 0.0, length_m
            for _ in range(2):
                along_m = np.linspace(low_m, high_m, 401)
                same = np.ones(401)
                lon, lat, _ = GEOD.fwd(same * lon0, same * lat0, same * azimuth, along_m)
                apart = GEOD.inv(lon, lat, same * point[1], same * point[0])[2]
                nearest = int(np.argmin(apart))
                low_m, high_m = along_m[max(0, nearest - 1)], along_m[min(400, nearest + 1)]
                least = min(least, float(apart.min()))
    return least


@pytest.mark.parametrize("reach_m", [100.0, 1_000.0, 5_000.0, 20_000.0])
def test_distances_to_areas_with_holes_agree_with_geodesics(reach_m: float) -> None:
    """From the hole and from outside, up to 20 km from the farthest corner and up to 20 km from the middle of a side."""
    rng = random.Random(int(reach_m))
    worst_m, compared = 0.0, 0
    for _ in range(12):
        middle = rng.uniform(-70, 70), rng.uniform(-179, 179)
        outline, hole = star(rng, middle, reach_m * 0.9, 6), star(rng, middle, reach_m * 0.2, 5)
        area = PlanePolygon.of([e7(*corner) for corner in outline], [[e7(*corner) for corner in hole]])
        # The 20 km count from the mean of the corners, as in the registry.
        far_deg = max(outline, key=lambda corner: GEOD.inv(middle[1], middle[0], corner[1], corner[0])[2])
        outwards = GEOD.inv(middle[1], middle[0], far_deg[1], far_deg[0])[0]
        places = [(middle[1], middle[0], 0.0)]
        for beyond_m in (1.0, 100.0, 2_000.0, WITHIN_M):
            places.append(GEOD.fwd(far_deg[1], far_deg[0], outwards, beyond_m))
            places.append(GEOD.fwd(middle[1], middle[0], rng.uniform(0, 360), reach_m + beyond_m))
        for lon, lat, _ in places:
            point = ecef_mm(*e7(lat, lon))
            worst_m = max(
                worst_m, abs(area.least_distance_mm(point, point) / 1000 - to_sides_m((lat, lon), [outline, hole]))
            )
            compared += 1
    print(f"areas of {reach_m:.0f} m: {compared} distances, at most {worst_m:.4f} m off")
    assert worst_m < TOLERANCE_M
