"""Items of a live page, each with the number of its last change, so that a browser gets only newer changes. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple, TypeAlias

MAX_GONE = 2_000
"""Number of removed items that are remembered for browsers that reconnect."""

Item: TypeAlias = dict[str, Any]
"""Item as the browser gets it."""


class Sort(StrEnum):
    """Sort of an item. The value is the field of a message that lists such items."""

    INCIDENT = "incidents"
    TARGET = "targets"
    UNIT = "units"


class ItemKey(NamedTuple):
    """Key of an item."""

    sort: Sort
    id: str


@dataclass(frozen=True, slots=True)
class ChangedItems:
    """Changes of items after the change number that a browser has seen."""

    reset: bool
    """Whether `changed` has all items, because the changes since that number are no longer known."""
    changed: Mapping[Sort, list[Item]]
    gone: list[str]
    """Ids of removed items."""


class NumberedItems:
    """Items of a page. The number grows by one with each change."""

    def __init__(self, notify: Callable[[], None]) -> None:
        self._notify = notify
        """Called after each change."""
        self._items: dict[Sort, dict[str, Item]] = {sort: {} for sort in Sort}
        self._changed_at: dict[ItemKey, int] = {}
        self._gone: deque[ItemKey] = deque()
        self._forgotten = 0
        """Change number of the newest removal that was forgotten. A browser that saw less needs a reset."""
        self.number = 0
        """Number of the last change."""

    def of(self, sort: Sort) -> Mapping[str, Item]:
        """Returns the items of a sort by id."""
        return self._items[sort]

    def put(self, key: ItemKey, item: Item) -> None:
        """Adds or replaces an item. An equal item is no change."""
        if self._items[key.sort].get(key.id) != item:
            self._items[key.sort][key.id] = item
            self._changed_at[key] = self.count()

    def remove(self, key: ItemKey) -> None:
        """Removes an item, if the page has it."""
        if self._items[key.sort].pop(key.id, None) is not None:
            self._changed_at[key] = self.count()
            self._gone.append(key)
            if len(self._gone) > MAX_GONE:
                self._forget(self._gone.popleft())

    def count(self) -> int:
        """Counts a change, of an item or of anything else that browsers get, and returns its number."""
        self.number += 1
        self._notify()
        return self.number

    def since(self, seen: int | None) -> ChangedItems:
        """Returns the changes since the number `seen`; all items for None and for a number that is too old."""
        if seen is not None and seen < self._forgotten:
            seen = None
        changed: dict[Sort, list[Item]] = {sort: [] for sort in Sort}
        gone: list[str] = []
        for key, number in self._changed_at.items():
            if seen is None or number > seen:
                item = self._items[key.sort].get(key.id)
                if item is not None:
                    changed[key.sort].append(item)
                elif seen is not None:
                    gone.append(key.id)
        return ChangedItems(seen is None, changed, gone)

    def _forget(self, key: ItemKey) -> None:
        if key.id not in self._items[key.sort]:  # else the item was added again
            self._forgotten = max(self._forgotten, self._changed_at.pop(key, 0))
