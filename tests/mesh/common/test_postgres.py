"""A PostgreSQL server that restarts, hangs, starts slowly or has no free connection: callers get an error in bounded time, and the
next call works."""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa
import uvloop
from sqlalchemy.util import await_only

from services.common.errors import Unavailable
from services.common.storage import postgres
from services.common.storage.db import Database, PostgresDatabase
from services.common.storage.statements import fetch
from tests.support.common.postgres import PostgresServer, execute, running_postgres
from tests.support.common.wire import wired

SOON_S = 8.0
"""Limit for bounded calls, seconds. It is far below all limits that the test doesn't shorten."""
ONE, PID = sa.text("select 1"), sa.text("select pg_backend_pid()")


@pytest.fixture(scope="module")
def own_server() -> Iterator[PostgresServer]:
    """A server that these tests may kill and stop."""
    with running_postgres() as server:
        yield server


@asynccontextmanager
async def opened(url: str, answer_within_s: float | None = postgres.ANSWER_WITHIN_S) -> AsyncIterator[Database]:
    engine = postgres.engine(url, answer_within_s)
    try:
        yield PostgresDatabase(engine)
    finally:
        await engine.dispose()


async def select_1(database: Database) -> int:
    return await database.visit(lambda connection: connection.scalar(ONE) or 0)


async def pids(database: Database, count: int) -> set[int]:
    """Process ids of `count` concurrent sessions. The pool holds that many connections afterwards."""
    async with AsyncExitStack() as stack:
        readers = [await stack.enter_async_context(database.reading()) for _ in range(count)]
        return {await reader.scalar(PID) for reader in readers}


async def end_sessions(url: str) -> None:
    """Ends all other sessions of a URL's database, and returns once the clients have read the server's last messages."""
    await execute(
        url,
        "select pg_terminate_backend(pid) from pg_stat_activity"
        " where datname = current_database() and pid <> pg_backend_pid()",
    )
    await asyncio.sleep(0.1)


def fetch_by_sqlalchemy(connection: sa.Connection) -> object:
    return connection.scalar(ONE)


def fetch_by_the_driver(connection: sa.Connection) -> object:
    return fetch(connection, "select 1")


@contextmanager
def silent(server: PostgresServer) -> Iterator[None]:
    """Stops all processes of the server during the block."""
    server.hold()
    try:
        yield
    finally:
        server.go_on()


async def test_a_restart_between_two_calls_is_invisible_to_callers(own_server: PostgresServer) -> None:
    async with opened(own_server.new_database()) as database:
        before = await pids(database, 3)
        own_server.kill()
        own_server.start()
        await asyncio.to_thread(own_server.wait_until_ready)
        assert await select_1(database) == 1
        async with database.alone("relay") as still_alone:
            await still_alone()
        assert not before & await pids(database, 3)


async def test_a_starting_server_refuses_and_then_serves(own_server: PostgresServer) -> None:
    async with opened(own_server.new_database()) as database:
        assert await select_1(database) == 1
        own_server.kill()
        for refuses in ("doesn't answer", "database system is|not yet accepting|not accepting"):
            with pytest.raises(Unavailable, match=refuses):
                await select_1(database)
            with pytest.raises(Unavailable, match=refuses):
                async with database.reading():
                    pass
            with pytest.raises(Unavailable, match=refuses):
                async with database.alone("relay"):
                    pass
            own_server.kill()
            await asyncio.to_thread(own_server.start_recovering)
        own_server.kill()
        own_server.start()
        await asyncio.to_thread(own_server.wait_until_ready)
        assert await select_1(database) == 1


