"""A whole mesh for tests: a nats-server whose streams can be purged and restored, and a process for every service that reads."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import grpc.aio

from services.common.clock import MeshClock
from services.common.errors import Unavailable
from services.common.messaging import bus as buses
from services.common.messaging import flow, streams
from services.common.messaging.bus import Bus, PubAck
from services.common.rpc import server
from tests.support.common.nats import STREAM_BYTES, TestServer, running_server
from tests.support.common.ports import free_port
from tests.support.common.processes import Service
from tests.support.dispatch import dispatch
from tests.support.ingest.ingest import IngestMesh
from tests.support.registry.registry import RegistryMesh

PARTITIONS = 2
CHECKPOINT_EVERY = 20
"""Number of entries after which an evaluator compares its digest with that of the other evaluator."""
SECRET = dispatch.SECRET
LEGS = tuple(flow.leg_user(leg) for leg in flow.LEGS)
SERVICES = ("geofence", "ingest", "registry", *LEGS)
CHECK_INTERVAL_S = 0.1


class ReadersMesh:
    """The processes of the mesh, and the paths of their databases."""

    def __init__(self, folder: Path, nats: TestServer) -> None:
        self.folder, self.nats = folder, nats
        self.services: dict[str, Service] = {}
        self.addresses: dict[str, str] = {}
        self._metrics: dict[str, int] = {}
        self._databases: dict[str, Path] = {}
        self._configure()

    def _configure(self) -> None:
        registry = RegistryMesh(self.nats, self.folder, free_port(), PARTITIONS, "")
        self._add("registry", "services.registry", registry.env, registry.address)
        self._databases["registry"] = registry.data_dir / "registry.sqlite3"
        ingest = IngestMesh(self.nats)
        self._add("ingest", "services.ingest", ingest.env, ingest.address)
        port = free_port()
        evaluator = {
            "TANDEM_PORT": str(port),
            "TANDEM_NATS_URL": self.nats.url_as("geofence"),
            "TANDEM_NATS_MONITOR_URL": self.nats.monitor_url,
            "TANDEM_DATA_DIR": str(self.folder / "geofence"),
            "TANDEM_REPLICA": "0",
            "TANDEM_REPLICAS": "2",
            "TANDEM_CHECKPOINT_EVERY": str(CHECKPOINT_EVERY),
        }
        self._add("geofence", "services.geofence", evaluator, f"127.0.0.1:{port}")
        for leg, user in zip(flow.LEGS, LEGS, strict=True):
            settings = dispatch.settings(leg, self.nats, self.folder / user)
            self._add(
                user, "services.dispatch", dispatch.variables(settings), f"127.0.0.1:{settings.port}", "--leg", leg
            )
            self._databases[user] = self.folder / user / f"dispatch-{leg}.sqlite3"
        self._databases["warning"] = self.folder / flow.leg_user("warning") / "warning.sqlite3"
        self.warning_key = self.folder / flow.leg_user("warning") / "warning.key"

    def _add(self, name: str, module: str, env: Mapping[str, str], address: str, *arguments: str) -> None:
        self._metrics[name] = free_port()
        all_env = {**env, "TANDEM_DEV_SECRET": SECRET, "TANDEM_METRICS_PORT": str(self._metrics[name])}
        self.addresses[name] = address
        self.services[name] = Service(module, all_env, self.folder / f"{name}.log", arguments)

    # ── processes ────────────────────────────────────────────────────────────────────────────────────────────────────

    def start(self) -> None:
        """Starts all processes that don't run."""
        for service in self.services.values():
            if not service.runs:
                service.start()

    def kill(self) -> None:
        """Sends SIGKILL to all processes."""
        for service in self.services.values():
            service.kill()

    async def ready(self, name: str) -> None:
        """Returns once a service serves and its /readyz answers 200."""
        await self.services[name].ready(self.addresses[name])
        async with aiohttp.ClientSession() as session:
            while await self._readyz(session, name) != 200:
                assert self.services[name].runs, self.last_words(name)
                await asyncio.sleep(CHECK_INTERVAL_S)

    async def _readyz(self, session: aiohttp.ClientSession, name: str) -> int:
        try:
            async with session.get(f"http://127.0.0.1:{self._metrics[name]}/readyz") as answer:
                return answer.status
        except aiohttp.ClientError:
            return 0

    def last_words(self, name: str) -> str:
        """Last line in the log of a process that has ended."""
        lines = self.services[name].log().strip().splitlines()
        return f"{name} ended: {lines[-1][-400:]}" if lines else f"{name} ended with an empty log"

    def log(self, name: str) -> str:
        """The log of a process so far."""
        return self.services[name].log()

    # ── the server ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def restart_server(self, copy_to: Path | None = None, put_back: Path | None = None) -> None:
        """Kills and restarts the nats-server. Between, it copies the store to `copy_to` or replaces it by `put_back`."""
        store = self.folder / "nats" / "store"
        self.nats.kill()
        if copy_to:
            shutil.copytree(store, copy_to)
        if put_back:
            shutil.rmtree(store)
            shutil.move(put_back, store)
        self.nats.start()
        await asyncio.to_thread(self.nats.wait_until_listening)
        async with buses.connect(self.nats.url, "test") as bus:
            for name in stream_names():
                await bus.bounds_of(name)

    # ── effects ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def count(self, database: str, statement: str, *values: Any) -> int:
        """Result of a `select count(*)` in a service's database, read directly. 0 if the database doesn't exist yet."""
        path = self._databases[database]
        if not path.exists():
            return 0
        with closing(sqlite3.connect(path, timeout=10)) as connection:
            (count,) = connection.execute(statement, values).fetchone()
        return int(count or 0)

    def value(self, database: str, statement: str, *values: Any) -> Any:
        """First value of a query's first row in a service's database, or None if there is no row."""
        path = self._databases[database]
        if not path.exists():
            return None
        with closing(sqlite3.connect(path, timeout=10)) as connection:
            row = connection.execute(statement, values).fetchone()
        return row[0] if row else None

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Connection]:
        """The test's connection to the streams, and a channel to each service."""
        async with AsyncExitStack() as stack:
            bus = await stack.enter_async_context(buses.connect(self.nats.url, "test"))
            channels = {
                name: await stack.enter_async_context(server.channel(address))
                for name, address in self.addresses.items()
            }
            yield Connection(self, bus, channels)


