"""Short transactions of an SQLite file: their connection, and the thread in which they run one after another."""

from __future__ import annotations

import asyncio
import contextvars
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeVar, cast

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from services.common.storage.refused import answered, refused

T = TypeVar("T")
_REFUSALS = (sqlite3.OperationalError, sqlite3.DatabaseError)
"""Errors of the file or its disk. DatabaseError itself, and no other error that derives from it, says that the file is damaged."""


class VisitThread:
    """A thread that runs functions in their order.

    An executor makes a future with a lock for each function besides the one of asyncio. In a process that was idle that costs half as
    much as a short transaction.
    """

    def __init__(self) -> None:
        self._waiting: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="database", daemon=True)

    def __enter__(self) -> VisitThread:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._waiting.put(None)
        self._thread.join()

    def run(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """Runs a function in the caller's context. The future gets its result or error."""
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[T] = loop.create_future()
        in_context = contextvars.copy_context().run

        def work_in_thread() -> None:
            try:
                settle: Callable[[], None] = partial(outcome.set_result, in_context(work))
            except BaseException as error:
                settle = partial(outcome.set_exception, error)
            with suppress(RuntimeError):  # the loop was closed meanwhile, and nobody waits any more
                loop.call_soon_threadsafe(_settle, outcome, settle)

        self._waiting.put(work_in_thread)
        return outcome

    def _work(self) -> None:
        while (work := self._waiting.get()) is not None:
            work()
            del work  # it refers to the caller's objects


def _settle(outcome: asyncio.Future[Any], settle: Callable[[], None]) -> None:
    if not outcome.done():
        settle()


class Visits:
    """The connection of an SQLite file's visits, opened by the first one, which runs in the thread of the visits."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._name = engine, str(engine.url.database)
        self._connection: Connection | None = None

    def __enter__(self) -> Visits:
        return self

    def __exit__(self, *_: object) -> None:
        if self._connection is not None:
            self._connection.close()

    def driver(self) -> sqlite3.Connection:
        """The driver's connection."""
        return cast(sqlite3.Connection, self._opened().connection.driver_connection)

    def run(self, work: Callable[[Connection], T]) -> T:
        """Runs `work` as one transaction. The driver begins and commits it: SQLAlchemy's layers cost more than most statements."""
        with refusals(self._name):
            driver = self.driver()
            driver.execute("BEGIN IMMEDIATE")
            try:
                result = work(self._opened())
                driver.execute("COMMIT")
            finally:
                self._opened().rollback()  # tells SQLAlchemy that a committed transaction is over
                if driver.in_transaction:
                    driver.rollback()
            return result

    def _opened(self) -> Connection:
        if self._connection is None:
            self._connection = self._engine.connect()
        return self._connection


@contextmanager
def refusals(file: str) -> Iterator[None]:
    """Turns a refusal of an SQLite file, such as a full disk, into Unavailable. SQLAlchemy raises refusals of its own statements, and
    the driver those of a `Prepared` statement.

    Nothing of the transaction is stored, and a retry may succeed. A damaged file refuses, too, until it is replaced.
    """
    try:
        yield
    except (DBAPIError, sqlite3.Error) as error:
        cause = error.orig if isinstance(error, DBAPIError) else error
        if type(cause) not in _REFUSALS:
            raise
        raise refused(file, str(cause), f"the database refused: {cause}") from error
    answered(file)
