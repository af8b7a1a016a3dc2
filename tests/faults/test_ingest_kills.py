"""I1 in the long run: SIGKILL of ingest and of nats-server, again and again, while head-ends send."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.geofence.folding import counted
from tests.support.ingest.ingest import WITHIN_S, IngestMesh, ingest_on_its_own_server, under_load

DEVICES = [f"tag-{n}" for n in range(20)]
ACKNOWLEDGED_BETWEEN = (1, 300)
"""Reports from one kill to the next at least, so that each kill meets a mesh that works and is at work."""
MOMENT_S = 0.2


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[IngestMesh]:
    with ingest_on_its_own_server(tmp_path) as running:
        yield running


async def killed_again_and_again(mesh: IngestMesh, each: int, seed: int) -> Counter[str]:
    """Kills ingest and nats-server so many times each and looks whether all that was acknowledged counts once.

    Returns how often the log holds each report.
    """
    moments = random.Random(seed)
    victims = ["ingest", "nats"] * each
    moments.shuffle(victims)
    acknowledged: set[str] = set()

    async def until_acknowledged(count: int) -> None:
        wanted = len(acknowledged) + count
        async with asyncio.timeout(WITHIN_S):
            while len(acknowledged) < wanted:  # noqa: ASYNC110 - the head-ends tell nobody
                await asyncio.sleep(0.01)

    async def kill() -> None:
        for victim in victims:
            await until_acknowledged(moments.randint(*ACKNOWLEDGED_BETWEEN))
            await asyncio.sleep(moments.uniform(0, MOMENT_S))
            process = mesh.service if victim == "ingest" else mesh.nats
            process.kill()
            process.start()
        await until_acknowledged(1)

    async with mesh.connected() as client:
        await client.route(*DEVICES)
        await under_load(client, acknowledged, kill, DEVICES, batches=4, reports=10, pause_s=0.1)
        stored = await client.stored()
        found = counted(await client.entries())
    assert len(acknowledged) > len(victims)
    assert acknowledged - set(stored) == set()
    assert {one: found[one] for one in stored if found[one] != 1} == {}
    return stored


@pytest.mark.timeout(180)
async def test_kills_under_load(mesh: IngestMesh) -> None:
    await killed_again_and_again(mesh, each=3, seed=1)


@pytest.mark.soak
@pytest.mark.timeout(1800)
async def test_120_kills_under_load(mesh: IngestMesh) -> None:
    stored = await killed_again_and_again(mesh, each=60, seed=2)
    assert max(stored.values()) > 1, "some reports were stored twice, and counted once"
