"""Probability that a wearer is inside a ring, from the reported accuracies."""

from __future__ import annotations

import math

R68_PER_SIGMA = 1.5095921854516636
"""Radius that holds 68 % of a 2-D normal distribution, in standard deviations: sqrt(-2 ln 0.32)."""

SURELY_OUTSIDE = 6.0
"""This many standard deviations beyond a ring, the probability of being inside is below 1e-9, which six places don't show."""


def inside(distance_mm: float, radius_mm: float, accuracies_mm: tuple[int, ...]) -> float:
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
