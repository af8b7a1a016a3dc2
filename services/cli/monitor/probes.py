"""Health checks of a mesh's processes, asked directly, so that a page can name the process that fails."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.cli.stack import mesh as meshes
from services.cli.stack.mesh import MeshConnection

WITHIN_S = 2.0
NATS = "nats-server"


async def not_answering(mesh: MeshConnection) -> tuple[str, ...]:
    """Names of the processes whose health check doesn't succeed within 2 s."""
    names = [*mesh.addresses, NATS]
    answers = await asyncio.gather(
        *(_serves(mesh, name) for name in mesh.addresses), _any_greets(mesh.nats.url.split(","))
    )
    return tuple(name for name, answer in zip(names, answers, strict=True) if not answer)


async def _serves(mesh: MeshConnection, name: str) -> bool:
    async with meshes.channel(mesh, name) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check  # type: ignore[attr-defined]  # the stubs leave it out
        try:
            # wait_for_ready retries failed connections, so a busy process isn't taken for a dead one.
            answer = await check(health_pb2.HealthCheckRequest(), timeout=WITHIN_S, wait_for_ready=True)
        except grpc.aio.AioRpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


async def _any_greets(urls: list[str]) -> bool:
    return any(await asyncio.gather(*map(greets, urls)))


async def greets(url: str, within_s: float = WITHIN_S) -> bool:
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
