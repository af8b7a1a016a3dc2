"""An ingest service for one test: nats-server, streams, the process, a reporting vendor, and access to the log."""

from __future__ import annotations

import asyncio
import time
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import grpc.aio
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from services.common import times
from services.common.clock import MeshClock
from services.common.messaging import bus as buses
from services.common.messaging import flow, pull, streams
from services.common.messaging.bus import Bus
from services.common.rpc import server
from tandem.common.v1 import log_pb2
from tandem.ingest.v1 import ingest_pb2, ingest_pb2_grpc
from tests.support.common.nats import STREAM_BYTES, TestServer, running_server
from tests.support.common.ports import free_port
from tests.support.common.processes import Service, spawn
from tests.support.registry.records import VENDOR_ID

SECRET = "secret-of-this-test"
VENDOR = f"spiffe://vendor/{VENDOR_ID}"
WITHIN_S = 75.0
LATER = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)
BROKEN_WHILE_WRITING = "Internal error from Core"
"""Text of grpc.aio's client, with status INTERNAL, where the connection breaks during a write."""
Reports: TypeAlias = grpc.aio.StreamStreamCall[ingest_pb2.ReportRequest, ingest_pb2.ReportResponse]


class IngestMesh:
    """A running ingest and the nats-server that it writes to."""

    def __init__(self, nats: TestServer) -> None:
        self.nats = nats
        port = free_port()
        http_port = free_port()
        field_port = free_port()
        metrics_port = free_port()
        self.address = f"127.0.0.1:{port}"
        self.http_url = f"http://127.0.0.1:{http_port}"
        self.field_url = f"http://127.0.0.1:{field_port}"
        self.metrics_url = f"http://127.0.0.1:{metrics_port}"
        self.env = {
            "TANDEM_PORT": str(port),
            "TANDEM_HTTP_PORT": str(http_port),
            "TANDEM_FIELD_PORT": str(field_port),
            "TANDEM_METRICS_PORT": str(metrics_port),
            "TANDEM_NATS_URL": nats.url_as("ingest"),
            "TANDEM_NATS_MONITOR_URL": nats.monitor_url,
            "TANDEM_DEV_SECRET": SECRET,
            # In most tests a single device sends the reports of a thousand.
            "TANDEM_DEVICE_REPORTS_PER_S": "1000000",
            "TANDEM_DEVICE_REPORTS_BURST": "1000000",
        }
        self.service: Service

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Client]:
        """A client, once ingest serves."""
        await self.service.ready(self.address)
        async with server.channel(self.address) as channel, buses.connect(self.nats.url, "test") as bus:
            yield Client(channel, bus)


