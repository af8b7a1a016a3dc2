"""The registry with streams that lost entries: it publishes lost messages again, and the ledger and traces miss nothing."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from services.common.clock import wall_us
from services.common.messaging import flow
from tandem.common.v1 import ledger_pb2
from tests.support import torn
from tests.support.common.partitioned_mesh import Clients, Mesh, connected, near, order, run
from tests.support.dispatch import dispatch
from tests.support.registry import records
from tests.support.registry.registry import WITHIN_S, Client, RegistryMesh, running_registry
from tests.support.registry.traces import trace_of

KV = flow.ROUTES.stream


@pytest.fixture
def registry(tmp_path: Path, where: Path | str) -> Iterator[RegistryMesh]:
    """A registry on each database engine."""
    with running_registry(tmp_path, 1, where if isinstance(where, str) else "") as running:
        yield running


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "nats"


async def tear(client: Client, store: Path, *streams: str) -> None:
    """Kill the server with SIGKILL, tear the last message of each stream, and restart the server until it answers."""
    client.mesh.nats.kill()
    for stream in streams:
        torn.overwrite_tail(store, stream, random.Random(1))
    await start(client)


async def start(client: Client) -> None:
    """Restart the server and wait until it answers."""
    client.mesh.nats.start()
    async with asyncio.timeout(WITHIN_S):
        while not await client.bus.works():  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def put_enforceable_case(client: Client) -> None:
    """Put all records of one case and wait until the case is in the log."""
    await client.put(records.person(), records.wearer(), records.tag(), records.device(), records.order())
    await client.drained()


async def cases_until(client: Client, *versions: int) -> None:
    """Wait until the log holds exactly these case versions in this order. A renewal may repeat a version."""
    async with asyncio.timeout(WITHIN_S):
        while list(dict.fromkeys(case.version for _, case in await client.cases())) != list(versions):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("when", ["under the running registry", "while the registry is down"])
async def test_a_case_that_the_log_lost_is_republished(registry: RegistryMesh, store: Path, when: str) -> None:
    async with registry.connected() as client:
        await put_enforceable_case(client)
        ((_, case),) = await client.cases()
        ends = (await client.bus.bounds_of("LOG_0")).last
        if when != "under the running registry":
            registry.service.kill()
        await tear(client, store, "LOG_0")
        if when != "under the running registry":
            assert (await client.bus.bounds_of("LOG_0")).last == ends - 1
            registry.service.start()
        await cases_until(client, case.version)
        await client.put(records.order(version=2))  # a later version must follow the lost one
        async with asyncio.timeout(WITHIN_S):
            while len(by_version := {case.version: case for _, case in await client.cases()}) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert next(iter(by_version.values())) == case and list(by_version) == sorted(by_version)


async def test_a_lost_route_of_a_device_is_republished(registry: RegistryMesh, store: Path) -> None:
    async with registry.connected() as client:
        await client.put(records.person(), records.wearer(), records.tag(), records.device())
        await client.drained()
        await client.put(records.wearer("w-2", "900101-1000001"), records.tag(version=2, wearer_id="w-2"))
        await client.drained()
        assert (await client.route("tag-1")).subject_id == "w-2"
        await tear(client, store, KV)
        async with asyncio.timeout(WITHIN_S):
            while (await client.bus.last_of(KV, f"$KV.{flow.DEVICES_BUCKET}.tag-1")) is None:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert (await client.route("tag-1")).subject_id == "w-2"


async def test_after_the_restore_of_an_older_store_everything_is_republished(
    registry: RegistryMesh, store: Path, tmp_path: Path
) -> None:
    streams = ("LOG_0", KV)
    async with registry.connected() as client:
        await client.put(records.person(), records.device())
        await client.drained()
        registry.nats.kill()
        for stream in streams:
            torn.copy_of(store, stream, tmp_path / f"older-{stream}")
        await start(client)
        for n in range(5):
            number = f"80010{n + 1}-1000001"
            await client.put(
                records.wearer(f"w-{n}", number),
                records.tag(f"tag-{n}", f"w-{n}"),
                records.order(f"o-{n}", ("p-1",), number),
            )
        await client.drained()
        before = sorted(case.case_id for _, case in await client.cases())
        assert len(set(before)) == 5
        registry.nats.kill()
        for stream in streams:
            torn.put_back(store, stream, tmp_path / f"older-{stream}")
        await start(client)
        async with asyncio.timeout(WITHIN_S):
            while {case.case_id for _, case in await client.cases()} != set(before):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        for n in range(5):
            assert (await client.route(f"tag-{n}")).subject_id == f"w-{n}"


@pytest.fixture
def whole(tmp_path: Path) -> Iterator[Mesh]:
    """A registry, ingest and two evaluators."""
    with ExitStack() as stack:
        yield run(stack, tmp_path, 1)


async def test_a_lost_case_is_enforced_within_seconds(whole: Mesh, store: Path) -> None:
    async with connected(whole) as clients:
        await clients.agencies.put(
            records.person("she"), records.device("her-app", "she"), records.wearer("he", "800101-0000100")
        )
        await clients.agencies.put(records.tag("his-tag", "he"), order("order-1", "she", 100))
        await clients.agencies.drained()
        await tear(clients.agencies, store, "LOG_0")
        await enforced(clients, "order-1")


async def enforced(clients: Clients, order_id: str) -> None:
    await clients.report(near("her-app", "her-1"))
    await clients.report(near("his-tag", "his-1", 50.0))
    assert [alert.ring_m for alert in await clients.entered(order_id, 0)] == [2000, 1000, 100]


def disclosure(disclosure_id: str) -> bytes:
    """A disclosure by an evaluator."""
    return ledger_pb2.Disclosure(
        disclosure_id=disclosure_id,
        at_ms=wall_us() // 1000,
        who="spiffe://npa/desk/seoul",
        legal_basis="STALKING_9_1_3_2",
        purpose="ENFORCEMENT",
        record_kind="WEARER",
        record_id="w-1",
        order_id="o-1",
        recipient="spiffe://npa/desk/seoul",
    ).SerializeToString()


@pytest.mark.parametrize("when", ["under the running registry", "while the registry is down"])
async def test_a_disclosure_with_the_sequence_of_a_lost_one_is_in_the_ledger(
    registry: RegistryMesh, store: Path, when: str
) -> None:
    async def publish(client: Client, *ids: str) -> None:
        for id_ in ids:
            await client.bus.publish_until_stored(flow.disclosure_subject("geofence", id_), disclosure(id_))

    def rows() -> list[str]:
        return sorted(row[0] for row in registry.query("select disclosure_id from ledger"))

    async def ledger_has(*ids: str) -> None:
        async with asyncio.timeout(WITHIN_S):
            while rows() != sorted(ids):  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    async with registry.connected() as client:
        await client.put(*records.unlinked())
        await publish(client, "d-1", "d-2", "d-3")
        await ledger_has("d-1", "d-2", "d-3")
        is_down = when != "under the running registry"
        if is_down:
            registry.service.kill()
        await tear(client, store, flow.DISCLOSURES.name)
        await publish(client, "d-4")
        assert (await client.bus.bounds_of(flow.DISCLOSURES.name)).last == 3
        if is_down:
            registry.service.start()
        await ledger_has("d-1", "d-2", "d-3", "d-4")
        await publish(client, "d-3", "d-5")
        await ledger_has("d-1", "d-2", "d-3", "d-4", "d-5")


async def test_a_trace_has_the_alert_with_the_sequence_of_a_lost_one(registry: RegistryMesh, store: Path) -> None:
    async with registry.connected() as client:
        await dispatch.publish(client.bus, dispatch.alert(5, incident="other"), dispatch.alert(6, incident="other"))
        async with asyncio.timeout(WITHIN_S):
            while registry.query("select sequence from trace_positions where stream = 'ALERTS'") != [(2,)]:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        await tear(client, store, flow.ALERTS.name)
        await dispatch.publish(client.bus, dispatch.alert(7))
        assert (await client.bus.bounds_of(flow.ALERTS.name)).last == 2
        assert {span.name for span in await trace_of(registry, 3)} >= {"alert"}
