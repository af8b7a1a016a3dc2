"""A read-only user requests a thousand consumers of the log and of the alerts; all others keep reading, even after a kill."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.client import mesh as meshes
from services.common.messaging import flow, pull
from services.common.messaging.bus import Bus
from services.common.messaging.permissions import reader_names
from tests.support.common.mesh import RunningMesh, running_mesh

SERVING = health_pb2.HealthCheckResponse.SERVING
ATTEMPTS = 1_000
"""Consumers that nats-server allows for a stream, over all users."""
DURABLE = {"ack_policy": "explicit", "deliver_policy": "all"}
KILLED = ("geofence-0", "geofence-1", "dispatch-probation", "dispatch-police", "dispatch-warning", "registry", "ingest")
WITHIN_S = 45.0


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningMesh]:
    with running_mesh(tmp_path_factory.mktemp("mesh") / "m") as running:
        yield running


async def ask_for(bus: Bus, stream: str, names: list[str]) -> None:
    """Requests durable consumers all at once; returns when the server has answered the requests that it permits."""
    for name in names:
        request = {"stream_name": stream, "config": {"durable_name": name, **DURABLE}}
        subject = f"$JS.API.CONSUMER.CREATE.{stream}.{name}"
        await bus.client.publish(subject, json.dumps(request).encode(), reply=f"{bus.client.new_inbox()}.1")
    await bus.client.flush(30)
    await bus.api("INFO", {})


async def consumers(bus: Bus, stream: str) -> int:
    return int((await bus.api(f"STREAM.INFO.{stream}", {}))["state"]["consumer_count"])


def streams_of(user: str) -> set[str]:
    return {row.stream.format(p=0) for row in flow.FLOWS if user in row.readers and row.stream != flow.LOG_META.name}


@pytest.mark.parametrize("user", flow.COMMAND_USERS)
async def test_a_user_gets_its_own_readers_and_no_more(mesh: RunningMesh, user: str) -> None:
    async with mesh.now.nats.bus_as(user) as bus:
        for stream in sorted(streams_of(user)):
            before = await consumers(bus, stream)
            own = reader_names(user, stream)
            await ask_for(bus, stream, [f"durable-{n}" for n in range(ATTEMPTS)])
            assert await consumers(bus, stream) <= before + len(own), "unknown names are rejected"
            await ask_for(bus, stream, list(own))
            assert await consumers(bus, stream) <= before + len(own)
            for name in own:
                await bus.api(f"CONSUMER.DELETE.{stream}.{name}", {})


async def test_evaluators_and_legs_that_are_killed_meanwhile_read_at_once(mesh: RunningMesh) -> None:
    now = mesh.now
    log = flow.log_stream(0)
    async with now.nats.bus_as("explain") as bus:
        for stream in (log, flow.ALERTS.name):
            await ask_for(bus, stream, [f"durable-{n}" for n in range(ATTEMPTS)])
            await ask_for(bus, stream, list(reader_names("explain", stream)))
        await mesh.wait_until_returned(mesh.kill(*KILLED))
        # A process reports SERVING only once it reads, see tests/mesh/test_readiness.py.
        async with asyncio.timeout(WITHIN_S):
            for name in KILLED:
                async with meshes.channel(mesh.now, name) as channel:
                    check = health_pb2_grpc.HealthStub(channel).Check  # type: ignore[attr-defined]
                    while not await _is_serving(check):  # noqa: ASYNC110
                        await asyncio.sleep(0.1)
    async with now.nats.bus_as("evidence") as other, asyncio.timeout(WITHIN_S):
        async for messages in pull.read(other, log, 1):
            assert messages
            break


async def _is_serving(check: grpc.aio.UnaryUnaryMultiCallable) -> bool:  # type: ignore[type-arg]
    try:
        answer = await check(health_pb2.HealthCheckRequest(), timeout=2.0)
    except grpc.aio.AioRpcError:
        return False
    return bool(answer.status == SERVING)


async def test_a_user_whose_names_are_all_in_use_reads_once_it_has_freed_them(mesh: RunningMesh) -> None:
    """A user can lock out only itself; the operator then deletes its consumers as that user."""
    log = flow.log_stream(0)
    async with mesh.now.nats.bus_as("evidence") as bus:
        await ask_for(bus, log, list(reader_names("evidence", log)))
        reader = pull.read(bus, log, 1)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3):
                await anext(reader)
        for name in reader_names("evidence", log):
            await bus.api(f"CONSUMER.DELETE.{log}.{name}", {})
        async with asyncio.timeout(WITHIN_S):
            assert await anext(pull.read(bus, log, 1))
