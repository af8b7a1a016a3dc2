"""A nats-server and one ingest process for a benchmark, with the devices' routes in the form that the registry writes."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.ingestion import reports
from services.common.messaging import bus as buses
from services.common.messaging import flow
from services.common.messaging.bus import Bus
from services.common.rpc import server
from services.common.rpc.server import Metadata
from tandem.common.v1 import log_pb2
from tests.support.common.nats import TestServer, running_server
from tests.support.common.ports import free_port
from tests.support.common.processes import spawn
from tests.support.ingest.ingest import create_streams

VENDOR_ID = "bench"
LOG_BYTES = 4 << 30
SECRET = "of this benchmark"
BURST_DEVICES = 2_000
_ROUTED_BATCH = 256


@dataclass(frozen=True, slots=True)
class IngestEndpoint:
    """A running ingest process and its server."""

    address: str
    pids: dict[str, int]
    """Process ids of nats-server and ingest, by name."""
    bus: Bus
    """The benchmark's connection to the server."""
    nats: TestServer

    @property
    def identity(self) -> Metadata:
        """Call metadata of the vendor of all devices."""
        return server.bearer(f"spiffe://vendor/{VENDOR_ID}", SECRET)


@asynccontextmanager
async def running_nats(folder: Path) -> AsyncIterator[tuple[TestServer, Bus]]:
    """Starts a nats-server that syncs every write, with the streams and the routes of all devices."""
    with running_server(folder / "nats") as nats:
        await create_streams(nats.url, 1, LOG_BYTES)
        async with buses.connect(nats.url, "bench") as bus:
            await _route(bus)
            yield nats, bus


@asynccontextmanager
async def running(
    folder: Path, nats: TestServer, bus: Bus, *, nats_url: str | None = None, tracing: bool = True
) -> AsyncIterator[IngestEndpoint]:
    """Starts an ingest process and waits until it serves. `nats_url` replaces the server's address, for example by a relay's."""
    address = f"127.0.0.1:{free_port()}"
    env = {
        "TANDEM_PORT": address.rpartition(":")[2],
        "TANDEM_HTTP_PORT": str(free_port()),
        "TANDEM_FIELD_PORT": str(free_port()),
        "TANDEM_METRICS_PORT": str(free_port()),
        "TANDEM_NATS_URL": nats_url or nats.url_as("ingest"),
        "TANDEM_NATS_MONITOR_URL": nats.monitor_url,
        "TANDEM_DEV_SECRET": SECRET,
        "TANDEM_DATA_DIR": str(folder / "ingest"),
        "OTEL_SDK_DISABLED": str(not tracing).lower(),
    }
    with spawn("services.ingest", env, folder / "ingest.log") as service:
        await service.ready(address)
        yield IngestEndpoint(address=address, pids={"nats-server": nats.pid, "ingest": service.pid}, bus=bus, nats=nats)


def burst_device_id(device: int) -> str:
    """Id of a device that was offline before the burst."""
    return f"gone-{device:04d}"


async def _route(bus: Bus) -> None:
    began = time.monotonic()
    value = log_pb2.DeviceRoute(
        subject_id="w", partitions=[0], vendor_id=VENDOR_ID, kind=log_pb2.TAG
    ).SerializeToString()
    names = [reports.device_id(index) for index in range(reports.DEVICES)]
    names += [burst_device_id(index) for index in range(BURST_DEVICES)]
    left = iter(names)

    async def work() -> None:
        for name in left:
            await bus.publish_until_stored(f"$KV.{flow.DEVICES_BUCKET}.{name}", value)

    await asyncio.gather(*(work() for _ in range(_ROUTED_BATCH)))
    print(f"{len(names)} devices registered in {time.monotonic() - began:.0f} s", file=sys.stderr)
