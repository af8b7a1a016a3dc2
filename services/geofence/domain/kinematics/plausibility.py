"""Plausibility of fixes: which of them are believed, and which a receiver can't have measured.

A position that contradicts the earlier ones decides nothing until a second position agrees. No fix is dropped: the time inside, the
least distance, the wider rings and the record rest on all fixes. The desks are notified of implausible fixes near a target
(`detectors/approach.py`).

A receiver's error is new in each position. So a device that really left doesn't pass through the positions of an earlier way again, and
it doesn't report a single point from the first position outside on. Both come from somebody who feeds a receiver or a modem with
recorded positions.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from itertools import pairwise

from services.geofence.domain.geometry import Vector
from services.geofence.domain.kinematics.fixes import AFTER_ALL_MS, Fix
from services.geofence.domain.kinematics.rings import AGREEING_FIXES
from services.geofence.domain.kinematics.track import JUMP_MPS, UNKNOWN_AFTER_MS, Track, fastest_step_mps

MIN_KNOWN = 3
"""With fewer known fixes, a device is believed unless its movement is impossible on the ground."""
PACE_TIMES = 3
"""A movement above the speed bound is a jump only if it is also this many times as fast as the device's own pace. So drivers and
train passengers don't jump."""
PACE_FIXES = 5
"""A device's pace is the greatest speed between consecutive fixes among this many of its last believed fixes."""
AGREES_MPS = 40
"""A second position agrees if a car on a motorway could have driven to it from the first, m/s."""
SAME_PLACE_MM = 100_000
"""Greatest distance, mm, beyond the accuracies, between two positions at the same place. A second position also agrees with the
track if the device was at the same place in the 3 minutes before."""
VAGUE_FROM_MM = 100_000
VAGUE_TIMES = 4
"""A fix adds nothing to its neighbours if its accuracy is VAGUE_FROM_MM or worse, and this many times worse than theirs."""
MAX_HELD = 3
"""Maximum number of fixes between two believed ones that are joined by a line."""
JUDGED_FIXES = PACE_FIXES + AGREEING_FIXES
"""A decision about the newest fix rests on this many of the newest fixes, whatever their age."""
LOOKBACK_FIXES = 8
"""The judgement of fixes begins this many fixes before the evaluated stretch. Earlier fixes don't matter, because two fixes that
agree are believed whatever came before."""


def believed(track: Track, from_ms: int, until_ms: int | None, *, bound_mps: int) -> Track:
    """The believed fixes of a stretch, with some before and after it. `bound_mps` is the speed above which a movement may be a jump.

    If `until_ms` is None, the stretch ends at the newest fix. A track with a fix has at least one believed fix.
    """
    fixes = track.since(from_ms, LOOKBACK_FIXES)
    first = max(0, bisect_left(fixes, (from_ms,)) - LOOKBACK_FIXES)
    if until_ms is None and _plain_count(track, bound_mps) >= len(fixes) - first:
        return Track(fixes[first:])  # nearly always
    stop = len(fixes) if until_ms is None else bisect_right(fixes, (until_ms, AFTER_ALL_MS)) + 2
    return Track(_judge(fixes[first:stop], bound_mps))


def lookback_ms(tracks: tuple[Track | None, ...], from_ms: int) -> int:
    """Moment at which the evaluation of a fix must start, so that it includes the movement to a fix that was unconfirmed until now."""
    start_ms, least_ms = from_ms, from_ms - UNKNOWN_AFTER_MS
    for track in tracks:
        if track is not None:
            earlier_ms = track.earlier_ms(from_ms, MAX_HELD)
            if earlier_ms < start_ms:
                start_ms = earlier_ms
    return start_ms if start_ms > least_ms else least_ms


def is_newest_believed(track: Track, bound_mps: int) -> bool:
    """Whether the newest fix of a device is believed. The check is cheap if nothing about the fix is odd."""
    fixes = track.recent
    if len(fixes) < 2 or _plain_count(track, bound_mps) > 1:
        return True
    return believed(track, fixes[-1].time_ms, None, bound_mps=bound_mps).recent[-1] is fixes[-1]


