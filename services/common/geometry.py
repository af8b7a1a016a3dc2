"""Points, circles and polygons on WGS84: containment, distance and polygon validation. Pure.

Sides of polygons are straight in degrees. Containment and validation use signs of cross products and no divisions, so they are exact
for integer corners.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from services.common.errors import InvalidField

EARTH_RADIUS_M = 6_371_008.8
"""Mean radius of the earth (IUGG), metres."""
METRES_PER_DEGREE = 111_195.0
"""Length of a degree of latitude on the sphere of mean radius, metres, for figures that need no better precision."""
MAX_CORNERS = 200
"""Maximum number of corners of a protected place, its outline and holes together. Each report near the place is measured against every
side."""
HALF_ROUND_E7 = 1_800_000_000
"""Half of the way round the Earth in longitude, 1e-7 degrees."""

Corner: TypeAlias = tuple[int, int]
"""A polygon's corner in validation: latitude and longitude, 1e-7 degrees. Integers, so that no test depends on rounding."""


@dataclass(frozen=True, slots=True)
class LatLon:
    """A point on WGS84, degrees."""

    lat_deg: float
    lon_deg: float


@dataclass(frozen=True, slots=True)
class Circle:
    """A disc on WGS84. Radius 0 is a point."""

    lat_deg: float
    lon_deg: float
    radius_m: float

    @property
    def centre(self) -> LatLon:
        """Middle of the disc."""
        return LatLon(self.lat_deg, self.lon_deg)

    def contains(self, point: LatLon) -> bool:
        """Whether a point lies in the disc or on its edge."""
        return great_circle_m(self.centre, point) <= self.radius_m


@dataclass(frozen=True, slots=True)
class Polygon:
    """An area inside a closed outline whose sides don't cross, minus its holes. It doesn't cross the 180th meridian."""

    vertices: tuple[LatLon, ...]
    """Corners in order; the first isn't repeated at the end."""
    holes: tuple[tuple[LatLon, ...], ...] = ()
    """Corners of each hole. Holes lie inside the outline and don't touch each other."""

    def contains(self, point: LatLon) -> bool:
        """Whether a point lies in the area. A point on a border that two areas share lies in exactly one of them."""
        at = point.lat_deg, point.lon_deg
        lines = (self.vertices, *self.holes)
        # A point in a hole lies inside two lines.
        return sum(encloses([(v.lat_deg, v.lon_deg) for v in line], at) for line in lines) == 1


Area: TypeAlias = Circle | Polygon


def great_circle_m(a: LatLon, b: LatLon) -> float:
    """Distance between two points on the sphere, metres; within 0.6 % of the distance on the ellipsoid."""
    lat_a, lat_b = math.radians(a.lat_deg), math.radians(b.lat_deg)
    half_lat, half_lon = (lat_b - lat_a) / 2, math.radians(b.lon_deg - a.lon_deg) / 2
    square = math.sin(half_lat) ** 2 + math.cos(lat_a) * math.cos(lat_b) * math.sin(half_lon) ** 2
    return 2 * EARTH_RADIUS_M * math.asin(min(1.0, math.sqrt(square)))


def encloses(line: Sequence[tuple[float, float]], point: tuple[float, float]) -> bool:
    """Whether a point lies inside a closed line of corners; all are latitude and longitude in one unit. Exact for integers.

    A point on the line counts as inside if the area lies to its east or, on a side that runs from west to east, to its north.
    """
    lat, lon = point
    inside = False
    lat0, lon0 = line[-1]
    is_above0 = lat0 > lat
    for lat1, lon1 in line:
        is_above1 = lat1 > lat
        if is_above0 is not is_above1:
            # The sign of the cross product says on which side the point lies. A division would round.
            across = (lon1 - lon0) * (lat - lat0) - (lon - lon0) * (lat1 - lat0)
            inside ^= across > 0 if is_above1 else across < 0
            is_above0 = is_above1
        lat0, lon0 = lat1, lon1
    return inside


# ── validation ───────────────────────────────────────────────────────────────────────────────────────────────────────


class _Boundary(NamedTuple):
    """A closed line of a polygon under validation, with the paths that errors name."""

    field: str
    """Path of the line, such as `place.polygon.holes[1]`."""
    corners: Sequence[Corner]

    @property
    def vertices(self) -> str:
        """Path of the line's corners."""
        return f"{self.field}.vertices"


