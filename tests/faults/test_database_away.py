"""SIGKILL of PostgreSQL under a registry and under a leg, and a server with a long recovery.

Callers get UNAVAILABLE, the processes survive, and they serve again once the server does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import grpc
import grpc.aio
import pytest

from services.common.messaging.bus import Bus
from tandem.dispatch.v1 import dispatch_pb2
from tests.support.common.nats import TestServer
from tests.support.common.postgres import PostgresServer, running_postgres
from tests.support.common.processes import Service
from tests.support.dispatch.dispatch import alert, client, publish
from tests.support.dispatch.legs import LegMesh
from tests.support.registry import records
from tests.support.registry.registry import RegistryMesh, running_registry

WITHIN_S = 30.0
AWAY_S = 3.0
"""Longer than the interval of every loop that queries the database, so that each loop fails at least once."""
RETRY_DELAY_S = 0.2


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    """A separate server for this test, because the test kills it."""
    with running_postgres() as running:
        yield running


@pytest.fixture
def registry_mesh(server: PostgresServer, tmp_path: Path) -> Iterator[RegistryMesh]:
    """A registry on the server that the test kills."""
    with running_registry(tmp_path, 1, server.new_database()) as running:
        yield running


async def status(call: Callable[[], Awaitable[object]]) -> grpc.StatusCode:
    """Status code of a call."""
    try:
        await call()
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def goes_away_and_comes_back(
    server: PostgresServer, service: Service, calls: dict[str, Callable[[], Awaitable[object]]]
) -> None:
    """Checks that calls fail while the server is down or recovers, and that the same process answers them afterwards."""
    pid = service.pid
    server.kill()
    for recovers in (False, True):
        if recovers:
            await asyncio.to_thread(server.start_recovering)
        for _ in range(2):
            for name, call in calls.items():
                assert await status(call) is grpc.StatusCode.UNAVAILABLE, name
            await asyncio.sleep(AWAY_S / 2)
    server.kill()
    server.start()
    await asyncio.to_thread(server.wait_until_ready)
    async with asyncio.timeout(WITHIN_S):
        for call in calls.values():
            while await status(call) is not grpc.StatusCode.OK:  # noqa: ASYNC110
                await asyncio.sleep(RETRY_DELAY_S)
    assert service.runs and service.pid == pid
    assert "Traceback" not in service.log()


async def test_a_registry_outlives_its_database(server: PostgresServer, registry_mesh: RegistryMesh) -> None:
    async with registry_mesh.connected() as registry:
        await registry.put(records.person(), records.wearer(), records.tag(), records.order())
        before = len(await registry.cases_of("o-1"))
        await goes_away_and_comes_back(
            server,
            registry_mesh.service,
            {
                "an order": lambda: registry.put(records.order(version=2), wait_for_ready=False),
                "a device": lambda: registry.put(records.device(), wait_for_ready=False),
            },
        )
        assert len(await registry.cases_of("o-1")) > before, "records that were put afterwards are in the log"


async def test_a_leg_outlives_its_database(server: PostgresServer, nats: TestServer, bus: Bus, tmp_path: Path) -> None:
    mesh = LegMesh(tmp_path, nats, server)
    police = mesh.legs["police"]
    police.start()
    try:
        async with client(mesh.settings["police"]) as leg:
            await publish(bus, alert(1))
            async with leg.desk.subscription() as steps:
                offer = (await steps.next(dispatch_pb2.OFFERED)).step.assignment
            await publish(bus, alert(2, incident="incident-2"))
            await goes_away_and_comes_back(
                server,
                police,
                {
                    "an answer": lambda: leg.desk.acknowledge(offer.assignment_id),
                    "the list": leg.desk.list,
                },
            )
            async with leg.desk.subscription() as steps:
                while (await steps.next(dispatch_pb2.OFFERED)).step.assignment.incident_id != "incident-2":
                    pass
    finally:
        police.kill()
