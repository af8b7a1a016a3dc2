"""The fixes of one device: the newest ones as objects, the older ones packed in some 30 bytes each, where objects take some 350 bytes.

A fix has six numbers of 64 bits, as its source is the high word of its accuracy. The high words of neighbouring fixes are nearly
always the same: those of coordinates change every 4,295 km, those of times every 50 days, and sources seldom. So the low words are
stored for each packed fix, and the high words only once for all.
"""

from __future__ import annotations

import math
import struct
import sys
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NamedTuple

from services.geofence.domain.geometry import Vector

AFTER_ALL_MS = 1 << 62
MIN_RECENT = 10
"""A packed track keeps at least this many of its newest fixes as objects: most decisions need no older ones. `plausibility` needs 9."""
MIN_PACKED = 16
"""Least number of fixes that are packed together."""
MAX_UNPACKED = 64
"""A decision that needs more of the older fixes than this unpacks the track until it is packed again."""
ROUNDING_MM = 1
"""More than the rounding errors of the length of a way, mm."""
_new = tuple.__new__


class Fix(NamedTuple):
    """One position. Fixes sort by time, then by report, so that the order of arrival doesn't matter."""

    time_ms: int
    """Time of the position: the time of the fix, but not later than its arrival."""
    fix_ms: int
    """Time of the fix by the device's clock."""
    report_id: str
    x_mm: int
    y_mm: int
    z_mm: int
    accuracy_mm: int
    source: int = 0
    """Where the position comes from, a number of `entries.PositionSource`. The accuracy is already weighed by it."""

    @property
    def point(self) -> Vector:
        """Earth-centred coordinates, mm."""
        return self.x_mm, self.y_mm, self.z_mm


class Neighbours(NamedTuple):
    """The fixes before and after a fix; None if there is none."""

    before: Fix | None
    after: Fix | None


class _Way(NamedTuple):
    """An upper bound of the way of a device from a moment to a fix."""

    from_ms: int
    until: tuple[int, int, str]
    """The fix, by the values that fixes sort by."""
    longest_mm: float


