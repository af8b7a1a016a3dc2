"""The track of a device: its fixes in order of time, and the movement between them."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice, pairwise
from statistics import median_low
from typing import NamedTuple

from services.geofence.domain.geometry import Vector, between
from services.geofence.domain.kinematics.fixes import AFTER_ALL_MS, Fix, Fixes, Neighbours

UNKNOWN_AFTER_MS = 180_000
"""A position older than 3 minutes is unknown, unless the device keeps a longer interval (`Track.unknown_after_ms`). Fixes farther
apart than 3 minutes aren't joined by a line."""
WINDOW_MS = 7_200_000
"""How long fixes are kept for late reports: 2 h."""
MAX_AHEAD_MS = 120_000
"""Ingest rejects clocks that are farther ahead than this."""
PREDICT_MS = 30_000
"""How long after a fix its velocity is trusted. So 67 of 73 ring crossings in real tracks are decided at the first report of either
side after the crossing, and the other 6 at the second."""
PREDICT_UP_TO_MPS = 60
"""Greatest speed that is continued in a prediction, m/s: a higher one is a jump of the receiver."""
MIN_SPEED_MS = 10_000
"""Minimum time over which a speed is measured: over less, it is the receiver's noise."""
MAX_PREDICTION_MM = PREDICT_MS * PREDICT_UP_TO_MPS
"""Greatest distance of a prediction, mm (ms times m/s)."""
JUMP_MPS = 100
"""Speed that nothing on the ground exceeds, m/s: the KTX does 85 m/s."""
STEADY_MS = 600_000
"""How long before the newest fix other fixes at the same place still count."""
MIN_PACE_MS = 30_000
MAX_PACE_MS = 300_000
"""A pace is measured over movements of MIN_PACE_MS to MAX_PACE_MS: shorter ones are noise, and longer ones don't show how the device
goes on."""

KEPT_GAPS = 5
"""A kept interval is the median of this many of the last gaps between fixes. A change of the interval shows after three gaps, and two
lost reports don't change the median."""
MIN_KEPT_GAPS = 3
MAX_KEPT_MS = 600_000
"""Longest kept interval after which a position still counts as known, 10 minutes: a walker is 1 km away by then."""
OVERDUE_AFTER_MS = 30_000
"""How long a report may be overdue by the kept interval before the position is unknown. Reports are delayed by reception and by the
network."""
SHORT_MS = UNKNOWN_AFTER_MS - OVERDUE_AFTER_MS
"""Longest kept interval after which a position is unknown after 3 minutes, as without one."""
KEPT_WITHIN_MS = MIN_KEPT_GAPS * (MAX_KEPT_MS + OVERDUE_AFTER_MS)
"""Fixes older than this, before the newest one, say nothing about the kept interval: some 30 minutes, three of the longest gaps."""
_new = tuple.__new__  # makes a Piece in a quarter of the time


class Piece(NamedTuple):
    """A movement in a straight line at constant speed."""

    from_ms: int
    to_ms: int
    start: Vector
    end: Vector

    def clipped(self, from_ms: int, to_ms: int) -> Piece:
        """The part of the movement within a stretch of time. The two must overlap."""
        low, high = max(self.from_ms, from_ms), min(self.to_ms, to_ms)
        if (low, high) == (self.from_ms, self.to_ms):
            return self
        return Piece(from_ms=low, to_ms=high, start=self.at(low), end=self.at(high))

    def at(self, time_ms: int) -> Vector:
        """The position at a moment within the movement."""
        length_ms = self.to_ms - self.from_ms
        if not length_ms:
            return self.end
        return between(self.start, self.end, (time_ms - self.from_ms) / length_ms)


class SafeRegion(NamedTuple):
    """A ball in which a device may move before any ring can matter (`safe_region.py`)."""

    centre: Vector
    skip_mm: float
    """Radius within which a newest fix needs no evaluation at all, mm. Negative if each one is evaluated for the interval that a tag
    should keep."""
    free_mm: float
    """Radius of the ball, mm."""
    is_far: bool
    """Whether no movement in this ball and in the other devices' far balls changes the interval that a tag should keep."""


