"""A warning leg whose database of warnings can't be opened: it offers all the same, and the police know that nobody was warned, and
later that she was."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import aiohttp
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from structlog.testing import capture_logs

from services.common.messaging.bus import Bus
from tandem.common.v1 import geometry_pb2
from tandem.dispatch.v1 import dispatch_pb2
from tests.support.common.nats import TestServer
from tests.support.common.ports import free_port
from tests.support.dispatch import dispatch
from tests.support.dispatch.dispatch import RunningLeg, publish, running
from tests.support.dispatch.warned import flagged
from tests.support.dispatch.warning import WITHIN_S, Gateway, put_case, ring, settings


def damage(file: Path) -> None:
    file.write_bytes(b"no database " * 1000)


def block(file: Path) -> None:
    file.mkdir()


def mend(file: Path) -> None:
    if file.is_dir():
        file.rmdir()
    else:
        file.unlink()


async def until_health(leg: RunningLeg, status: int) -> None:
    health = health_pb2_grpc.HealthStub(leg.channel)
    async with asyncio.timeout(WITHIN_S):
        while True:
            answer = await health.Check(health_pb2.HealthCheckRequest())  # type: ignore[attr-defined]
            if answer.status == status:
                return
            await asyncio.sleep(0.05)


async def unready(port: int) -> str:
    """Reason why a process isn't ready."""
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/readyz") as response:
        assert response.status == 503
        return await response.text()


@pytest.mark.parametrize(
    ("harm", "reason"), [(damage, "file is not a database"), (block, "unable to open database file")]
)
async def test_the_leg_offers_without_its_warnings_and_the_police_are_notified(
    nats: TestServer, bus: Bus, tmp_path: Path, harm: Callable[[Path], None], reason: str
) -> None:
    gateway = Gateway()
    made = settings(nats, tmp_path / "warning", gateway, acknowledge_within_s=1, metrics_port=free_port())
    police = dispatch.settings("police", nats, tmp_path / "police")
    harm(made.warning_database)
    await put_case(bus, made)
    with capture_logs() as logs:
        async with gateway.serving(), running(police) as police_leg, running(made) as warning_leg:
            async with police_leg.desk.subscription() as at_police, warning_leg.desk.subscription() as at_gateway:
                await publish(bus, ring(1, 100.0, geometry_pb2.RESPOND))
                await at_police.next(dispatch_pb2.OFFERED)
                await at_gateway.next(dispatch_pb2.OFFERED)
                await at_gateway.next(dispatch_pb2.ESCALATED)
                assert (await flagged(at_police, dispatch_pb2.NO_CONTACT)).subject_id == "p1"
                await until_health(warning_leg, health_pb2.HealthCheckResponse.NOT_SERVING)
                assert gateway.requests == []
                refused = [line for line in logs if line["event"] == "database_refused"]
                assert {(line["database"], line["reason"]) for line in refused} == {
                    (str(made.warning_database), reason)
                }
                assert str(made.warning_database) in await unready(made.metrics_port)

                mend(made.warning_database)
                warning_id, _ = await gateway.shown()
                await gateway.arrived(warning_id)
                assert (await flagged(at_police, dispatch_pb2.REACHED)).subject_id == "p1"
            await until_health(warning_leg, health_pb2.HealthCheckResponse.SERVING)