def are_newest_believed(tracks: Iterable[Track | None], bound_mps: int) -> bool:
    """Whether the newest fix of each device is believed. A side without a device, which is a place, is None."""
    return all(is_newest_believed(track, bound_mps) for track in tracks if track)


def left_by_jump(track: Track) -> tuple[tuple[Fix, float], ...]:
    """The last fix before each recent jump of a device, newest first, with the device's pace until then, m/s.

    A jump counts for 3 minutes, or until the fourth fix after it. A jump is a movement that the accuracies and the device's own recent
    pace don't explain. It needn't be fast: for somebody who stood still, a car's movement is a jump. A vague position is never the
    start of a jump.
    """
    known, count = track.left_by_jump, track.count
    if known is None or known[0] != count:
        known = track.left_by_jump = count, _left_by_jump(track.recent)
    return known[1]


def _left_by_jump(fixes: Sequence[Fix]) -> tuple[tuple[Fix, float], ...]:
    starts: list[tuple[Fix, float]] = []
    for i in range(len(fixes) - 1, max(1, len(fixes) - AGREEING_FIXES), -1):
        before, fix = fixes[i - 1], fixes[i]
        if fixes[-1][0] - fix[0] > UNKNOWN_AFTER_MS:
            break
        beyond_mm = math.dist(before[3:6], fix[3:6]) - before[6] - fix[6]
        if beyond_mm <= SAME_PLACE_MM or before[6] >= VAGUE_FROM_MM:
            continue  # nearly always
        pace_mps = fastest_step_mps(fixes[max(0, i - PACE_FIXES) : i])
        if beyond_mm > PACE_TIMES * pace_mps * (fix.time_ms - before.time_ms):
            starts.append((before, pace_mps))
    return tuple(starts)


def has_jumped(track: Track) -> bool:
    """Whether the device may still be where it was before a jump."""
    return bool(left_by_jump(track))


def _is_odd(before: Fix, fix: Fix, bound_mps: int) -> bool:
    """Whether a fix is vague, or farther from the fix before it than the bound explains."""
    may_mm = bound_mps * (fix[0] - before[0]) + before[6] + fix[6]
    return fix[6] >= VAGUE_FROM_MM or math.dist(before[3:6], fix[3:6]) > may_mm


def _plain_count(track: Track, bound_mps: int) -> int:
    """Number of newest fixes of which none but perhaps the first is odd. All of them are believed, if no earlier fix counts.

    The recent fixes are counted once. From then on a new fix is compared with the one before it alone.
    """
    fixes = track.recent
    count = track.count
    known = track.plain
    if known is not None and known[0] == count and known[1] == bound_mps:
        return known[2]
    counted, plain = len(fixes), min(1, len(fixes))
    if known is not None and known[0] == count - 1 and known[1] == bound_mps:
        plain = known[2] + 1 if counted > 1 and not _is_odd(fixes[-2], fixes[-1], bound_mps) else 1
    else:
        while plain < counted and not _is_odd(fixes[-plain - 1], fixes[-plain], bound_mps):
            plain += 1
    track.plain = count, bound_mps, plain
    return plain


def _judge(fixes: list[Fix], bound_mps: int) -> list[Fix]:
    if not any(_is_odd(before, fix, bound_mps) for before, fix in pairwise(fixes)):
        return fixes
    believed_fixes: list[Fix] = fixes[:1]
    previous = fixes[:1]
    held: Fix | None = None
    for fix in fixes[1:]:
        last = believed_fixes[-1]
        after_gap = fix.time_ms - last.time_ms > UNKNOWN_AFTER_MS
        if not after_gap and _is_jump(believed_fixes, fix, bound_mps):
            if held is not None and _beyond_mm(held, fix) <= AGREES_MPS * (fix.time_ms - held.time_ms):
                believed_fixes += (held, fix)
                held = None
            elif _was_there(previous, fix):
                believed_fixes.append(fix)
                held = None
            else:
                held = fix
        elif after_gap or not _adds_nothing(believed_fixes, fix, bound_mps):
            believed_fixes.append(fix)
            held = None
        previous.append(fix)
    return believed_fixes


