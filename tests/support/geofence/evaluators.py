"""Test support: evaluator processes on a separate log, without registry and ingest. The tests write the log."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import grpc.aio
from google.rpc import error_details_pb2

from bench.mesh import progress
from services.common.messaging import bus as buses
from services.common.messaging import streams
from services.common.messaging.bus import Bus
from services.common.rpc import server
from services.geofence import settings
from services.geofence.domain.state import State
from services.geofence.store import CheckpointStore
from tandem.common.v1 import log_pb2
from tandem.geofence.v1 import device_state_pb2_grpc, geofence_pb2, geofence_pb2_grpc
from tests.support.common.nats import TestServer, running_server
from tests.support.common.ports import free_port
from tests.support.common.processes import Service
from tests.support.geofence import log
from tests.support.ingest.ingest import SECRET, create_streams, details

POLICE = "spiffe://npa/desk/seoul"
PROBATION = "spiffe://moj/desk/seoul"
REVIEWER = "spiffe://tandem/reviewer/kim"
OPERATOR = "spiffe://tandem/operator/lee"
WITHIN_S = 60


REPLICAS = 2


class Evaluators:
    """The two evaluators of a log with `partitions` partitions. None ticks, so that the log stays unchanged, unless further settings
    `env` say so."""

    def __init__(self, nats: TestServer, folder: Path, partitions: int, env: Mapping[str, str] | None = None) -> None:
        self.nats, self.partitions = nats, partitions
        self.addresses = [f"127.0.0.1:{free_port()}" for _ in range(REPLICAS)]
        self.metrics_urls = [f"http://127.0.0.1:{free_port()}" for _ in range(REPLICAS)]
        self.stores = [
            CheckpointStore(folder / f"geofence-{replica}", settings.state_keys_of_secret(SECRET))
            for replica in range(REPLICAS)
        ]
        """Checkpoints of each evaluator."""
        self.services = []
        for replica, address in enumerate(self.addresses):
            own = {
                "TANDEM_PORT": address.rpartition(":")[2],
                "TANDEM_METRICS_PORT": self.metrics_urls[replica].rpartition(":")[2],
                "TANDEM_NATS_URL": nats.url_as("geofence"),
                "TANDEM_NATS_MONITOR_URL": nats.monitor_url,
                "TANDEM_DEV_SECRET": SECRET,
                "TANDEM_DATA_DIR": str(folder),
                "TANDEM_REPLICA": str(replica),
                "TANDEM_REPLICAS": str(REPLICAS),
                "TANDEM_TICK_AFTER_S": "3600",
                "TANDEM_CHECKPOINT_EVERY": "2",
            }
            self.services.append(
                Service("services.geofence", own | dict(env or {}), folder / f"geofence-{replica}.log")
            )

    async def ready(self) -> None:
        """Returns once all evaluators serve."""
        for service, address in zip(self.services, self.addresses, strict=True):
            await service.ready(address)

    async def applied(self, sequence: int, partition: int = 0) -> None:
        """Returns once all evaluators have applied an entry of a partition."""
        for url in self.metrics_urls:
            await progress.until_applied(url, sequence, within_s=WITHIN_S, partition=partition)

    async def states_after(self, bus: Bus, sequence: int, partition: int = 0) -> list[State]:
        """A state of each evaluator after an entry of a partition, by its checkpoints. Writes ticks until there is one."""
        log_id = (await streams.read_log_meta(bus)).log_id
        tick = log_pb2.LogEntry(tick=log_pb2.Tick())
        states: list[State] = []
        async with asyncio.timeout(WITHIN_S):
            for store in self.stores:
                while not (
                    later := [each for each in store.found(partition) if each.footing.entry.sequence >= sequence]
                ):
                    await enter(bus, partition, tick)
                    await asyncio.sleep(0.05)
                state = await asyncio.to_thread(store.read, later[0], log_id)
                assert state is not None
                states.append(state)
        return states


@contextmanager
def running_evaluators(folder: Path, partitions: int) -> Iterator[Evaluators]:
    """Starts two evaluators and a separate nats-server; kills all of them at the end."""
    with running_server(folder / "nats") as nats:
        asyncio.run(create_streams(nats.url, partitions))
        running = Evaluators(nats, folder, partitions)
        try:
            for service in running.services:
                service.start()
            yield running
        finally:
            for service in running.services:
                service.kill()


class Client:
    """A client of one evaluator; each call names its caller."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.geofence: Any = geofence_pb2_grpc.GeofenceServiceStub(channel)
        self.device_states: Any = device_state_pb2_grpc.DeviceStateServiceStub(channel)

    def alerts(self, after: int, who: str = POLICE, after_alert_id: str = "alert-0") -> Any:
        """Calls WatchAlerts."""
        request = geofence_pb2.WatchAlertsRequest(
            after_stream_sequence=after, after_alert_id=after_alert_id if after else ""
        )
        return self.geofence.WatchAlerts(request, metadata=server.bearer(who, SECRET), timeout=60)


@asynccontextmanager
async def connected(evaluators: Evaluators) -> AsyncIterator[tuple[Bus, list[Client]]]:
    """Connects to the server and to each evaluator, once all evaluators serve."""
    await evaluators.ready()
    channels = [server.channel(address) for address in evaluators.addresses]
    async with buses.connect(evaluators.nats.url, "test") as bus:
        try:
            yield bus, [Client(channel) for channel in channels]
        finally:
            for channel in channels:
                await channel.close()


async def enter(bus: Bus, partition: int, entry: log_pb2.LogEntry) -> int:
    """Puts an entry into the log; returns its sequence."""
    ack = await bus.publish_until_stored(log.subject_of(entry, partition), entry.SerializeToString())
    assert ack
    return ack.seq


async def approach(bus: Bus, case: str, partition: int = 0) -> int:
    """Publishes a case whose wearer comes from 3 km to 50 m in ten reports; returns the sequence of the last one."""
    start_ms = int(time.time() * 1000) - 100_000
    last = await enter(bus, partition, log.case_entry(case, from_ms=start_ms - 1000, place=True))
    for i in range(10):
        at_ms = start_ms + i * 10_000
        north_m = 3000 - i * 327
        entry = log.positions_entry(log.position(f"d{case}", at_ms, 0), log.position(f"t{case}", at_ms, north_m))
        last = await enter(bus, partition, entry)
    return last


def fields_of(error: grpc.aio.AioRpcError) -> list[str]:
    """Fields that an INVALID_ARGUMENT error names."""
    return [field_violation.field for field_violation in details(error, error_details_pb2.BadRequest).field_violations]
