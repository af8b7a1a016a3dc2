"""Ready means that a process reads and decides: with a server that stands still, and with a stream that takes no more consumers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import pytest

from services.cli.stack import processes
from services.common.clock import MeshClock
from services.common.messaging import bus as buses
from services.common.messaging import flow, streams
from tests.support.common.mesh import RunningMesh
from tests.support.common.nats import TestServer, running_server
from tests.support.common.ports import free_port
from tests.support.dispatch.dispatch import running, settings

WITHIN_S = 40.0
CONSUMERS = 1_000
"""As many as nats-server lets a stream have."""
SERVICES = tuple(service.name for service in processes.SERVICES)


async def answer(session: aiohttp.ClientSession, port: int) -> tuple[int, str]:
    """What /readyz says; 0 where nobody answers."""
    try:
        async with session.get(f"http://127.0.0.1:{port}/readyz") as said:
            return said.status, (await said.text()).strip()
    except (aiohttp.ClientError, TimeoutError):
        return 0, ""


async def until(session: aiohttp.ClientSession, ports: Collection[int], status: int) -> list[str]:
    """What each says once all have answered with this status."""
    found: dict[int, str] = {}
    async with asyncio.timeout(WITHIN_S):
        while len(found) < len(ports):
            for port in ports:
                said = await answer(session, port)
                if said[0] == status:
                    found[port] = said[1]
                else:
                    found.pop(port, None)
            await asyncio.sleep(0.2)
    return [found[port] for port in ports]


@asynccontextmanager
async def asking() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=3.0)) as session:
        yield session


@dataclass(frozen=True)
class Unwatched:
    """A mesh on a server that nobody starts again."""

    nats: TestServer
    ports: dict[str, int]
    """Of /readyz, by service."""


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Unwatched]:
    with running_server(tmp_path / "nats") as nats:
        given = {"TANDEM_NATS_URL": nats.url, "TANDEM_NATS_MONITOR_URL": nats.monitor_url}
        up = RunningMesh(tmp_path / "mesh", settings=given)
        try:
            up.wait_until_up()
            base_port = (urlsplit(f"//{up.now.addresses['registry']}").port or 0) - processes.SERVICES[0].offset
            metrics = {
                service.name: base_port + service.more_ports["TANDEM_METRICS_PORT"] for service in processes.SERVICES
            }
            yield Unwatched(nats, metrics)
        finally:
            nats.thaw()
            if up.process.poll() is None:
                up.stop()


async def test_nothing_that_reads_nothing_is_ready(mesh: Unwatched) -> None:
    ports = list(mesh.ports.values())
    async with asking() as session:
        await until(session, ports, 200)
        mesh.nats.freeze()
        said = dict(zip(mesh.ports, await until(session, ports, 503), strict=True))
        assert all("ALERTS" in said[name] for name in SERVICES if name.startswith("dispatch-")), said
        mesh.nats.thaw()
        await until(session, ports, 200)


async def test_a_leg_that_gets_no_consumer_is_not_ready_until_it_does(tmp_path: Path) -> None:
    stream = flow.ALERTS.name
    with running_server(tmp_path / "nats") as nats:
        async with buses.connect(nats.url, "test") as bus, asking() as session:
            await streams.create(bus, 1, MeshClock(), max_bytes=64 << 20)
            for n in range(CONSUMERS):
                config = {"durable_name": f"durable-{n}", "ack_policy": "explicit"}
                await bus.api(f"CONSUMER.CREATE.{stream}.durable-{n}", {"stream_name": stream, "config": config})
            configured = settings("police", nats, tmp_path / "police", metrics_port=free_port())
            assert configured.metrics_port
            async with running(configured):
                status, said = await answer(session, configured.metrics_port)
                assert status == 503, "not for a moment"
                assert said.startswith(("ALERTS isn't being read", "ALERTS hasn't been read")), said
                for n in range(100):
                    await bus.api(f"CONSUMER.DELETE.{stream}.durable-{n}", {})
                await until(session, [configured.metrics_port], 200)