def check_polygon(field: str, outline: Sequence[Corner], holes: Sequence[Sequence[Corner]]) -> None:
    """Checks that an outline and its holes form a valid polygon. Raises InvalidField with the path below `field`.

    Each of them must be a simple closed line, and no two may cross or touch. Each hole lies inside the outline and outside the other
    holes.
    """
    lines = [_Boundary(field, outline), *(_Boundary(f"{field}.holes[{n}]", hole) for n, hole in enumerate(holes))]
    _check_counts(field, lines)
    for line in lines:
        lons = [lon for _, lon in line.corners]
        if max(lons) - min(lons) > HALF_ROUND_E7:
            raise InvalidField(line.field, "must not cross the 180th meridian")
    for line in lines:
        _check_line(line)
    for n, line in enumerate(lines[1:]):
        _check_hole(line, outline, others=holes[:n])


def _check_counts(field: str, lines: Sequence[_Boundary]) -> None:
    for line in lines:
        if len(line.corners) < 3:
            raise InvalidField(line.vertices, "must hold at least 3")
    if len(lines[0].corners) > MAX_CORNERS:
        raise InvalidField(lines[0].vertices, f"must hold at most {MAX_CORNERS}")
    if sum(len(line.corners) for line in lines) > MAX_CORNERS:
        raise InvalidField(
            f"{field}.holes", f"must leave at most {MAX_CORNERS} corners in all, those of the outline included"
        )


def _check_line(line: _Boundary) -> None:
    for n, corner in enumerate(line.corners):
        if corner == line.corners[n - 1]:
            raise InvalidField(f"{line.vertices}[{n or len(line.corners) - 1}]", "repeats its neighbour")
    if _crosses_itself(line.corners):
        raise InvalidField(line.field, "its sides must not cross or touch")


def _check_hole(line: _Boundary, outline: Sequence[Corner], others: Sequence[Sequence[Corner]]) -> None:
    hole = line.corners
    if _meets(hole, outline) or not encloses(outline, hole[0]):
        raise InvalidField(line.field, "must lie inside the outline, without touching it")
    for other in others:
        if _meets(hole, other) or encloses(other, hole[0]) or encloses(hole, other[0]):
            raise InvalidField(line.field, "must lie apart from the other holes")


def _sides(corners: Sequence[Corner]) -> list[tuple[Corner, Corner]]:
    return [(corners[n - 1], corner) for n, corner in enumerate(corners)]


def _meets(ring: Sequence[Corner], other: Sequence[Corner]) -> bool:
    """Whether two closed lines have a point in common."""
    return any(_meet(side, another) for side in _sides(ring) for another in _sides(other))


def _crosses_itself(corners: Sequence[Corner]) -> bool:
    """Whether two sides of a closed line share more than the corner between them."""
    count = len(corners)
    sides = [(corners[n], corners[(n + 1) % count]) for n in range(count)]
    for n, (a, b) in enumerate(sides):
        c = corners[(n + 2) % count]
        # If the next side runs back over this one, the two share more than their corner.
        if _turn(a, b, c) == 0 and (c[0] - b[0]) * (b[0] - a[0]) + (c[1] - b[1]) * (b[1] - a[1]) < 0:
            return True
        last = count - 1 if n == 0 else count  # the first and the last side are neighbours, so they share a corner
        if any(_meet((a, b), sides[other]) for other in range(n + 2, last)):
            return True
    return False


def _meet(ab: tuple[Corner, Corner], cd: tuple[Corner, Corner]) -> bool:
    """Whether two segments have a point in common."""
    (a, b), (c, d) = ab, cd
    for axis in (0, 1):
        if max(a[axis], b[axis]) < min(c[axis], d[axis]) or max(c[axis], d[axis]) < min(a[axis], b[axis]):
            return False
    # With overlapping bounding boxes, two segments meet unless one lies wholly on one side of the other.
    return _turn(a, b, c) * _turn(a, b, d) <= 0 and _turn(c, d, a) * _turn(c, d, b) <= 0


def _turn(a: Corner, b: Corner, c: Corner) -> int:
    """Side of the line from `a` through `b` on which `c` lies: 1 or -1, or 0 if `c` lies on the line."""
    cross = (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
    return (cross > 0) - (cross < 0)
