"""A registry for one test: nats-server, streams, the registry process, and clients for both agencies."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any

import grpc.aio

from services.common.clock import MeshClock
from services.common.messaging import bus as buses
from services.common.messaging import flow, pull, streams
from services.common.messaging.bus import Bus
from services.common.rpc import server
from tandem.common.v1 import log_pb2
from tandem.registry.v1 import (
    cctv_pb2_grpc,
    device_token_pb2_grpc,
    disclosure_pb2_grpc,
    match_review_pb2_grpc,
    order_extension_pb2_grpc,
    parties_pb2_grpc,
    record_search_pb2_grpc,
    registry_pb2,
    registry_pb2_grpc,
    tag_record_pb2_grpc,
)
from tests.support.common import postgres
from tests.support.common.nats import STREAM_BYTES, TestServer, running_server
from tests.support.common.ports import free_port
from tests.support.common.processes import Service, spawn

SECRET = "secret-of-this-test"
MOJ = "spiffe://moj/records"
NPA = "spiffe://npa/records"
WITHIN_S = 60.0


class RegistryMesh:
    """A running registry and the nats-server to which it publishes."""

    def __init__(self, nats: TestServer, folder: Path, port: int, partitions: int, database_url: str) -> None:
        self.nats = nats
        self.data_dir = folder / "registry"
        self.address = f"127.0.0.1:{port}"
        self.partitions = partitions
        self.database_url = database_url
        self.env = {
            "TANDEM_PORT": str(port),
            "TANDEM_METRICS_PORT": "0",
            "TANDEM_NATS_URL": nats.url_as("registry"),
            "TANDEM_NATS_MONITOR_URL": nats.monitor_url,
            "TANDEM_DATA_DIR": str(self.data_dir),
            "TANDEM_DEV_SECRET": SECRET,
            "TANDEM_REGISTRY_DATABASE_URL": database_url,
        }
        self.service: Service

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Client]:
        """A client; waits until the registry serves."""
        await self.service.ready(self.address)
        async with server.channel(self.address) as channel, buses.connect(self.nats.url, "test") as bus:
            yield Client(self, channel, bus)

    def held(self) -> bytes:
        """All bytes that the registry has written: the files of its database and data folder, and its log."""
        folders = [self.data_dir]
        if self.database_url:
            postgres.run_apart(postgres.execute(self.database_url, "checkpoint"))
            folders.append(Path(self.database_url.partition("host=")[2]))
        paths = (path for folder in folders for path in folder.rglob("*") if path.is_file())
        return b"".join(path.read_bytes() for path in paths) + self.service.log().encode()

    def query(self, statement: str) -> list[Any]:
        """Rows of the database, read directly and not through the registry."""
        if self.database_url:
            return postgres.run_apart(postgres.fetch(self.database_url, statement))
        with closing(sqlite3.connect(self.data_dir / "registry.sqlite3")) as database:
            return database.execute(statement).fetchall()

    def change(self, statement: str) -> None:
        """Change the database directly and not through the registry."""
        if self.database_url:
            postgres.run_apart(postgres.execute(self.database_url, statement))
            return
        with closing(sqlite3.connect(self.data_dir / "registry.sqlite3", timeout=10)) as database:
            database.execute(statement)
            database.commit()


class Client:
    """Client for both agencies, with access to the log."""

    def __init__(self, mesh: RegistryMesh, channel: grpc.aio.Channel, bus: Bus) -> None:
        self.mesh = mesh
        self.bus = bus
        self.stub = registry_pb2_grpc.RegistryServiceStub(channel)
        self.disclosures = disclosure_pb2_grpc.DisclosureServiceStub(channel)
        self.match_reviews = match_review_pb2_grpc.MatchReviewServiceStub(channel)
        self.record_search = record_search_pb2_grpc.RecordSearchServiceStub(channel)
        self.order_extensions = order_extension_pb2_grpc.OrderExtensionServiceStub(channel)
        self.order_people = parties_pb2_grpc.PartyServiceStub(channel)
        self.device_tokens = device_token_pb2_grpc.DeviceTokenServiceStub(channel)
        self.tag_records = tag_record_pb2_grpc.TagRecordServiceStub(channel)
        self.cctv = cctv_pb2_grpc.CctvServiceStub(channel)

    async def put(self, *messages: Any, wait_for_ready: bool = True) -> list[str]:
        """Put records, each as the agency that owns it; returns the names of the outcomes."""
        outcomes = []
        for message in messages:
            call, metadata = self._call(message)
            answer = await call(metadata=metadata, timeout=WITHIN_S, wait_for_ready=wait_for_ready)
            outcomes.append(registry_pb2.PutOutcome.Name(answer.outcome))
        return outcomes

    def _call(self, message: Any) -> tuple[Any, Any]:
        name = type(message).__name__
        request = getattr(registry_pb2, f"Put{name}Request")
        field = "protected_person" if name == "ProtectedPerson" else name.lower()
        method = getattr(self.stub, f"Put{name}")
        agency = MOJ if name in ("Wearer", "Tag") else NPA
        sent = request(**{field: message})
        return lambda **options: method(sent, **options), server.bearer(agency, SECRET)

    async def ask(self, method: Any, request: Any, who: str) -> Any:
        """The answer to a call as somebody."""
        return await method(request, metadata=server.bearer(who, SECRET), timeout=WITHIN_S)

    async def rejection(self, method: Any, request: Any, who: str) -> tuple[grpc.StatusCode, str]:
        """Status code and text with which a call as somebody is rejected."""
        try:
            answer = await self.ask(method, request, who)
        except grpc.aio.AioRpcError as error:
            return error.code(), error.details() or ""
        raise AssertionError(f"the call was accepted: {answer}")

    async def refusal(self, message: Any) -> grpc.aio.AioRpcError:
        """The error with which the registry rejects this record."""
        try:
            outcomes = await self.put(message)
        except grpc.aio.AioRpcError as error:
            return error
        raise AssertionError(f"the record was accepted: {outcomes}")

    async def drained(self) -> None:
        """Wait until the outbox is empty."""
        await self.until("select 1 where not exists (select 1 from outbox where sent_at_ms is null)")

    async def until(self, statement: str) -> None:
        """Wait until a query returns rows."""
        async with asyncio.timeout(WITHIN_S):
            while not self.mesh.query(statement):  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    async def cases(self) -> list[tuple[int, log_pb2.CaseSnapshot]]:
        """All case snapshots in the log with their partition, in the order of the log."""
        await self.drained()
        snapshots = []
        for p in range(self.mesh.partitions):
            stream = flow.log_stream(p)
            if not (await self.bus.js.stream_info(stream)).state.messages:
                continue
            async for messages in pull.read(self.bus, stream, 1):
                for message in messages:
                    if message.subject == flow.log_subject(p, "case"):
                        snapshots.append((p, log_pb2.LogEntry.FromString(message.data).case))
                if messages[-1].pending == 0:
                    break
        return snapshots

    async def cases_of(self, order_id: str) -> list[log_pb2.CaseSnapshot]:
        """Case snapshots of an order in the log."""
        return [case for _, case in await self.cases() if case.order_id == order_id]

    async def route(self, device_id: str) -> log_pb2.DeviceRoute:
        """Route of a device in the KV bucket."""
        await self.drained()
        bucket = await self.bus.js.key_value(flow.DEVICES_BUCKET)
        return log_pb2.DeviceRoute.FromString((await bucket.get(device_id)).value or b"")


@contextmanager
def running_registry(
    folder: Path,
    partitions: int,
    database_url: str = "",
    module: str = "services.registry",
    env: Mapping[str, str] | None = None,
    clock: MeshClock | None = None,
) -> Iterator[RegistryMesh]:
    """Start a registry on an SQLite file or a database URL. All processes are killed at the end.

    The mesh has the clock of the wall unless another one is given, which the environment has to name, too.
    """
    with running_server(folder / "nats") as nats:
        asyncio.run(_create_streams(nats.url, partitions, clock or MeshClock()))
        mesh = RegistryMesh(nats, folder, free_port(), partitions, database_url)
        with spawn(module, {**mesh.env, **(env or {})}, folder / "registry.log") as service:
            mesh.service = service
            yield mesh


async def _create_streams(url: str, partitions: int, clock: MeshClock) -> None:
    async with buses.connect(url, "setup") as bus:
        await streams.create(bus, partitions, clock, max_bytes=STREAM_BYTES)
