"""A caller that is cancelled while it opens or uses a database leaves no connection open."""

from __future__ import annotations

import asyncio
import gc
import random
import sqlite3
import sys
import warnings
from pathlib import Path
from typing import Any, ClassVar

import pytest
import sqlalchemy as sa

from services.common.storage import sqlite
from services.common.storage.db import Database, open_database
from services.dispatch.__main__ import MIGRATIONS

CALLERS = 200
SEED = 20260706
LONGEST_CALL_S = 0.004
PATIENCE_S = 60.0


async def read(database: Database) -> None:
    async with database.reading() as connection:
        await connection.execute(sa.text("select 1"))


async def write(database: Database) -> None:
    async with database.transaction() as connection:
        await connection.execute(sa.text("select 1"))


class Counted(sqlite3.Connection):
    """A connection that is in `still_open` until it is closed."""

    still_open: ClassVar[set[int]] = set()

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.still_open.add(id(self))

    def close(self) -> None:
        self.still_open.discard(id(self))
        super().close()


async def test_a_cancelled_caller_closes_its_connection(where: Path | str, monkeypatch: pytest.MonkeyPatch) -> None:
    unclosed: list[str] = []
    # Python 3.13 reports an SQLite connection that is dropped while open. asyncpg reports its connections on every Python.
    monkeypatch.setattr(sys, "unraisablehook", lambda report: unclosed.append(repr(report.exc_value)))
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **options: connect(*args, factory=Counted, **options))
    Counted.still_open.clear()
    moments = random.Random(SEED)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        async with open_database(where, MIGRATIONS) as database:
            for number in range(CALLERS):
                caller = asyncio.create_task((read if number % 4 else write)(database))
                await asyncio.sleep(moments.choice((0, moments.uniform(0, LONGEST_CALL_S))))
                caller.cancel()
                await asyncio.gather(caller, return_exceptions=True)
        gc.collect()
    assert not unclosed
    assert not Counted.still_open, "connections that Python before 3.13 doesn't report"


async def test_all_who_close_a_connection_at_once_return(tmp_path: Path) -> None:
    connection = await sqlite.connect(tmp_path / "closed.sqlite3")
    async with asyncio.timeout(PATIENCE_S):
        # A later caller may learn that the connection is closed. None may wait for a thread that has ended.
        await asyncio.gather(*(connection.close() for _ in range(3)), return_exceptions=True)
    connection._thread.join(PATIENCE_S)
    assert not connection._thread.is_alive()
