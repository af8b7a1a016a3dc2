"""Two registries on one PostgreSQL database: no match is missed, and only one of them publishes at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from http import HTTPStatus
from itertools import pairwise
from pathlib import Path

import aiohttp
import pytest

from services.common.errors import FailedPrecondition, Unavailable
from services.common.storage import db
from services.common.storage.db import PostgresDatabase
from services.registry.relay import UNABLE_AFTER_S
from services.registry.tables import MIGRATIONS
from tests.support.common.ports import free_port
from tests.support.common.postgres import PostgresServer, execute, running_postgres
from tests.support.common.processes import Service, spawn
from tests.support.registry import records
from tests.support.registry.registry import Client, RegistryMesh, running_registry

PAIRS = 12
PATIENCE_S = 90.0


@pytest.fixture
def meshes(tmp_path: Path, postgres: PostgresServer) -> Iterator[list[RegistryMesh]]:
    """Two registries that serve one mesh and share a database and its keys."""
    shared = {"TANDEM_REGISTRY_KEY": "00" * 32, "TANDEM_LEDGER_KEY": str(tmp_path / "ledger.key")}
    with ExitStack() as stack:
        first = stack.enter_context(running_registry(tmp_path, 1, postgres.new_database(), env=shared))
        second = RegistryMesh(first.nats, tmp_path / "other", free_port(), 1, first.database_url)
        second.service = stack.enter_context(
            spawn("services.registry", {**second.env, **shared}, tmp_path / "other.log")
        )
        yield [first, second]


@pytest.fixture
async def clients(meshes: list[RegistryMesh]) -> AsyncIterator[list[Client]]:
    here, there = meshes
    async with here.connected() as first, there.connected() as second:
        yield [first, second]


async def test_an_order_and_its_wearer_put_at_once_in_two_registries_match_once(clients: list[Client]) -> None:
    here, there = clients
    await here.put(records.person())
    numbers = [f"900101-{n:07d}" for n in range(PAIRS)]
    await asyncio.gather(
        *(here.put(records.order(f"o-{n}", national_id=number)) for n, number in enumerate(numbers)),
        *(there.put(records.wearer(f"w-{n}", number)) for n, number in enumerate(numbers)),
    )
    for n in range(PAIRS):
        assert [case.wearer_id for case in await here.cases_of(f"o-{n}")] == [f"w-{n}"]


async def test_when_the_publishing_registry_is_killed_the_other_publishes(
    meshes: list[RegistryMesh], clients: list[Client]
) -> None:
    here, there = clients
    await here.put(records.person(), records.wearer(), records.order())
    await here.drained()
    publishers = [mesh for mesh in meshes if "outbox_published" in mesh.service.log()]
    assert len(publishers) == 1
    survivor = there if publishers[0] is meshes[0] else here
    publishers[0].service.kill()
    for version in range(2, 6):
        await survivor.put(records.order(version=version))
    versions = [case.version for case in await survivor.cases_of("o-1")]
    assert len(versions) == 5 and all(earlier < later for earlier, later in pairwise(versions))


@dataclass(frozen=True)
class Pair:
    """Two registries on a database server of their own."""

    server: PostgresServer
    services: tuple[Service, Service]
    metrics_ports: tuple[int, int]


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    ports = (free_port(), free_port())
    shared = {"TANDEM_REGISTRY_KEY": "00" * 32, "TANDEM_LEDGER_KEY": str(tmp_path / "ledger.key")}
    first_env, second_env = ({**shared, "TANDEM_METRICS_PORT": str(port)} for port in ports)
    with running_postgres() as server, running_registry(tmp_path, 1, server.new_database(), env=first_env) as first:
        second = RegistryMesh(first.nats, tmp_path / "other", free_port(), 1, first.database_url)
        with spawn("services.registry", {**second.env, **second_env}, tmp_path / "other.log") as service:
            yield Pair(server, (first.service, service), ports)


async def test_both_registries_are_ready_after_an_outage_of_the_database(pair: Pair) -> None:
    # Only one of them reads the outbox, and the other one must not report that as an outage.
    await until_ready(pair.metrics_ports)
    pair.server.kill()
    async with asyncio.timeout(PATIENCE_S):
        while not all("relay_waits" in service.log() for service in pair.services):  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    pair.server.start()
    await asyncio.to_thread(pair.server.wait_until_ready)
    # Until the reason to be unready would count, had it not ended with the outage.
    await asyncio.sleep(UNABLE_AFTER_S)
    await until_ready(pair.metrics_ports)


async def until_ready(ports: Sequence[int]) -> None:
    """Returns when /readyz answers 200 at all ports."""
    async with asyncio.timeout(PATIENCE_S), aiohttp.ClientSession() as session:
        for port in ports:
            while True:
                with suppress(aiohttp.ClientError):
                    async with session.get(f"http://127.0.0.1:{port}/readyz") as answer:
                        if answer.status == HTTPStatus.OK:
                            break
                await asyncio.sleep(0.1)


async def test_a_lost_lock_is_noticed_and_acquired_by_the_other_process(postgres: PostgresServer) -> None:
    url = postgres.new_database()
    async with (
        db.open_database(url, MIGRATIONS) as first,
        db.open_database(url, MIGRATIONS) as second,
        first.alone("relay") as still_alone,
    ):
        await still_alone()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1), second.alone("relay"):
                pass
        await execute(
            url,
            "select pg_terminate_backend(pid) from pg_locks where locktype = 'advisory' "
            "and database = (select oid from pg_database where datname = current_database())",
        )
        with pytest.raises(Unavailable):
            await still_alone()
        async with asyncio.timeout(10), second.alone("relay") as now_alone:
            await now_alone()


async def test_an_unreachable_database_server_gives_unavailable(tmp_path: Path) -> None:
    with pytest.raises(Unavailable):
        async with db.open_database(f"postgresql://tandem@/nowhere?host={tmp_path}", MIGRATIONS):
            pass


@pytest.mark.parametrize("url", ["mysql://u:hush@h/d", "not a url: hush"])  # not-a-secret
async def test_an_invalid_database_url_is_rejected_and_not_repeated(url: str) -> None:
    with pytest.raises(FailedPrecondition) as refusal:
        async with db.open_database(url, MIGRATIONS):
            pass
    assert "hush" not in str(refusal.value)


async def test_transactions_on_postgresql_run_one_after_the_other(postgres: PostgresServer) -> None:
    url = postgres.new_database()
    async with db.open_database(url, MIGRATIONS) as first, db.open_database(url, MIGRATIONS) as second:
        assert isinstance(first, PostgresDatabase)
        async with first.transaction():
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.5), second.transaction():
                    pass
        async with asyncio.timeout(5), second.transaction():
            pass
