"""Secondary writes of a leg: records of publications, and the other legs' steps. No offer waits for them.

Writes that come at about the same time share one transaction: a commit costs more than the rows in it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from sqlalchemy import Connection

COALESCE_S = 0.02
"""Time for which writes are collected after the first one, seconds. The other legs' steps follow the own one within this time."""
INTERVAL_S = 0.2
"""Minimum time between two transactions of secondary writes, seconds."""


@dataclass(frozen=True, slots=True)
class SecondaryWrite:
    """A write that may share its transaction with others."""

    work: Callable[[Connection], None]
    then: Callable[[], None]
    """Called once the transaction is committed, before another one begins."""
    done: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


Commit: TypeAlias = Callable[[Sequence[SecondaryWrite]], Awaitable[None]]
"""Commits writes in their order, in one transaction. Raises Unavailable."""


class SecondaryWrites:
    """Collects secondary writes."""

    def __init__(self, commit: Commit) -> None:
        self._commit = commit
        self._pending: list[SecondaryWrite] = []
        self._running: asyncio.Task[None] | None = None

    async def add(self, work: Callable[[Connection], None], then: Callable[[], None] = lambda: None) -> None:
        """Returns once `work` is committed. Raises the error of its transaction, which may be another write's."""
        write = SecondaryWrite(work, then)
        self._pending.append(write)
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run())
        await write.done

    async def close(self) -> None:
        """Ends the work. Writes that aren't committed are lost, and follow from the streams after a restart."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait([self._running])

    async def _run(self) -> None:
        await asyncio.sleep(COALESCE_S)
        while self._pending:
            writes, self._pending = self._pending, []
            try:
                await self._commit(writes)
            except Exception as error:  # each caller gets it
                for write in writes:
                    if not write.done.done():
                        write.done.set_exception(error)
            else:
                for write in writes:
                    if not write.done.done():
                        write.done.set_result(None)
            await asyncio.sleep(INTERVAL_S)
