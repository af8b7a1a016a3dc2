"""Her phone while strangers fill field's port and ingest's, and while the whole mesh restarts: her panic counts, once."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import Any

import aiohttp
import grpc.aio
import pytest
import pytest_asyncio

from services.common.clock import wall_us
from tests.support.common.crowds import crowd
from tests.support.common.mesh import RunningMesh, running_mesh
from tests.support.field.phone import PhoneClient, PushService, position
from tests.support.field.scene import Scene, scene_on, until

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningMesh]:
    with running_mesh(tmp_path_factory.mktemp("attacked") / "mesh") as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene(mesh: RunningMesh) -> AsyncIterator[Scene]:
    async with scene_on(mesh, PushService()) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def hers(scene: Scene) -> AsyncIterator[PhoneClient]:
    """Her phone, whose token ingest knows."""
    async with scene.enrolled(scene.hers) as enrolled:

        async def is_known() -> bool:
            return await outcome(enrolled, position(0, 37.636, 127.2165)) == "stored"

        await until(is_known)
        yield enrolled


async def outcome(phone: PhoneClient, report: dict[str, Any]) -> str:
    """What became of a report; empty without an answer of field."""
    try:
        answer = await phone.report(report)
    except aiohttp.ClientError:
        return ""
    return str(answer.content["results"][0]["outcome"]) if answer.status == 200 else ""


def panic_now() -> dict[str, Any]:
    return {"id": "panic", "at_ms": wall_us() // 1000, "alarm": "panic"}


async def test_strangers_at_both_ports_keep_no_panic_and_no_report_out(
    mesh: RunningMesh, scene: Scene, hers: PhoneClient
) -> None:
    panic = panic_now()
    for_phones = mesh.now.addresses["ingest"].rpartition(":")[2]
    ports = (int(scene.url.rpartition(":")[2]), int(for_phones) + 30)
    with crowd(ports[0]), crowd(ports[1]):
        async with scene.enrolled(scene.others) as newcomer:
            assert (await newcomer.notices()).status == 200
        assert await outcome(hers, position(1, 37.636, 127.2165)) == "stored"
        assert [await outcome(hers, panic) for _ in range(2)] == ["stored"] * 2
    assert [at_ms for at_ms, _ in await scene.panics(scene.hers)].count(panic["at_ms"]) == 1


async def test_a_panic_while_the_mesh_restarts_is_delivered_once(
    mesh: RunningMesh, scene: Scene, hers: PhoneClient
) -> None:
    panic = panic_now()
    killed = mesh.kill(*mesh.now.pids)
    tries = [await outcome(hers, panic)]

    async def delivered() -> bool:  # as the app does, which keeps it until it hears that it is stored
        tries.append(await outcome(hers, panic))
        return tries[-1] == "stored"

    await until(delivered)
    assert tries[0] != "stored" and set(tries) <= {"", "later", "stored"}
    # A phone that didn't hear the answer sends it once more.
    assert await outcome(hers, panic) == "stored"
    await mesh.wait_until_returned(killed)
    assert [at_ms for at_ms, _ in await scene.panics(scene.hers)].count(panic["at_ms"]) == 1

    async def offered() -> bool:
        with suppress(grpc.aio.AioRpcError):  # a leg that is still starting
            return await scene.offered_at_both()
        return False

    await until(offered)
