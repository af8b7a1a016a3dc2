"""Repeated SIGKILL of the registry between commit and publication, and between publication and its mark.

Every change reaches the log, takes effect once, and the changes of a record come in the order of its versions.
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
MAX_PUBLICATIONS = 24
"""Maximum number of publications in a run. The relay marks after 1, 3, 7 and 15 of them, so most runs end between two marks."""
MAX_PUTS = 40
"""Maximum number of puts in a run; more than the publications of a run."""


def order(number: int, version: int) -> registry_pb2.Order:
    """A version of an order; the radius of its ring encodes the version."""
    record = records.order(f"o-{number}", version=version)
    record.rings.append(geometry_pb2.Ring(radius_m=100 + version, action=geometry_pb2.Demand.WARN))
    return record


class Agencies:
    """The changes that both agencies have put. They repeat an unanswered put until it is answered."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.versions: dict[int, int] = defaultdict(int)
        self.tag_version = 1
        self._unanswered: registry_pb2.Order | registry_pb2.Tag | None = None

    async def put_until_it_dies(self, client: Client) -> None:
        """Puts one change after the other, until the registry is killed during a put, or its relay has enough to publish."""
        for _ in range(MAX_PUTS):
            change = self._unanswered = self._unanswered or self._next()
            try:
                await client.put(change, wait_for_ready=False)
            except grpc.aio.AioRpcError as error:
                assert error.code() is grpc.StatusCode.UNAVAILABLE, error
                return
            self._unanswered = None

    async def settle(self, client: Client) -> None:
        """Repeats an unanswered put."""
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
    """File with the moment of the registry's next kill."""
    path = tmp_path / "plan"
    path.write_text("")
    return path


@pytest.fixture
def mesh(tmp_path: Path, where: Path | str, plan: Path) -> Iterator[RegistryMesh]:
    """A registry that kills itself as planned, on either database engine."""
    url = where if isinstance(where, str) else ""
    with running_registry(
        tmp_path, 1, url, module="tests.support.registry.mortal_registry", env={PLAN: str(plan)}
    ) as running:
        yield running


async def survive_kills(mesh: RegistryMesh, plan: Path, times: int, seed: int) -> None:
    agencies = Agencies(seed)
    async with mesh.connected() as client:
        await client.put(records.person(), records.wearer("w-1"), records.wearer("w-2", "800101-7654321"))
        await client.put(records.tag(wearer_id="w-2"), records.device())
        await client.drained()
    for _ in range(times):
        moment = agencies.random.choice(("before", "after"))
        restart(mesh, plan, f"{agencies.random.randint(1, MAX_PUBLICATIONS)} {moment}")
        await run_until_killed(mesh, agencies)
    restart(mesh, plan, "")
    async with mesh.connected() as client:
        await agencies.settle(client)
        for number in range(ORDERS):
            snapshots = await client.cases_of(f"o-{number}")
            assert all(before.version < after.version for before, after in pairwise(snapshots))
            versions = [round(snapshot.rings[0].radius_m) - 100 for snapshot in snapshots]
            assert [version for version, _ in groupby(versions)] == list(range(1, agencies.versions[number] + 1))
        route = await client.route("tag-1")
        assert route.subject_id == f"w-{agencies.tag_version % 2 + 1}"


def restart(mesh: RegistryMesh, plan: Path, plan_text: str) -> None:
    mesh.service.kill()
    plan.write_text(plan_text)
    mesh.service.start()


async def run_until_killed(mesh: RegistryMesh, agencies: Agencies) -> None:
    """Puts changes from a start to the planned kill, which may come while the registry is still starting."""
    try:
        async with mesh.connected() as client:
            await agencies.put_until_it_dies(client)
    except AssertionError:
        pass  # the registry died before it was ready, because publications of the previous run were waiting
    # The puts may be answered before the relay has published the planned number.
    assert mesh.service.exit_code() == -9


@pytest.mark.timeout(300)
async def test_kills_between_commit_and_publish(mesh: RegistryMesh, plan: Path) -> None:
    await survive_kills(mesh, plan, times=5, seed=1)


@pytest.mark.soak
@pytest.mark.timeout(3600)
async def test_200_kills_between_commit_and_publish(mesh: RegistryMesh, plan: Path) -> None:
    await survive_kills(mesh, plan, times=200, seed=2)
