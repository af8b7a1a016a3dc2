"""A process is ready only while it reads: tests with a frozen nats-server and with a stream that accepts no more consumers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import pytest

from services.common.clock import MeshClock
from services.common.messaging import bus as buses
from services.common.messaging import flow, streams
from services.local import processes
from tests.support.common.mesh import RunningMesh
from tests.support.common.nats import TestServer, running_server
from tests.support.common.ports import free_port
from tests.support.dispatch.dispatch import running, settings

WITHIN_S = 40.0
CONSUMERS = 1_000
"""Maximum number of consumers of a stream in nats-server."""
SERVICES = tuple(service.name for service in processes.SERVICES)


async def answer(session: aiohttp.ClientSession, port: int) -> tuple[int, str]:
    """Status and text of /readyz. The status is 0 if the process doesn't answer."""
    try:
        async with session.get(f"http://127.0.0.1:{port}/readyz") as response:
            return response.status, (await response.text()).strip()
    except (aiohttp.ClientError, TimeoutError):
        return 0, ""


async def until(session: aiohttp.ClientSession, ports: Collection[int], status: int) -> list[str]:
    """Texts of /readyz at some ports, once all of them have answered with this status."""
    texts: dict[int, str] = {}
    async with asyncio.timeout(WITHIN_S):
        while len(texts) < len(ports):
            for port in ports:
                port_status, text = await answer(session, port)
                if port_status == status:
                    texts[port] = text
                else:
                    texts.pop(port, None)
            await asyncio.sleep(0.2)
    return [texts[port] for port in ports]


@asynccontextmanager
async def http_session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=3.0)) as session:
        yield session


@dataclass(frozen=True)
class Unwatched:
    """A mesh on a nats-server that no supervisor restarts."""

    nats: TestServer
    ports: dict[str, int]
    """Ports of /readyz, by service."""


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


async def test_no_process_is_ready_while_it_cannot_read(mesh: Unwatched) -> None:
    ports = list(mesh.ports.values())
    async with http_session() as session:
        await until(session, ports, 200)
        mesh.nats.freeze()
        reasons = dict(zip(mesh.ports, await until(session, ports, 503), strict=True))
        assert all("ALERTS" in reasons[name] for name in SERVICES if name.startswith("dispatch-")), reasons
        mesh.nats.thaw()
        await until(session, ports, 200)


async def test_a_leg_is_not_ready_until_it_gets_a_consumer(tmp_path: Path) -> None:
    stream = flow.ALERTS.name
    with running_server(tmp_path / "nats") as nats:
        async with buses.connect(nats.url, "test") as bus, http_session() as session:
            await streams.create(bus, 1, MeshClock(), max_bytes=64 << 20)
            for n in range(CONSUMERS):
                config = {"durable_name": f"durable-{n}", "ack_policy": "explicit"}
                await bus.api(f"CONSUMER.CREATE.{stream}.durable-{n}", {"stream_name": stream, "config": config})
            configured = settings("police", nats, tmp_path / "police", metrics_port=free_port())
            assert configured.metrics_port
            async with running(configured):
                status, reason = await answer(session, configured.metrics_port)
                assert status == 503, "the leg was ready without a consumer"
                assert reason.startswith(("ALERTS isn't being read", "ALERTS hasn't been read")), reason
                for n in range(100):
                    await bus.api(f"CONSUMER.DELETE.{stream}.durable-{n}", {})
                await until(session, [configured.metrics_port], 200)
