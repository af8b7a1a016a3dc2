"""SQL as every service uses it: transactions that change something run one at a time, each durable; migrations at start.

An SQLite file has one owner process and needs no server. PostgreSQL, where a service takes a URL, may be shared by several
processes: an advisory lock stands where the one owner stood.
"""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool, StaticPool

from services.common.observability.telemetry import logger
from services.common.rpc.errors import FailedPrecondition, Unavailable
from services.common.storage import postgres
from services.common.storage.sqlite import connect as connect_sqlite

T = TypeVar("T")
# secure_delete: what is deleted is overwritten in the file too, not just forgotten.
_PRAGMAS = ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=5000", "foreign_keys=ON", "secure_delete=ON")

RETRY_DELAY_S = 0.5
"""How often one asks for a place that another process holds for as long as it lives."""


class Database(ABC):
    """An open database; transactions run one at a time, each durable when its block ends."""

    @abstractmethod
    def transaction(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """A read-write transaction: committed at the end of the block, rolled back where it raises.

        It sees all that was committed before, whoever did it. Raises Unavailable where the database refuses.
        """

    @abstractmethod
    def reading(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """A read-only transaction for long looks: it sees one moment, and neither waits for a writer nor holds one up.

        Raises Unavailable where the database refuses.
        """

    @abstractmethod
    async def visit(self, work: Callable[[Connection], T]) -> T:
        """The result of `work`, which makes a whole transaction by itself: for paths where milliseconds count.

        A caller who is cancelled waits for its end.
        """

    @abstractmethod
    def alone(self, task: str) -> AbstractAsyncContextManager[Callable[[], Awaitable[None]]]:
        """A block that one process at a time is in; the others wait.

        The check that it gives raises Unavailable where the place in it was lost.
        """


class SqliteDatabase(Database):
    """A file that this process owns."""

    def __init__(self, engine: AsyncEngine, readers: AsyncEngine, visits: Engine, thread: Executor) -> None:
        self._engine = engine
        self._readers = readers
        self._visits = visits
        self._thread = thread
        self._one_at_a_time = asyncio.Lock()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """See Database."""
        async with self._one_at_a_time:
            try:
                async with self._engine.begin() as connection:
                    yield connection
            except OperationalError as error:
                raise _refused(error) from error

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """See Database."""
        try:
            async with self._readers.begin() as connection:
                yield connection
        except OperationalError as error:
            raise _refused(error) from error

    async def visit(self, work: Callable[[Connection], T]) -> T:
        """See Database. An awaited statement changes threads four times, a visit once."""
        async with self._one_at_a_time:
            made = asyncio.get_running_loop().run_in_executor(
                self._thread, contextvars.copy_context().run, self._visit, work
            )
            return await _awaited(made)

    def _visit(self, work: Callable[[Connection], T]) -> T:
        try:
            with self._visits.begin() as connection:
                return work(connection)
        except OperationalError as error:
            raise _refused(error) from error

    @asynccontextmanager
    async def alone(self, task: str) -> AsyncIterator[Callable[[], Awaitable[None]]]:
        """See Database: the file has one owner, so the place is always ours."""

        async def check() -> None:
            return None

        yield check


class PostgresDatabase(Database):
    """A database on a server, shared with other processes of the same service."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._one_at_a_time = asyncio.Lock()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """See Database."""
        # Two transactions at once could each miss what the other writes: an order and its wearer would both be stored and never
        # be matched.
        first = _lock("pg_advisory_xact_lock", "write")
        async with self._one_at_a_time, postgres.transaction(self._engine, first) as connection:
            yield connection

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """See Database."""
        first, options = sa.text("select 1"), {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        async with postgres.transaction(self._engine, first, **options) as connection:
            yield connection

    async def visit(self, work: Callable[[Connection], T]) -> T:
        """See Database."""

        async def made() -> T:
            async with self.transaction() as connection:
                return await connection.run_sync(work)

        return await _awaited(asyncio.ensure_future(made()))

    @asynccontextmanager
    async def alone(self, task: str) -> AsyncIterator[Callable[[], Awaitable[None]]]:
        """See Database. The place is lost with the connection that holds it."""
        still_there = sa.text("select 1")
        with postgres.refusals():
            connection = await postgres.begun(self._engine, still_there, isolation_level="AUTOCOMMIT")

        async def check() -> None:
            with postgres.refusals():
                await connection.execute(still_there)

        try:
            with postgres.refusals():
                while not (await connection.execute(_lock("pg_try_advisory_lock", task))).scalar():  # noqa: ASYNC110
                    await asyncio.sleep(RETRY_DELAY_S)
            yield check
        finally:
            # Back in the pool, the connection would go on holding it.
            await postgres.end(connection)
            await connection.close()


async def _awaited(visit: asyncio.Future[T]) -> T:
    """The result of a visit, which goes to its end although the caller may be cancelled; then what it failed with is the reason."""
    try:
        return await asyncio.shield(visit)
    except asyncio.CancelledError as left:
        await asyncio.wait([visit])
        raise left from (None if visit.cancelled() else visit.exception())


def _lock(function: str, name: str) -> sa.TextClause:
    """A lock of the schema: services that share a database, each with a schema of its own, never wait for one another."""
    number = int.from_bytes(hashlib.sha256(f"tandem {name}".encode()).digest()[:8], "big", signed=True)
    return sa.text(f"select {function}(hashtextextended(current_schema(), {number}))")


def _refused(error: OperationalError) -> Unavailable:
    """A full disk, a lost file: nothing of the transaction is stored, and it may succeed later."""
    logger().error("database_refused", reason=str(error.orig))
    return Unavailable(f"the database refused: {error.orig}", retry_after_s=5.0)


async def upsert(
    connection: AsyncConnection, table: sa.Table, key: Mapping[str, object], values: Mapping[str, object]
) -> None:
    """Writes a row in place of the one with the same unique `key`."""
    made = _insert(connection, table).values({**key, **values})
    await connection.execute(made.on_conflict_do_update(index_elements=list(key), set_=dict(values)))


def inserting(table: sa.Table, make: Callable[[Any], Any]) -> Mapping[str, Any]:
    """A statement by the name of the connection's dialect, which `make` builds on the dialect's own insert."""
    return {"sqlite": make(sqlite.insert(table)), "postgresql": make(postgresql.insert(table))}


async def insert_once(connection: AsyncConnection, table: sa.Table, values: Mapping[str, object]) -> bool:
    """Writes a row, or nothing where it would be the second with a unique key; tells whether it did."""
    made = await connection.execute(_insert(connection, table).values(dict(values)).on_conflict_do_nothing())
    return made.rowcount > 0


def insert_new(connection: Connection, table: sa.Table, rows: Sequence[Mapping[str, object]]) -> None:
    """Writes those of the rows whose unique key isn't there yet, all within a visit."""
    if rows:
        connection.execute(_insert(connection, table).on_conflict_do_nothing(), [dict(row) for row in rows])


def _insert(connection: AsyncConnection | Connection, table: sa.Table) -> Any:
    """The dialect's own insert, which knows ON CONFLICT; both spell it the same."""
    return postgresql.insert(table) if connection.dialect.name == "postgresql" else sqlite.insert(table)


# ── opening ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@asynccontextmanager
async def open_database(where: Path | str, migrations: Path, revision: str = "head") -> AsyncIterator[Database]:
    """The database in a file, or behind a postgresql:// URL, made or upgraded by the Alembic scripts in `migrations`.

    Raises FailedPrecondition where the URL is no such URL, Unavailable where its server doesn't answer.
    """
    opened = (
        _open_file(where, migrations, revision) if isinstance(where, Path) else _open_url(where, migrations, revision)
    )
    async with opened as database:
        yield database


@asynccontextmanager
async def awaited_database(where: Path | str, migrations: Path) -> AsyncIterator[Database]:
    """The database as `open_database`, once it is there: who starts together with its server must not end before that does."""
    async with AsyncExitStack() as stack:
        yield await once_it_answers(lambda: stack.enter_async_context(open_database(where, migrations)))


async def once_it_answers(work: Callable[[], Awaitable[T]]) -> T:
    """The result of what a service does before it serves: it is done again until the database answers."""
    while True:
        try:
            return await work()
        except Unavailable as error:
            logger().warning("database_awaited", reason=error.reason)
            await asyncio.sleep(RETRY_DELAY_S)


@asynccontextmanager
async def _open_file(path: Path, migrations: Path, revision: str) -> AsyncIterator[Database]:
    path.parent.mkdir(parents=True, exist_ok=True)
    # An error text must not hold what was to be stored: hide_parameters.
    url, connect_args = f"sqlite+aiosqlite:///{path}", {"async_creator_fn": connect_sqlite}
    engine = create_async_engine(url, poolclass=StaticPool, hide_parameters=True, connect_args=connect_args)
    readers = create_async_engine(url, poolclass=NullPool, hide_parameters=True, connect_args=connect_args)
    visits = create_engine(
        f"sqlite:///{path}", poolclass=StaticPool, hide_parameters=True, connect_args={"check_same_thread": False}
    )
    _prepare(engine.sync_engine)
    _prepare(readers.sync_engine, "BEGIN", (*_PRAGMAS, "query_only=ON"))
    _prepare(visits)
    try:
        async with engine.begin() as connection:
            await connection.run_sync(_upgrade, migrations, revision)
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="database") as thread:
            yield SqliteDatabase(engine, readers, visits, thread)
    finally:
        visits.dispose()
        await readers.dispose()
        await engine.dispose()


@asynccontextmanager
async def _open_url(url: str, migrations: Path, revision: str) -> AsyncIterator[Database]:
    engine, patient = postgres.engine(url), postgres.engine(url, answer_within_s=None)
    try:
        # The scripts run inside the lock of writers, so that of two processes that start together one does the work.
        async with PostgresDatabase(patient).transaction() as connection:
            if await connection.scalar(sa.text("select current_schema()")) is None:
                raise FailedPrecondition("the database's role has no schema to write in")
            await connection.run_sync(_upgrade, migrations, revision)
        await patient.dispose()
        yield PostgresDatabase(engine)
    finally:
        await patient.dispose()
        await engine.dispose()


def _prepare(engine: Engine, begin: str = "BEGIN IMMEDIATE", pragmas: Sequence[str] = _PRAGMAS) -> None:
    @event.listens_for(engine, "connect")
    def configure(dbapi_connection: Any, _record: object) -> None:
        # The driver must not open transactions by itself: BEGIN IMMEDIATE takes the write lock at once, so that a
        # transaction that has read can't fail when it writes.
        dbapi_connection.isolation_level = None
        cursor = dbapi_connection.cursor()
        for pragma in pragmas:
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql(begin)


def _upgrade(connection: Connection, migrations: Path, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(migrations))
    scripts = ScriptDirectory.from_config(config)
    with EnvironmentContext(
        config, scripts, fn=lambda current, _: scripts._upgrade_revs(revision, current)
    ) as environment:
        environment.configure(connection=connection)
        environment.run_migrations()
