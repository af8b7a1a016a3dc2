"""Accuracy of positions: the scatter of a device's fixes, the mean of a stationary device, and the probability of being inside a ring.

Some receivers report a better accuracy than they have. Independent errors turn the device back at each fix, and no vehicle moves like
that. For consecutive steps d and d' of a device at rest, the mean of -d.d' is the sum of the variances along both axes of the ground.
Any steady movement makes -d.d' smaller or negative. So the scatter of a moving device is underestimated, never overestimated. The mean
of the middle half of the values is robust against single position jumps.

A phone that lies at home reports each minute, and its errors a minute apart are independent: the mean of its positions is more
accurate than each of them. A tag that reports every few seconds has the same error in all of them, and moves about. So only the
protected person's devices are averaged.
"""

from __future__ import annotations

import math
from itertools import pairwise
from statistics import median

from services.geofence.domain.kinematics.fixes import Fix
from services.geofence.domain.kinematics.track import STEADY_MS, UNKNOWN_AFTER_MS, Track

SAME_TIMES = 1.5
"""A fix agrees with the mean if their distance is at most this many times the fix's accuracy, plus the mean's accuracy. A walker is
beyond that in a minute."""
MIN_SHARE_OF_BEST = 0.5
"""Least accuracy radius of a mean, as a share of the best of its fixes: walls affect all of them alike, and that error doesn't
average out."""
R68_PER_SIGMA = 1.5095921854516636
"""Radius that holds 68 % of a 2-D normal distribution, in standard deviations: sqrt(-2 ln 0.32)."""
SURELY_OUTSIDE = 6.0
"""This many standard deviations beyond a ring, the probability of being inside is below 1e-9, which six places don't show."""
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
        x_mm = fix[3] - before[3]
        y_mm = fix[4] - before[4]
        z_mm = fix[5] - before[5]
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


# ── the mean of a stationary device ──────────────────────────────────────────────────────────────────────────────────


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
        if mean is None or not _agrees_with_mean(mean, fix):
            mean = fix
            weights = weight
            best_mm = fix.accuracy_mm
        else:
            weights += weight
            part = weight / weights
            x_mm, y_mm, z_mm = (round(a + part * (b - a)) for a, b in zip(mean[3:6], fix[3:6], strict=True))
            best_mm = min(best_mm, fix.accuracy_mm)
            accuracy_mm = round(max(math.sqrt(1 / weights), MIN_SHARE_OF_BEST * best_mm))
            mean = fix._replace(x_mm=x_mm, y_mm=y_mm, z_mm=z_mm, accuracy_mm=accuracy_mm)
        means.append(mean)
    return Track(means)


def _agrees_with_mean(mean: Fix, fix: Fix) -> bool:
    if not 0 < fix.time_ms - mean.time_ms <= UNKNOWN_AFTER_MS:
        return False
    return math.dist(fix[3:6], mean[3:6]) <= SAME_TIMES * fix.accuracy_mm + mean.accuracy_mm


# ── the probability of being inside ──────────────────────────────────────────────────────────────────────────────────


def p_inside(distance_mm: float, radius_mm: float, accuracies_mm: tuple[int, ...]) -> float:
    """Probability that the true distance is at most `radius_mm`, 0 to 1, to six places.

    Each position is a 2-D normal distribution about its fix, with its accuracy as the 68 % radius. The difference of two positions has
    the sum of their variances, so the distance follows a Rice distribution. The distribution function is the series of Poisson-weighted
    chi-square terms (Abramowitz and Stegun 26.4.25) while it converges fast, else the normal limit for sharp positions.
    """
    sigma = math.sqrt(sum(accuracy * accuracy for accuracy in accuracies_mm)) / R68_PER_SIGMA
    if sigma == 0:
        return 1.0 if distance_mm <= radius_mm else 0.0
    x, y = radius_mm / sigma, distance_mm / sigma
    if y - x >= SURELY_OUTSIDE:
        return 0.0
    if x > 12 or y > 12:
        # Rice -> normal with mean y + 1/(2y); the error is below 1e-3 from 12 standard deviations on.
        return round(0.5 * math.erfc((y + 0.5 / max(y, 1.0) - x) / math.sqrt(2)), 6)
    half_x, half_y = x * x / 2, y * y / 2
    # weight: Poisson(half_y) at k; tail: P(Poisson(half_x) <= k), so that 1 - tail is the chi-square term.
    weight, term = math.exp(-half_y), math.exp(-half_x)
    tail, total = term, 0.0
    for k in range(1, 400):
        before = total
        total += weight * (1 - tail)
        if total == before and k > half_y:
            break  # the terms only get smaller from here on
        weight *= half_y / k
        term *= half_x / k
        tail += term
    return round(min(1.0, max(0.0, total)), 6)
