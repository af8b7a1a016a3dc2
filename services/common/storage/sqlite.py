"""Opening SQLite files under asyncio, so that a caller who is cancelled meanwhile leaves no connection open."""

from __future__ import annotations

import asyncio
from typing import Any

import aiosqlite


async def connect(*arguments: Any, **options: Any) -> aiosqlite.Connection:
    """Open a connection, for SQLAlchemy's `async_creator_fn`; the arguments are those of `sqlite3.connect`.

    The driver opens the file in a thread, and drops the connection if the caller is cancelled before it is open. So the opening
    goes on, and a cancelled caller waits until the connection is open and closed.
    """
    connection = aiosqlite.connect(*arguments, **options)
    # As SQLAlchemy does: a thread that waits for work must not keep the process from ending.
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
