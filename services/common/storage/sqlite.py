"""Opening of SQLite files under asyncio that leaves no connection open if the caller is cancelled."""

from __future__ import annotations

import asyncio
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
    opening = asyncio.ensure_future(_open(connection))
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        await asyncio.shield(asyncio.ensure_future(_close(opening)))
        raise


async def _open(connection: aiosqlite.Connection) -> aiosqlite.Connection:
    return await connection


async def _close(opening: asyncio.Future[aiosqlite.Connection]) -> None:
    await asyncio.wait([opening])
    if not opening.cancelled() and opening.exception() is None:
        await opening.result().close()
