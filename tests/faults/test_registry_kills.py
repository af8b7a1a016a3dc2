"""SIGKILL of the registry between commit and publish, and between publish and mark, again and again.

Every change that was put reaches the log, in the order of versions for each record, once in effect.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator
from itertools import groupby, pairwise
from pathlib import Path

import grpc
import grpc.aio
import pytest

from tandem.common.v1 import geometry_pb2
from tandem.registry.v1 import registry_pb2
from tests.support.registry import records
from tests.support.registry.mortal_registry import PLAN
from tests.support.registry.registry import Client, RegistryMesh, running_registry

ORDERS = 3
PUBLICATIONS_MAX = 24
"""In one life. The relay marks after 1, 3, 7 and 15 of them, so most lives end between two marks."""
PUTS_MAX = 40
"""More than a life has publications."""


def order(number: int, version: int) -> registry_pb2.Order:
    """A version of an order; its ring's radius tells which."""
    made = records.order(f"o-{number}", version=version)
    made.rings.append(geometry_pb2.Ring(radius_m=100 + version, action=geometry_pb2.Demand.WARN))
    return made


class Agencies:
    """What both agencies have put: a put that wasn't answered is put again until it is."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.versions: dict[int, int] = defaultdict(int)
        self.tag_version = 1
        self._unanswered: registry_pb2.Order | registry_pb2.Tag | None = None

    async def put_until_it_dies(self, client: Client) -> bool:
        """Puts one change after the other; true when the registry was killed at it."""
        for _ in range(PUTS_MAX):
            change = self._unanswered = self._unanswered or self._next()
            try:
                await client.put(change, wait_for_ready=False)
            except grpc.aio.AioRpcError as error:
                assert error.code() is grpc.StatusCode.UNAVAILABLE, error
                return True
            self._unanswered = None
        return False

    async def settle(self, client: Client) -> None:
        """Puts again what wasn't answered."""
        if self._unanswered is not None:
            await client.put(self._unanswered)
            self._unanswered = None

    def _next(self) -> registry_pb2.Order | registry_pb2.Tag:
        if self.random.random() < 0.2:
            self.tag_version += 1
            return records.tag(wearer_id=f"w-{self.tag_version % 2 + 1}", version=self.tag_version)
        number = self.random.randrange(ORDERS)
        self.versions[number] += 1
        return order(number, self.versions[number])


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    """The file that says when the registry dies next."""
    path = tmp_path / "plan"
    path.write_text("")
    return path


@pytest.fixture
def mesh(tmp_path: Path, where: Path | str, plan: Path) -> Iterator[RegistryMesh]:
    """A registry that dies by plan, on either engine."""
    url = where if isinstance(where, str) else ""
    with running_registry(tmp_path, 1, url, "tests.support.registry.mortal_registry", {PLAN: str(plan)}) as running:
        yield running


async def kill_again_and_again(mesh: RegistryMesh, plan: Path, times: int, seed: int) -> None:
    agencies = Agencies(seed)
    async with mesh.connected() as client:
        await client.put(records.person(), records.wearer("w-1"), records.wearer("w-2", "800101-7654321"))
        await client.put(records.tag(wearer_id="w-2"), records.device())
        await client.drained()
    for _ in range(times):
        moment = agencies.random.choice(("before", "after"))
        restart(mesh, plan, f"{agencies.random.randint(1, PUBLICATIONS_MAX)} {moment}")
        await live_one_life(mesh, agencies)
    restart(mesh, plan, "")
    async with mesh.connected() as client:
        await agencies.settle(client)
        for number in range(ORDERS):
            snapshots = await client.cases_of(f"o-{number}")
            assert all(one.version < other.version for one, other in pairwise(snapshots))
            told = [round(snapshot.rings[0].radius_m) - 100 for snapshot in snapshots]
            assert [version for version, _ in groupby(told)] == list(range(1, agencies.versions[number] + 1))
        route = await client.route("tag-1")
        assert route.subject_id == f"w-{agencies.tag_version % 2 + 1}"


def restart(mesh: RegistryMesh, plan: Path, way_to_go: str) -> None:
    mesh.service.kill()
    plan.write_text(way_to_go)
    mesh.service.start()


async def live_one_life(mesh: RegistryMesh, agencies: Agencies) -> None:
    """From a start to the kill that the plan foresees; it may come while the registry is still starting."""
    try:
        async with mesh.connected() as client:
            died = await agencies.put_until_it_dies(client)
    except AssertionError:
        died = True  # it wasn't ready any more: what waited from the life before was enough
    assert died and mesh.service.exit_code() == -9


@pytest.mark.timeout(300)
async def test_kills_between_commit_and_publish(mesh: RegistryMesh, plan: Path) -> None:
    await kill_again_and_again(mesh, plan, times=5, seed=1)


@pytest.mark.soak
@pytest.mark.timeout(3600)
async def test_200_kills_between_commit_and_publish(mesh: RegistryMesh, plan: Path) -> None:
    await kill_again_and_again(mesh, plan, times=200, seed=2)
