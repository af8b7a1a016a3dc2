"""A really full disk under nats-server, and a server that hangs: `tandem up` restarts the server, and no report is lost."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2

from services.cli.commands.up import NATS
from services.common.rpc import server
from tests.support.common.disk import Disk, own_disk
from tests.support.common.mesh import PATIENCE_S, RunningMesh, running_mesh
from tests.support.geofence.folding import counted
from tests.support.ingest.ingest import Client, details, load, report_ids

SIZE = "32g"
"""nats-server lets streams reserve three quarters of the disk, and `tandem up` reserves 1 GiB for each."""
DEVICES = [f"tag-{n}" for n in range(30)]


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Disk]]:
    folder = tmp_path_factory.mktemp("mesh") / "m"
    with own_disk(folder / NATS, SIZE) as mounted:
        yield folder, mounted


@pytest.fixture(scope="module")
def mesh(disk: tuple[Path, Disk]) -> Iterator[RunningMesh]:
    with running_mesh(disk[0]) as running:
        yield running


@asynccontextmanager
async def head_end(mesh: RunningMesh) -> AsyncIterator[Client]:
    now = mesh.now
    async with server.channel(now.addresses["ingest"]) as channel:
        async with now.nats.bus_as("registry") as bus:
            await Client(channel, bus).route(*DEVICES)
        async with now.nats.bus_as("explain") as bus:
            yield Client(channel, bus, secret=now.dev_secret)


async def until_logged(mesh: RunningMesh, event: str) -> None:
    log = mesh.folder / "logs" / "up.log"
    async with asyncio.timeout(PATIENCE_S):
        while f'"event": "{event}"' not in log.read_text():  # noqa: ASYNC110 - a file sends no notification
            await asyncio.sleep(0.1)


async def send_all(client: Client, name: str, acknowledged: set[str]) -> None:
    for device_id in DEVICES:
        await client.deliver(load(device_id, f"{name}-{device_id}", batches=2, reports=5), acknowledged)


@pytest.mark.timeout(240)
async def test_senders_get_unavailable_from_a_full_disk_until_it_has_space(
    mesh: RunningMesh, disk: tuple[Path, Disk]
) -> None:
    acknowledged: set[str] = set()
    async with head_end(mesh) as client:
        await send_all(client, "before", acknowledged)
        disk[1].fill()
        pid = mesh.now.pids[NATS]
        refused = [load(device_id, f"full-{device_id}", batches=2, reports=100) for device_id in DEVICES]
        with pytest.raises(grpc.aio.AioRpcError) as rejected:
            for batches in refused:
                for answer in await client.send(*batches):
                    acknowledged.update(report_ids(batches[answer.batch - 1]))
        assert rejected.value.code() is grpc.StatusCode.UNAVAILABLE
        assert details(rejected.value, error_details_pb2.RetryInfo).retry_delay.ToMilliseconds() > 0

        await until_logged(mesh, "store_stuck")
        await asyncio.sleep(3)  # `tandem up` checks every second
        assert mesh.now.pids[NATS] == pid, "a restart frees no space"
        disk[1].free()
        await mesh.wait_until_returned({NATS: pid})
        await until_logged(mesh, "store_restarted")

        for batches in refused:
            await client.deliver(batches, acknowledged)
        await send_all(client, "after", acknowledged)
        assert len(acknowledged) > 6000
        counts = counted(await client.entries())
    assert {report_id: counts[report_id] for report_id in acknowledged if counts[report_id] != 1} == {}


async def test_a_server_that_hangs_is_restarted(mesh: RunningMesh) -> None:
    acknowledged: set[str] = set()
    async with head_end(mesh) as client:
        await send_all(client, "hanging", acknowledged)
    pid = mesh.now.pids[NATS]
    os.kill(pid, signal.SIGSTOP)
    await mesh.wait_until_returned({NATS: pid})
    async with head_end(mesh) as client:
        await send_all(client, "going-on", acknowledged)
        counts = counted(await client.entries())
    assert {report_id: counts[report_id] for report_id in acknowledged if counts[report_id] != 1} == {}
