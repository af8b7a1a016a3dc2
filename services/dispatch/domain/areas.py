"""Points and areas of jurisdiction on WGS84. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias, assert_never

EARTH_RADIUS_M = 6_371_008.8
"""Mean radius of the earth (IUGG), metres."""


@dataclass(frozen=True, slots=True)
class LatLon:
    """A point on WGS84, degrees."""

    lat_deg: float
    lon_deg: float


@dataclass(frozen=True, slots=True)
class JurisdictionCircle:
    """A circular area of jurisdiction."""

    centre: LatLon
    radius_m: float


@dataclass(frozen=True, slots=True)
class JurisdictionPolygon:
    """A polygonal area of jurisdiction, the first vertex not repeated; it doesn't cross the 180th meridian."""

    vertices: tuple[LatLon, ...]


Area: TypeAlias = JurisdictionCircle | JurisdictionPolygon


def great_circle_m(a: LatLon, b: LatLon) -> float:
    """Distance between two points on the sphere, metres; within 0.6 % of the distance on the ellipsoid."""
    lat_a, lat_b = math.radians(a.lat_deg), math.radians(b.lat_deg)
    half_lat, half_lon = (lat_b - lat_a) / 2, math.radians(b.lon_deg - a.lon_deg) / 2
    square = math.sin(half_lat) ** 2 + math.cos(lat_a) * math.cos(lat_b) * math.sin(half_lon) ** 2
    return 2 * EARTH_RADIUS_M * math.asin(min(1.0, math.sqrt(square)))


def holds(area: Area, point: LatLon) -> bool:
    """Whether a point lies in an area. Borders are straight in degrees, which is exact enough to assign an office."""
    match area:
        case JurisdictionCircle():
            return great_circle_m(area.centre, point) <= area.radius_m
        case JurisdictionPolygon():
            return _encloses(area.vertices, point)
        case _:
            assert_never(area)


def _encloses(vertices: Sequence[LatLon], point: LatLon) -> bool:
    inside = False
    for n, b in enumerate(vertices):
        a = vertices[n - 1]
        if (a.lat_deg > point.lat_deg) != (b.lat_deg > point.lat_deg):
            share = (point.lat_deg - a.lat_deg) / (b.lat_deg - a.lat_deg)
            inside ^= point.lon_deg < a.lon_deg + share * (b.lon_deg - a.lon_deg)
    return inside
