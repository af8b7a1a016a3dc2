"""PostgreSQL connections and transactions that survive a server that restarts, hangs or is unreachable.

Every wait has a limit. Any refusal of a server that starts, stops or is gone becomes Unavailable.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

import asyncpg
import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from services.common.errors import FailedPrecondition
from services.common.observability.telemetry import logger
from services.common.storage.refused import answered, refused

CONNECTIONS = 8
"""Number of pooled connections of a process."""
CONNECTION_WITHIN_S = 5.0
"""Maximum wait for a free connection if all are in use, seconds. After it the caller gets Unavailable."""
CONNECT_WITHIN_S = 5.0
"""Maximum time to open a connection, seconds."""
LOCK_WITHIN_MS = 10_000
"""Maximum wait of a transaction for another process's lock, milliseconds. After it the caller gets Unavailable."""
IDLE_WITHIN_MS = 10_000
"""Maximum wait of the server for a transaction's next statement, milliseconds. After it the locks of a frozen process are free."""
BEGUN_WITHIN_S = LOCK_WITHIN_MS / 1000 + 2
"""Maximum duration of a transaction's first statement, seconds. That statement waits only for a lock."""
ANSWER_WITHIN_S = 30.0
"""Maximum duration of a statement, seconds. It ends statements on a server that hangs or a network that loses packets."""
UNDONE_WITHIN_S = 2.0
"""Maximum wait for the answer to a rollback, seconds. After it the connection is closed, which rolls back as well."""
PEER_IDLE_S = 10
PEER_INTERVAL_S = 5
PEER_TRIES = 3
"""TCP keepalive: idle time before the first probe, interval of probes (both seconds), and number of lost probes until the connection
counts as dead."""
PEER_SILENT_MS = 1000 * (PEER_IDLE_S + PEER_INTERVAL_S)
"""Maximum time that sent data may stay unacknowledged by the peer's TCP, milliseconds."""
_USED = "tandem_used"
"""Key in a connection's info that marks connections on which a statement has been executed."""
_DEFECTS = (
    exc.IntegrityError,
    exc.ProgrammingError,
    exc.DataError,
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.SyntaxOrAccessError,
    asyncpg.DataError,
)
"""Errors of statements that are wrong in themselves, from SQLAlchemy and from the driver. All other refusals of PostgreSQL may succeed
later."""
_REFUSALS = (
    exc.DBAPIError,
    TimeoutError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    ConnectionError,
)


def engine(url: str, answer_within_s: float | None = ANSWER_WITHIN_S) -> AsyncEngine:
    """Creates an engine for a postgresql:// URL. `answer_within_s` limits the duration of statements; None means no limit.

    Raises FailedPrecondition if the URL isn't a postgresql:// URL.
    """
    try:
        parsed = sa.make_url(url)
    except exc.ArgumentError:
        parsed = None
    # The URL may hold a password, so it is never repeated.
    if parsed is None or parsed.get_backend_name() != "postgresql":
        raise FailedPrecondition("the database's URL must be postgresql://user@host/database")
    made = create_async_engine(
        parsed.set(drivername="postgresql+asyncpg"),
        hide_parameters=True,
        pool_size=CONNECTIONS,
        max_overflow=0,
        pool_timeout=CONNECTION_WITHIN_S,
        pool_use_lifo=True,  # prefer the connection that has prepared most statements
        connect_args={
            "server_settings": _settings(answer_within_s),
            "timeout": CONNECT_WITHIN_S,
            # A server that still answers reaches its own limit first, and its error is more exact.
            "command_timeout": answer_within_s and answer_within_s + 1,
        },
    )
    sa.event.listen(made.sync_engine, "connect", _notice_a_silent_server)
    return made


def _settings(answer_within_s: float | None) -> dict[str, str]:
    return {
        "application_name": "tandem",
        "synchronous_commit": "on",
        # A transaction that gets the write lock must see the commits of the lock's previous holder.
        "default_transaction_isolation": "read committed",
        "lock_timeout": str(LOCK_WITHIN_MS),
        "statement_timeout": str(round(1000 * (answer_within_s or 0))),
        "idle_in_transaction_session_timeout": str(IDLE_WITHIN_MS if answer_within_s else 0),
        # With these the server, too, notices a dead client.
        "tcp_keepalives_idle": str(PEER_IDLE_S),
        "tcp_keepalives_interval": str(PEER_INTERVAL_S),
        "tcp_keepalives_count": str(PEER_TRIES),
        "tcp_user_timeout": str(PEER_SILENT_MS),
        "jit": "off",
    }


def _notice_a_silent_server(connection: Any, _record: object) -> None:
    """Sets TCP keepalive on a new connection, so that the system ends it if the server is gone. The driver has no option for this."""
    transport = connection.driver_connection._transport
    if transport.is_closing():
        return  # the server has ended the connection already, and its first statement says so
    ours = transport.get_extra_info("socket")
    if ours.family not in (socket.AF_INET, socket.AF_INET6):
        return
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", PEER_IDLE_S),
        ("TCP_KEEPINTVL", PEER_INTERVAL_S),
        ("TCP_KEEPCNT", PEER_TRIES),
        ("TCP_USER_TIMEOUT", PEER_SILENT_MS),
    ):
        if hasattr(socket, name):  # macOS lacks some
            ours.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


@asynccontextmanager
async def visit(where: AsyncEngine, first: str) -> AsyncIterator[AsyncConnection]:
    """A transaction for statements of the driver, which begins with the statement `first`: one round trip begins it, one commits it.

    SQLAlchemy may execute statements in it as well. It believes that each commits by itself. Raises the errors of `transaction`.
    """
    with refusals(where):
        connection = await begin(where, f"BEGIN; {first}", isolation_level="AUTOCOMMIT")
        try:
            yield connection
            await (await _driver(connection)).execute("COMMIT")
        except BaseException as error:
            await _undo(connection, error)
            raise
        finally:
            await connection.close()


