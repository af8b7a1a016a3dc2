"""The interval between reports that a decision needs from a tag: half of the time in which the wearer could reach the nearest ring.

Intervals and speeds come from a closed-loop study of 1,894 simulated approaches, held against constant intervals (ADR 54). With these
values a tag reports every half minute near a protected person and every 3 minutes far away, and fewer breaches are missed than with a
report a minute.
"""

from __future__ import annotations

from typing import NamedTuple

MIN_INTERVAL_S = 30
"""Shortest interval. Positions 5 s apart share their errors and don't make fewer rings falsely entered, seconds."""
MAX_INTERVAL_S = 170
"""Longest interval. Positions farther apart than 180 s aren't joined by a line, seconds."""
MAX_NEAR_INTERVAL_S = 60
"""Longest interval within NEAR_MM of a ring, seconds."""
NEAR_MM = 1_000_000
VAGUE_FROM_MM = 100_000
"""With a vaguer position, a tag is asked for no interval below MAX_NEAR_INTERVAL_S: more such positions show nothing, mm."""
MIN_MPS = 2
"""Least speed of a wearer that an interval allows for, m/s: somebody in a hurry on foot."""
PACE_TIMES = 1.5
"""How much faster than now a wearer may become until the next report."""
SHARE = 0.5
"""Share of the time until the ring could be reached."""
SHORTER, LONGER = 0.75, 1.4
"""The interval is changed only if it must be shorter or longer than the last one by these factors, so that noise changes nothing."""


class Gap(NamedTuple):
    """The way from a wearer to a ring that demands a response."""

    line_mm: float
    """Distance between the newest positions and the ring's line, mm; negative inside."""
    vague_mm: int
    """Sum of the positions' accuracies, mm."""
    other_mps: float
    """Pace of the protected person, m/s; 0 for a place."""

    @property
    def free_mm(self) -> float:
        """Distance to the ring's line that remains if both positions are wrong by their accuracies, mm."""
        return self.line_mm - self.vague_mm


def interval_s(gap: Gap, own_mps: float, *, max_mps: int, is_battery_low: bool) -> float:
    """Interval that a tag should keep, seconds, by the wearer's own pace. `max_mps` is the greatest speed of either side that counts.

    A low battery takes the whole time to the ring, if the wearer isn't near it.
    """
    is_near = gap.line_mm <= NEAR_MM
    share = 1.0 if is_battery_low and not is_near else SHARE
    mps = max(MIN_MPS, min(PACE_TIMES * own_mps, max_mps)) + min(gap.other_mps, max_mps)
    least_s = MAX_NEAR_INTERVAL_S if gap.vague_mm >= VAGUE_FROM_MM else MIN_INTERVAL_S
    return min(max(share * gap.free_mm / 1000 / mps, least_s), MAX_NEAR_INTERVAL_S if is_near else MAX_INTERVAL_S)


def far_mm(max_mps: int) -> int:
    """Distance to a ring's line beyond which no pace of either side changes an interval, mm: 7.2 km at 14 m/s."""
    return round(1000 * SHORTER * MAX_INTERVAL_S / SHARE * 2 * max_mps) + NEAR_MM // 100


def differs(needed_s: float, basis_s: int) -> bool:
    """Whether the interval that is needed now differs enough from the one of the last request."""
    return needed_s < SHORTER * basis_s or needed_s > LONGER * basis_s


def jittered_s(needed_s: float, permille: int) -> int:
    """An interval that is up to 10 % shorter or longer, within the bounds; `permille` is from 0 to 1,000."""
    longest_s = MAX_NEAR_INTERVAL_S if needed_s <= MAX_NEAR_INTERVAL_S else MAX_INTERVAL_S
    return min(max(round(needed_s * (0.9 + permille / 5000)), MIN_INTERVAL_S), longest_s)


def shortened_s(needed_s: float, permille: int) -> int:
    """An interval shorter than the needed one without any cause, evenly drawn by `permille`, from 0 to 1,000."""
    return round(MIN_INTERVAL_S + (max(SHORTER * needed_s, MIN_INTERVAL_S) - MIN_INTERVAL_S) * permille / 1000)
