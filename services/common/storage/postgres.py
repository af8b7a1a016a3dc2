"""Connections to PostgreSQL, and what becomes of a transaction when its server restarts, falls silent or is out of reach.

Nothing here waits for ever, and whatever a server refuses while it starts, stops or is gone is Unavailable.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from services.common.observability.telemetry import logger
from services.common.rpc.errors import FailedPrecondition, Unavailable

CONNECTIONS = 8
CONNECTION_WITHIN_S = 5.0
"""How long one waits for a connection where all are in use, before the caller is told to ask again."""
CONNECT_WITHIN_S = 5.0
LOCK_WITHIN_MS = 10_000
"""How long a transaction waits for another process's, before the caller is told to ask again."""
IDLE_WITHIN_MS = 10_000
"""How long the server waits for the next statement of a transaction: the locks of a process that is frozen are free then."""
BEGUN_WITHIN_S = LOCK_WITHIN_MS / 1000 + 2
"""How long the first statement of a transaction may take, which waits for a lock and for nothing else."""
ANSWER_WITHIN_S = 30.0
"""How long a statement may take in all: a server that hangs, or a network that swallows, holds nobody for good."""
UNDONE_WITHIN_S = 2.0
"""How long a transaction that failed waits for the server's word that it is undone; that is so anyhow once the connection ends."""
PEER_IDLE_S, PEER_INTERVAL_S, PEER_TRIES = 10, 5, 3
"""When the other end of a TCP connection is asked whether it is still there, how often, and after how many silences it isn't."""
PEER_SILENT_MS = 1000 * (PEER_IDLE_S + PEER_INTERVAL_S)
"""How long what was sent to the other end may stay unacknowledged."""
_USED = "tandem_used"
"""A connection's note that something was executed on it before."""
_DEFECTS = (exc.IntegrityError, exc.ProgrammingError, exc.DataError)
"""A statement that can't be right; everything else that PostgreSQL refuses may succeed later."""


def engine(url: str, answer_within_s: float | None = ANSWER_WITHIN_S) -> AsyncEngine:
    """An engine for a postgresql:// URL; with None a statement may take as long as it likes.

    Raises FailedPrecondition where it is something else.
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
        pool_use_lifo=True,  # the one that knows the statements already
        connect_args={
            "server_settings": _settings(answer_within_s),
            "timeout": CONNECT_WITHIN_S,
            # Where the server answers at all its own limit comes first, and says what it was.
            "command_timeout": answer_within_s and answer_within_s + 1,
        },
    )
    sa.event.listen(made.sync_engine, "connect", _notice_a_silent_server)
    return made


def _settings(answer_within_s: float | None) -> dict[str, str]:
    return {
        "application_name": "tandem",
        "synchronous_commit": "on",
        # Whoever holds the lock of writers must see what its holder before has committed.
        "default_transaction_isolation": "read committed",
        "lock_timeout": str(LOCK_WITHIN_MS),
        "statement_timeout": str(round(1000 * (answer_within_s or 0))),
        "idle_in_transaction_session_timeout": str(IDLE_WITHIN_MS if answer_within_s else 0),
        # So that the server, too, notices when the other end is gone.
        "tcp_keepalives_idle": str(PEER_IDLE_S),
        "tcp_keepalives_interval": str(PEER_INTERVAL_S),
        "tcp_keepalives_count": str(PEER_TRIES),
        "tcp_user_timeout": str(PEER_SILENT_MS),
        "jit": "off",
    }


def _notice_a_silent_server(connection: Any, _record: object) -> None:
    """Has the system end a TCP connection whose other end is gone; the driver has no option for it."""
    ours = connection.driver_connection._transport.get_extra_info("socket")
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
async def transaction(where: AsyncEngine, first: sa.Executable, **options: Any) -> AsyncIterator[AsyncConnection]:
    """A transaction that begins with a statement, committed at the end of the block and rolled back where it raises.

    `options` are execution options of the connection. Raises Unavailable where the server refuses or is silent.
    """
    with refusals():
        connection = await begun(where, first, **options)
        try:
            yield connection
            await connection.commit()
        except BaseException as error:
            await _undo(connection, error)
            raise
        finally:
            await connection.close()


async def begun(where: AsyncEngine, first: sa.Executable, **options: Any) -> AsyncConnection:
    """A connection in whose transaction a statement was executed; to be ended and closed by the caller.

    A pooled one whose server has gone meanwhile shows that here, and not after a round trip of its own: nothing was done yet, so it
    is done again on a fresh one. Raises what the driver does, and Unavailable where there is no connection.
    """
    while True:
        connection = await _connection(where)
        info = (await connection.get_raw_connection()).info
        was_fresh = _USED not in info
        try:
            if options:
                await connection.execution_options(**options)
            async with asyncio.timeout(BEGUN_WITHIN_S):
                await connection.execute(first)
            info[_USED] = True
            return connection
        except BaseException as error:
            try:
                await _undo(connection, error)
            finally:
                await connection.close()
            gone = isinstance(error, exc.DBAPIError) and error.connection_invalidated
            if not gone or was_fresh:
                raise
            logger().info("database_connected_again")


async def end(connection: AsyncConnection) -> None:
    """Ends a connection at once, and with it all that it holds: it asks the server nothing."""
    if not connection.invalidated:
        # Of itself the driver first waits for the answer to what it is asked to break off, which a silent server never gives.
        driver: Any = (await connection.get_raw_connection()).driver_connection
        driver.terminate()
        await connection.invalidate()


async def _undo(connection: AsyncConnection, error: BaseException) -> None:
    try:
        if isinstance(error, TimeoutError | asyncio.CancelledError):
            await end(connection)  # perhaps amid a statement
        else:
            async with asyncio.timeout(UNDONE_WITHIN_S):
                await connection.rollback()
    except (exc.DBAPIError, TimeoutError):
        await end(connection)


async def _connection(where: AsyncEngine) -> AsyncConnection:
    connection = where.connect()
    try:
        return await connection.start()
    except exc.TimeoutError as error:
        logger().error("database_refused", reason="no connection is free")
        raise Unavailable(f"all {CONNECTIONS} connections to the database are in use", retry_after_s=1.0) from error
    except OSError as error:
        # The driver's own error, where there is nobody to connect to.
        logger().error("database_refused", reason=type(error).__name__)
        raise Unavailable("the database doesn't answer", retry_after_s=5.0) from error


@contextmanager
def refusals() -> Iterator[None]:
    """Turns what the server refuses into Unavailable; what can never be right stays what it is."""
    try:
        yield
    except (exc.DBAPIError, TimeoutError) as error:
        if isinstance(error, _DEFECTS):
            raise
        # Nothing of the transaction is stored, and it may succeed later. Only where it was the commit's answer that was lost, it is
        # stored: who asks again must find that out.
        reason = str(error.orig) if isinstance(error, exc.DBAPIError) else "no answer in time"
        logger().error("database_refused", reason=reason)
        raise Unavailable(f"the database refused: {reason}", retry_after_s=5.0) from error
