"""Control of Python's cyclic garbage collector. The fold's state has no cycles, so reference counting frees it at once. The default
collector would scan hours of positions repeatedly, which takes a tenth of the fold's time."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

COLLECT_INTERVAL = 32
"""Entries between two collections, some 3,000 reports: the collector finds their objects still in the processor's cache."""


class GarbageCollector:
    """Collects garbage among the objects made since the last collection, and freezes the survivors."""

    def __init__(self) -> None:
        self._entries = 0

    def count(self, entries: int) -> None:
        """Counts folded entries and collects every COLLECT_INTERVAL. Ticks count too, so it collects at least each minute."""
        self._entries += entries
        if self._entries >= COLLECT_INTERVAL:
            self._entries = 0
            # With automatic collection disabled, the newest generation holds all objects made since. A full collection finds no more,
            # and it gives up the memory of small objects, which the fold asks for at once.
            gc.collect(0)
            gc.freeze()


@contextmanager
def infrequent_collection() -> Iterator[GarbageCollector]:
    """Disables Python's automatic collection in a block; only the `GarbageCollector` that it yields collects."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield GarbageCollector()
    finally:
        gc.enable()
        gc.unfreeze()


@contextmanager
def no_collection() -> Iterator[None]:
    """Disables Python's automatic collection in a block. It stays disabled after the block if it was before."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
