"""When garbage is looked for. What the fold remembers has no cycles and is freed at once when it is dropped; to look through hours of
positions again and again, as Python would by itself, takes a tenth of the fold's time."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

EVERY = 256
"""Entries between two looks."""


class Garbage:
    """Looks for garbage among what came up since the last look, and takes the rest out of sight."""

    def __init__(self) -> None:
        self._entries = 0

    def after(self, entries: int) -> None:
        """Looks for it after so many entries, ticks too, so at least every few minutes."""
        self._entries += entries
        if self._entries >= EVERY:
            self._entries = 0
            gc.collect()
            gc.freeze()


@contextmanager
def looked_for_seldom() -> Iterator[Garbage]:
    """A block in which it is looked for by `Garbage` alone."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield Garbage()
    finally:
        gc.enable()
        gc.unfreeze()
