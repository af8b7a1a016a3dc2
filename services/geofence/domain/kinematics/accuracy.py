"""Accuracy of a device by the scatter of its own fixes: some receivers report a better accuracy than they have.

Independent errors turn the device back at each fix, and no vehicle moves like that. For consecutive steps d and d' of a device at
rest, the mean of -d.d' is the sum of the variances along both axes of the ground. Any steady movement makes -d.d' smaller or negative.
So the scatter of a moving device is underestimated, never overestimated. The mean of the middle half of the values is robust against
single position jumps.
"""

from __future__ import annotations

import math
from itertools import pairwise
from statistics import median

from services.geofence.domain.kinematics.probability import R68_PER_SIGMA
from services.geofence.domain.kinematics.track import STEADY_MS, UNKNOWN_AFTER_MS, Track

SCATTER_FIXES = 32
"""The scatter is measured over this many of the newest fixes: its 5th and 95th percentiles are then 0.7 and 1.4 times the true one."""
MIN_SCATTER_FIXES = 10
"""Minimum number of fixes for a measurement."""
CONTRADICTION = 2
"""A stated accuracy is contradicted if the scatter is more than this many times as large. An honest device's scatter isn't, by chance,
in more than one of 1,000 windows."""
MAX_FLOOR_MM = 100_000
"""Greatest accuracy that the scatter gives a fix. With it, a position on the line of a 100 m ring still enters the ring. So nobody
avoids an entry by a false accuracy or by moving to and fro."""
_R68_PER_ROOT = R68_PER_SIGMA / math.sqrt(1.35)
"""68 % radius of a 2-D normal distribution per root of the mean of the middle half of -d.d'. That mean is 1.35 for errors with a
standard deviation of 1 along each axis (100,000 simulated fixes)."""


def observed_error_mm(track: Track) -> int | None:
    """Radius that holds 68 % of a device's errors by the scatter of its newest fixes, mm. None if the fixes are too few.

    0 if no scatter shows. Errors that change slowly don't show either.
    """
    fixes = track.newest(SCATTER_FIXES)
    if len(fixes) < MIN_SCATTER_FIXES:
        return None
    turns: list[int] = []
    step: tuple[int, int, int] | None = None
    for before, fix in pairwise(fixes):
        if not 0 < fix[0] - before[0] <= UNKNOWN_AFTER_MS:
            step = None
            continue
        x_mm, y_mm, z_mm = fix[3] - before[3], fix[4] - before[4], fix[5] - before[5]
        if step:
            turns.append(-(step[0] * x_mm + step[1] * y_mm + step[2] * z_mm))
        step = x_mm, y_mm, z_mm
    if len(turns) < MIN_SCATTER_FIXES - 2:
        return None
    turns.sort()
    quarter = len(turns) // 4
    middle = turns[quarter : len(turns) - quarter]
    return round(_R68_PER_ROOT * math.sqrt(max(0, sum(middle)) / len(middle)))


def floor_mm(track: Track) -> int:
    """The least accuracy that the fixes of a device deserve, mm; 0 unless their scatter contradicts the accuracy that they state."""
    newest = track.recent[-1]
    known = track.floor
    if known is None or known[0] is not newest:
        error_mm = observed_error_mm(track)
        contradicts = error_mm and error_mm > CONTRADICTION * median(fix[6] for fix in track.newest(SCATTER_FIXES))
        known = track.floor = newest, min(error_mm, MAX_FLOOR_MM) if error_mm and contradicts else 0
    return known[1]


def credible_mm(track: Track) -> int:
    """Accuracy of the newest fix, mm: the stated one, or the floor if that is greater."""
    return max(track.recent[-1].accuracy_mm, floor_mm(track))


def worst_credible_mm(track: Track) -> int:
    """An upper bound of `credible_mm` that needs no measurement, mm."""
    return max(track.recent[-1].accuracy_mm, MAX_FLOOR_MM)


def steady_mm(track: Track) -> int:
    """Accuracy of the newest fix together with those of the last 10 minutes at the same place, mm.

    Each fix adds its weight, as an independent measurement would. Fixes from one radio cell aren't independent, but repeated positions
    at her door prove more than a single one. The result can only increase the probability that the newest fix is within a ring. A
    device whose scatter contradicts its accuracies gets its floor at least.
    """
    last, weight = track.recent[-1], 0.0
    for fix in track.backwards():
        same = math.dist(fix[3:6], last[3:6]) <= max(fix.accuracy_mm, last.accuracy_mm)
        if not same or last.time_ms - fix.time_ms > STEADY_MS:
            break
        weight += 1 / max(1, fix.accuracy_mm) ** 2
    return max(round(math.sqrt(1 / weight)), floor_mm(track))