@dataclass(slots=True)
class Fixes:
    """Fixes in order of time. Whether older ones are packed changes no result."""

    recent: list[Fix] = field(default_factory=list)
    """The newest fixes: at least MIN_RECENT, or all."""
    older: PackedFixes | None = field(default=None, init=False, compare=False)
    """The fixes before the recent ones; None if no fix is packed."""
    older_count: int = field(default=0, init=False, compare=False)
    """Number of packed fixes."""
    is_truncated: bool = False
    """Whether fixes were dropped while a case named the device: the oldest known fix isn't its first."""
    began_ms: int | None = None
    """Time of the oldest fix when fixes were first dropped, ms; None if none was dropped. A device that no case names keeps two fixes,
    so the fixes alone don't show how long it has reported."""
    _way: _Way | None = field(default=None, init=False, compare=False, repr=False)
    """An upper bound of a way to the newest fix (`longest_way_mm`)."""

    @property
    def fixes(self) -> list[Fix]:
        """All fixes. They stay unpacked until the track is packed again, so ask for all only where no other method serves."""
        if self.older is not None:
            self.recent[:0] = self._older_fixes(0)
            self.older, self.older_count = None, 0
        return self.recent

    @property
    def count(self) -> int:
        """Number of fixes."""
        return self.older_count + len(self.recent)

    @property
    def first_ms(self) -> int:
        """Time of the oldest fix. The track must have a fix."""
        return self.recent[0].time_ms if self.older is None else self.older.time_ms(0)

    @property
    def known_since_ms(self) -> int:
        """Time of the device's first fix, dropped or not. The track must have a fix."""
        return self.first_ms if self.began_ms is None else min(self.began_ms, self.first_ms)

    def began_by(self, time_ms: int) -> bool:
        """Whether the oldest fix is at a moment or earlier. The track must have a fix."""
        return self.recent[0].time_ms <= time_ms or self.first_ms <= time_ms

    def pack(self) -> None:
        """Packs all fixes but the recent ones, if enough have gathered."""
        count = len(self.recent) - MIN_RECENT
        if count >= MIN_PACKED:
            packed = pack_rows(self.recent[:count])
            self.older = packed if self.older is None else self.older + packed
            self.older_count += count
            del self.recent[:count]

    def all_packed(self) -> PackedFixes | None:
        """All fixes in packed form, the same for equal fixes; None if there is none."""
        if self.older is None:
            return pack_rows(self.recent) if self.recent else None
        return (self.older + pack_rows(self.recent)).normalised()

    def hold(self, packed: PackedFixes) -> None:
        """Holds these fixes in place of all others. Raises ValueError if their parts don't fit each other."""
        if not packed.is_whole():
            raise ValueError("packed fixes whose parts don't fit each other")
        self.recent = []
        self.older = packed
        self.older_count = len(packed)
        index = max(0, len(packed) - MIN_RECENT)
        self.recent = self._older_fixes(index)
        self.older, self.older_count = (packed.without_newest(len(packed) - index), index) if index else (None, 0)

    def since(self, time_ms: int, before: int = 1) -> list[Fix]:
        """All fixes from a moment on, and at least `before` fixes before it, as far as there are so many; perhaps more."""
        recent = self.recent
        if self.older is None or (len(recent) >= before and recent[before - 1].time_ms < time_ms):
            return recent
        first = self._index_at(time_ms) - before
        return recent if first >= self.older_count else self._from(max(0, first))

    def earlier_ms(self, time_ms: int, count: int) -> int:
        """Time of the fix `count` places before the first fix after a moment, or of the oldest fix. The track must have a fix."""
        if self.older is None or self.recent[0].time_ms <= time_ms:
            index = self.older_count + bisect_right(self.recent, (time_ms, AFTER_ALL_MS))
        else:
            index = self.older.index_at(time_ms + 1)
        index = max(0, index - count)
        if self.older is None or index >= self.older_count:
            return self.recent[index - self.older_count].time_ms
        return self.older.time_ms(index)

    def path_since_mm(self, from_ms: int) -> float:
        """Length of the way through the fixes since a moment, mm: no position since then is farther from the last one."""
        fixes, total_mm = self.since(from_ms), 0.0
        if not fixes or fixes[-1][0] <= from_ms:
            return total_mm
        point = fixes[-1][3:6]
        for i in range(len(fixes) - 2, -1, -1):
            before = fixes[i]
            before_point = before[3:6]
            total_mm += math.dist(point, before_point)
            if before[0] <= from_ms:
                break
            point = before_point
        return total_mm

    def longest_way_mm(self, from_ms: int) -> float:
        """An upper bound of `path_since_mm`, mm. The track must have a fix.

        A device that comes back sends the fixes of an hour, oldest first. Each is asked about, and to measure the way since each would
        take time that grows with the square of their number. So the bound is measured once, and each further fix adds its detour.
        """
        way, newest = self._way, self.recent[-1][:3]
        if way is None or way.from_ms > from_ms or way.until != newest:
            way = self._way = _Way(from_ms, newest, self.path_since_mm(from_ms) + ROUNDING_MM)
        return way.longest_mm

    def newest(self, count: int) -> list[Fix]:
        """The newest fixes, `count` or all."""
        if self.older is None or count <= len(self.recent):
            return self.recent[-count:]
        return self._from(max(0, self.count - count))[-count:]

    def oldest(self, count: int) -> list[Fix]:
        """The oldest fixes, `count` or all."""
        return self.fixes[:count]

    def backwards(self) -> Iterator[Fix]:
        """The fixes, newest first. Older ones are unpacked only if they are asked for."""
        yield from reversed(self.recent)
        if self.older is not None:
            older, stop = self.older, self.older_count
            while stop:
                start = max(0, stop - MIN_PACKED)
                yield from reversed([_new(Fix, row) for row in older.rows(start, stop)])
                stop = start

    def may_hold_point(self, point: tuple[int, int, int], but_newest: int) -> bool:
        """Whether any fix but some newest ones may have this point; False only if none has."""
        if self.older is not None and self.older.may_hold_point(point):
            return True
        return point in [fix[3:6] for fix in self.recent[:-but_newest]]

    def last_before(self, time_ms: int) -> Fix | None:
        """The newest fix older than a moment; None if there is none."""
        index = self._index_at(time_ms) - 1
        if index >= self.older_count:
            return self.recent[index - self.older_count]
        return None if index < 0 or self.older is None else _new(Fix, next(self.older.rows(index, index + 1)))

    def _index_at(self, time_ms: int) -> int:
        """Index, among all fixes, of the first one at a moment or later."""
        if self.older is None or self.recent[0].time_ms < time_ms:
            return self.older_count + bisect_left(self.recent, (time_ms,))
        return self.older.index_at(time_ms)

    def _from(self, index: int) -> list[Fix]:
        """The fixes from an index on, among all."""
        if self.older_count - index > MAX_UNPACKED:
            return self.fixes[index:]
        return self._older_fixes(index) + self.recent

    def _older_fixes(self, index: int) -> list[Fix]:
        """The packed fixes from an index on."""
        return [] if self.older is None else [_new(Fix, row) for row in self.older.rows(index, self.older_count)]

    def last(self) -> Fix | None:
        """The newest fix; None if there is none."""
        return self.recent[-1] if self.recent else None

    def round(self, at_ms: int) -> Neighbours:
        """The last fix at a moment or before, and the fix after it."""
        fixes = self.since(at_ms)
        index = bisect_right(fixes, (at_ms, AFTER_ALL_MS))
        return Neighbours(fixes[index - 1] if index else None, fixes[index] if index < len(fixes) else None)

    def _insert(self, fixes: list[Fix], index: int, fix: Fix) -> Neighbours:
        """Inserts a fix into the list that it belongs to, and returns its neighbours."""
        before = fixes[index - 1] if index else None
        after = fixes[index] if index < len(fixes) else None
        fixes.insert(index, fix)
        if self._way is not None and after is not None:
            detour_mm = math.dist(fix[3:6], after[3:6]) + ROUNDING_MM
            if before is not None:
                detour_mm += math.dist(before[3:6], fix[3:6]) - math.dist(before[3:6], after[3:6])
            self._way = _Way(self._way.from_ms, self._way.until, self._way.longest_mm + detour_mm)
        return Neighbours(before, after)

    def _list_for(self, fix: Fix) -> list[Fix]:
        """The list of fixes that a fix belongs to: the recent ones, unless it is older than these."""
        return self.recent if self.older is None or fix[:3] >= self.recent[0][:3] else self.fixes


