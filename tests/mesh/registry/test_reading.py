"""Long reads of the database: each sees one snapshot, blocks no writer and writes nothing. On both engines."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from services.common.errors import Unavailable
from services.common.storage import db
from services.registry import tables
from services.registry.tables import MIGRATIONS


async def stored_values(connection: AsyncConnection) -> list[bytes]:
    return list((await connection.execute(sa.select(tables.meta.c.value))).scalars())


async def store(connection: AsyncConnection, value: bytes) -> None:
    await db.upsert(connection, tables.meta, {"name": "fact"}, values={"value": value})


async def test_a_read_sees_one_snapshot_and_blocks_no_writer(where: Path | str) -> None:
    async with db.open_database(where, MIGRATIONS) as database:
        async with database.transaction() as connection:
            await store(connection, b"before")
        async with database.reading() as reader:
            assert await stored_values(reader) == [b"before"]
            async with asyncio.timeout(10), database.transaction() as connection:
                await store(connection, b"after")
            assert await stored_values(reader) == [b"before"]
        async with database.reading() as reader:
            assert await stored_values(reader) == [b"after"]


async def test_a_read_starts_during_a_write(where: Path | str) -> None:
    async with db.open_database(where, MIGRATIONS) as database, database.transaction() as connection:
        await store(connection, b"not yet")
        async with asyncio.timeout(10), database.reading() as reader:
            assert await stored_values(reader) == []


async def test_a_read_cannot_write(where: Path | str) -> None:
    async with db.open_database(where, MIGRATIONS) as database:
        with pytest.raises((Unavailable, DBAPIError)):
            async with database.reading() as reader:
                await store(reader, b"never")
        async with database.reading() as reader:
            assert await stored_values(reader) == []
