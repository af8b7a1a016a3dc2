"""Splits work into runs whose items may be done at once, because no two of them are about the same thing. Pure."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def runs(
    items: Iterable[T],
    about: Callable[[T], Hashable],
    *,
    at_most: int,
    size: Callable[[T], int] = lambda _: 0,
    max_size: int = 0,
) -> Iterator[list[T]]:
    """Splits items, in their order, into runs of `at_most` items that are about different things. Do one run after the other.

    An item about None is a run of its own: it waits for all items before it, and all items after it wait for it. The sizes of the items
    of a run add up to `max_size` at most, unless a single item is larger.
    """
    run: list[T] = []
    things: set[Hashable] = set()
    total = 0
    for item in items:
        thing, adds = about(item), size(item)
        is_full = len(run) == at_most or total + adds > max_size
        if run and (is_full or thing is None or thing in things or None in things):
            yield run
            run = []
            things = set()
            total = 0
        run.append(item)
        things.add(thing)
        total += adds
    if run:
        yield run