# ── packed fixes ─────────────────────────────────────────────────────────────────────────────────────────────────────


Row = tuple[int, int, str, int, int, int, int, int]
"""The values of a fix, in the order of the fields of `Fix`."""

_NUMBERS = 6
_FIELDS = 8
_REPORT_ID = 2
_SOURCE = 7
_ACCURACY = 5
"""Index of the accuracy among the numbers of a fix."""
_WORD_BITS = 32
_X = 2
"""Index of the x coordinate among the numbers of a fix; y and z follow it."""
_LOW_MASK = (1 << _WORD_BITS) - 1
_WORD_BYTES = 4
_WORDS_BYTES = _NUMBERS * _WORD_BYTES
"""Size of the low words of a fix, and of its high words, bytes."""
_SEPARATOR = "\n"
_LOW, _HIGH = (0, 1) if sys.byteorder == "little" else (1, 0)
"""Places of the low and of the high word of a number."""


@dataclass(slots=True)  # a frozen one takes three times as long to make, and each device has one made every 16 reports
class PackedFixes:
    """Fixes in order of time, never changed. Equal fixes give equal values if `pack_rows` packed them or `normalised` returned them."""

    low_words: bytes
    """Low words of the numbers of each fix."""
    high_words: bytes
    """High words of the numbers, once if they are the same for all fixes, else of each fix."""
    report_ids: str | tuple[str, ...]
    """Report ids, separated by line ends; a tuple if an id contains a line end."""

    def __len__(self) -> int:
        return len(self.low_words) // _WORDS_BYTES

    def __add__(self, later: PackedFixes) -> PackedFixes:
        high_words = self.high_words
        # Equal words of several fixes each, such as of a tag whose source changes at each fix, aren't shared by both parts.
        if later.high_words != high_words or len(high_words) > _WORDS_BYTES:
            high_words = self._all_high_words() + later._all_high_words()
        ids: str | tuple[str, ...]
        if isinstance(self.report_ids, str) and isinstance(later.report_ids, str):
            ids = f"{self.report_ids}{_SEPARATOR}{later.report_ids}"
        else:
            ids = (*self._ids(), *later._ids())
        return PackedFixes(self.low_words + later.low_words, high_words, ids)

    def time_ms(self, index: int) -> int:
        """Time of a fix."""
        low, high_words = index * _WORDS_BYTES, self.high_words
        high = 0 if len(high_words) == _WORDS_BYTES else low
        words = self.low_words[low : low + _WORD_BYTES], high_words[high : high + _WORD_BYTES]
        return (
            int.from_bytes(words[0], sys.byteorder) | int.from_bytes(words[1], sys.byteorder, signed=True) << _WORD_BITS
        )

    def index_at(self, time_ms: int) -> int:
        """Index of the first fix at a moment or later; the number of fixes if all are earlier."""
        low, high = 0, len(self)
        while low < high:
            middle = (low + high) // 2
            if self.time_ms(middle) < time_ms:
                low = middle + 1
            else:
                high = middle
        return low

    def rows(self, start: int, stop: int) -> Iterator[Row]:
        """The values of the fixes from `start` up to `stop`."""
        numbers = self._numbers(start, stop)
        columns = [numbers[column::_NUMBERS] for column in range(_NUMBERS)]
        times_ms, fix_times_ms, *others = columns
        if fix_times_ms == times_ms:
            fix_times_ms = times_ms  # nearly always: the objects are shared
        sources = [accuracy >> _WORD_BITS for accuracy in others[-1]]
        if any(sources):
            others[-1] = [accuracy & _LOW_MASK for accuracy in others[-1]]
        return zip(times_ms, fix_times_ms, self._ids_of(start, stop), *others, sources, strict=True)

    def may_hold_point(self, point: tuple[int, int, int]) -> bool:
        """Whether any fix may have these coordinates; False only if none has."""
        words = b"".join([(number & _LOW_MASK).to_bytes(_WORD_BYTES, sys.byteorder) for number in point])
        at = -1
        while (at := self.low_words.find(words, at + 1)) >= 0:
            if at % _WORDS_BYTES == _X * _WORD_BYTES:
                return True
        return False

    def without_oldest(self, count: int) -> PackedFixes:
        """The fixes without the oldest ones; `count` must be less than their number."""
        high_words = self.high_words
        if len(high_words) > _WORDS_BYTES:
            high_words = high_words[count * _WORDS_BYTES :]
        ids = self.report_ids
        ids = ids.split(_SEPARATOR, count)[count] if isinstance(ids, str) else ids[count:]
        return PackedFixes(self.low_words[count * _WORDS_BYTES :], high_words, ids)

    def without_newest(self, count: int) -> PackedFixes:
        """The fixes without the newest ones; `count` must be less than their number."""
        high_words = self.high_words
        if len(high_words) > _WORDS_BYTES:
            high_words = high_words[: -count * _WORDS_BYTES]
        ids = self.report_ids
        ids = ids.rsplit(_SEPARATOR, count)[0] if isinstance(ids, str) else ids[:-count]
        return PackedFixes(self.low_words[: -count * _WORDS_BYTES], high_words, ids)

    def normalised(self) -> PackedFixes:
        """The same fixes in the form that `pack_rows` gives, whatever was added and dropped."""
        high_words, ids = self.high_words, self.report_ids
        if isinstance(ids, tuple):
            ids = _joined(ids)
        return PackedFixes(self.low_words, _shared(high_words), ids)

    def is_whole(self) -> bool:
        """Whether the parts fit each other: a checkpoint may be damaged."""
        count = len(self)
        has_high_words = len(self.high_words) in (_WORDS_BYTES, count * _WORDS_BYTES)
        return count > 0 and has_high_words and len(self._ids()) == count

    def _all_high_words(self) -> bytes:
        return self.high_words * len(self) if len(self.high_words) == _WORDS_BYTES else self.high_words

    def _numbers(self, start: int, stop: int) -> list[int]:
        """The numbers of some fixes, six for each."""
        words = memoryview(bytearray((stop - start) * 2 * _WORDS_BYTES)).cast("I")
        first, end = start * _WORDS_BYTES, stop * _WORDS_BYTES
        high_words = self.high_words
        high_words = high_words * (stop - start) if len(high_words) == _WORDS_BYTES else high_words[first:end]
        words[_LOW::2] = memoryview(self.low_words[first:end]).cast("I")
        words[_HIGH::2] = memoryview(high_words).cast("I")
        return words.cast("B").cast("q").tolist()

    def _ids(self) -> Sequence[str]:
        return self.report_ids.split(_SEPARATOR) if isinstance(self.report_ids, str) else self.report_ids

    def _ids_of(self, start: int, stop: int) -> Sequence[str]:
        if isinstance(self.report_ids, str) and stop == len(self) and start:
            return self.report_ids.rsplit(_SEPARATOR, stop - start)[1:]
        return self._ids()[start:stop]


