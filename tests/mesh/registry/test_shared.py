"""Two registries on one PostgreSQL: no match falls between them, and one of them at a time publishes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import pytest

from services.common.rpc.errors import FailedPrecondition, Unavailable
from services.common.storage import db
from services.common.storage.db import PostgresDatabase
from services.registry.store import MIGRATIONS
from tests.support.common.ports import free_port
from tests.support.common.postgres import PostgresServer, execute
from tests.support.common.processes import spawn
from tests.support.registry import records
from tests.support.registry.registry import Client, RegistryMesh, running_registry

PAIRS = 12


@pytest.fixture
def meshes(tmp_path: Path, postgres: PostgresServer) -> Iterator[list[RegistryMesh]]:
    """The same mesh, as two registries that share a database and its keys serve it."""
    shared = {"TANDEM_REGISTRY_KEY": "00" * 32, "TANDEM_LEDGER_KEY": str(tmp_path / "ledger.key")}
    with ExitStack() as stack:
        one = stack.enter_context(running_registry(tmp_path, 1, postgres.new_database(), env=shared))
        other = RegistryMesh(one.nats, tmp_path / "other", free_port(), 1, one.database_url)
        other.service = stack.enter_context(spawn("services.registry", {**other.env, **shared}, tmp_path / "other.log"))
        yield [one, other]


@pytest.fixture
async def clients(meshes: list[RegistryMesh]) -> AsyncIterator[list[Client]]:
    one, other = meshes
    async with one.connected() as first, other.connected() as second:
        yield [first, second]


async def test_an_order_here_and_its_wearer_there_at_the_same_time_are_matched_once(clients: list[Client]) -> None:
    here, there = clients
    await here.put(records.person())
    numbers = [f"900101-{n:07d}" for n in range(PAIRS)]
    await asyncio.gather(
        *(here.put(records.order(f"o-{n}", national_id=number)) for n, number in enumerate(numbers)),
        *(there.put(records.wearer(f"w-{n}", number)) for n, number in enumerate(numbers)),
    )
    for n in range(PAIRS):
        assert [case.wearer_id for case in await here.cases_of(f"o-{n}")] == [f"w-{n}"]


async def test_when_the_one_that_publishes_is_killed_the_other_goes_on(
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
    assert len(versions) == 5 and all(one < other for one, other in pairwise(versions))


async def test_a_place_that_is_lost_is_noticed_and_taken_by_the_next(postgres: PostgresServer) -> None:
    url = postgres.new_database()
    async with (
        db.open_database(url, MIGRATIONS) as one,
        db.open_database(url, MIGRATIONS) as other,
        one.alone("relay") as still_alone,
    ):
        await still_alone()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1), other.alone("relay"):
                pass
        await execute(
            url,
            "select pg_terminate_backend(pid) from pg_locks where locktype = 'advisory' "
            "and database = (select oid from pg_database where datname = current_database())",
        )
        with pytest.raises(Unavailable):
            await still_alone()
        async with asyncio.timeout(10), other.alone("relay") as now_alone:
            await now_alone()


async def test_a_server_that_is_away_is_a_refusal_that_may_be_tried_again(tmp_path: Path) -> None:
    with pytest.raises(Unavailable):
        async with db.open_database(f"postgresql://tandem@/nowhere?host={tmp_path}", MIGRATIONS):
            pass


@pytest.mark.parametrize("url", ["mysql://u:hush@h/d", "not a url: hush"])  # not-a-secret
async def test_what_is_no_postgresql_url_is_refused_without_being_repeated(url: str) -> None:
    with pytest.raises(FailedPrecondition) as refusal:
        async with db.open_database(url, MIGRATIONS):
            pass
    assert "hush" not in str(refusal.value)


async def test_transactions_see_all_that_was_committed_before_them(postgres: PostgresServer) -> None:
    url = postgres.new_database()
    async with db.open_database(url, MIGRATIONS) as one, db.open_database(url, MIGRATIONS) as other:
        assert isinstance(one, PostgresDatabase)
        async with one.transaction():
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.5), other.transaction():
                    pass
        async with asyncio.timeout(5), other.transaction():
            pass
