"""Percentiles of measured values, by nearest rank. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence


def percentile(values: Sequence[float], percent: float) -> float:
    """Nearest-rank percentile: the smallest measured value that at least `percent` % of all values don't exceed.

    Returns infinity for no values, because then nothing arrived. Raises ValueError unless 0 < `percent` <= 100.
    """
    if not 0 < percent <= 100:
        raise ValueError(f"percent must be more than 0 and at most 100, not {percent}")
    if not values:
        return math.inf
    return sorted(values)[math.ceil(percent * len(values) / 100) - 1]