def pack_rows(rows: Sequence[Row]) -> PackedFixes:
    """Packs fixes in order of time; at least one."""
    values: list[Any] = list(chain.from_iterable(rows))
    ids, sources = values[_REPORT_ID::_FIELDS], values[_SOURCE::_FIELDS]
    del values[_SOURCE::_FIELDS]
    del values[_REPORT_ID :: _FIELDS - 1]
    if any(sources):
        for i, source in enumerate(sources):
            values[_NUMBERS * i + _ACCURACY] |= source << _WORD_BITS
    # `struct` writes the numbers in less time than an `array` does, in the same bytes.
    words = memoryview(struct.pack(f"{len(values)}q", *values)).cast("I")
    return PackedFixes(words[_LOW::2].tobytes(), _shared(words[_HIGH::2].tobytes()), _joined(ids))


def _shared(high_words: bytes) -> bytes:
    """The high words of one fix if they are the same for all."""
    first = high_words[:_WORDS_BYTES]
    return first if high_words == first * (len(high_words) // _WORDS_BYTES) else high_words


def _joined(ids: Sequence[str]) -> str | tuple[str, ...]:
    joined = _SEPARATOR.join(ids)
    return joined if joined.count(_SEPARATOR) == len(ids) - 1 else tuple(ids)
