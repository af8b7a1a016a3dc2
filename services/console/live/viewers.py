"""Browsers that view a page now. Some data is read only while at least one browser views its page."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class Viewers:
    """Count of the browsers that view a page."""

    def __init__(self) -> None:
        self._count = 0
        self._came = asyncio.Event()

    def __bool__(self) -> bool:
        return bool(self._count)

    @contextmanager
    def viewing(self) -> Iterator[None]:
        """Counts a browser that views the page."""
        self._count += 1
        self._came.set()
        try:
            yield
        finally:
            self._count -= 1

    async def next(self, within_s: float) -> None:
        """Returns when the next browser comes, or after `within_s`."""
        await next_set(self._came, within_s)


async def next_set(event: asyncio.Event, within_s: float) -> None:
    """Returns when the event is set the next time, or after `within_s`."""
    event.clear()
    with suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            await event.wait()
