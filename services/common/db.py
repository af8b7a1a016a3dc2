"""SQLite as every service uses it: one owner process, one transaction at a time, durable; migrations at start."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import StaticPool

from services.common.errors import Unavailable
from services.common.telemetry import logger

T = TypeVar("T")
_PRAGMAS = ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=5000", "foreign_keys=ON")


class Database:
    """An open database; transactions run one at a time, each durable when its block ends."""

    def __init__(self, engine: AsyncEngine, visits: Engine, thread: Executor) -> None:
        self._engine = engine
        self._visits = visits
        self._thread = thread
        self._one_at_a_time = asyncio.Lock()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """A read-write transaction: committed at the end of the block, rolled back where it raises."""
        async with self._one_at_a_time:
            try:
                async with self._engine.begin() as connection:
                    yield connection
            except OperationalError as error:
                raise _refused(error) from error

    async def visit(self, work: Callable[[Connection], T]) -> T:
        """The result of `work`, which makes a whole transaction in a thread: for paths where milliseconds count.

        An awaited statement changes threads three times, a visit once. A caller who is cancelled waits for its end.
        """
        async with self._one_at_a_time:
            made = asyncio.get_running_loop().run_in_executor(
                self._thread, contextvars.copy_context().run, self._visit, work
            )
            try:
                return await asyncio.shield(made)
            except asyncio.CancelledError:
                await asyncio.wait([made])
                raise

    def _visit(self, work: Callable[[Connection], T]) -> T:
        try:
            with self._visits.begin() as connection:
                return work(connection)
        except OperationalError as error:
            raise _refused(error) from error


def _refused(error: OperationalError) -> Unavailable:
    """A full disk, a lost file: nothing of the transaction is stored, and it may succeed later."""
    logger().error("database_refused", reason=str(error.orig))
    return Unavailable(f"the database refused: {error.orig}", retry_after_s=5.0)


@asynccontextmanager
async def open_database(path: Path, migrations: Path) -> AsyncIterator[Database]:
    """The database in the file `path`, made or upgraded by the Alembic scripts in the folder `migrations`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # An error text must not hold what was to be stored: hide_parameters.
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}", poolclass=StaticPool, hide_parameters=True)
    visits = create_engine(
        f"sqlite:///{path}", poolclass=StaticPool, hide_parameters=True, connect_args={"check_same_thread": False}
    )
    _prepare(engine.sync_engine)
    _prepare(visits)
    try:
        async with engine.begin() as connection:
            await connection.run_sync(_upgrade, migrations)
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="database") as thread:
            yield Database(engine, visits, thread)
    finally:
        visits.dispose()
        await engine.dispose()


def _prepare(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def configure(dbapi_connection: Any, _record: object) -> None:
        # The driver must not open transactions by itself: BEGIN IMMEDIATE below takes the write lock at once, so that a
        # transaction that has read can't fail when it writes.
        dbapi_connection.isolation_level = None
        cursor = dbapi_connection.cursor()
        for pragma in _PRAGMAS:
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def _upgrade(connection: Connection, migrations: Path) -> None:
    config = Config()
    config.set_main_option("script_location", str(migrations))
    scripts = ScriptDirectory.from_config(config)
    with EnvironmentContext(
        config, scripts, fn=lambda revision, _: scripts._upgrade_revs("head", revision)
    ) as environment:
        environment.configure(connection=connection)
        environment.run_migrations()