class Client:
    """A vendor's head-end, with access to the registry's routes and to the log."""

    def __init__(self, channel: grpc.aio.Channel, bus: Bus, vendor_id: str = VENDOR_ID, secret: str = SECRET) -> None:
        self.bus = bus
        self._vendor_id = vendor_id
        self.identity = server.bearer(f"spiffe://vendor/{vendor_id}", secret)
        """Call metadata that identifies the vendor."""
        self.stub = ingest_pb2_grpc.IngestServiceStub(channel)

    async def route(self, *device_ids: str, partitions: Sequence[int] = (0,), **changes: Any) -> None:
        """Registers tags of the vendor, as the registry does. `changes` replace fields of the route."""
        tag = {"subject_id": "w", "vendor_id": self._vendor_id, "kind": log_pb2.DeviceKind.TAG}
        content: dict[str, Any] = tag | changes
        value = log_pb2.DeviceRoute(partitions=partitions, **content).SerializeToString()
        for device_id in device_ids:
            await self.bus.publish(f"$KV.{flow.DEVICES_BUCKET}.{device_id}", value)

    def open(self, requests: Any = None, timeout_s: float | None = None) -> Reports:
        """Opens a report stream; without `requests` the caller writes to it. `timeout_s` is its deadline, from now."""
        call: Reports = self.stub.Report(requests, metadata=self.identity, wait_for_ready=True, timeout=timeout_s)
        return call

    async def send(self, *requests: ingest_pb2.ReportRequest) -> list[ingest_pb2.ReportResponse]:
        """Sends batches on one stream and returns the answers in their order."""
        async with asyncio.timeout(WITHIN_S):
            return [answer async for answer in self.open(iter(requests))]

    async def refusal(self, *requests: ingest_pb2.ReportRequest) -> grpc.aio.AioRpcError:
        """Sends batches on one stream and returns the error that ends it."""
        try:
            answers = await self.send(*requests)
        except grpc.aio.AioRpcError as error:
            return error
        raise AssertionError(f"the batches were accepted: {answers}")

    async def deliver(self, requests: Iterable[ingest_pb2.ReportRequest], acknowledged: set[str]) -> int:
        """Sends batches until each is answered, as a head-end does: after a broken stream it resends the unanswered ones.

        Adds the ids of acknowledged reports as they come and returns the number of streams that it opened.
        """
        left = {request.batch: request for request in requests}
        opened = 0
        until = time.monotonic() + WITHIN_S
        while left:
            assert time.monotonic() < until, f"{len(left)} batches unanswered after {opened} streams"
            opened += 1
            try:
                async for answer in self.open(iter(list(left.values())), WITHIN_S):
                    assert answer.batch == next(iter(left)), "answers come in the order of the batches"
                    request = left.pop(answer.batch)
                    assert set(answer.outcomes) == {ingest_pb2.ACCEPTED}, answer.refusals
                    assert len(answer.outcomes) == len(report_ids(request))
                    acknowledged.update(report_ids(request))
            except grpc.aio.AioRpcError as error:
                assert error.code() in LATER or error.details() == BROKEN_WHILE_WRITING, error
                await asyncio.sleep(0.1)
        return opened

    async def entries(self, partition: int = 0) -> list[tuple[pull.Delivered, log_pb2.LogEntry]]:
        """Returns the messages and entries of a partition's log."""
        stream = flow.log_stream(partition)
        bounds = await self.bus.bounds_of(stream)
        entries: list[tuple[pull.Delivered, log_pb2.LogEntry]] = []
        if bounds.first > bounds.last:
            return entries
        async for messages in pull.read(self.bus, stream, 1):
            entries += [(message, log_pb2.LogEntry.FromString(message.data)) for message in messages]
            if messages[-1].sequence >= bounds.last:
                break
        return entries

    async def stored(self, partition: int = 0) -> Counter[str]:
        """Counts how often a partition's log holds each report, by report id."""
        counts: Counter[str] = Counter()
        for _, entry in await self.entries(partition):
            counts.update(entry.positions.report_id)
            if entry.HasField("equipment"):
                counts[entry.equipment.report_id] += 1
        return counts


@contextmanager
def running_ingest(nats: TestServer, log: Path, env: Mapping[str, str] | None = None) -> Iterator[IngestMesh]:
    """Starts an ingest and kills it at the end. The server must have its streams. `env` are further settings."""
    mesh = IngestMesh(nats)
    mesh.env |= env or {}
    with spawn("services.ingest", mesh.env, log) as service:
        mesh.service = service
        yield mesh


@contextmanager
def ingest_on_its_own_server(folder: Path, env: Mapping[str, str] | None = None) -> Iterator[IngestMesh]:
    """Starts an ingest with its own nats-server, and ends both at the end."""
    with running_server(folder / "nats") as nats:
        asyncio.run(create_streams(nats.url, 1))
        with running_ingest(nats, folder / "ingest.log", env) as mesh:
            yield mesh


async def create_streams(url: str, partitions: int, max_bytes: int = STREAM_BYTES) -> None:
    """Creates the streams of the flow table on a new server."""
    async with buses.connect(url, "setup") as bus:
        await streams.create(bus, partitions, MeshClock(), max_bytes=max_bytes)


def details(error: grpc.aio.AioRpcError, kind: type[Message]) -> Any:
    """Returns the only google.rpc detail of an error."""
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    assert status is not None and len(status.details) == 1, error
    detail = kind()
    assert status.details[0].Unpack(detail), status.details[0].type_url
    return detail


