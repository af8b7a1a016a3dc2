"""The agenda: moments at which a case begins, ends or is checked, the earliest first."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple


class Due(NamedTuple):
    """A moment at which time alone may decide something. The checks of a case come before its boundary at the same moment."""

    at_ms: int
    case_id: str
    """Empty if the moment belongs to no case: a tick at that time is enough."""
    is_boundary: bool
    """Whether the case begins or ends at that moment; otherwise it is only checked."""


class Agenda:
    """Moments in order. The moments of one case are dropped without a look at those of other cases.

    Agencies renew all orders of a country at once, and each renewal drops the moments of its case. Were all moments searched each
    time, the work would grow with the square of the number of cases, and responses would wait for it.
    """

    __slots__ = ("_count", "_dropped", "_heap", "_of_case")

    def __init__(self, moments: Iterable[Due] = ()) -> None:
        self._heap: list[Due] = []
        """Dropped moments stay in the heap until they come to its top, or until they are more than a half of it."""
        self._of_case: dict[str, list[Due]] = {}
        self._count = 0
        self._dropped: Counter[Due] = Counter()
        """How many times each dropped moment is in the heap. Equal moments may be in it more than once."""
        for due in moments:
            self.add(due)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Due]:
        """All moments in order."""
        return iter(sorted(due for moments in self._of_case.values() for due in moments))

    @property
    def next_ms(self) -> int | None:
        """The earliest moment, mesh time; None if there is none."""
        return self._heap[0].at_ms if self._heap else None

    def add(self, due: Due) -> None:
        """Adds a moment."""
        heapq.heappush(self._heap, due)
        self._of_case.setdefault(due.case_id, []).append(due)
        self._count += 1

    def pop(self) -> Due:
        """Removes the first moment and returns it. Raises IndexError if there is none."""
        due = heapq.heappop(self._heap)
        moments = self._of_case[due.case_id]
        moments.remove(due)
        if not moments:
            del self._of_case[due.case_id]
        self._count -= 1
        if self._dropped:
            self._clear_top()
        return due

    def drop_case(self, case_id: str) -> None:
        """Removes all moments of a case."""
        moments = self._of_case.pop(case_id, [])
        self._count -= len(moments)
        self._dropped.update(moments)
        if 2 * self._count < len(self._heap):
            self._heap = [due for kept in self._of_case.values() for due in kept]
            heapq.heapify(self._heap)
            self._dropped.clear()
        self._clear_top()

    def _clear_top(self) -> None:
        while self._heap and self._dropped[self._heap[0]]:
            due = heapq.heappop(self._heap)
            self._dropped[due] -= 1
            if not self._dropped[due]:
                del self._dropped[due]
