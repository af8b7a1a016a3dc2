"""Position of a stationary device: the mean of its positions for as long as they agree, since each has a new error.

A phone that lies at home reports each minute, and its errors a minute apart are independent. A tag that reports every few seconds
has the same error in all of them, and moves about. So only the protected person's devices are averaged.
"""

from __future__ import annotations

import math

from services.geofence.domain.kinematics.track import UNKNOWN_AFTER_MS, Track
from services.geofence.domain.tracks.fixes import Fix

SAME_TIMES = 1.5
"""A fix agrees with the mean if their distance is at most this many times the fix's accuracy, plus the mean's accuracy. A walker is
beyond that in a minute."""
MIN_SHARE_OF_BEST = 0.5
"""Least accuracy radius of a mean, as a share of the best of its fixes: walls affect all of them alike, and that error doesn't
average out."""


def averaged(track: Track) -> Track:
    """Replaces each fix by the weighted mean of this fix and the agreeing fixes before it, with the accuracy of that mean.

    The weights follow from the accuracies. A fix that disagrees, or that follows after more than 3 minutes, stays as it is and begins a
    new mean.
    """
    means: list[Fix] = []
    mean: Fix | None = None
    weights, best_mm = 0.0, 0
    for fix in track.fixes:
        weight = 1 / max(1, fix.accuracy_mm) ** 2
        if mean is None or not _agrees(mean, fix):
            mean, weights, best_mm = fix, weight, fix.accuracy_mm
        else:
            weights += weight
            part = weight / weights
            x_mm, y_mm, z_mm = (round(a + part * (b - a)) for a, b in zip(mean[3:6], fix[3:6], strict=True))
            best_mm = min(best_mm, fix.accuracy_mm)
            accuracy_mm = round(max(math.sqrt(1 / weights), MIN_SHARE_OF_BEST * best_mm))
            mean = fix._replace(x_mm=x_mm, y_mm=y_mm, z_mm=z_mm, accuracy_mm=accuracy_mm)
        means.append(mean)
    return Track(means)


def _agrees(mean: Fix, fix: Fix) -> bool:
    if not 0 < fix.time_ms - mean.time_ms <= UNKNOWN_AFTER_MS:
        return False
    return math.dist(fix[3:6], mean[3:6]) <= SAME_TIMES * fix.accuracy_mm + mean.accuracy_mm
