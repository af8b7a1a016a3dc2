"""SQLite as every service uses it: one owner process, one connection, durable commits, migrations at start."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, event
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import StaticPool

_PRAGMAS = ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=5000", "foreign_keys=ON")


class Database:
    """An open database; transactions run one at a time, each durable when its block ends."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._one_at_a_time = asyncio.Lock()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """A read-write transaction: committed at the end of the block, rolled back where it raises."""
        async with self._one_at_a_time, self._engine.begin() as connection:
            yield connection


@asynccontextmanager
async def open_database(path: Path, migrations: Path) -> AsyncIterator[Database]:
    """The database in the file `path`, made or upgraded by the Alembic scripts in the folder `migrations`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    engine = create_async_engine(
        f"sqlite+aiosqlite:///{path}",
        poolclass=StaticPool,
        hide_parameters=True,  # an error text must not hold what was to be stored
    )

    @event.listens_for(engine.sync_engine, "connect")
    def configure(dbapi_connection: Any, _record: object) -> None:
        # The driver must not open transactions by itself: BEGIN IMMEDIATE below takes the write lock at once, so that a
        # transaction that has read can't fail when it writes.
        dbapi_connection.isolation_level = None
        cursor = dbapi_connection.cursor()
        for pragma in _PRAGMAS:
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    try:
        async with engine.begin() as connection:
            await connection.run_sync(_upgrade, migrations)
        yield Database(engine)
    finally:
        await engine.dispose()


def _upgrade(connection: Connection, migrations: Path) -> None:
    config = Config()
    config.set_main_option("script_location", str(migrations))
    scripts = ScriptDirectory.from_config(config)
    with EnvironmentContext(config, scripts, fn=lambda revision, _: scripts._upgrade_revs("head", revision)) as environment:
        environment.configure(connection=connection)
        environment.run_migrations()