class Connection:
    """The test's connection to the mesh during a phase."""

    def __init__(self, mesh: ReadersMesh, bus: Bus, channels: Mapping[str, grpc.aio.Channel]) -> None:
        self.mesh = mesh
        self.bus = bus
        self.channels = channels

    async def publish(self, subject: str, data: bytes) -> PubAck:
        """Stores a message as a user with all permissions, and without a check of the subject's last message."""
        while True:
            try:
                return await self.bus.publish(subject, data)
            except Unavailable as error:
                await asyncio.sleep(error.retry_after_s)

    async def purge(self) -> None:
        """Deletes all messages of all streams but the log metadata, as if they had aged out."""
        for name in stream_names():
            if name != flow.LOG_META.name:
                await self.bus.api(f"STREAM.PURGE.{name}", {})

    def call(self, who: str) -> dict[str, Any]:
        """Metadata and deadline for a call by a SPIFFE id."""
        return {"metadata": server.bearer(who, SECRET), "timeout": server.UNARY_DEADLINE_S}


def stream_names() -> list[str]:
    """Names of all streams of the mesh."""
    names = [stream.name for stream in flow.STREAMS if stream is not flow.LOG]
    return [*names, flow.ROUTES.stream, *(flow.log_stream(p) for p in range(PARTITIONS))]


@contextmanager
def running_readers(folder: Path) -> Iterator[ReadersMesh]:
    """A running mesh, killed at the end."""
    with running_server(folder / "nats") as nats:
        asyncio.run(_create_streams(nats))
        mesh = ReadersMesh(folder, nats)
        try:
            mesh.start()
            yield mesh
        finally:
            mesh.kill()


async def _create_streams(nats: TestServer) -> None:
    """Creates the streams of the flow table with permission to delete and purge."""
    async with buses.connect(nats.url, "setup") as bus:
        for stream in flow.STREAMS:
            for p in range(PARTITIONS) if "{p}" in stream.name else (0,):
                config = streams._config(stream, stream.name.format(p=p), p, replicas=1, max_bytes=STREAM_BYTES)
                await bus.js.add_stream(config.evolve(deny_delete=False, deny_purge=False))
        await streams.create(bus, PARTITIONS, MeshClock(), max_bytes=STREAM_BYTES)
