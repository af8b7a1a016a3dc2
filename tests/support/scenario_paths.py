"""Test support: points along the paths of scenarios, and times within a ring by the alerts."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from services.common import times


def inside_s(alert: dict[str, Any]) -> float:
    """Total time inside by an alert's intervals, seconds; 0 where it has none."""
    return sum(times.from_rfc3339(to) - times.from_rfc3339(from_) for from_, to in alert.get("inside", ())) / 1000


def along(path_m: Sequence[Sequence[float]], part: float) -> tuple[float, float]:
    """East and north, metres, after a fraction (0 to 1) of a path's length."""
    lengths = [math.dist(a, b) for a, b in pairwise(path_m)]
    left = part * sum(lengths)
    for i, length in enumerate(lengths):
        if left <= length and length:
            (a_east, a_north), (b_east, b_north) = path_m[i : i + 2]
            return a_east + (b_east - a_east) * left / length, a_north + (b_north - a_north) * left / length
        left -= length
    east, north = path_m[-1]
    return east, north


def scattered(point: tuple[float, float], scatter_m: float, errors: random.Random) -> tuple[float, float]:
    """A point with a normal error of this standard deviation along each axis, metres. It is the same in each run."""
    return point[0] + scatter_m * errors.gauss(0, 1), point[1] + scatter_m * errors.gauss(0, 1)
