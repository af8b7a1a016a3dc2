"""Processes of registry, ingest and evaluators over a partitioned log, with clients."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

from services.common.clock import MeshClock
from services.common.ids import partition_of
from services.common.messaging import flow, pull
from tandem.common.v1 import alert_pb2
from tandem.ingest.v1 import ingest_pb2
from tandem.registry.v1 import registry_pb2
from tests.support.common.ports import free_port
from tests.support.common.processes import Service, spawn
from tests.support.ingest.ingest import WITHIN_S, IngestMesh, now_ms, position, request, running_ingest
from tests.support.ingest.ingest import Client as Vendor
from tests.support.registry import records
from tests.support.registry.registry import Client as Agencies
from tests.support.registry.registry import RegistryMesh, running_registry

P = 3


REPLICAS = 2


class Mesh:
    """The processes up to the decision: registry, ingest and evaluators, without dispatch."""

    def __init__(self, registry: RegistryMesh, ingest: IngestMesh, evaluators: dict[str, Service]) -> None:
        self.registry = registry
        self.ingest = ingest
        self.evaluators = evaluators


class Clients:
    """Clients of both agencies and of a vendor."""

    def __init__(self, agencies: Agencies, vendor: Vendor) -> None:
        self.agencies, self.vendor = agencies, vendor

    async def report(self, *positions: ingest_pb2.Position) -> None:
        """Sends reports until each is accepted, because the registry may not have published a device yet."""
        left = list(positions)
        async with asyncio.timeout(WITHIN_S):
            while left:
                (answer,) = await self.vendor.send(request(1, *left))
                left = [left[refusal.index] for refusal in answer.refusals]
                await asyncio.sleep(0.1 if left else 0)

    async def entered(self, order_id: str, partition: int) -> list[alert_pb2.Alert]:
        """Waits for an order's alerts of all three rings; returns them in the order of the fold."""
        entered: list[alert_pb2.Alert] = []
        async with asyncio.timeout(WITHIN_S):
            async for messages in pull.read(self.vendor.bus, flow.ALERTS.name, 1, subjects=[f"alert.{partition}.>"]):
                alerts = [alert_pb2.Alert.FromString(message.data) for message in messages]
                entered += [
                    alert for alert in alerts if alert.order_id == order_id and alert.kind == alert_pb2.RING_ENTERED
                ]
                if len(entered) >= 3:
                    break
        return sorted(entered, key=lambda alert: (alert.sequence, alert.ordinal))


def run(stack: ExitStack, folder: Path, partitions: int, clock: MeshClock | None = None) -> Mesh:
    """Starts the processes; the stack kills them at the end. The mesh has the clock of the wall unless another one is given."""
    settings = {"TANDEM_CLOCK_RATE": str(clock.rate), "TANDEM_CLOCK_ANCHOR_MS": str(clock.anchor_ms)} if clock else {}
    registry = stack.enter_context(running_registry(folder, partitions, env=settings, clock=clock))
    ingest = stack.enter_context(running_ingest(registry.nats, folder / "ingest.log", settings))
    evaluators = {}
    for replica in range(REPLICAS):
        address = f"127.0.0.1:{free_port()}"
        env = (
            ingest.env
            | settings
            | {
                "TANDEM_PORT": address.rpartition(":")[2],
                "TANDEM_NATS_URL": ingest.nats.url_as("geofence"),
                "TANDEM_METRICS_PORT": "0",
                "TANDEM_DATA_DIR": str(folder),
                "TANDEM_REPLICA": str(replica),
                "TANDEM_REPLICAS": str(REPLICAS),
            }
        )
        log = folder / f"geofence-{replica}.log"
        evaluators[address] = stack.enter_context(spawn("services.geofence", env, log))
    return Mesh(registry, ingest, evaluators)


@asynccontextmanager
async def connected(mesh: Mesh) -> AsyncIterator[Clients]:
    """Connects clients, once all processes serve."""
    for address, evaluator in mesh.evaluators.items():
        await evaluator.ready(address)
    async with mesh.registry.connected() as agencies, mesh.ingest.connected() as vendor:
        yield Clients(agencies, vendor)


def wearer_in(partition: int, name: str, partitions: int = P) -> str:
    """A wearer's id that hashes to a partition."""
    ids = (f"{name}-{i}" for i in range(1000))
    return next(wearer_id for wearer_id in ids if partition_of(wearer_id, partitions) == partition)


def number(serial: int) -> str:
    """A national identification number."""
    return f"800101-{serial:07d}"


def order(order_id: str, person_id: str, serial: int) -> registry_pb2.Order:
    """An order that protects a person and no place."""
    record = records.order(order_id, (person_id,), number(serial))
    del record.places[:]
    return record


def near(device_id: str, report_id: str, metres_north: float = 0.0, age_s: float = 1.0) -> ingest_pb2.Position:
    """A position `metres_north` metres north of the protected person."""
    return position(device_id, report_id, now_ms() - round(age_s * 1000), lat_deg=37.5 + metres_north / 111_000)
