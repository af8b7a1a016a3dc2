"""The watchdog over `tandem up`'s own nats-server: one that stores nothing is started again.

A stream whose write failed once, as on a full disk, takes nothing more until the server is started anew, though space is back and
other streams go on (nats-server 2.14 and later). The server's monitor names such streams. What it doesn't name, such as a disk that
hangs, shows in a probe that nobody answers. A server that greets no connection, such as a stopped process, is killed at once: it has
nothing in hand that it could bring to an end.
"""

from __future__ import annotations

import asyncio
import math
import platform
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import aiohttp

from services.cli.monitor import probes
from services.cli.stack import liveness
from services.cli.stack.liveness import Silence
from services.cli.stack.nats_server import NatsServer
from services.cli.stack.supervisor import Supervisor
from services.common.messaging import flow
from services.common.messaging.bus import Bus
from services.common.observability.telemetry import logger
from services.common.rpc.errors import RetryableError, StoreFull

EVERY_S = 1.0
STUCK_AFTER_S = 10.0
"""How long probes go unanswered before the server counts as stuck. A failed write is final and needs no patience."""
RETRY_AFTER_S = 30.0
"""From one restart to the next at least."""
ROOM_BYTES = 16 << 20
"""Free space from which a restart is of use: 2 minutes of the log at full load."""
MONITOR_TIMEOUT_S = 2.0
_PROBE = bytes(4096)
_WRITE_FAILED = "write error"
"""How the monitor says that a stream takes nothing more; the server's version is pinned, and a test fills a disk."""


class ServerCheck(NamedTuple):
    """What one look at the server found."""

    pid: int | None
    """Its process; None while it doesn't run, which is the supervisor's business."""
    connected: bool
    answered: bool
    """A probe was stored, or refused for its quota."""
    failed: tuple[str, ...]
    """Streams that take nothing more."""
    limiter: bool
    """The disk has space."""
    began_s: float
    ended_s: float
    """Times of a clock that only grows."""


@dataclass(frozen=True, slots=True)
class WatchdogState:
    """What is known of the server from the looks so far."""

    pid: int | None = None
    unanswered_since_s: float = math.inf
    """Since when probes of this process go unanswered."""
    stuck: bool = False
    restarted_s: float = -math.inf
    """When it was last ended from here."""


class Step(NamedTuple):
    """What a look leads to."""

    watched: WatchdogState
    tell: bool
    """The server is found stuck, for the first time since it worked."""
    restart: bool


def judge(watched: WatchdogState, look: ServerCheck) -> Step:
    """What follows from a look. Pure.

    Without a connection nothing begins to count: a server that starts may recover its store for minutes. What began with one goes on
    counting, since a stopped process loses its connections after a while.
    """
    if look.pid is None:
        return Step(WatchdogState(restarted_s=watched.restarted_s), tell=False, restart=False)
    if look.pid != watched.pid:
        watched = WatchdogState(look.pid, restarted_s=watched.restarted_s)
    since_s = watched.unanswered_since_s
    if look.answered:
        since_s = math.inf
    elif look.connected:
        since_s = min(since_s, look.began_s)
    stuck = bool(look.failed) or look.ended_s - since_s >= STUCK_AFTER_S
    restart = stuck and look.limiter and look.ended_s - watched.restarted_s >= RETRY_AFTER_S
    return Step(
        replace(
            watched,
            unanswered_since_s=since_s,
            stuck=stuck,
            restarted_s=look.ended_s if restart else watched.restarted_s,
        ),
        tell=stuck and not watched.stuck,
        restart=restart,
    )


class Watchdog:
    """Looks at the server that a supervisor keeps, and has it started again when it is stuck and its disk has room."""

    def __init__(self, store: Supervisor, program: str, server: NatsServer, folder: Path) -> None:
        self._store, self._program = store, program
        self._server = server
        self._folder = folder
        self._subject = flow.probe_subject(platform.node().replace(".", "-") or "localhost")

    async def run(self) -> None:
        """Watches for ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._restart_when_stuck())
            tasks.create_task(self._kill_when_silent())

    async def _kill_when_silent(self) -> None:
        while True:
            pid = self._store.pids.get(self._program)
            if pid is None:
                await asyncio.sleep(liveness.CHECK_S)
                continue
            silence = Silence()
            greeted = asyncio.create_task(self._greet(silence))
            dead = asyncio.create_task(liveness.until_dead(pid, silence))
            try:
                while self._store.pids.get(self._program) == pid and not dead.done():  # noqa: ASYNC110 - pids tell nobody
                    await asyncio.sleep(liveness.CHECK_S)
                if dead.done() and self._store.pids.get(self._program) == pid:
                    logger().error("store_silent", pid=pid, silent_s=round(dead.result(), 1))
                    self._store.kill(self._program)
                    await asyncio.sleep(liveness.CHECK_S)  # until its end is noticed
            finally:
                for task in (greeted, dead):
                    task.cancel()
                await asyncio.gather(greeted, dead, return_exceptions=True)

    async def _greet(self, silence: Silence) -> None:
        while True:
            if await probes.greets(self._server.url, liveness.CHECK_S):
                silence.heard()
            await asyncio.sleep(liveness.CHECK_S)

    async def _restart_when_stuck(self) -> None:
        timeout = aiohttp.ClientTimeout(total=MONITOR_TIMEOUT_S)
        watched = WatchdogState()
        async with self._server.bus_as("watchdog") as bus, aiohttp.ClientSession(timeout=timeout) as session:
            while True:
                look = await self._look(bus, session)
                watched, tell, restart = judge(watched, look)
                if tell:
                    logger().error("store_stuck", streams=look.failed, answered=look.answered, limiter=look.limiter)
                if restart:
                    if look.failed:
                        await self._store.restart(self._program)
                    else:
                        self._store.kill(self._program)  # it answers nothing, so it wouldn't end by itself either
                    logger().warning("store_restarted", streams=look.failed)
                await asyncio.sleep(EVERY_S)

    async def _look(self, bus: Bus, session: aiohttp.ClientSession) -> ServerCheck:
        clock = asyncio.get_running_loop().time
        began_s, pid, connected = clock(), self._store.pids.get(self._program), bus.client.is_connected
        answered, failed = await asyncio.gather(self._probe(bus), self._failed_streams(session))
        return ServerCheck(pid, connected, answered, failed, self._has_room(), began_s, clock())

    def _has_room(self) -> bool:
        try:
            return shutil.disk_usage(self._folder).free >= ROOM_BYTES
        except OSError:
            return False  # the disk is gone: a restart is of no use either

    async def _probe(self, bus: Bus) -> bool:
        try:
            await bus.publish(self._subject, _PROBE)
        except StoreFull:
            return True  # the account's quota: it does answer, and a restart gives no room
        except RetryableError:
            return False
        return True

    async def _failed_streams(self, session: aiohttp.ClientSession) -> tuple[str, ...]:
        try:
            async with session.get(f"{self._server.monitor_url}/healthz", params={"details": "1"}) as answer:
                errors = (await answer.json()).get("errors", ())
        except (aiohttp.ClientError, TimeoutError):
            return ()  # whether it stores is the probe's to say
        return tuple(error["stream"] for error in errors if _WRITE_FAILED in error.get("error", ""))


@asynccontextmanager
async def watching(watchdog: Watchdog) -> AsyncIterator[asyncio.Task[None]]:
    """Its task, which ends only by a defect; it is stopped at the end of the block."""
    task = asyncio.create_task(watchdog.run(), name="watchdog")
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait({task})
