"""SQL databases of the services: durable write transactions that run one at a time, and migrations at start.

An SQLite file has one owner process and needs no server. Several processes of a service may share a PostgreSQL database, where an
advisory lock makes their writes run one at a time.
"""

from __future__ import annotations

import asyncio
import hashlib
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool, StaticPool

from services.common.errors import FailedPrecondition, Unavailable
from services.common.retrying import retried
from services.common.storage import postgres
from services.common.storage.sqlite import connect as connect_sqlite
from services.common.storage.visits import Visits, VisitThread, refusals

T = TypeVar("T")
# secure_delete overwrites deleted data in the file too, because it may be personal.
_PRAGMAS = ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=5000", "foreign_keys=ON", "secure_delete=ON")

READERS_KEPT = 4
"""Connections of an SQLite file's readers that are kept open. More are opened when needed, and closed after their use."""
LOCK_INTERVAL_S = 0.5
"""Interval of attempts to get a lock that another process holds, seconds."""
MIGRATE_WITHIN_S = 1_500.0
"""How long a Job waits for its database before it migrates the schema, seconds: longer than the first pull of the database server's
image, shorter than the Job's deadline."""


class Database(ABC):
    """An open database. Write transactions run one at a time, and each is durable when its block ends."""

    is_shared: bool
    """Whether other processes of the service may write to the database too, so that a reader has to look for their commits."""

    @abstractmethod
    def transaction(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """A read-write transaction, committed at the end of the block and rolled back if the block raises.

        It sees all earlier commits of all processes. Raises Unavailable if the database refuses.
        """

    @abstractmethod
    def reading(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """A read-only transaction for long queries. It sees one snapshot, doesn't wait for writers and doesn't block them.

        Raises Unavailable if the database refuses.
        """

    @abstractmethod
    async def visit(self, work: Callable[[Connection], T]) -> T:
        """Runs `work` as a whole transaction on a synchronous connection and returns its result. For paths where milliseconds count.

        A cancelled caller waits for the end of the transaction. Raises Unavailable if the database refuses.
        """

    @abstractmethod
    def alone(
        self, task: str, stand_by: Callable[[], None] = lambda: None
    ) -> AbstractAsyncContextManager[Callable[[], Awaitable[None]]]:
        """A lock for a task: only one process at a time is in the block, and the others wait.

        The block receives a check, which raises Unavailable if the process has lost the lock. `stand_by` is called each time when the
        database answers that another process has the lock.
        """


class SqliteDatabase(Database):
    """An SQLite file that this process owns."""

    is_shared = False

    def __init__(self, engine: AsyncEngine, readers: AsyncEngine, visits: Visits, *, thread: VisitThread) -> None:
        self._engine, self._name = engine, str(engine.url.database)
        self._readers = readers
        self._visits = visits
        self._thread = thread
        self._one_at_a_time = asyncio.Lock()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """See `Database.transaction`."""
        async with self._one_at_a_time:
            with refusals(self._name):
                async with self._engine.begin() as connection:
                    yield connection

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """See `Database.reading`."""
        with refusals(self._name):
            async with self._readers.begin() as connection:
                yield connection

    async def visit(self, work: Callable[[Connection], T]) -> T:
        """See `Database.visit`. An awaited statement switches threads four times, a visit only once."""
        async with self._one_at_a_time:
            return await _awaited(self._thread.run(partial(self._visits.run, work)))

    @asynccontextmanager
    async def alone(
        self,
        task: str,  # noqa: ARG002  # as Database names it
        stand_by: Callable[[], None] = lambda: None,  # noqa: ARG002
    ) -> AsyncIterator[Callable[[], Awaitable[None]]]:
        """A lock for a task, as `Database.alone` describes it. The file has one owner process, so it is always free and never lost."""

        async def check() -> None:
            return None

        yield check


class PostgresDatabase(Database):
    """A PostgreSQL database, shared with other processes of the same service."""

    is_shared = True

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._one_at_a_time = asyncio.Lock()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """See `Database.transaction`."""
        # Two concurrent transactions could each miss the other's rows. Then an order and its wearer would both be stored and never be
        # matched.
        first = _lock("pg_advisory_xact_lock", "write")
        async with self._one_at_a_time, postgres.transaction(self._engine, first) as connection:
            yield connection

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """See `Database.reading`."""
        first, options = sa.text("select 1"), {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        async with postgres.transaction(self._engine, first, **options) as connection:
            yield connection

    async def visit(self, work: Callable[[Connection], T]) -> T:
        """See `Database.visit`."""

        async def visit() -> T:
            first = _lock_statement("pg_advisory_xact_lock", "write")
            async with self._one_at_a_time, postgres.visit(self._engine, first) as connection:
                return await connection.run_sync(work)

        return await _awaited(asyncio.ensure_future(visit()))

    @asynccontextmanager
    async def alone(
        self, task: str, stand_by: Callable[[], None] = lambda: None
    ) -> AsyncIterator[Callable[[], Awaitable[None]]]:
        """A lock for a task, as `Database.alone` describes it. It is lost with the connection that holds it."""
        ping = sa.text("select 1")
        with postgres.refusals(self._engine):
            connection = await postgres.begin(self._engine, ping, isolation_level="AUTOCOMMIT")

        async def check() -> None:
            with postgres.refusals(self._engine):
                await connection.execute(ping)

        try:
            with postgres.refusals(self._engine):
                while not (await connection.execute(_lock("pg_try_advisory_lock", task))).scalar():
                    stand_by()
                    await asyncio.sleep(LOCK_INTERVAL_S)
            yield check
        finally:
            # Back in the pool, the connection would keep the lock.
            await postgres.end(connection)
            await connection.close()


async def _awaited(visit: asyncio.Future[T]) -> T:
    """Waits for the result of a visit, which runs to its end even if the caller is cancelled. Then the visit's error becomes
    the cause of the cancellation."""
    try:
        return await asyncio.shield(visit)
    except asyncio.CancelledError as cancelled:
        await asyncio.wait([visit])
        raise cancelled from (None if visit.cancelled() else visit.exception())


def _lock(function: str, name: str) -> sa.TextClause:
    return sa.text(_lock_statement(function, name))


@cache
def _lock_statement(function: str, name: str) -> str:
    """Statement for an advisory lock of the current schema. Services with their own schemas in one database don't block each other."""
    number = int.from_bytes(hashlib.sha256(f"tandem {name}".encode()).digest()[:8], "big", signed=True)
    return f"select {function}(hashtextextended(current_schema(), {number}))"


async def upsert(
    connection: AsyncConnection, table: sa.Table, key: Mapping[str, object], *, values: Mapping[str, object]
) -> None:
    """Inserts a row, or updates the row with the same unique `key`."""
    insert = _insert(connection, table).values({**key, **values})
    await connection.execute(insert.on_conflict_do_update(index_elements=list(key), set_=dict(values)))


def insert_by_dialect(table: sa.Table, make: Callable[[Any], Any]) -> Mapping[str, Any]:
    """One statement for each dialect, by the dialect's name. `make` builds it from the dialect's insert."""
    return {"sqlite": make(sqlite.insert(table)), "postgresql": make(postgresql.insert(table))}


async def insert_once(connection: AsyncConnection, table: sa.Table, values: Mapping[str, object]) -> bool:
    """Inserts a row unless its unique key exists. Returns whether the row was inserted."""
    result = await connection.execute(_insert(connection, table).values(dict(values)).on_conflict_do_nothing())
    return result.rowcount > 0


def _insert(connection: AsyncConnection, table: sa.Table) -> Any:
    """Insert of the connection's dialect. Both dialects support ON CONFLICT with the same syntax."""
    return postgresql.insert(table) if connection.dialect.name == "postgresql" else sqlite.insert(table)


# ── opening ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@asynccontextmanager
async def open_database(where: Path | str, migrations: Path) -> AsyncIterator[Database]:
    """Opens the database in a file or at a postgresql:// URL, and creates or upgrades it with the Alembic scripts in `migrations`.

    Raises FailedPrecondition if the URL isn't a postgresql:// URL, and Unavailable if its server doesn't answer or the disk refuses.
    """
    opened = _open_file(where, migrations) if isinstance(where, Path) else _open_url(where, migrations)
    async with opened as database:
        yield database


@asynccontextmanager
async def awaited_database(where: Path | str, migrations: Path) -> AsyncIterator[Database]:
    """Opens a database as `open_database` does, with retries until its server answers.

    A service may start together with the database server, and must not end because the server starts more slowly.
    """
    async with AsyncExitStack() as stack:
        yield await retry_until_available(lambda: stack.enter_async_context(open_database(where, migrations)))


async def retry_until_available(work: Callable[[], Awaitable[T]]) -> T:
    """Runs the start-up work of a service, with retries until the database answers, and returns its result."""
    return await retried(work, on=Unavailable, event="database_awaited")


@asynccontextmanager
async def _open_file(path: Path, migrations: Path) -> AsyncIterator[Database]:
    path.parent.mkdir(parents=True, exist_ok=True)
    # hide_parameters keeps the stored values, which may be personal data, out of error texts.
    url, connect_args = f"sqlite+aiosqlite:///{path}", {"async_creator_fn": connect_sqlite}
    engine = create_async_engine(url, poolclass=StaticPool, hide_parameters=True, connect_args=connect_args)
    # Opening a connection, with its thread and its settings, costs more than a page of incidents.
    readers = create_async_engine(
        url,
        poolclass=AsyncAdaptedQueuePool,
        pool_size=READERS_KEPT,
        max_overflow=-1,
        hide_parameters=True,
        connect_args=connect_args,
    )
    visits = create_engine(
        f"sqlite:///{path}", poolclass=StaticPool, hide_parameters=True, connect_args={"check_same_thread": False}
    )
    _prepare(engine.sync_engine)
    _prepare(readers.sync_engine, "BEGIN", (*_PRAGMAS, "query_only=ON"))
    _prepare(visits, begin=None)  # a visit begins its transaction itself
    try:
        with refusals(str(path)):
            async with engine.begin() as connection:
                await connection.run_sync(_upgrade, migrations)
        with (
            Visits(visits) as visited,
            VisitThread() as thread,
        ):
            yield SqliteDatabase(engine=engine, readers=readers, visits=visited, thread=thread)
    finally:
        visits.dispose()
        await readers.dispose()
        await engine.dispose()


@asynccontextmanager
async def _open_url(url: str, migrations: Path) -> AsyncIterator[Database]:
    engine, patient = postgres.engine(url), postgres.engine(url, answer_within_s=None)
    try:
        # The write lock lets only one of two processes that start together run the migrations.
        async with PostgresDatabase(patient).transaction() as connection:
            if await connection.scalar(sa.text("select current_schema()")) is None:
                raise FailedPrecondition("the database's role has no schema to write in")
            await connection.run_sync(_upgrade, migrations)
        await patient.dispose()
        yield PostgresDatabase(engine)
    finally:
        await patient.dispose()
        await engine.dispose()


def _prepare(engine: Engine, begin: str | None = "BEGIN IMMEDIATE", pragmas: Sequence[str] = _PRAGMAS) -> None:
    @event.listens_for(engine, "connect")
    def configure(dbapi_connection: Any, _record: object) -> None:
        # The driver must not open transactions by itself. BEGIN IMMEDIATE gets the write lock at once, so that a transaction can't fail
        # when it writes after a read.
        dbapi_connection.isolation_level = None
        cursor = dbapi_connection.cursor()
        for pragma in pragmas:
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    if begin is None:
        return

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql(begin)


def _upgrade(connection: Connection, migrations: Path) -> None:
    config = Config()
    config.set_main_option("script_location", str(migrations))
    scripts = ScriptDirectory.from_config(config)
    with EnvironmentContext(
        config, scripts, fn=lambda current, _: scripts._upgrade_revs("head", current)
    ) as environment:
        environment.configure(connection=connection)
        environment.run_migrations()
