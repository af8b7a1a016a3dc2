"""The pace of records in bulk: a batch waits until the log has most messages of the batches before it.

Messages reach the log in the order of their commits, so the order of a case's versions is kept. The message of a single new order goes
behind all that was committed before it. Without a pace that would be the whole bulk of an agency that sends all its records.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from services.registry.transactions import Transactions

FEW_RECORDS = 10
"""Number of records up to which a batch doesn't wait: it is as urgent as single puts, as `tandem put` sends one record as a batch."""
MAX_WAITING = 512
"""Number of waiting messages from which a batch waits. A relay publishes them within a second on a disk that syncs in a millisecond."""
STALLED_S = 3.0
"""Time without a published message after which a batch doesn't wait, seconds: the log is away, and records must be stored anyhow."""
CHECK_INTERVAL_S = 0.1
"""Interval at which the outbox is checked, seconds. The relay may be in another process."""


class BulkPace:
    """Lets one batch at a time pass, once few messages wait for the log."""

    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions
        self._turn = asyncio.Lock()
        self._stalled_at: int | None = None
        """The message that waited when nothing was published for STALLED_S; None if that never happened."""

    @asynccontextmanager
    async def turn(self, records: int) -> AsyncIterator[None]:
        """The turn of a batch with so many records. Raises Unavailable if the database refuses."""
        if records <= FEW_RECORDS:
            yield
            return
        async with self._turn:
            await self._wait_for_log()
            yield

    async def _wait_for_log(self) -> None:
        loop = asyncio.get_running_loop()
        seen, since_s = self._stalled_at, float("-inf")
        while (waits := await self._waiting()) is not None:
            now_s = loop.time()
            if waits != seen:
                seen, since_s = waits, now_s
            elif now_s - since_s >= STALLED_S:
                self._stalled_at = waits
                return
            await asyncio.sleep(CHECK_INTERVAL_S)

    async def _waiting(self) -> int | None:
        """A message that waits behind MAX_WAITING others: another one after each that was published; None if fewer wait."""
        async with self._transactions.reading() as work:
            return await work.outbox.waiting_behind(MAX_WAITING)
