"""The log in three partitions and in one, with processes of registry, ingest and two evaluators on a real nats-server.

A protected person's reports reach every partition with an order that protects her. An order that comes after the last reports of both
parties is decided on these reports.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import pytest

from services.common.ids import partition_of
from services.common.messaging import flow, pull
from services.geofence.settings import GeofenceSettings
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
        self.registry, self.ingest, self.evaluators = registry, ingest, evaluators


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
            async for messages in pull.read(self.vendor.bus, flow.ALERTS.name, 1, [f"alert.{partition}.>"]):
                alerts = [alert_pb2.Alert.FromString(message.data) for message in messages]
                entered += [
                    alert for alert in alerts if alert.order_id == order_id and alert.kind == alert_pb2.RING_ENTERED
                ]
                if len(entered) >= 3:
                    break
        return sorted(entered, key=lambda alert: (alert.sequence, alert.ordinal))


def run(stack: ExitStack, folder: Path, partitions: int) -> Mesh:
    """Starts the processes; the stack kills them at the end."""
    registry = stack.enter_context(running_registry(folder, partitions))
    ingest = stack.enter_context(running_ingest(registry.nats, folder / "ingest.log"))
    evaluators = {}
    for replica in range(REPLICAS):
        address = f"127.0.0.1:{free_port()}"
        env = ingest.env | {
            "TANDEM_PORT": address.rpartition(":")[2],
            "TANDEM_NATS_URL": ingest.nats.url_as("geofence"),
            "TANDEM_METRICS_PORT": "0",
            "TANDEM_DATA_DIR": str(folder),
            "TANDEM_REPLICA": str(replica),
            "TANDEM_REPLICAS": str(REPLICAS),
        }
        log = folder / f"geofence-{replica}.log"
        evaluators[address] = stack.enter_context(spawn("services.geofence", env, log))
    return Mesh(registry, ingest, evaluators)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with ExitStack() as stack:
        yield run(stack, tmp_path_factory.mktemp("three"), P)


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with ExitStack() as stack:
        yield run(stack, tmp_path_factory.mktemp("one"), 1)


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


def test_each_partition_is_folded_by_two_evaluators_and_by_the_only_one() -> None:
    for replicas, partitions in ((2, 3), (3, 3), (5, 64), (3, 1)):
        folds = [GeofenceSettings(replica=r, replicas=replicas).partitions(partitions) for r in range(replicas)]
        assert all(sum(p in fold for fold in folds) == 2 for p in range(partitions))
    assert GeofenceSettings(replica=0, replicas=1).partitions(3) == [0, 1, 2]


async def test_a_protected_persons_reports_reach_every_partition_with_an_order_for_her(three: Mesh) -> None:
    async with connected(three) as clients:
        wearers = {p: wearer_in(p, "hunter") for p in range(P)}
        await clients.agencies.put(records.person("she"), records.device("her-app", "she"))
        for p, wearer_id in wearers.items():
            await clients.agencies.put(
                records.wearer(wearer_id, number(100 + p)),
                records.tag(f"tag-{wearer_id}", wearer_id),
                order(f"order-{p}", "she", 100 + p),
            )
        await clients.agencies.drained()
        assert list((await clients.agencies.route("her-app")).partitions) == [0, 1, 2]
        await clients.report(near("her-app", "her-1"))
        for p, wearer_id in wearers.items():
            await clients.report(near(f"tag-{wearer_id}", f"his-{p}", 50.0 + p))
        for p, wearer_id in wearers.items():
            alerts = await clients.entered(f"order-{p}", p)
            assert [alert.ring_m for alert in alerts] == [2000, 1000, 100]
            assert {(alert.wearer_id, alert.target_id, alert.partition) for alert in alerts} == {(wearer_id, "she", p)}
            stored = await clients.vendor.stored(p)
            assert stored["her-1"] == 1
            assert [stored[f"his-{other}"] for other in range(P)] == [int(other == p) for other in range(P)]


async def reports_then_order(clients: Clients, name: str, serial: int, partition: int, partitions: int) -> str:
    """Publishes reports of both parties before any order; returns the wearer's id."""
    wearer_id = wearer_in(partition, f"w-{name}", partitions)
    await clients.agencies.put(
        records.person(f"p-{name}"),
        records.device(f"app-{name}", f"p-{name}"),
        records.wearer(wearer_id, number(serial)),
        records.tag(f"tag-{name}", wearer_id),
    )
    await clients.report(near(f"app-{name}", f"her-{name}"), near(f"tag-{name}", f"his-{name}", 60.0))
    return wearer_id


def check(alerts: Sequence[alert_pb2.Alert], name: str, wearer_id: str) -> None:
    assert [alert.ring_m for alert in alerts] == [2000, 1000, 100]
    assert {(alert.wearer_id, alert.target_id) for alert in alerts} == {(wearer_id, f"p-{name}")}


async def test_an_order_after_the_last_reports_is_decided_on_them_with_one_partition(single: Mesh) -> None:
    async with connected(single) as clients:
        wearer_id = await reports_then_order(clients, "late", 200, 0, partitions=1)
        await clients.agencies.put(order("order-late", "p-late", 200))
        check(await clients.entered("order-late", 0), "late", wearer_id)
        stored = await clients.vendor.stored()
        assert stored["her-late"] == stored["his-late"] == 1, "no report was sent again"


@pytest.mark.parametrize("partition", range(P))
async def test_an_order_after_the_last_reports_is_decided_on_them_in_any_partition(three: Mesh, partition: int) -> None:
    async with connected(three) as clients:
        name = f"late-{partition}"
        wearer_id = await reports_then_order(clients, name, 300 + partition, partition, P)
        hers = partition_of(f"p-{name}", P)
        assert (await clients.vendor.stored(hers))[f"her-{name}"] == 1
        await clients.agencies.put(order(f"order-{name}", f"p-{name}", 300 + partition))
        check(await clients.entered(f"order-{name}", partition), name, wearer_id)
        stored = await clients.vendor.stored(partition)
        assert stored[f"her-{name}"] == stored[f"his-{name}"] == 1


async def test_ingest_finds_the_last_report_after_a_kill(three: Mesh) -> None:
    async with connected(three) as clients:
        # Her partition isn't the wearer's, so ingest must read her report from one partition and publish it in the other.
        partition = (partition_of("p-killed", P) + 1) % P
        wearer_id = await reports_then_order(clients, "killed", 400, partition, P)
        await clients.report(near("app-killed", "her-newest", age_s=0.5))
        three.ingest.service.kill()
        three.ingest.service.start()
        await three.ingest.service.ready(three.ingest.address)
        await clients.agencies.put(order("order-killed", "p-killed", 400))
        check(await clients.entered("order-killed", partition), "killed", wearer_id)
        stored = await clients.vendor.stored(partition)
        assert (stored["her-newest"], stored["her-killed"]) == (1, 0), "the newest report, and only that"


async def test_an_order_that_arrives_while_ingest_is_down_is_decided(three: Mesh) -> None:
    async with connected(three) as clients:
        partition = (partition_of("p-dead", P) + 2) % P
        wearer_id = await reports_then_order(clients, "dead", 500, partition, P)
        three.ingest.service.kill()
        await clients.agencies.put(order("order-dead", "p-dead", 500))
        await clients.agencies.drained()
        three.ingest.service.start()
        check(await clients.entered("order-dead", partition), "dead", wearer_id)
