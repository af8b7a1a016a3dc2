"""Containment in circles and polygons, whose shared borders belong to exactly one of them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.common.geometry import Circle, LatLon, Polygon, encloses, great_circle_m

SEOUL, BUSAN = LatLon(37.5665, 126.9780), LatLon(35.1796, 129.0756)
SIDE = 10
SQUARE = ((0, 0), (0, SIDE), (SIDE, SIDE), (SIDE, 0))


def polygon(*corners: tuple[float, float]) -> Polygon:
    return Polygon(tuple(LatLon(lat, lon) for lat, lon in corners))


def test_a_circle_holds_the_points_within_its_radius() -> None:
    assert 320_000 < great_circle_m(SEOUL, BUSAN) < 330_000
    assert Circle(SEOUL.lat_deg, SEOUL.lon_deg, 330_000).contains(BUSAN)
    assert not Circle(SEOUL.lat_deg, SEOUL.lon_deg, 320_000).contains(BUSAN)
    assert Circle(SEOUL.lat_deg, SEOUL.lon_deg, 0).contains(SEOUL)


def test_a_hole_is_no_part_of_its_polygon() -> None:
    hole = tuple(LatLon(lat, lon) for lat, lon in ((4, 4), (4, 6), (6, 6), (6, 4)))
    area = Polygon(polygon(*SQUARE).vertices, (hole,))
    assert area.contains(LatLon(2, 2)) and area.contains(LatLon(5, 7))
    assert not area.contains(LatLon(5, 5)) and not area.contains(LatLon(11, 5))


@given(
    middle=st.tuples(st.integers(1, SIDE - 1), st.integers(1, SIDE - 1)),
    point=st.tuples(st.integers(-1, SIDE + 1), st.integers(-1, SIDE + 1)),
    is_reversed=st.booleans(),
)
def test_a_point_on_a_shared_border_lies_in_exactly_one_area(
    middle: tuple[int, int], point: tuple[int, int], is_reversed: bool
) -> None:
    at = LatLon(*map(float, point))
    triangles = [(SQUARE[n - 1], SQUARE[n], middle) for n in range(4)]
    holders = [corners for corners in triangles if polygon(*(corners[::-1] if is_reversed else corners)).contains(at)]
    assert len(holders) == polygon(*SQUARE).contains(at)


@given(shift=st.integers(-1, 1), along=st.integers(1, 10**9 - 1))
def test_points_on_both_sides_of_a_long_side_differ(shift: int, along: int) -> None:
    # In floating point, the difference of these products would be lost.
    side = 1_800_000_000
    triangle = ((0, 0), (side - 1, side), (side - 1, 0))
    lat = along * (side - 1) // 10**9
    on_side = lat * side  # longitude on the side, times side - 1
    lon = on_side // (side - 1) + shift
    assert encloses(triangle, (lat, lon)) == (lon * (side - 1) < on_side)