def violation(error: grpc.aio.AioRpcError) -> tuple[str, str]:
    """Field and reason of an INVALID_ARGUMENT."""
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT, error
    (violation,) = details(error, error_details_pb2.BadRequest).field_violations
    return violation.field, violation.description


# ── reports ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def now_ms() -> int:
    """Now, milliseconds since 1970 UTC."""
    return time.time_ns() // 1_000_000


def position(device_id: str, report_id: str, fix_time_ms: int | None = None, **changes: Any) -> ingest_pb2.Position:
    """Returns a valid position, unless `changes` make it invalid."""
    content = {"lat_deg": 37.5, "lon_deg": 127.0, "accuracy_m": 5.0} | changes
    at_ms = now_ms() if fix_time_ms is None else fix_time_ms
    return ingest_pb2.Position(device_id=device_id, report_id=report_id, fix_time=times.to_timestamp(at_ms), **content)


def event(
    device_id: str,
    report_id: str,
    kind: log_pb2.EquipmentKind.ValueType = log_pb2.STRAP_OPEN,
    time_ms: int | None = None,
) -> ingest_pb2.EquipmentEvent:
    """An equipment event."""
    at = times.to_timestamp(now_ms() if time_ms is None else time_ms)
    return ingest_pb2.EquipmentEvent(device_id=device_id, report_id=report_id, event=kind, event_time=at)


def request(batch: int, *reports: ingest_pb2.Position | ingest_pb2.EquipmentEvent) -> ingest_pb2.ReportRequest:
    """A batch."""
    return ingest_pb2.ReportRequest(
        batch=batch,
        positions=[report for report in reports if isinstance(report, ingest_pb2.Position)],
        equipment=[report for report in reports if isinstance(report, ingest_pb2.EquipmentEvent)],
    )


def report_ids(request: ingest_pb2.ReportRequest) -> list[str]:
    """Ids of a batch's reports."""
    return [position.report_id for position in request.positions] + [event.report_id for event in request.equipment]


def load(device_id: str, name: str, batches: int, reports: int = 20) -> list[ingest_pb2.ReportRequest]:
    """Batches of positions 1 ms apart, with an equipment event in every second batch; report ids begin with `name`.

    Loads with other names are some centimetres away: at the same place and time their reports would repeat one measurement.
    """
    start_ms, lat_deg = now_ms() - batches * reports, 37.5 + zlib.crc32(name.encode()) % 900 / 1e7
    return [
        request(
            batch,
            *(
                position(device_id, f"{name}-{batch}-{i}", start_ms + (batch - 1) * reports + i, lat_deg=lat_deg)
                for i in range(reports)
            ),
            *([event(device_id, f"{name}-{batch}-e")] if batch % 2 == 0 else []),
        )
        for batch in range(1, batches + 1)
    ]


async def under_load(
    client: Client,
    acknowledged: set[str],
    disturb: Callable[[], Awaitable[None]],
    device_ids: Sequence[str] = ("tag",),
    batches: int = 20,
    reports: int = 20,
    pause_s: float = 0.0,
) -> int:
    """Runs three head-ends until `disturb` ends, each in turn for each device. Returns a lower bound of the opened streams.

    A stream carries `batches` batches of `reports` reports. The ids of acknowledged reports are added as they come.
    """
    over = asyncio.Event()

    async def head_end(number: int) -> int:
        streams, turn = 0, number
        while not over.is_set():
            device_id = device_ids[turn % len(device_ids)]
            turn += 1
            name = f"h{number}-{turn}"
            streams += await client.deliver(load(device_id, name, batches, reports), acknowledged) - 1
            await asyncio.sleep(pause_s)
        return streams + 1

    async with asyncio.TaskGroup() as tasks:
        head_ends = [tasks.create_task(head_end(number)) for number in range(3)]
        await disturb()
        over.set()
    return sum(head_end.result() for head_end in head_ends)
