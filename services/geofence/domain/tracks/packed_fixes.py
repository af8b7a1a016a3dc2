"""Packed fixes: the older fixes of a track in some 30 bytes each, where objects take some 350 bytes.

A fix has six numbers of 64 bits, as its source is the high word of its accuracy. The high words of neighbouring fixes are nearly
always the same: those of coordinates change every 4,295 km, those of times every 50 days, and sources seldom. So the low words are
stored for each fix, and the high words only once for all.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

Row = tuple[int, int, str, int, int, int, int, int]
"""The values of a fix, in the order of the fields of `track.Fix`."""

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
    """Fixes in order of time, never changed. Equal fixes give equal values if `of_rows` packed them or `normalised` returned them."""

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
        """The same fixes in the form that `of_rows` gives, whatever was added and dropped."""
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


def of_rows(rows: Sequence[Row]) -> PackedFixes:
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
