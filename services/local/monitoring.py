"""What the processes of a running mesh say of themselves: readiness, health, and the streams by nats-server's monitoring port."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.client import mesh as meshes
from services.client.mesh import MeshConnection
from services.common.failure import FAILED, CommandFailed

ANSWER_WITHIN_S = 5.0
"""Timeout of one request, seconds of wall time."""
READY = "ready"
"""Beginning of the answer of a process that does its work."""


@dataclass(frozen=True, slots=True)
class ProcessState:
    """One process of a mesh, as `tandem status` shows it."""

    name: str
    pid: int | None
    """Process id; None while the process is being restarted."""
    answer: str
    """What the process says of its readiness, in words."""

    @property
    def is_ready(self) -> bool:
        """Whether the process runs and does its work."""
        return self.pid is not None and self.answer.startswith(READY)


async def states_of(running: MeshConnection) -> list[ProcessState]:
    """All processes of a mesh, nats-server first, each asked for its readiness at the same time."""
    urls = {"nats": f"{running.nats.monitor_url}/healthz"}
    urls |= {name: f"{url}/readyz" for name, url in running.metrics_urls.items()}
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=ANSWER_WITHIN_S)) as session:
        answers = await asyncio.gather(*(_readiness(session, url) for url in urls.values()))
    return [ProcessState(name, running.pids.get(name), answer) for name, answer in zip(urls, answers, strict=True)]


async def _readiness(session: aiohttp.ClientSession, url: str) -> str:
    try:
        async with session.get(url) as response:
            text = (await response.text()).strip()
            if url.endswith("/healthz"):
                return READY if response.status == 200 else text
            return text or f"answers {response.status}"
    except TimeoutError:
        return f"hangs: no answer for {ANSWER_WITHIN_S:.0f} s"
    except aiohttp.ClientError:
        return "is down"


async def read_monitor(running: MeshConnection, path: str) -> Mapping[str, Any]:
    """JSON object of nats-server's monitoring port, such as `varz`. Raises CommandFailed if it doesn't answer."""
    url = f"{running.nats.monitor_url}/{path}"
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=ANSWER_WITHIN_S)) as session,
            session.get(url) as response,
        ):
            content: Mapping[str, Any] = await response.json()
            return content
    except (aiohttp.ClientError, TimeoutError, ValueError):
        raise CommandFailed(
            f"nats-server's monitoring port doesn't answer: {running.nats.monitor_url}", FAILED
        ) from None


HEALTHY_WITHIN_S = 2.0
NATS_NAME = "nats-server"


async def not_answering(mesh: MeshConnection) -> tuple[str, ...]:
    """Names of the processes whose health check doesn't succeed within 2 s."""
    names = [*mesh.addresses, NATS_NAME]
    answers = await asyncio.gather(
        *(_serves(mesh, name) for name in mesh.addresses), _any_greets(mesh.nats.url.split(","))
    )
    return tuple(name for name, answer in zip(names, answers, strict=True) if not answer)


async def _serves(mesh: MeshConnection, name: str) -> bool:
    async with meshes.channel(mesh, name) as channel:
        # wait_for_ready retries failed connections, so a busy process isn't taken for a dead one.
        return await is_serving(channel, within_s=HEALTHY_WITHIN_S, wait_for_ready=True)


async def is_serving(channel: grpc.aio.Channel, *, within_s: float, wait_for_ready: bool = False) -> bool:
    """Whether the health check of a process says within this time, seconds, that it serves."""
    check = health_pb2_grpc.HealthStub(channel).Check  # type: ignore[attr-defined]  # the stubs leave it out
    try:
        answer = await check(health_pb2.HealthCheckRequest(), timeout=within_s, wait_for_ready=wait_for_ready)
    except grpc.aio.AioRpcError:
        return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


async def _any_greets(urls: list[str]) -> bool:
    return any(await asyncio.gather(*map(greets, urls)))


async def greets(url: str, within_s: float = HEALTHY_WITHIN_S) -> bool:
    """Whether a NATS server greets a new connection, which it does before authentication. A stopped server doesn't."""
    parts = urlsplit(url)
    writer = None
    try:
        async with asyncio.timeout(within_s):
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
            return (await reader.readline()).startswith(b"INFO ")
    except (OSError, TimeoutError):
        return False
    finally:
        if writer is not None:
            writer.close()
