"""A service that starts before its database is usable waits for it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import sqlalchemy as sa

from services.common.storage.db import awaited_database
from services.registry.tables import MIGRATIONS
from tests.support.common.postgres import running_postgres


async def test_opening_a_database_waits_for_its_server() -> None:
    with running_postgres() as server:
        url = server.new_database()
        server.kill()

        async def tables() -> int:
            async with awaited_database(url, MIGRATIONS) as database:
                query = sa.text("select count(*) from information_schema.tables where table_schema = current_schema()")
                return await database.visit(lambda connection: connection.scalar(query) or 0)

        opening = asyncio.create_task(tables())
        await asyncio.sleep(1)
        assert not opening.done()
        await asyncio.to_thread(server.start)
        async with asyncio.timeout(30):
            assert await opening > 1


async def test_opening_a_file_waits_until_the_disk_accepts_it(tmp_path: Path) -> None:
    path = tmp_path / "registry.sqlite3"
    path.mkdir()  # SQLite can't open a folder

    async def tables() -> int:
        async with awaited_database(path, MIGRATIONS) as database:
            query = sa.text("select count(*) from sqlite_master")
            return await database.visit(lambda connection: connection.scalar(query) or 0)

    opening = asyncio.create_task(tables())
    await asyncio.sleep(1)
    assert not opening.done()
    path.rmdir()
    async with asyncio.timeout(30):
        assert await opening > 1
