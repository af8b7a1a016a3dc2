"""The part of a region that leaves: circles on a coarse grid, and where they lie from her. Pure.

Whole steps hide at which house the wearer is, and give the same answer to the same region.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from services.geofence.domain.her_map.region import Region
from services.geofence.domain.kinematics.geometry import Vector, lat_lon_deg
from services.geofence.domain.tracks.fixes import Fix

GRID_E7 = (4_500, 5_500)
"""Steps of the grid of middles, 1e-7 degrees of latitude and longitude: some 50 m in Korea."""
SNAPPED_BY_M = 40.0
"""Greatest distance from a point to the next point of the grid, m, rounded up."""
RADIUS_STEP_M = 50
BAND_STEP_M = 100
"""Step of the distances between which the wearer may be, m."""
WAY_OUT_M = 300.0
"""Length of the way that is tried in each direction, m."""
SECTORS = ("N", "NE", "E", "SE", "S", "SW", "W", "NW")


class ShownCircle(NamedTuple):
    """A circle that is shown."""

    lat_e7: int
    lon_e7: int
    radius_m: int


class FromHer(NamedTuple):
    """Where a region lies from her newest position."""

    least_m: int
    """The wearer is at least this far, m; 0 if he may be with her."""
    greatest_m: int
    direction: str
    """One of SECTORS; empty if she may be inside the region."""
    way_out: str
    """Direction that leads away from all circles, one of SECTORS."""


def circles_of(region: Region) -> tuple[ShownCircle, ...]:
    """The circles of a region on the grid. Each holds the circle that it replaces."""
    shown: dict[ShownCircle, None] = {}
    for circle in region.circles:
        lat_deg, lon_deg = lat_lon_deg(circle.centre)
        lat_e7, lon_e7 = (
            round(degrees * 1e7 / step) * step for degrees, step in zip((lat_deg, lon_deg), GRID_E7, strict=True)
        )
        wide_m = circle.radius_mm / 1000 + SNAPPED_BY_M
        shown[ShownCircle(lat_e7, lon_e7, math.ceil(wide_m / RADIUS_STEP_M) * RADIUS_STEP_M)] = None
    return tuple(shown)


def from_her(circles: tuple[ShownCircle, ...], her: Fix) -> FromHer:
    """Where circles lie from her newest position, whose accuracy widens the distances."""
    offsets = [(*offset_m(circle, her.point), float(circle.radius_m)) for circle in circles]
    vague_m = her.accuracy_mm / 1000
    least_m = max(0.0, min(math.hypot(east, north) - radius for east, north, radius in offsets) - vague_m)
    greatest_m = max(math.hypot(east, north) + radius for east, north, radius in offsets) + vague_m
    east, north, _ = offsets[0]
    bearing = math.degrees(math.atan2(east, north))
    return FromHer(
        least_m=int(least_m // BAND_STEP_M) * BAND_STEP_M,
        greatest_m=math.ceil(greatest_m / BAND_STEP_M) * BAND_STEP_M,
        direction=SECTORS[round(bearing / 45) % 8] if least_m > 0 else "",
        way_out=_way_out(offsets),
    )


def offset_m(circle: ShownCircle, point: Vector) -> tuple[float, float]:
    """Offset from a point to the middle of a circle: east and north, m. A plane does within some kilometres."""
    lat_deg, lon_deg = lat_lon_deg(point)
    north_m = (circle.lat_e7 / 1e7 - lat_deg) * _M_PER_DEGREE
    return (circle.lon_e7 / 1e7 - lon_deg) * _M_PER_DEGREE * math.cos(math.radians(lat_deg)), north_m


_M_PER_DEGREE = 111_195.0


def _way_out(offsets: list[tuple[float, float, float]]) -> str:
    """The direction in which she is farthest from all circles after WAY_OUT_M. The first of several that are alike."""

    def gained_m(sector: int) -> int:
        turn = math.radians(45 * sector)
        east, north = WAY_OUT_M * math.sin(turn), WAY_OUT_M * math.cos(turn)
        return round(min(math.hypot(east - x, north - y) - radius for x, y, radius in offsets))

    return SECTORS[max(range(len(SECTORS)), key=gained_m)]
