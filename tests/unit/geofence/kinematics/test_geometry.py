"""Geometry against independent reference numbers, and against dense sampling."""

from __future__ import annotations

import gzip
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.geofence.domain.geometry import PERSON, Disc, PlanePolygon, Vector, between, ecef_mm
from services.geofence.domain.kinematics import accuracy
from tests.support.geofence.geolife import data_root

CORNERS_M = ((0.0, 0.0), (400.0, 0.0), (400.0, 100.0), (100.0, 100.0), (100.0, 400.0), (0.0, 400.0))


def test_distances_agree_with_the_geodesic_test_set_within_20_km() -> None:
    path = data_root() / "geodesic" / "GeodTest-short.dat.gz"
    if not path.exists():
        pytest.skip(f"the geodesic test set isn't at {path}")
    compared, worst_m = 0, 0.0
    with gzip.open(path, "rt") as lines:
        for line in lines:
            lat1, lon1, _, lat2, lon2, _, s12, *_ = map(float, line.split())
            if s12 > 20_000:
                continue
            start = ecef_mm(round(lat1 * 1e7), round(lon1 * 1e7))
            end = ecef_mm(round(lat2 * 1e7), round(lon2 * 1e7))
            worst_m = max(worst_m, abs(math.dist(start, end) / 1000 - s12))
            compared += 1
    assert compared > 500
    # 1e-7 degrees are 11 mm, so two rounded points may be 16 mm off.
    assert worst_m < 0.05


def points(rng: random.Random, spread_m: float) -> tuple[Vector, Vector]:
    def point() -> Vector:
        return (rng.uniform(-spread_m, spread_m) * 1000, rng.uniform(-spread_m, spread_m) * 1000, 0.0)

    return point(), point()


@given(st.integers(0, 100_000), st.floats(1, 800))
@settings(max_examples=150, deadline=None)
def test_time_within_a_radius_is_exact(seed: int, radius_m: float) -> None:
    start, end = points(random.Random(seed), 1000)
    [span] = PERSON.within(start, end, radius_m * 1000) or [(math.nan, math.nan)]
    for i in range(201):
        s = i / 200
        distance_mm = math.hypot(*between(start, end, s))
        if abs(distance_mm - radius_m * 1000) > 1:
            assert (span[0] <= s <= span[1]) == (distance_mm < radius_m * 1000)


def plane(corners_m: tuple[tuple[float, float], ...]) -> PlanePolygon:
    """A polygon in the plane z = 0, mm."""
    corners = [(x * 1000, y * 1000) for x, y in corners_m]
    sides = tuple((corners[i - 1], corner) for i, corner in enumerate(corners))
    return PlanePolygon(
        (0, 0, 0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), sides, max(math.hypot(*corner) for corner in corners)
    )


def apart_m(x: float, y: float) -> float:
    """Distance to CORNERS_M by brute force, metres."""
    inside = (0 <= x <= 400 and 0 <= y <= 100) or (0 <= x <= 100 and 0 <= y <= 400)
    if inside:
        return 0.0
    least = math.inf
    for i, (x1, y1) in enumerate(CORNERS_M):
        x0, y0 = CORNERS_M[i - 1]
        for k in range(401):
            least = min(least, math.hypot(x - x0 - (x1 - x0) * k / 400, y - y0 - (y1 - y0) * k / 400))
    return least


@given(st.integers(0, 100_000), st.floats(0, 150))
@settings(max_examples=40, deadline=None)
def test_time_within_a_polygons_ring_equals_dense_sampling(seed: int, margin_m: float) -> None:
    start, end = points(random.Random(seed), 700)
    spans = plane(CORNERS_M).within(start, end, margin_m * 1000)
    for i in range(41):
        s = i / 40
        x, y, _ = between(start, end, s)
        distance_m = apart_m(x / 1000, y / 1000)
        if abs(distance_m - margin_m) > 0.6:  # the brute force looks every metre
            assert any(low <= s <= high for low, high in spans) == (distance_m < margin_m)


@given(st.integers(0, 100_000))
@settings(max_examples=40, deadline=None)
def test_least_distance_to_a_polygon_equals_dense_sampling(seed: int) -> None:
    start, end = points(random.Random(seed), 700)
    least_m = plane(CORNERS_M).least_distance_mm(start, end) / 1000
    sampled_m = min(apart_m(*(c / 1000 for c in between(start, end, i / 100)[:2])) for i in range(101))
    step_m = math.dist(start, end) / 1000 / 100
    assert least_m <= sampled_m + 1e-5 and sampled_m <= least_m + step_m + 0.6


def test_a_polygon_on_the_ground_has_its_true_size() -> None:
    lat_e7, lon_e7 = 375_000_000, 1_270_000_000
    square = PlanePolygon.of(
        [(lat_e7, lon_e7), (lat_e7 + 10_000, lon_e7), (lat_e7 + 10_000, lon_e7 + 10_000), (lat_e7, lon_e7 + 10_000)]
    )
    north_m = math.dist(ecef_mm(lat_e7, lon_e7), ecef_mm(lat_e7 + 10_000, lon_e7)) / 1000
    away = ecef_mm(lat_e7 - 10_000, lon_e7)
    assert square.least_distance_mm(away, away) / 1000 == pytest.approx(north_m, abs=0.001)


def test_a_point_that_stays_is_inside_all_the_time_or_never() -> None:
    disc = Disc((0, 0, 0), 50_000)
    here = (120_000.0, 0.0, 0.0)
    assert disc.within(here, here, 70_000) == [(0.0, 1.0)]
    assert disc.within(here, here, 69_999) == []
    assert disc.least_distance_mm(here, here) == 70_000


@pytest.mark.parametrize(
    ("distance_m", "radius_m", "accuracies_m"),
    [
        (0, 100, (10, 10)),
        (95, 100, (20, 5)),
        (100, 100, (30, 30)),
        (140, 100, (50, 20)),
        (300, 100, (50, 50)),
        (20, 10, (8,)),
    ],
)
def test_the_probability_equals_that_of_sampled_positions(
    distance_m: float, radius_m: float, accuracies_m: tuple[float, ...]
) -> None:
    rng = random.Random(7)
    sigma = math.sqrt(sum(a * a for a in accuracies_m)) / math.sqrt(-2 * math.log(0.32))
    draws = 60_000
    hits = sum(math.hypot(distance_m + rng.gauss(0, sigma), rng.gauss(0, sigma)) <= radius_m for _ in range(draws))
    p = accuracy.p_inside(distance_m * 1000, radius_m * 1000, tuple(int(a * 1000) for a in accuracies_m))
    assert p == pytest.approx(hits / draws, abs=0.008)


def test_a_sharp_position_is_inside_or_not() -> None:
    assert accuracy.p_inside(99_000, 100_000, (100,)) == 1.0
    assert accuracy.p_inside(101_000, 100_000, (100,)) == 0.0
    assert accuracy.p_inside(50_000, 100_000, (0,)) == 1.0
    assert accuracy.p_inside(2_000_000, 2_000_000, (5_000, 5_000)) == pytest.approx(0.5, abs=0.002)
