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


class ItemKind(StrEnum):
    """Kind of an item. The value is the field of a message that lists such items."""

    INCIDENT = "incidents"
    TARGET = "targets"
    UNIT = "units"


class ItemKey(NamedTuple):
    """Key of an item."""

    kind: ItemKind
    id: str


@dataclass(frozen=True, slots=True)
class ChangedItems:
    """Changes of items after the change number that a browser has seen."""

    reset: bool
    """Whether `changed` has all items, because the changes since that number are no longer known."""
    changed: Mapping[ItemKind, list[Item]]
    gone: list[str]
    """Ids of removed items."""


class NumberedItems:
    """Items of a page. The number grows by one with each change."""

    def __init__(self, notify: Callable[[], None]) -> None:
        self._notify = notify
        """Called after each change."""
        self._items: dict[ItemKind, dict[str, Item]] = {kind: {} for kind in ItemKind}
        self._changed_at: dict[ItemKey, int] = {}
        """Number of the last change of each item, ascending. Also of removed items that are remembered."""
        self._gone: deque[ItemKey] = deque()
        self._newest_forgotten = 0
        """Change number of the newest removal that was forgotten. A browser that saw less needs a reset."""
        self.number = 0
        """Number of the last change."""

    def of(self, kind: ItemKind) -> Mapping[str, Item]:
        """Returns the items of a kind by id."""
        return self._items[kind]

    def put(self, key: ItemKey, item: Item) -> None:
        """Adds or replaces an item. An equal item is no change."""
        if self._items[key.kind].get(key.id) != item:
            self._items[key.kind][key.id] = item
            self._mark_changed(key)

    def remove(self, key: ItemKey) -> None:
        """Removes an item, if the page has it."""
        if self._items[key.kind].pop(key.id, None) is not None:
            self._mark_changed(key)
            self._gone.append(key)
            if len(self._gone) > MAX_GONE:
                self._forget(self._gone.popleft())

    def next_number(self) -> int:
        """Counts a change, of an item or of anything else that browsers get, and returns its number."""
        self.number += 1
        self._notify()
        return self.number

    def since(self, seen: int | None) -> ChangedItems:
        """Returns the changes since the number `seen`; all items for None and for a number that is too old.

        Reads no more items than it returns.
        """
        if seen is not None and seen < self._newest_forgotten:
            seen = None
        keys: list[ItemKey] = []
        for key, number in reversed(self._changed_at.items()):
            if seen is not None and number <= seen:
                break
            keys.append(key)
        changed: dict[ItemKind, list[Item]] = {kind: [] for kind in ItemKind}
        gone: list[str] = []
        for key in reversed(keys):
            item = self._items[key.kind].get(key.id)
            if item is not None:
                changed[key.kind].append(item)
            elif seen is not None:
                gone.append(key.id)
        return ChangedItems(seen is None, changed, gone)

    def _mark_changed(self, key: ItemKey) -> None:
        self._changed_at.pop(key, None)
        self._changed_at[key] = self.next_number()

    def _forget(self, key: ItemKey) -> None:
        if key.id not in self._items[key.kind]:  # else the item was added again
            self._newest_forgotten = max(self._newest_forgotten, self._changed_at.pop(key, 0))
