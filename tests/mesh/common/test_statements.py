"""Statements of the driver within a visit, on both engines: they share its transaction with SQLAlchemy's statements."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import sqlalchemy as sa

from services.common.errors import Unavailable
from services.common.storage import statements
from services.common.storage.db import Database, SqliteDatabase, open_database
from services.common.storage.statements import Prepared
from services.dispatch.__main__ import MIGRATIONS
from services.dispatch.leg.tables import peers

LATER = {"assignment_id": "assign-2", "incident_id": "incident-1", "number": 2, "payload": b"second"}
EARLIER = {"assignment_id": "assign-1", "incident_id": "incident-1", "number": 1, "payload": b"first"}
ADD = Prepared(sa.insert(peers))
RAISE = Prepared(
    sa.update(peers).where(peers.c.number < sa.bindparam("below")).values(number=peers.c.number + 10, payload=b"raised")
)
IN_ORDER = Prepared(
    sa.select(peers.c.assignment_id, peers.c.number, peers.c.payload)
    .where(peers.c.incident_id == sa.bindparam("incident"), peers.c.number.in_([1, 2, 11, 12]))
    .order_by(peers.c.number)
)


@pytest.fixture
async def database(where: Path | str) -> AsyncIterator[Database]:
    """Opens a database with the tables of a leg."""
    async with open_database(where, MIGRATIONS) as opened:
        yield opened


async def numbers(database: Database) -> list[int]:
    query = sa.select(peers.c.number).order_by(peers.c.number)
    return list(await database.visit(lambda connection: connection.scalars(query).all()))


async def test_a_prepared_statement_gets_its_values_by_name(database: Database) -> None:
    def work(connection: sa.Connection) -> list[tuple[Any, ...]]:
        ADD.execute(connection, LATER)
        connection.execute(sa.insert(peers), EARLIER)
        assert RAISE.execute(connection, {"below": 2}) == 1
        return [tuple(row) for row in IN_ORDER.fetch(connection, {"incident": "incident-1"})]

    rows = await database.visit(work)
    assert [(id_, number, bytes(payload)) for id_, number, payload in rows] == [
        ("assign-2", 2, b"second"),
        ("assign-1", 11, b"raised"),
    ]
    assert await numbers(database) == [2, 11]


@pytest.mark.parametrize("last", [RuntimeError, Unavailable])
async def test_a_failed_visit_stores_none_of_its_statements(database: Database, last: type[Exception]) -> None:
    def work(connection: sa.Connection) -> None:
        ADD.execute(connection, EARLIER)
        connection.execute(sa.insert(peers), LATER)
        raise last("after both statements")

    with pytest.raises(last):
        await database.visit(work)
    assert await numbers(database) == []
    await database.visit(lambda connection: ADD.execute(connection, EARLIER))
    assert await numbers(database) == [1]


async def test_a_wrong_statement_is_no_refusal_and_the_next_visit_works(database: Database) -> None:
    await database.visit(lambda connection: ADD.execute(connection, EARLIER))
    with pytest.raises((sqlite3.IntegrityError, asyncpg.UniqueViolationError)):
        await database.visit(lambda connection: ADD.execute(connection, EARLIER))
    assert await numbers(database) == [1]


async def in_transaction(database: Database, work: Callable[[sa.Connection], None]) -> None:
    async with database.transaction() as connection:
        await connection.run_sync(work)


async def in_visit(database: Database, work: Callable[[sa.Connection], None]) -> None:
    await database.visit(work)


@pytest.mark.parametrize("run", [in_visit, in_transaction])
async def test_a_full_sqlite_file_refuses_and_keeps_what_it_has(
    tmp_path: Path, run: Callable[[Database, Callable[[sa.Connection], None]], Awaitable[None]]
) -> None:
    async with open_database(tmp_path / "leg.sqlite3", MIGRATIONS) as database:
        assert isinstance(database, SqliteDatabase)
        await database.visit(lambda connection: ADD.execute(connection, EARLIER))

        def fill(connection: sa.Connection) -> None:
            [(pages,)] = statements.fetch(connection, "PRAGMA page_count")
            statements.fetch(connection, f"PRAGMA max_page_count={pages}")
            ADD.execute(connection, LATER | {"payload": bytes(1 << 20)})

        def make_room(connection: sa.Connection) -> None:
            statements.fetch(connection, "PRAGMA max_page_count=1000000")

        with pytest.raises(Unavailable, match="full"):
            await run(database, fill)
        assert await numbers(database) == [1]
        await run(database, make_room)
        await database.visit(lambda connection: ADD.execute(connection, LATER))
        assert await numbers(database) == [1, 2]


async def test_a_refusal_of_a_driver_statement_reaches_a_reader_as_unavailable(tmp_path: Path) -> None:
    async with open_database(tmp_path / "leg.sqlite3", MIGRATIONS) as database:
        with pytest.raises(Unavailable, match="no such table"):
            async with database.reading() as connection:
                await connection.run_sync(lambda reading: statements.fetch(reading, "SELECT 1 FROM unknown"))
