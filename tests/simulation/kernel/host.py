"""What the simulated processes believe to be the machine: clock, randomness, disk, threads and forks of one world.

The services run unchanged. They reach time, randomness and the machine through the standard library and a few libraries, and these are
replaced while a world runs. Only a process that does nothing else may install a host (`tests.simulation.__main__` starts one).
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import random
import sqlite3
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import aiosqlite
import grpc.aio
import structlog
from grpc_reflection.v1alpha import reflection
from sqlalchemy import Connection
from sqlalchemy.dialects.sqlite import aiosqlite as sqlalchemy_aiosqlite
from sqlalchemy.sql import compiler

from services.common import health_port
from services.common.messaging import bus
from services.common.observability import telemetry
from services.common.storage import db
from services.common.storage.visits import VisitThread
from services.common.web import server as web
from services.geofence.domain import codec
from services.geofence.domain.state import State
from services.geofence.store import CheckpointStore, PendingCheckpoint
from tests.simulation.jetstream.client import SimulatedClient
from tests.simulation.kernel import disk, loop, schemas
from tests.simulation.kernel import running as turns
from tests.simulation.kernel.journal import Journal
from tests.simulation.kernel.process import current, running
from tests.simulation.kernel.world import SECOND_NS, START_NS, World
from tests.simulation.rpc.channel import insecure_channel
from tests.simulation.rpc.server import SimulatedServer

Value = TypeVar("Value")


def install(world: World, journal: Journal) -> None:
    """Replaces the machine by a world, for the rest of this (operating system) process."""
    _clock(world)
    _randomness(world)
    _disk()
    _libraries(journal)
    _replace(asyncio, "wait_for", _wait_for)
    for module in (asyncio, asyncio.events):
        _replace(module, "_get_running_loop", turns.running_loop)
        for name in ("get_running_loop", "get_event_loop"):
            _replace(module, name, turns.get_running_loop)
    loop.adopt_generators()
    gc.disable()
    _replace(gc, "enable", lambda: None)  # collection at a point that allocations choose would run finalizers there
    _replace(gc, "collect", lambda *_: 0)  # an evaluator collects at its start, which would take a tenth of the time
    logging.disable()
    _replace(sys, "unraisablehook", lambda _: None)


def _replace(owner: object, name: str, value: object) -> None:
    """Replaces an attribute of a library, for the rest of this process."""
    setattr(owner, name, value)


def _clock(world: World) -> None:
    def wall_ns() -> int:
        process = running()
        return world.now_ns + (process.skew_ns if process else 0)

    def monotonic() -> float:
        return loop.UPTIME_S + (world.now_ns - START_NS) / SECOND_NS

    _replace(time, "time_ns", wall_ns)
    _replace(time, "time", lambda: wall_ns() / SECOND_NS)
    _replace(time, "monotonic", monotonic)

    def monotonic_ns() -> int:
        return int(monotonic() * SECOND_NS)

    _replace(time, "perf_counter", monotonic)
    for name in ("monotonic_ns", "perf_counter_ns"):
        _replace(time, name, monotonic_ns)
    _replace(compiler, "perf_counter", monotonic)  # of the statistics of its cache
    for name in ("thread_time", "process_time"):
        _replace(time, name, lambda: 0.0)


def _randomness(world: World) -> None:
    def urandom(count: int) -> bytes:
        return world.values.randbytes(count)

    _replace(os, "urandom", urandom)
    _replace(random, "_urandom", urandom)
    random.seed(f"shared values of {world.seed}")


def _disk() -> None:
    plain = sqlite3.connect

    def connect(*arguments: Any, **options: Any) -> sqlite3.Connection:
        opened: sqlite3.Connection = plain(*arguments, **{"factory": disk.SimulatedConnection, **options})
        return opened

    _replace(sqlite3, "connect", connect)
    _replace(sqlite3.dbapi2, "connect", connect)
    _replace(aiosqlite, "connect", disk.connect)
    _replace(sqlalchemy_aiosqlite, "aiosqlite", aiosqlite)
    _replace(os, "fsync", lambda _: None)  # nothing here survives the operating system

    def begin(store: CheckpointStore, state: State) -> PendingCheckpoint:
        path = store._write(state.partition, state.sequence, codec.encode(state))
        os.utime(path, (time.time(), time.time()))  # the store keeps files by their age
        current().facts["checkpoint_written_s"] = time.monotonic() + current().world.between(0.01, 1.0)
        return PendingCheckpoint(state.partition, state.sequence, os.getpid())

    def is_written(_store: CheckpointStore, _pending: PendingCheckpoint) -> bool:
        return time.monotonic() >= float(current().facts["checkpoint_written_s"])

    def upgrade(connection: Connection, migrations: Path) -> None:
        # Alembic keeps the current migration in globals, so a migration must not interleave with another process's.
        process = current()
        process.is_migrating = True
        try:
            schemas.upgrade(connection, migrations)
        finally:
            process.is_migrating = False

    def visit(_thread: VisitThread, work: Callable[[], Value]) -> asyncio.Future[Value]:
        return asyncio.get_running_loop().run_in_executor(None, work)

    _replace(VisitThread, "__enter__", lambda thread: thread)
    _replace(VisitThread, "__exit__", lambda *_: None)
    _replace(VisitThread, "run", visit)
    _replace(db, "_upgrade", upgrade)
    for name in ("create_engine", "create_async_engine"):
        _replace(db, name, schemas.with_kept_statements(getattr(db, name)))
    _replace(CheckpointStore, "begin", begin)
    _replace(CheckpointStore, "is_written", is_written)
    _replace(CheckpointStore, "abandon", lambda _store, _pending: None)


def _libraries(journal: Journal) -> None:
    _replace(bus, "ReconnectingClient", SimulatedClient)
    _replace(grpc.aio, "server", SimulatedServer)
    _replace(grpc.aio, "insecure_channel", insecure_channel)
    _replace(health_port, "_in_thread", _not_served)
    plain = web.served
    for module in list(sys.modules.values()):
        if getattr(module, "served", None) is plain:
            _replace(module, "served", _no_http)
    _replace(telemetry, "configure", lambda *_: None)
    structlog.configure(
        processors=[structlog.processors.add_log_level, journal.note],
        wrapper_class=structlog.make_filtering_bound_logger(20),
        logger_factory=structlog.ReturnLoggerFactory(),
        cache_logger_on_first_use=False,
    )
    _replace(reflection, "enable_server_reflection", lambda *_: None)


async def _wait_for(awaitable: Awaitable[Value], timeout: float | None) -> Value:  # noqa: ASYNC109  # asyncio's signature
    """In the place of asyncio.wait_for, which needs other numbers of turns in Python 3.11 than in 3.12 and later. As in 3.12."""
    if timeout is not None and timeout <= 0:
        future = asyncio.ensure_future(awaitable)
        if future.done():
            return future.result()
        future.cancel()
        await asyncio.wait({future})
        try:
            return future.result()
        except asyncio.CancelledError as error:
            raise TimeoutError from error
    async with asyncio.timeout(timeout):
        return await awaitable


@asynccontextmanager
async def _not_served(_: object) -> AsyncIterator[int]:
    """The health port. Judges read readiness from the processes themselves."""
    yield 0


@asynccontextmanager
async def _no_http(*_: object, port: int, **__: object) -> AsyncIterator[int]:
    """An HTTP port that nobody calls: phones and gateways of a simulation come through gRPC."""
    yield port