async def test_a_hanging_server_blocks_callers_only_briefly(
    own_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(own_server.new_database()) as database:
        await pids(database, 2)
        async with asyncio.timeout(SOON_S):
            with silent(own_server), monkeypatch.context() as impatient:
                impatient.setattr(postgres, "BEGUN_WITHIN_S", 0.5)
                with pytest.raises(Unavailable):
                    await select_1(database)
                with pytest.raises(Unavailable):
                    async with database.alone("relay"):
                        pass
        assert await select_1(database) == 1


async def test_a_server_that_hangs_within_a_transaction_blocks_callers_only_briefly(own_server: PostgresServer) -> None:
    async with opened(own_server.new_database(), answer_within_s=0.5) as database:
        for asks in (True, False):
            async with asyncio.timeout(SOON_S):
                with pytest.raises(Unavailable), ExitStack() as held:
                    async with database.transaction() as connection:
                        held.enter_context(silent(own_server))
                        if asks:
                            await connection.execute(ONE)
            assert await select_1(database) == 1


async def test_a_caller_can_be_cancelled_while_the_server_hangs(own_server: PostgresServer) -> None:
    async with opened(own_server.new_database()) as database:
        with ExitStack() as held:

            async def ask() -> None:
                async with database.transaction() as connection:
                    held.enter_context(silent(own_server))
                    await connection.execute(ONE)

            asking = asyncio.create_task(ask())
            await asyncio.sleep(0.3)
            asking.cancel()
            done, _ = await asyncio.wait([asking], timeout=SOON_S)
            assert done and asking.cancelled()
        assert await select_1(database) == 1


async def test_a_caller_gets_unavailable_when_all_connections_are_in_use(
    own_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "CONNECTION_WITHIN_S", 0.2)
    async with opened(own_server.new_database()) as database:
        async with AsyncExitStack() as stack:
            for _ in range(postgres.CONNECTIONS):
                await stack.enter_async_context(database.reading())
            with pytest.raises(Unavailable, match=f"all {postgres.CONNECTIONS} connections"):
                await select_1(database)
        assert await select_1(database) == 1


async def test_a_process_that_freezes_within_a_transaction_loses_its_locks(
    own_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = own_server.new_database()
    monkeypatch.setattr(postgres, "IDLE_WITHIN_MS", 500)
    async with opened(url) as frozen, opened(url) as other:
        with pytest.raises(Unavailable):
            async with frozen.transaction() as connection:
                async with asyncio.timeout(SOON_S):
                    assert await select_1(other) == 1  # while the first transaction is idle
                await connection.execute(ONE)
        assert await select_1(frozen) == 1


async def transact(database: Database) -> int:
    async with database.transaction() as connection:
        return await connection.scalar(ONE) or 0


async def read(database: Database) -> int:
    async with database.reading() as connection:
        return await connection.scalar(ONE) or 0


async def be_alone(database: Database) -> int:
    async with database.alone("relay") as still_alone:
        await still_alone()
        return 1


@pytest.mark.parametrize("ask", [select_1, transact, read, be_alone])
async def test_a_network_that_drops_all_packets_is_noticed(
    own_server: PostgresServer, monkeypatch: pytest.MonkeyPatch, ask: Callable[[Database], Awaitable[int]]
) -> None:
    async with wired(own_server.new_database()) as (wire, url), opened(url) as database:
        assert await ask(database) == 1
        assert await select_1(database) == 1  # a connection is in the pool
        wire.swallows = True
        async with asyncio.timeout(SOON_S):
            with pytest.raises(Unavailable), monkeypatch.context() as impatient:
                impatient.setattr(postgres, "BEGUN_WITHIN_S", 0.5)
                await ask(database)
        wire.swallows = False
        assert await ask(database) == 1


async def test_a_connection_is_replaced_after_the_server_said_that_it_ends(own_server: PostgresServer) -> None:
    # The server's last message may arrive some time before the connection is closed.
    direct = own_server.new_database()
    async with wired(direct) as (wire, url), opened(url) as database:
        for ask in (select_1, partial(pids, count=1)):
            before = await pids(database, 2)
            with wire.hiding_ends():
                await end_sessions(direct)
                assert await ask(database)
                assert not before & await pids(database, 2)


@pytest.mark.parametrize("step", [None, fetch_by_sqlalchemy, fetch_by_the_driver])
async def test_a_transaction_gets_unavailable_after_the_server_said_that_it_ends(
    own_server: PostgresServer, step: Callable[[sa.Connection], object] | None
) -> None:
    direct = own_server.new_database()
    async with wired(direct) as (wire, url), opened(url) as database:
        with wire.hiding_ends():
            with pytest.raises(Unavailable):
                async with database.transaction() as connection:
                    await end_sessions(direct)
                    if step:
                        await connection.run_sync(step)
            assert await select_1(database) == 1


async def test_a_visit_gets_unavailable_if_the_server_says_before_its_commit_that_it_ends(
    own_server: PostgresServer,
) -> None:
    direct = own_server.new_database()

    def end(_: sa.Connection) -> None:
        await_only(end_sessions(direct))

    async with wired(direct) as (wire, url), opened(url) as database:
        with wire.hiding_ends():
            with pytest.raises(Unavailable):
                await database.visit(end)
            assert await select_1(database) == 1


async def test_a_task_that_is_alone_gets_unavailable_after_the_server_said_that_it_ends(
    own_server: PostgresServer,
) -> None:
    direct = own_server.new_database()
    async with wired(direct) as (wire, url), opened(url) as database:
        with wire.hiding_ends():
            with pytest.raises(Unavailable):
                async with database.alone("relay") as still_alone:
                    await end_sessions(direct)
                    await still_alone()
            async with database.alone("relay") as still_alone:
                await still_alone()


def test_a_connection_that_is_lost_while_it_is_opened_gives_unavailable(
    own_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_keepalive, opens = postgres._notice_a_silent_server, itertools.count()

    async def lose(_: object) -> None:
        await end_sessions(direct)

    def open_and_lose(connection: Any, record: object) -> None:
        if not next(opens):
            connection.run_async(lose)
        set_keepalive(connection, record)

    async def ask() -> None:
        async with wired(direct) as (_, url), opened(url) as database:
            with pytest.raises(Unavailable):
                await select_1(database)
            assert await select_1(database) == 1

    direct = own_server.new_database()
    monkeypatch.setattr(postgres, "_notice_a_silent_server", open_and_lose)
    uvloop.run(ask())  # its transports have no socket any more after the end of their connection


async def test_a_network_connection_has_tcp_keepalive(own_server: PostgresServer) -> None:
    options: dict[str, int] = {}

    def read_options(connection: sa.Connection) -> None:
        ours = connection.connection.driver_connection._transport.get_extra_info("socket")  # type: ignore[union-attr]
        option: Callable[[int, int], int] = ours.getsockopt
        options["on"] = option(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        options["idle"] = option(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)
        options["silent"] = option(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)

    async with wired(own_server.new_database()) as (_, url), opened(url) as database:
        await database.visit(read_options)
    assert options == {"on": 1, "idle": postgres.PEER_IDLE_S, "silent": postgres.PEER_SILENT_MS}


async def test_the_error_of_a_visit_is_the_cause_of_its_cancellation(
    own_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(own_server.new_database()) as database:
        with silent(own_server):
            monkeypatch.setattr(postgres, "BEGUN_WITHIN_S", 0.3)
            asking = asyncio.create_task(select_1(database))
            await asyncio.sleep(0.1)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError) as cancelled:
                await asking
        assert isinstance(cancelled.value.__cause__, Unavailable)
