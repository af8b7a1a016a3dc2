"""The best inference of a protected person's position that a wearer can draw from contacts. Pure.

The wearer is taken to know the rings and the rule, to remember the place of each contact, and to believe the worst for her: each
contact was caused, and she stayed at one place. Then she is where the most discs around the contacts overlap. Contacts without a cause
and her own movements only make that inference worse, so the rule errs on her side.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from services.geofence.domain.kinematics.geometry import Vector

GRID = 12
"""Cells from the middle of the disc to its edge. The error of the result is a few percent of the radius."""


def expected_error_mm(here: Vector, radius_mm: int, earlier: Iterable[Vector]) -> float:
    """Mean error, mm, of the wearer's best inference after one more contact at `here`, given the places of the earlier ones.

    One disc alone gives two thirds of its radius.
    """
    east, north = _axes(here)
    others = [
        (east_mm, north_mm)
        for other in earlier
        if math.dist(here, other) < 2 * radius_mm
        for east_mm, north_mm in [(_dot(other, here, east), _dot(other, here, north))]
    ]
    step_mm = radius_mm / GRID
    most = 0
    region: list[tuple[float, float]] = []
    for i in range(-GRID, GRID + 1):
        for j in range(-GRID, GRID + 1):
            x_mm, y_mm = i * step_mm, j * step_mm
            if x_mm * x_mm + y_mm * y_mm > radius_mm * radius_mm:
                continue
            count = sum(
                (x_mm - east_mm) * (x_mm - east_mm) + (y_mm - north_mm) * (y_mm - north_mm) <= radius_mm * radius_mm
                for east_mm, north_mm in others
            )
            if count > most:
                most, region = count, []
            if count == most:
                region.append((x_mm, y_mm))
    # `fsum`, because the rounding of `sum` depends on the version of Python.
    middle = math.fsum(x for x, _ in region) / len(region), math.fsum(y for _, y in region) / len(region)
    return math.fsum(math.dist(cell, middle) for cell in region) / len(region)


def _axes(point: Vector) -> tuple[Vector, Vector]:
    """Unit vectors to the east and the north of a point, neither of the poles."""
    x, y, z = point
    long, flat = math.sqrt(x * x + y * y + z * z), math.sqrt(x * x + y * y)
    east = (-y / flat, x / flat, 0.0)
    up = (x / long, y / long, z / long)
    north = (up[1] * east[2] - up[2] * east[1], up[2] * east[0] - up[0] * east[2], up[0] * east[1] - up[1] * east[0])
    return east, north


def _dot(point: Vector, origin: Vector, axis: Vector) -> float:
    return math.fsum((a - b) * c for a, b, c in zip(point, origin, axis, strict=True))