@dataclass(slots=True)
class Track(Fixes):
    """Fixes of one device, oldest first, and the movement between them."""

    ahead: bool = False
    """Whether the device's clock has been ahead of the log's."""
    safe_region: SafeRegion | None = field(default=None, compare=False)
    """Safe region round one of the fixes, if any. The region is derived from all tracks and cases, and decides nothing. The track
    holds it to save a lookup, because nearly every report needs it."""
    floor: tuple[Fix, int] | None = field(default=None, compare=False)
    """Floor of the accuracy (`accuracy.floor_mm`) as of a newest fix, mm. It is derived from the fixes; the track holds it because each
    decision near a ring needs it several times."""
    left_by_jump: tuple[int, tuple[tuple[Fix, float], ...]] | None = field(default=None, compare=False)
    """Result of `plausibility.left_by_jump` as of a number of fixes, held for the same reasons. A fix that isn't held here frees its
    memory once it is packed."""
    plain: tuple[int, int, int] | None = field(default=None, compare=False)
    """How many of the newest fixes are plain (`plausibility.believed`), as of a number of fixes and a speed bound."""
    _pace: tuple[Fix, int, float | None] | None = field(default=None, init=False, compare=False, repr=False)
    """The last result of `pace_mps`, with the newest fix and the number of fixes for which it holds."""

    def add(self, fix: Fix) -> Neighbours | None:
        """Inserts a fix in its place and returns its neighbours; None if the track already holds its report.

        A report is known by its id and the time of its fix. The first report with both counts, whatever a later one contains.
        """
        recent = self.recent
        if not self.ahead and fix.fix_ms == fix.time_ms and (not recent or fix[:3] > recent[-1][:3]):
            recent.append(fix)
            return Neighbours(recent[-2] if len(recent) > 1 else None, None)
        if fix.fix_ms > fix.time_ms:
            self.ahead = True
        if self.held(fix) is not None:
            return None
        fixes = self._list_for(fix)
        index = bisect_left(fixes, fix[:3])
        self._forget_derived()
        return self._insert(fixes, index, fix)

    def held(self, fix: Fix) -> Fix | None:
        """The fix that the track holds of this report; None if the report is new.

        If the device's clock is ahead, a copy that arrived earlier has another `time_ms`.
        """
        if self.ahead:
            for other in self.backwards():
                if other.time_ms < fix.fix_ms - MAX_AHEAD_MS:
                    break
                if (other.fix_ms, other.report_id) == (fix.fix_ms, fix.report_id):
                    return other
        fixes = self._list_for(fix)
        index = bisect_left(fixes, fix[:3])
        if index < len(fixes) and fixes[index][:3] == fix[:3]:
            return fixes[index]
        return None

    def contradicts(self, fix: Fix) -> bool:
        """Whether the track holds another content, place or accuracy, of the report of this fix."""
        other = self.held(fix)
        return other is not None and other[3:] != fix[3:]

    def known_at(self, at_ms: int) -> Vector | None:
        """Position at a moment: at a fix, or between two that are at most 3 minutes apart. None if it isn't known for sure."""
        before, after = self.round(at_ms)
        if before is None:
            return None
        if before.time_ms == at_ms:
            return before.point
        if after is None or after.time_ms - before.time_ms > UNKNOWN_AFTER_MS:
            return None
        return between(before.point, after.point, (at_ms - before.time_ms) / (after.time_ms - before.time_ms))

    def is_on_jump(self, at_ms: int) -> bool:
        """Whether a moment lies between the two fixes of a jump. The device never was on the line between them."""
        before, after = self.round(at_ms)
        return before is not None and after is not None and at_ms > before.time_ms and is_jump(before, after)

    def accuracy_at(self, at_ms: int) -> int:
        """Accuracy of the position at a moment, mm, interpolated between two fixes."""
        before, after = self.round(at_ms)
        if before is None or after is None:
            return (before or after or self.recent[0]).accuracy_mm
        if after.time_ms - before.time_ms > UNKNOWN_AFTER_MS:
            return before.accuracy_mm
        change_mm = (after.accuracy_mm - before.accuracy_mm) * (at_ms - before.time_ms)
        return before.accuracy_mm + change_mm // (after.time_ms - before.time_ms)

    def pace_mps(self) -> float | None:
        """Greatest speed at which the device moved away from a position of the last 5 minutes, m/s.

        Only positions at least half a minute before the newest fix count. A distance within the accuracies is no movement. None if
        there is no such position.
        """
        last, count = self.recent[-1], self.count
        if self._pace is not None and self._pace[0] is last and self._pace[1] == count:
            return self._pace[2]
        fastest_mps: float | None = None
        last_ms = last[0]
        point = last[3:6]
        accuracy_mm = last[6]
        for fix in self.backwards():
            took_ms = last_ms - fix[0]
            if took_ms > MAX_PACE_MS:
                break
            if took_ms >= MIN_PACE_MS:
                mps = (math.dist(fix[3:6], point) - fix[6] - accuracy_mm) / took_ms
                if fastest_mps is None or mps > fastest_mps:
                    fastest_mps = mps
        pace_mps = None if fastest_mps is None else max(fastest_mps, 0.0)
        self._pace = last, count, pace_mps
        return pace_mps

    def kept_interval_ms(self) -> int | None:
        """Interval between reports that the device was seen to keep, ms: the median of its last gaps between fixes.

        The interval that was asked of the device plays no part. None with fewer than 4 fixes of different times in some 30 minutes
        before the newest one.
        """
        gaps_ms = self._last_gaps_ms()
        return median_low(gaps_ms) if len(gaps_ms) >= MIN_KEPT_GAPS else None

    def longer_gap_ms(self) -> int | None:
        """The upper quartile of the last gaps between fixes, ms; None where the kept interval is None.

        A position that was asked for splits one gap in two. So a single such position leaves the upper quartile as it is.
        """
        gaps_ms = self._last_gaps_ms()
        return sorted(gaps_ms)[len(gaps_ms) * 3 // 4] if len(gaps_ms) >= MIN_KEPT_GAPS else None

    def _last_gaps_ms(self) -> list[int]:
        """The last gaps between fixes of different times, newest first, ms."""
        gaps_ms = _gaps_ms(self.recent)
        if self.older is None or len(gaps_ms) == KEPT_GAPS:
            return gaps_ms
        return _gaps_ms(self.since(self.recent[-1].time_ms - KEPT_WITHIN_MS))

    def unknown_after_ms(self) -> int:
        """Time after the newest fix from which on the position is unknown, ms: 3 minutes, or 30 s longer than the kept interval."""
        fixes = self.recent
        if len(fixes) <= MIN_KEPT_GAPS:
            return UNKNOWN_AFTER_MS
        a_ms = fixes[-4][0]
        b_ms = fixes[-3][0]
        c_ms = fixes[-2][0]
        d_ms = fixes[-1][0]
        if a_ms < b_ms < c_ms < d_ms and max(b_ms - a_ms, c_ms - b_ms, d_ms - c_ms) <= SHORT_MS:
            return UNKNOWN_AFTER_MS  # nearly always, and the same result: a median of five gaps is no longer than three of them
        kept_ms = self.kept_interval_ms()
        if kept_ms is None:
            return UNKNOWN_AFTER_MS
        return max(UNKNOWN_AFTER_MS, min(kept_ms, MAX_KEPT_MS) + OVERDUE_AFTER_MS)

    def is_fresh(self, at_ms: int) -> bool:
        """Whether the newest fix still shows at a moment where the device is. The track must have a fix."""
        age_ms = at_ms - self.recent[-1].time_ms
        return age_ms <= UNKNOWN_AFTER_MS or age_ms <= self.unknown_after_ms()

    def count_before(self, time_ms: int, newest: int) -> int:
        """Number of fixes older than `time_ms` that aren't needed: all but the last of them, and none of the `newest` newest fixes.

        The last one is needed because the line that leads past `time_ms` begins there.
        """
        return max(0, min(self._index_at(time_ms) - 1, self.count - newest))

    def forget_before(self, time_ms: int) -> None:
        """Drops fixes older than `time_ms`, except the last of them and the newest two."""
        self.drop(self.count_before(time_ms, 2))

    def drop(self, count: int) -> None:
        """Drops the oldest fixes."""
        if count and self.began_ms is None:
            self.began_ms = self.first_ms
        if self.older is not None and count < self.older_count:
            self.older = self.older.without_oldest(count) if count else self.older
            self.older_count -= count
        else:
            del self.recent[: count - self.older_count]
            self.older, self.older_count = None, 0
        self._forget_derived()

    def _forget_derived(self) -> None:
        """Forgets what was derived from the fixes. A new newest fix needs no call: it shows in the number of fixes."""
        self.floor = self.left_by_jump = self.plain = self._pace = None

    def joined(self, from_ms: int, to_ms: int) -> Iterator[Piece]:
        """Movement known for sure: the lines between neighbouring fixes, none across a gap of more than 3 minutes."""
        return _pieces(self.since(from_ms), from_ms, to_ms, hold=False)

    def assumed(self, from_ms: int, to_ms: int) -> Iterator[Piece]:
        """Assumed movement: as `joined`, but in a gap and after the newest fix the device stays at the last fix before."""
        return _pieces(self.since(from_ms), from_ms, to_ms, hold=True)

    def predicted(self, to_ms: int) -> Piece | None:
        """The last movement, of MIN_SPEED_MS at least, continued after the last fix for up to 30 s; None if there is none."""
        last = self.recent[-1] if self.recent else None
        ahead_ms = min(to_ms - last[0], PREDICT_MS) if last else 0
        if last is None or ahead_ms <= 0 or len(self.recent) < 2:
            return None
        before, last_ms = self.recent[-2], last[0]
        if last_ms - before[0] < MIN_SPEED_MS:  # seldom: the fix before is nearly always old enough
            before = next((fix for fix in islice(self.backwards(), 2, None) if last_ms - fix[0] >= MIN_SPEED_MS), last)
        if not 0 < (took_ms := last_ms - before[0]) <= UNKNOWN_AFTER_MS:
            return None
        start, point = before.point, last.point
        if math.dist(start, point) > PREDICT_UP_TO_MPS * took_ms:
            return None
        return _new(Piece, (last_ms, last_ms + ahead_ms, point, between(start, point, 1 + ahead_ms / took_ms)))


def repeats(track: Track, fix: Fix) -> bool:
    """Whether a track holds the same measurement, with the same time of the fix and place, from a report with another id.

    A device without reception of satellites sends its last fix once more, and a gateway may give the same fix a new id.
    """
    first_ms = fix.fix_ms - MAX_AHEAD_MS if track.ahead else fix.time_ms
    fixes = track.since(first_ms)
    for index in range(bisect_left(fixes, (first_ms,)), len(fixes)):
        other = fixes[index]
        if other.time_ms > fix.fix_ms:
            return False
        if other.fix_ms == fix.fix_ms and other[3:6] == fix[3:6] and other.report_id != fix.report_id:
            return True
    return False


def is_recent(time_ms: int, now_ms: int) -> bool:
    """Whether a moment is at most 3 minutes ago, so that a position of that time still says where a device may be."""
    return now_ms - time_ms <= UNKNOWN_AFTER_MS


def fastest_step_mps(fixes: Sequence[Fix]) -> float:
    """The greatest speed between two consecutive fixes, m/s; needs at least two fixes."""
    return max(math.dist(a[3:6], b[3:6]) / max(1, b.time_ms - a.time_ms) for a, b in pairwise(fixes))


def is_jump(before: Fix, fix: Fix) -> bool:
    """Whether a fix is farther from the fix before it than the accuracies and any speed can explain."""
    apart_mm = math.dist(before[3:6], fix[3:6]) - JUMP_MPS * (fix[0] - before[0])
    return apart_mm > 0 and apart_mm > before.accuracy_mm + fix.accuracy_mm


def _gaps_ms(fixes: Sequence[Fix]) -> list[int]:
    """The last gaps between fixes of different times, newest first, ms."""
    gaps_ms: list[int] = []
    later_ms = newest_ms = fixes[-1].time_ms if fixes else 0
    for i in range(len(fixes) - 2, -1, -1):
        time_ms = fixes[i].time_ms
        if len(gaps_ms) == KEPT_GAPS or newest_ms - time_ms > KEPT_WITHIN_MS:
            break
        if time_ms < later_ms:
            gaps_ms.append(later_ms - time_ms)
            later_ms = time_ms
    return gaps_ms


def _pieces(fixes: Sequence[Fix], from_ms: int, to_ms: int, *, hold: bool) -> Iterator[Piece]:
    """Lines between fixes up to 3 minutes apart. With `hold`, the device stays at a fix in a longer gap and after the newest fix."""
    last = len(fixes) - 1
    index = max(0, bisect_right(fixes, (from_ms, AFTER_ALL_MS)) - 1)
    for i in range(index, last):
        fix, following = fixes[i], fixes[i + 1]
        start_ms, end_ms = fix[0], following[0]
        if start_ms > to_ms:
            return
        if end_ms < from_ms or end_ms == start_ms:
            continue
        is_joined = end_ms - start_ms <= UNKNOWN_AFTER_MS
        if is_joined or hold:
            piece = _new(Piece, (start_ms, end_ms, fix[3:6], following[3:6] if is_joined else fix[3:6]))
            yield piece if from_ms <= start_ms and end_ms <= to_ms else piece.clipped(from_ms, to_ms)
    if hold and last >= 0 and fixes[last].time_ms <= to_ms:
        point = fixes[last].point
        yield _new(Piece, (max(from_ms, fixes[last].time_ms), to_ms, point, point))


def difference(a: Sequence[Piece], b: Sequence[Piece]) -> Iterator[Piece]:
    """Movement of `a` relative to `b`, in the stretches that both have; both in order of time."""
    i = j = 0
    while i < len(a) and j < len(b):
        p, q = a[i], b[j]
        low, high = max(p.from_ms, q.from_ms), min(p.to_ms, q.to_ms)
        if low <= high:
            yield _new(Piece, (low, high, minus(p.at(low), q.at(low)), minus(p.at(high), q.at(high))))
        if p.to_ms < q.to_ms:
            i += 1
        elif q.to_ms < p.to_ms:
            j += 1
        # The first fix after a gap isn't joined to the one before, so it is a piece without duration yet.
        elif _is_moment(a, i + 1):
            i += 1
        elif _is_moment(b, j + 1):
            j += 1
        else:
            i, j = i + 1, j + 1


def _is_moment(pieces: Sequence[Piece], index: int) -> bool:
    return index < len(pieces) and pieces[index].from_ms == pieces[index].to_ms


def minus(a: Vector, b: Vector) -> Vector:
    """The vector from one position to another, mm."""
    return a[0] - b[0], a[1] - b[1], a[2] - b[2]


def until(track: Track, last: Fix) -> Track:
    """The track as it was when a fix was its newest one. A fix that the track has dropped makes a track of its own."""
    fixes = track.fixes
    return Track(fixes[: bisect_right(fixes, last)] or [last])
