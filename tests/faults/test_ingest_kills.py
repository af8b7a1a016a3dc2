"""I1 under repeated SIGKILL of ingest and of nats-server, while head-ends send reports."""

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
"""Range of the minimum number of acknowledged reports between two kills, so that each kill hits a working mesh under load."""
MOMENT_S = 0.2


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[IngestMesh]:
    with ingest_on_its_own_server(tmp_path) as running:
        yield running


async def survive_kills(mesh: IngestMesh, each: int, seed: int) -> Counter[str]:
    """Kills ingest and nats-server `each` times, and checks that each acknowledged report counts once.

    Returns the number of times that the log holds each report.
    """
    rng = random.Random(seed)
    victims = ["ingest", "nats"] * each
    rng.shuffle(victims)
    acknowledged: set[str] = set()

    async def until_acknowledged(count: int) -> None:
        wanted = len(acknowledged) + count
        async with asyncio.timeout(WITHIN_S):
            while len(acknowledged) < wanted:  # noqa: ASYNC110 - the head-ends send no notification
                await asyncio.sleep(0.01)

    async def kill() -> None:
        for victim in victims:
            await until_acknowledged(rng.randint(*ACKNOWLEDGED_BETWEEN))
            await asyncio.sleep(rng.uniform(0, MOMENT_S))
            process = mesh.service if victim == "ingest" else mesh.nats
            process.kill()
            process.start()
        await until_acknowledged(1)

    async with mesh.connected() as client:
        await client.route(*DEVICES)
        await under_load(client, acknowledged, kill, device_ids=DEVICES, batches=4, reports=10, pause_s=0.1)
        stored = await client.stored()
        counts = counted(await client.entries())
    assert len(acknowledged) > len(victims)
    assert acknowledged - set(stored) == set()
    assert {report_id: counts[report_id] for report_id in stored if counts[report_id] != 1} == {}
    return stored


@pytest.mark.timeout(180)
async def test_kills_under_load(mesh: IngestMesh) -> None:
    await survive_kills(mesh, each=3, seed=1)


@pytest.mark.soak
@pytest.mark.timeout(1800)
async def test_120_kills_under_load(mesh: IngestMesh) -> None:
    stored = await survive_kills(mesh, each=60, seed=2)
    assert max(stored.values()) > 1, "some reports were stored twice, and counted once"
