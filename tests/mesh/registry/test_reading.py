"""Long looks into the database: each sees one moment, holds up no writer and writes nothing. On both engines."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from services.common.rpc.errors import Unavailable
from services.common.storage import db
from services.registry import tables
from services.registry.store import MIGRATIONS


async def noted(connection: AsyncConnection) -> list[bytes]:
    return list((await connection.execute(sa.select(tables.meta.c.value))).scalars())


async def note(connection: AsyncConnection, value: bytes) -> None:
    await db.upsert(connection, tables.meta, {"name": "fact"}, {"value": value})


async def test_a_look_sees_one_moment_and_holds_up_no_writer(where: Path | str) -> None:
    async with db.open_database(where, MIGRATIONS) as database:
        async with database.transaction() as connection:
            await note(connection, b"before")
        async with database.reading() as look:
            assert await noted(look) == [b"before"]
            async with asyncio.timeout(10), database.transaction() as connection:
                await note(connection, b"after")
            assert await noted(look) == [b"before"]
        async with database.reading() as look:
            assert await noted(look) == [b"after"]


async def test_a_look_begins_while_somebody_writes(where: Path | str) -> None:
    async with db.open_database(where, MIGRATIONS) as database, database.transaction() as connection:
        await note(connection, b"not yet")
        async with asyncio.timeout(10), database.reading() as look:
            assert await noted(look) == []


async def test_a_look_writes_nothing(where: Path | str) -> None:
    async with db.open_database(where, MIGRATIONS) as database:
        with pytest.raises((Unavailable, DBAPIError)):
            async with database.reading() as look:
                await note(look, b"never")
        async with database.reading() as look:
            assert await noted(look) == []
