"""Opening of SQLite files under asyncio so that a cancelled caller neither leaves a connection open nor waits for it forever."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import aiosqlite


async def connect(*arguments: Any, **options: Any) -> aiosqlite.Connection:
    """Opens a connection, for SQLAlchemy's `async_creator_fn`. The arguments are those of `sqlite3.connect`.

    The driver opens the file in a thread, and loses the connection if the caller is cancelled before it is open. So a cancelled
    caller waits here until the connection is open, and closes it again.
    """
    connection = aiosqlite.connect(*arguments, **options)
    # SQLAlchemy sets this as well: an idle thread must not keep the process from ending.
    connection._thread.daemon = True
    # A cancelled caller closes its connection, and the end of the database closes all. The thread ends at the first request to stop
    # and answers no second one, so the second of them would wait forever.
    connection.stop = _once(connection.stop)  # type: ignore[method-assign]
    opening = asyncio.ensure_future(_open(connection))
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        await asyncio.shield(asyncio.ensure_future(_close(opening)))
        raise


def _once(stop: Callable[[], asyncio.Future[Any] | None]) -> Callable[[], asyncio.Future[Any] | None]:
    """Returns a function that calls `stop` the first time, and returns the same future each time."""
    stopped: list[asyncio.Future[Any] | None] = []

    def stop_once() -> asyncio.Future[Any] | None:
        if not stopped:
            stopped.append(stop())
        return stopped[0]

    return stop_once


async def _open(connection: aiosqlite.Connection) -> aiosqlite.Connection:
    return await connection


async def _close(opening: asyncio.Future[aiosqlite.Connection]) -> None:
    await asyncio.wait([opening])
    if not opening.cancelled() and opening.exception() is None:
        await opening.result().close()