@asynccontextmanager
async def transaction(where: AsyncEngine, first: sa.Executable, **options: Any) -> AsyncIterator[AsyncConnection]:
    """A transaction that begins with the statement `first`. It is committed at the end of the block and rolled back if the block
    raises.

    `options` are execution options of the connection. Raises Unavailable if the server refuses or doesn't answer.
    """
    with refusals(where):
        connection = await begin(where, first, **options)
        try:
            yield connection
            await connection.commit()
        except BaseException as error:
            await _undo(connection, error)
            raise
        finally:
            await connection.close()


async def begin(where: AsyncEngine, first: sa.Executable | str, **options: Any) -> AsyncConnection:
    """Begins a transaction with the statement `first` and returns its connection, which the caller must end and close.

    A text is executed by the driver, so it may hold several statements.

    A stale pooled connection fails on this first statement. Nothing has run yet, so `begin` retries on a fresh connection. That
    saves the round trip of a separate ping. Raises the driver's errors, and Unavailable if no connection can be had.
    """
    while True:
        connection = await _connection(where)
        info = (await connection.get_raw_connection()).info
        was_fresh = _USED not in info
        try:
            if options:
                await connection.execution_options(**options)
            async with asyncio.timeout(BEGUN_WITHIN_S):
                if isinstance(first, str):
                    await (await _driver(connection)).execute(first)
                else:
                    await connection.execute(first)
            info[_USED] = True
            return connection
        except BaseException as error:
            gone = await _is_gone(connection, error)
            try:
                await _undo(connection, error)
            finally:
                await connection.close()
            if not gone or was_fresh:
                raise
            logger().info("database_connected_again")


async def end(connection: AsyncConnection) -> None:
    """Ends a connection at once, without a message to the server. Its transaction and locks end with it."""
    with suppress(asyncpg.InterfaceError):  # SQLAlchemy has ended it already
        # By default the driver waits until the server has answered its cancel request, which a hanging server never does.
        (await _driver(connection)).terminate()
        await connection.invalidate()


async def _undo(connection: AsyncConnection, error: BaseException) -> None:
    try:
        if isinstance(error, TimeoutError | asyncio.CancelledError) or _has_lost_its_place(error):
            await end(connection)  # a statement may still be running on it, or none will run on it any more
        else:
            async with asyncio.timeout(UNDONE_WITHIN_S):
                await connection.rollback()
                if connection.invalidated:
                    return
                driver = await _driver(connection)
                if driver.is_closed():
                    await end(connection)  # SQLAlchemy doesn't see the errors of the driver's own statements
                elif driver.is_in_transaction():
                    await driver.execute("ROLLBACK")
    except _REFUSALS:
        await end(connection)


async def _is_gone(connection: AsyncConnection, error: BaseException) -> bool:
    """Whether an error says that the server ended the connection."""
    if _has_lost_its_place(error):
        return True
    if isinstance(error, exc.DBAPIError):
        return error.connection_invalidated
    if not isinstance(error, Exception) or isinstance(error, TimeoutError):
        return False
    try:
        return bool((await _driver(connection)).is_closed())
    except asyncpg.InterfaceError:
        return True


def _has_lost_its_place(error: BaseException) -> bool:
    """Whether an error, or an error that it wraps, says that the driver no longer knows where it is in the protocol.

    A server that ends says so on each connection before it closes it. The driver expects no message on an idle connection, and from
    then until the closing it refuses each statement with InternalClientError.
    """
    cause = error.__cause__
    return isinstance(error, asyncpg.InternalClientError) or (cause is not None and _has_lost_its_place(cause))


async def _driver(connection: AsyncConnection) -> Any:
    """The driver's connection. Raises InterfaceError, as the driver does, if SQLAlchemy has ended it, for example after a statement
    was cancelled. SQLAlchemy would open another one, or refuse that."""
    driver = None if connection.invalidated else (await connection.get_raw_connection()).driver_connection
    if driver is None:
        raise asyncpg.InterfaceError("the connection was ended")
    return driver


async def _connection(where: AsyncEngine) -> AsyncConnection:
    connection = where.connect()
    try:
        return await connection.start()
    except exc.TimeoutError as error:
        message = f"all {CONNECTIONS} connections to the database are in use"
        raise refused(_name(where), "no connection is free", message, retry_after_s=1.0) from error
    except OSError as error:
        # The driver raises OSError if no server listens.
        raise refused(_name(where), type(error).__name__, "the database doesn't answer") from error


def _name(where: AsyncEngine) -> str:
    """Name of a database. The rest of its URL may hold a password."""
    return str(where.url.database)


@contextmanager
def refusals(where: AsyncEngine) -> Iterator[None]:
    """Turns refusals and timeouts of the server into Unavailable. Errors of statements that are wrong in themselves pass through."""
    try:
        yield
    except _REFUSALS as error:
        if isinstance(error, _DEFECTS):
            raise
        # Nothing of the transaction is stored, and a retry may succeed. The exception is a lost answer to a commit: the transaction may
        # be stored, and a caller that retries must find out.
        if isinstance(error, TimeoutError):
            reason = "no answer in time"
        elif isinstance(error, exc.DBAPIError):
            reason = str(error.orig)
        else:
            reason = str(error.args[0])  # without the driver's details, which may hold stored values
        raise refused(_name(where), reason, f"the database refused: {reason}") from error
    answered(_name(where))
