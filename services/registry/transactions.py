"""Transactions on the registry's database, and the signal that wakes waiting tasks after a commit."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeVar

from sqlalchemy import Connection

from services.common.clock import MeshClock
from services.common.storage.db import Database
from services.registry.keys import Vault
from services.registry.unit_of_work import UnitOfWork
from services.registry.working_set import working_set
from services.registry.working_set.working_set import WorkingSet

T = TypeVar("T")


class CommitSignal:
    """Wakes the tasks of this process that wait for a commit. Commits of other processes aren't signalled, so poll the store too."""

    def __init__(self) -> None:
        self._next = asyncio.Event()

    def next_change(self) -> asyncio.Event:
        """An event that is set after the next commit. Get it first, then read the store, then wait for the event."""
        return self._next

    async def wait_for(self, change: asyncio.Event, at_most_s: float = 1.0) -> None:
        """Wait for a change, at most `at_most_s` seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(at_most_s):
                await change.wait()

    def notify(self) -> None:
        """Wake all tasks that wait."""
        committed, self._next = self._next, asyncio.Event()
        committed.set()


class Transactions:
    """Opens the transactions of all commands and queries."""

    def __init__(self, database: Database, vault: Vault, clock: MeshClock) -> None:
        self.database = database
        self._clock = clock
        self.signal = CommitSignal()
        self.vault = vault

    @asynccontextmanager
    async def open(self) -> AsyncIterator[UnitOfWork]:
        """A read-write transaction. After its commit, the callbacks in `after_commit` run."""
        async with self.database.transaction() as connection:
            work = UnitOfWork(connection, self.vault)
            yield work
        for callback in work.after_commit:
            callback()

    @asynccontextmanager
    async def changing(self) -> AsyncIterator[UnitOfWork]:
        """A read-write transaction whose commit wakes the tasks that wait for a change."""
        async with self.open() as work:
            yield work
        self.signal.notify()

    async def change(self, command: Callable[[WorkingSet], T]) -> T:
        """Run a command on the records as one transaction, and wake the tasks that wait for a change."""

        result, working = await self.database.visit(partial(self._run, command=command))
        for callback in working.after_commit:
            callback()
        self.signal.notify()
        return result

    async def change_within(self, work: UnitOfWork, command: Callable[[WorkingSet], T]) -> T:
        """Run a command on the records as a part of an open transaction."""
        result, working = await work.connection.run_sync(partial(self._run, command=command))
        work.after_commit += working.after_commit
        return result

    def _run(self, connection: Connection, command: Callable[[WorkingSet], T]) -> tuple[T, WorkingSet]:
        working = WorkingSet(connection, self.vault)
        result = command(working)
        working_set.write_changes(connection, working, self._clock.now_ms())
        return result, working

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[UnitOfWork]:
        """A read-only snapshot, for long reads that mustn't block a put."""
        async with self.database.reading() as connection:
            yield UnitOfWork(connection, self.vault)
