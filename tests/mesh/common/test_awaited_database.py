"""A service that starts before its PostgreSQL server waits for the server."""

from __future__ import annotations

import asyncio

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