def _beyond_mm(before: Fix, fix: Fix) -> float:
    """Distance between two fixes beyond their accuracies, mm."""
    return math.dist(before[3:6], fix[3:6]) - before.accuracy_mm - fix.accuracy_mm


def _is_jump(believed_fixes: list[Fix], fix: Fix, bound_mps: int) -> bool:
    """Whether the way from the last believed fix is faster than the bound and than the device's recent pace."""
    last = believed_fixes[-1]
    took_ms = fix.time_ms - last.time_ms
    beyond_mm = _beyond_mm(last, fix)
    if beyond_mm <= bound_mps * took_ms:
        return False
    if len(believed_fixes) < MIN_KNOWN:
        return beyond_mm > JUMP_MPS * took_ms
    return beyond_mm > min(JUMP_MPS, PACE_TIMES * fastest_step_mps(believed_fixes[-PACE_FIXES:])) * took_ms


def _was_there(previous: list[Fix], fix: Fix) -> bool:
    """Whether a fix of the 3 minutes before was at the same place.

    So a receiver that alternates between two places is believed from the second time on.
    """
    return any(
        fix.time_ms - earlier.time_ms <= UNKNOWN_AFTER_MS and _beyond_mm(earlier, fix) <= SAME_PLACE_MM
        for earlier in previous
    )


def _adds_nothing(believed_fixes: list[Fix], fix: Fix, bound_mps: int) -> bool:
    """Whether a vague fix is consistent with the sharp fixes before it."""
    if fix.accuracy_mm < VAGUE_FROM_MM:
        return False
    last = believed_fixes[-1]
    sharp_mm = min(earlier.accuracy_mm for earlier in believed_fixes[-MIN_KNOWN:])
    return fix.accuracy_mm > VAGUE_TIMES * sharp_mm and _beyond_mm(last, fix) <= bound_mps * (
        fix.time_ms - last.time_ms
    )


# ── repetition ───────────────────────────────────────────────────────────────────────────────────────────────────────


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
MIN_HABITS = 16
"""Least number of positions before a departure, from which a receiver's habits are known."""
MAX_PINNED_SHARE = 0.1
"""A receiver that repeated more than this share of its positions before pins its position at each standstill."""


def last_copied(departure: Sequence[Fix], earlier: Sequence[Vector]) -> Fix | None:
    """The newest position of a departure that belongs to a copy of an earlier way; None if the departure copies nothing.

    The earlier way may be repeated forwards or backwards, at another pace, with positions left out or with other ones between.
    """
    moving = _steps(departure[-COMPARED_FIXES:])
    if len(moving) < MIN_REPEATED:
        return None
    found = [(fix, _repeated_by(fix, earlier)) for fix in moving]
    if sum(bool(indices) for _, indices in found) < MIN_REPEATED:
        return None
    ends = [end for end in (_end_of_chain(found, sign) for sign in (1, -1)) if end]
    return max(ends, default=None)


def is_pinned(departure: Sequence[Fix], before: Sequence[Fix]) -> bool:
    """Whether a departure consists of fewer than four different points, from a receiver whose positions differed until then."""
    newest = departure[-COMPARED_FIXES:]
    if len(newest) < AGREEING_FIXES or len(before) < MIN_HABITS:
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


def _steps(fixes: Sequence[Fix]) -> list[Fix]:
    """The positions that are far enough from the one before."""
    kept: list[Fix] = []
    for fix in fixes:
        if not kept or math.dist(kept[-1][3:6], fix[3:6]) >= MIN_STEP_MM:
            kept.append(fix)
    return kept


def _repeated_by(fix: Fix, earlier: Sequence[Vector]) -> list[int]:
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
