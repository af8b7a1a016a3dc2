"""Where a device is that stays: the mean of its positions for as long as they say the same, since each of them errs anew.

A phone that lies at home reports each minute, and its errors a minute apart have nothing to do with each other; a tag that reports each
few seconds errs alike in all of them, and goes about. So this is asked of the protected person's devices alone.
"""

from __future__ import annotations

import math

from services.geofence.domain.kinematics.track import UNKNOWN_AFTER_MS, Fix, Track

SAME_TIMES = 1.5
"""A fix says the same as the mean within so many times its accuracy, and once the mean's; who walks is beyond in a minute."""
MIN_SHARE_OF_BEST = 0.5
"""No mean is more exact than half the best of its fixes: what walls do to all of them alike doesn't go away."""


def averaged(track: Track) -> Track:
    """Each fix replaced by the mean of it and those before it that say the same, weighed by their accuracies, with that of the mean.

    A fix that says something else, or comes after more than 3 minutes, is where the device is, and begins anew.
    """
    found: list[Fix] = []
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
            mean = Fix(*fix[:3], x_mm, y_mm, z_mm, accuracy_mm)
        found.append(mean)
    return Track(found)


def _agrees(mean: Fix, fix: Fix) -> bool:
    if not 0 < fix.time_ms - mean.time_ms <= UNKNOWN_AFTER_MS:
        return False
    return math.dist(fix[3:6], mean[3:6]) <= SAME_TIMES * fix.accuracy_mm + mean.accuracy_mm
