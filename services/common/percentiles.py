"""Percentiles of what was measured. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence


def percentile(values: Sequence[float], percent: float) -> float:
    """The least value that at least `percent` of all don't exceed (nearest rank), so one that was really measured.

    Infinite where there is no value: nothing arrived.
    """
    if not 0 < percent <= 100:
        raise ValueError(f"percent must be more than 0 and at most 100, not {percent}")
    if not values:
        return math.inf
    return sorted(values)[math.ceil(percent * len(values) / 100) - 1]
