"""Position of a stream's reader after messages that don't concern it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

from services.common.retrying import retried
from services.dispatch.leg.rows import StreamPosition

STORE_INTERVAL_S = 5.0
"""Interval at which a skipped position is stored, seconds. Until then it is only in memory."""


class SkippedPosition:
    """Holds the stream position after messages that concern other readers.

    The position is written only every 5 s, so that no message that concerns this reader waits for the transaction. After a crash the
    reader skips the same messages once more.
    """

    def __init__(self, store: Callable[[StreamPosition], Awaitable[None]]) -> None:
        self._store = store
        self.position: StreamPosition | None = None
        """Position that isn't in the database yet; None if there is none."""

    async def keep(self) -> None:
        """Stores the position every 5 s until cancelled."""
        while True:
            await asyncio.sleep(STORE_INTERVAL_S)
            position, self.position = self.position, None
            if position:
                await retried(partial(self._store, position))
