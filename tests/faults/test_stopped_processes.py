"""SIGSTOP of a process of each kind: `tandem up` notices and replaces it. The test prints the times."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import aiohttp
import pytest

from services.cli.commands.up import NATS
from services.local import monitoring, processes
from tests.support.common.mesh import RunningMesh, is_alive, running_mesh

KINDS = (NATS, *(service.name for service in processes.SERVICES), processes.CONSOLE_PROCESS.name)
REPLACED_WITHIN_S = 15.0
"""Maximum time to replace a process. It takes 3 to 4 s, but more on a machine under load."""
READY_WITHIN_S = 40.0


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningMesh]:
    with running_mesh(tmp_path_factory.mktemp("mesh") / "m") as running:
        yield running


async def readiness(session: aiohttp.ClientSession, mesh: RunningMesh, name: str) -> str:
    """Text of a service at /readyz; empty while it doesn't answer."""
    [service] = [process for process in (*processes.SERVICES, processes.CONSOLE_PROCESS) if process.name == name]
    registry = urlsplit(f"//{mesh.now.addresses['registry']}")
    base_port = (registry.port or 0) - processes.SERVICES[0].offset
    port = base_port + service.more_ports["TANDEM_METRICS_PORT"]
    try:
        async with session.get(f"http://127.0.0.1:{port}/readyz") as answer:
            return (await answer.text()).strip()
    except (aiohttp.ClientError, TimeoutError):
        return ""


async def is_ready(session: aiohttp.ClientSession, mesh: RunningMesh, name: str) -> bool:
    if name == NATS:
        return await monitoring.greets(mesh.now.nats.url)
    return (await readiness(session, mesh, name)).startswith("ready")


async def until_ready(session: aiohttp.ClientSession, mesh: RunningMesh, *names: str) -> None:
    async with asyncio.timeout(READY_WITHIN_S):
        for name in names:
            while not await is_ready(session, mesh, name):  # noqa: ASYNC110
                await asyncio.sleep(0.05)


@pytest.mark.timeout(400)
async def test_a_stopped_process_is_replaced(mesh: RunningMesh) -> None:
    durations_s: dict[str, tuple[float, float]] = {}
    timeout = aiohttp.ClientTimeout(total=2.0)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        await until_ready(session, mesh, *KINDS)
        for name in KINDS:
            pid = mesh.now.pids[name]
            began_s = time.monotonic()
            os.kill(pid, signal.SIGSTOP)
            try:
                await mesh.wait_until_returned({name: pid})
            finally:
                if is_alive(pid):
                    os.kill(pid, signal.SIGCONT)
            replaced_s = time.monotonic() - began_s
            await until_ready(session, mesh, name)
            durations_s[name] = replaced_s, time.monotonic() - began_s
            if name == NATS:
                await until_ready(session, mesh, *KINDS)  # every service lost its connection
        await until_ready(session, mesh, *KINDS)
    print("\nprocess              replaced after   ready after")
    for name, (replaced_s, ready_s) in durations_s.items():
        print(f"{name:20} {replaced_s:10.1f} s {ready_s:11.1f} s")
    assert max(replaced_s for replaced_s, _ in durations_s.values()) < REPLACED_WITHIN_S


async def test_busy_processes_are_not_replaced(mesh: RunningMesh) -> None:
    """Other busy processes run for longer than `tandem up` tolerates silence; it kills no process of the mesh."""
    before = dict(mesh.now.pids)
    hogs = [await asyncio.create_subprocess_exec("sh", "-c", "while :; do :; done") for _ in range(4)]
    try:
        await asyncio.sleep(6)
    finally:
        for hog in hogs:
            hog.kill()
            await hog.wait()
    assert dict(mesh.now.pids) == before
