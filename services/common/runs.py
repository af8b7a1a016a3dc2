"""Splits work into runs whose items may be done at once, because no two of them are about the same thing. Pure."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def runs(items: Iterable[T], about: Callable[[T], Hashable], *, at_most: int) -> Iterator[list[T]]:
    """Splits items, in their order, into runs of `at_most` items that are about different things. Do one run after the other.

    An item about None is a run of its own: it waits for all items before it, and all items after it wait for it.
    """
    run: list[T] = []
    things: set[Hashable] = set()
    for item in items:
        thing = about(item)
        if run and (thing is None or thing in things or None in things or len(run) == at_most):
            yield run
            run, things = [], set()
        run.append(item)
        things.add(thing)
    if run:
        yield run
