"""The log in three partitions and in one, with processes of registry, ingest and two evaluators on a real nats-server.

A protected person's reports reach every partition with an order that protects her. An order that comes after the last reports of both
parties is decided on these reports.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import pytest

from services.common.ids import partition_of
from services.geofence.settings import GeofenceSettings
from tandem.common.v1 import alert_pb2
from tests.support.common.partitioned_mesh import (
    Clients,
    Mesh,
    P,
    connected,
    near,
    number,
    order,
    run,
    wearer_in,
)
from tests.support.registry import records


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with ExitStack() as stack:
        yield run(stack, tmp_path_factory.mktemp("three"), P)


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with ExitStack() as stack:
        yield run(stack, tmp_path_factory.mktemp("one"), 1)


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
