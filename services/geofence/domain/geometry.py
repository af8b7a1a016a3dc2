"""Distances between points that move in straight lines, exact in time, in Earth-centred millimetres on WGS84.

A chord between two points of the ellipsoid is shorter than the geodesic by under 0.1 mm at 2 km and 8 mm at 20 km. While both
points move linearly, their difference is linear too. So the square of their distance is a quadratic of time, and its crossings of a
radius are roots, not samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import cos, sin, sqrt

Vector = tuple[float, float, float]
Span = tuple[float, float]
"""A stretch as fractions of a movement, 0 <= from <= to <= 1."""
FlatPoint = tuple[float, float]
"""A point in a plane: east and north, mm."""

_A_MM = 6_378_137_000.0
_E2 = 0.0066943799901413165  # WGS84: f (2 - f), f = 1 / 298.257223563
_E7_RAD = math.pi / 180 / 1e7
_LESS_E2 = 1 - _E2
_OUTWARDS = 1 / (8 * 6_371_000_000.0**2)
BOUND_ALLOWANCE_MM = 1_000
"""Allowance, mm, by which a bound of a distance stays on the safe side: for rounding, and for polygons, which are measured in a
plane."""


def ecef_mm(lat_e7: int, lon_e7: int) -> tuple[int, int, int]:
    """Earth-centred coordinates of a point on the ellipsoid, whole millimetres, from 1e-7 degrees."""
    lat, lon = lat_e7 * _E7_RAD, lon_e7 * _E7_RAD
    sin_lat = sin(lat)
    n = _A_MM / sqrt(1 - _E2 * sin_lat * sin_lat)
    from_axis = n * cos(lat)
    return round(from_axis * cos(lon)), round(from_axis * sin(lon)), round(n * _LESS_E2 * sin_lat)


def ecef_points_mm(lats_e7: Sequence[int], lons_e7: Sequence[int]) -> list[tuple[int, int, int]]:
    """`ecef_mm` of many points: the fold needs it for each position, and a call for each would take a tenth more time."""
    points: list[tuple[int, int, int]] = []
    # Names of the function are found sooner than those of the module: that is a tenth of the time.
    add = points.append
    sine = sin
    cosine = cos
    root = sqrt
    whole = round
    a_mm = _A_MM
    e2 = _E2
    less_e2 = _LESS_E2
    e7_rad = _E7_RAD
    for lat_e7, lon_e7 in zip(lats_e7, lons_e7, strict=True):
        lat, lon = lat_e7 * e7_rad, lon_e7 * e7_rad
        sin_lat = sine(lat)
        n = a_mm / root(1 - e2 * sin_lat * sin_lat)
        from_axis = n * cosine(lat)
        add((whole(from_axis * cosine(lon)), whole(from_axis * sine(lon)), whole(n * less_e2 * sin_lat)))
    return points


def lat_lon_deg(point: Vector) -> tuple[float, float]:
    """Latitude and longitude of a point on the ellipsoid, degrees: the inverse of `ecef_mm`, to 1e-7."""
    x, y, z = point
    lat = math.atan2(z, (1 - _E2) * math.hypot(x, y))
    return round(math.degrees(lat), 7), round(math.degrees(math.atan2(y, x)), 7)


@dataclass(frozen=True, slots=True)
class Disc:
    """The points within `radius_mm` of `centre`.

    A moving person is a disc of radius 0 at the origin. Other points are then given relative to the person.
    """

    centre: Vector
    radius_mm: float

    def within(self, start: Vector, end: Vector, margin_mm: float) -> list[Span]:
        """When a point that moves from `start` to `end` is within `margin_mm` of the edge or inside."""
        span = _in_ball(_minus(start, self.centre), _minus(end, self.centre), self.radius_mm + margin_mm)
        return [span] if span else []

    def least_distance_mm(self, start: Vector, end: Vector) -> float:
        """Least distance to the edge on the way, millimetres; 0 inside."""
        return max(0.0, _least_norm(_minus(start, self.centre), _minus(end, self.centre)) - self.radius_mm)

    def distance_mm(self, point: Vector) -> float:
        """Distance of a point from the edge, millimetres; 0 inside."""
        return max(0.0, math.hypot(*_minus(point, self.centre)) - self.radius_mm)

    def distance_bound_mm(self, point: Vector) -> float:
        """A lower bound of the distance from `point`, millimetres."""
        return math.dist(point, self.centre) - self.radius_mm

    def is_surely_within(self, point: Vector, margin_mm: float) -> bool:
        """Whether a point is within a margin, by a cheap bound that is never wrong when it says yes."""
        return math.dist(point, self.centre) - self.radius_mm < margin_mm - BOUND_ALLOWANCE_MM

    @property
    def bounding_ball(self) -> tuple[Vector, float]:
        """Centre, and greatest distance from it, millimetres."""
        return self.centre, self.radius_mm


@dataclass(frozen=True, slots=True)
class PlanePolygon:
    """An area inside a closed line, without its holes, in a plane that touches the ground at its middle.

    `services.common.geometry.Polygon` isn't used here: the fold measures distances to moving points, in mm, and it does so for each
    position near the area.

    Points are projected on the plane along its normal. That brings a point at distance d from the middle nearer by d^3 / (6 R^2). If
    each point were moved out by as much, lengths along the radius would be right, but lengths across it would be too long. So each
    point is moved out by d^3 / (8 R^2) only. Lengths across the radius are then too long, and lengths along it too short, by the same
    fraction. The error is under 0.1 m within 20 km of an area whose corners are within 20 km of the middle.
    """

    origin: Vector
    east: Vector
    north: Vector
    sides: tuple[tuple[FlatPoint, FlatPoint], ...]
    """Sides of the outer line and of each hole."""
    radius_mm: float
    """Distance of the farthest corner from `origin`."""

    def is_surely_within(self, point: Vector, margin_mm: float) -> bool:
        """Whether a point is within a margin, by a cheap bound that is never wrong when it says yes: even the farthest corner is
        nearer than the margin."""
        return math.dist(point, self.origin) + self.radius_mm < margin_mm - BOUND_ALLOWANCE_MM

    @property
    def bounding_ball(self) -> tuple[Vector, float]:
        """A point in the middle of the corners, and greatest distance from it, millimetres."""
        return self.origin, self.radius_mm

    @staticmethod
    def of(vertices_e7: Sequence[tuple[int, int]], holes_e7: Sequence[Sequence[tuple[int, int]]] = ()) -> PlanePolygon:
        """The polygon with these corners and holes (latitude, longitude), 1e-7 degrees."""
        lat_e7 = sum(lat for lat, _ in vertices_e7) // len(vertices_e7)
        lon_e7 = sum(lon for _, lon in vertices_e7) // len(vertices_e7)
        lat, lon = lat_e7 * _E7_RAD, lon_e7 * _E7_RAD
        origin = ecef_mm(lat_e7, lon_e7)
        east = (-math.sin(lon), math.cos(lon), 0.0)
        north = (-math.sin(lat) * math.cos(lon), -math.sin(lat) * math.sin(lon), math.cos(lat))
        sides: list[tuple[FlatPoint, FlatPoint]] = []
        radius_mm = 0.0
        for line in (vertices_e7, *holes_e7):
            points = [ecef_mm(*vertex) for vertex in line]
            corners = [_flat(point, origin, east, north=north) for point in points]
            sides += [(corners[i - 1], corner) for i, corner in enumerate(corners)]
            radius_mm = max(radius_mm, *(math.dist(point, origin) for point in points))
        return PlanePolygon(origin=origin, east=east, north=north, sides=tuple(sides), radius_mm=radius_mm)

    def within(self, start: Vector, end: Vector, margin_mm: float) -> list[Span]:
        """When a point that moves from `start` to `end` is within `margin_mm` of the edge or inside."""
        a, b = self._plane(start), self._plane(end)
        spans = self._inside(a, b)
        for side in self.sides:
            span = _in_capsule(a, b, side, radius=margin_mm)
            if span:
                spans.append(span)
        return _union(spans)

    def least_distance_mm(self, start: Vector, end: Vector) -> float:
        """Least distance to the edge on the way, millimetres; 0 inside."""
        a, b = self._plane(start), self._plane(end)
        if self._inside(a, b):
            return 0.0
        return min(_segments_apart(a, b, side) for side in self.sides)

    def distance_mm(self, point: Vector) -> float:
        """Distance of a point from the edge, millimetres; 0 inside. The same number as of a movement that stays at the point."""
        at = self._plane(point)
        if self._contains(*at):
            return 0.0
        # The corners have distances of their own, because those along a side may be rounded otherwise.
        return min(min(_point_apart(at, p, q), math.hypot(q[0] - at[0], q[1] - at[1])) for p, q in self.sides)

    def distance_bound_mm(self, point: Vector) -> float:
        """A lower bound of the distance from `point`, millimetres."""
        return math.dist(point, self.origin) - self.radius_mm

    def _plane(self, point: Vector) -> FlatPoint:
        return _flat(point, self.origin, self.east, north=self.north)

    def _inside(self, a: FlatPoint, b: FlatPoint) -> list[Span]:
        dx, dy = b[0] - a[0], b[1] - a[1]
        cuts = {0.0, 1.0}
        for (x0, y0), (x1, y1) in self.sides:
            ex, ey = x1 - x0, y1 - y0
            across = dx * ey - dy * ex
            if across:
                s = ((x0 - a[0]) * ey - (y0 - a[1]) * ex) / across
                if 0 < s < 1:
                    cuts.add(s)
        ordered = sorted(cuts)
        return _union(
            [
                (s0, s1)
                for s0, s1 in pairwise(ordered)
                if self._contains(a[0] + dx * (s0 + s1) / 2, a[1] + dy * (s0 + s1) / 2)
            ]
        )

    def _contains(self, x: float, y: float) -> bool:
        # `services.common.geometry.encloses` isn't used here: it is exact for integer corners of a single line. These corners are
        # fractions of a millimetre, and the sides are those of the outer line and of all holes. Keep the expression below: another one
        # may round differently, so that a replay would differ from the first fold.
        inside = False
        for (x0, y0), (x1, y1) in self.sides:
            if (y0 > y) != (y1 > y) and x < (x1 - x0) * (y - y0) / (y1 - y0) + x0:
                inside = not inside
        return inside


def _flat(point: Vector, origin: Vector, east: Vector, *, north: Vector) -> FlatPoint:
    """Where a point falls on the plane at `origin`; see PlanePolygon."""
    offset = _minus(point, origin)
    x, y = _dot(offset, east), _dot(offset, north)
    outwards = 1 + (x * x + y * y) * _OUTWARDS
    return x * outwards, y * outwards


Shape = Disc | PlanePolygon
PERSON = Disc((0.0, 0.0, 0.0), 0.0)
"""The shape of a protected person, in coordinates relative to the person."""


def between(start: Vector, end: Vector, fraction: float) -> Vector:
    """The point at a fraction of a movement."""
    return (
        start[0] + (end[0] - start[0]) * fraction,
        start[1] + (end[1] - start[1]) * fraction,
        start[2] + (end[2] - start[2]) * fraction,
    )


def _minus(a: Vector, b: Vector) -> Vector:
    return a[0] - b[0], a[1] - b[1], a[2] - b[2]


def _dot(a: Vector, b: Vector) -> float:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _in_ball(start: Vector, end: Vector, radius: float) -> Span | None:
    """Where |start + s (end - start)| <= radius, for s in 0..1."""
    step = _minus(end, start)
    a = _dot(step, step)
    b = _dot(start, step)
    c = _dot(start, start) - radius * radius
    return _quadratic(a, b, c)


def _quadratic(a: float, b: float, c: float) -> Span | None:
    """Where a s^2 + 2 b s + c <= 0 in 0..1."""
    if a == 0:
        return (0.0, 1.0) if c <= 0 else None
    discriminant = b * b - a * c
    if discriminant < 0:
        return None
    # `q` adds two numbers of like sign, so the root q / a loses no digits. The other root follows from the product of both, c / a.
    q = -(b + math.copysign(math.sqrt(discriminant), b))
    root, other_root = q / a, (c / q if q else 0.0)
    low, high = max(0.0, min(root, other_root)), min(1.0, max(root, other_root))
    return (low, high) if low <= high else None


def _least_norm(start: Vector, end: Vector) -> float:
    step = _minus(end, start)
    square = _dot(step, step)
    fraction = min(1.0, max(0.0, -_dot(start, step) / square)) if square else 0.0
    return math.hypot(*between(start, end, fraction))


def _in_capsule(a: FlatPoint, b: FlatPoint, side: tuple[FlatPoint, FlatPoint], *, radius: float) -> Span | None:
    """When a point on its way from a to b is within `radius` of the side.

    The area round the side is convex, so there is at most one stretch.
    """
    p, q = side
    dx, dy = b[0] - a[0], b[1] - a[1]
    spans = []
    for x, y in (p, q):
        fx, fy = a[0] - x, a[1] - y
        spans.append(_quadratic(dx * dx + dy * dy, fx * dx + fy * dy, fx * fx + fy * fy - radius * radius))
    ex, ey = q[0] - p[0], q[1] - p[1]
    length = math.hypot(ex, ey)
    if length:
        ux, uy = ex / length, ey / length
        fx, fy = a[0] - p[0], a[1] - p[1]
        along = _between_bounds(fx * ux + fy * uy, dx * ux + dy * uy, 0.0, high=length)
        across = _between_bounds(fy * ux - fx * uy, dy * ux - dx * uy, -radius, high=radius)
        if along and across and max(along[0], across[0]) <= min(along[1], across[1]):
            spans.append((max(along[0], across[0]), min(along[1], across[1])))
    crossed = [span for span in spans if span]
    return (min(s for s, _ in crossed), max(s for _, s in crossed)) if crossed else None


def _between_bounds(start: float, step: float, low: float, *, high: float) -> Span | None:
    """Where low <= start + s step <= high in 0..1."""
    if step == 0:
        return (0.0, 1.0) if low <= start <= high else None
    at_low, at_high = (low - start) / step, (high - start) / step
    first, last = max(0.0, min(at_low, at_high)), min(1.0, max(at_low, at_high))
    return (first, last) if first <= last else None


def _segments_apart(a: FlatPoint, b: FlatPoint, side: tuple[FlatPoint, FlatPoint]) -> float:
    """Distance of the segment ab from a side that it doesn't cross."""
    p, q = side
    return min(_point_apart(a, p, q), _point_apart(b, p, q), _point_apart(p, a, b), _point_apart(q, a, b))


def _point_apart(x: FlatPoint, p: FlatPoint, q: FlatPoint) -> float:
    ex, ey = q[0] - p[0], q[1] - p[1]
    square = ex * ex + ey * ey
    s = min(1.0, max(0.0, ((x[0] - p[0]) * ex + (x[1] - p[1]) * ey) / square)) if square else 0.0
    return math.hypot(x[0] - p[0] - s * ex, x[1] - p[1] - s * ey)


def _union(spans: list[Span]) -> list[Span]:
    merged: list[Span] = []
    for low, high in sorted(spans):
        if merged and low <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return merged
