"""Repetition: positions that a receiver can't have measured, because they repeat earlier positions or each other.

A receiver's error is new in each position. So a device that really left doesn't pass through the positions of an earlier way again, and
it doesn't report a single point from the first position outside on. Both come from somebody who feeds a receiver or a modem with
recorded positions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from services.geofence.domain.kinematics.geometry import Vector
from services.geofence.domain.kinematics.rings import AGREEING_FIXES
from services.geofence.domain.tracks.fixes import Fix

SAME_MM = 1000
"""Greatest distance, mm, at which a position repeats an earlier one. A receiver errs by 3 m or more along each axis, so that two
passages of a street differ by 4 m or more."""
MIN_STEP_MM = 10_000
"""Positions nearer than this to the one before don't count as repeated: a device that stands returns to the same places."""
MIN_REPEATED = 4
"""Least number of repeated positions of a copied way: single ones are repeated by chance, four in the order of a way aren't."""
MAX_SKIPPED = 8
"""Greatest distance, in positions of the earlier way, between two repeated ones: a copy may leave some out."""
COMPARED_FIXES = 32
"""Number of the newest positions of a departure that are compared."""
KNOWN_FIXES = 512
"""Number of positions before a departure that it is compared with: 2 h at a report each 15 s."""
PINNED_MM = 200
"""Positions this near to each other are one point."""
MIN_KNOWN = 16
"""Least number of positions before a departure, from which a receiver's habits are known."""
MAX_PINNED_SHARE = 0.1
"""A receiver that repeated more than this share of its positions before pins its position at each standstill."""


def last_copied(departure: Sequence[Fix], earlier: Sequence[Vector]) -> Fix | None:
    """The newest position of a departure that belongs to a copy of an earlier way; None if the departure copies nothing.

    The earlier way may be repeated forwards or backwards, at another pace, with positions left out or with other ones between.
    """
    moving = _moving(departure[-COMPARED_FIXES:])
    if len(moving) < MIN_REPEATED:
        return None
    found = [(fix, _same(fix, earlier)) for fix in moving]
    if sum(bool(indices) for _, indices in found) < MIN_REPEATED:
        return None
    ends = [end for end in (_end_of_chain(found, sign) for sign in (1, -1)) if end]
    return max(ends, default=None)


def is_pinned(departure: Sequence[Fix], before: Sequence[Fix]) -> bool:
    """Whether a departure consists of fewer than four different points, from a receiver whose positions differed until then."""
    newest = departure[-COMPARED_FIXES:]
    if len(newest) < AGREEING_FIXES or len(before) < MIN_KNOWN:
        return False
    points: list[Fix] = []
    for fix in newest:
        if not any(math.dist(fix[3:6], point[3:6]) <= PINNED_MM for point in points):
            points.append(fix)
            if len(points) == AGREEING_FIXES:
                return False
    habits = before[-KNOWN_FIXES:]
    repeated = sum(math.dist(fix[3:6], other[3:6]) <= PINNED_MM for fix, other in pairwise(habits))
    return repeated <= MAX_PINNED_SHARE * len(habits)


def _moving(fixes: Sequence[Fix]) -> list[Fix]:
    """The positions that are far enough from the one before."""
    kept: list[Fix] = []
    for fix in fixes:
        if not kept or math.dist(kept[-1][3:6], fix[3:6]) >= MIN_STEP_MM:
            kept.append(fix)
    return kept


def _same(fix: Fix, earlier: Sequence[Vector]) -> list[int]:
    """Indices of the earlier positions that a position repeats."""
    x_mm, point = fix[3], fix[3:6]
    return [
        index
        for index, other in enumerate(earlier)
        if -SAME_MM <= other[0] - x_mm <= SAME_MM and math.dist(other, point) <= SAME_MM
    ]


def _end_of_chain(found: list[tuple[Fix, list[int]]], sign: int) -> Fix | None:
    """The last position of repeated ones whose earlier positions follow each other forwards (1) or backwards (-1)."""
    lengths: dict[int, int] = {}
    """Greatest length of a chain that ends at an earlier position."""
    end: Fix | None = None
    for fix, indices in found:
        reached = {
            index: 1 + max((n for other, n in lengths.items() if 0 < sign * (index - other) <= MAX_SKIPPED), default=0)
            for index in indices
        }
        lengths |= reached
        if max(reached.values(), default=0) >= MIN_REPEATED:
            end = fix
    return end
