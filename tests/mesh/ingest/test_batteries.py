"""Batteries that devices report, as each agency's desk sees those of its own side."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from services.common.rpc import server
from tandem.ingest.v1 import battery_pb2, battery_pb2_grpc, ingest_pb2
from tests.support.ingest.ingest import (
    SECRET,
    VENDOR,
    WITHIN_S,
    Client,
    IngestMesh,
    position,
    request,
    running_ingest,
)

MOJ_DESK, NPA_DESK = "spiffe://moj/desk/test", "spiffe://npa/desk/test"
DAY_S = 86_400


@pytest.fixture
async def client(mesh: IngestMesh) -> AsyncIterator[Client]:
    async with mesh.connected() as connected:
        yield connected


async def test_each_desk_sees_the_batteries_of_its_own_side(client: Client, mesh: IngestMesh) -> None:
    await client.route("low-tag", "full-tag")
    call = client.open()
    await call.write(
        request(
            1,
            position("low-tag", "b-1", battery_pct=9.0),
            position("full-tag", "b-2", battery_pct=95.0),
            position("nobody", "b-3", battery_pct=1.0),
        )
    )
    await call.read()
    async with server.channel(mesh.address) as channel:
        stub: Any = battery_pb2_grpc.BatteryServiceStub(channel)

        async def listed(who: str, **asked: Any) -> list[tuple[str, float]]:
            answer = await stub.ListBatteries(
                battery_pb2.ListBatteriesRequest(**asked), metadata=server.bearer(who, SECRET), timeout=WITHIN_S
            )
            return [(row.device_id, row.charge_pct) for row in answer.devices]

        assert await listed(MOJ_DESK, max_pct=20.0) == [("low-tag", 9.0)]
        assert [id_ for id_, _ in await listed(MOJ_DESK) if id_.endswith("-tag")] == ["low-tag", "full-tag"]
        assert await listed(MOJ_DESK, device_id="low-tag") == [("low-tag", 9.0)]
        assert "low-tag" not in dict(await listed(NPA_DESK)), "tags are probation's"
        for who, asked, code in (
            (NPA_DESK, {"device_id": "low-tag"}, grpc.StatusCode.NOT_FOUND),
            (MOJ_DESK, {"device_id": "nobody"}, grpc.StatusCode.NOT_FOUND),
            (MOJ_DESK, {"max_pct": 101.0}, grpc.StatusCode.INVALID_ARGUMENT),
            (VENDOR, {}, grpc.StatusCode.PERMISSION_DENIED),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await listed(who, **asked)
            assert refused.value.code() is code, (who, asked)


async def test_another_process_learns_a_charge_and_a_new_one_knows_it(
    client: Client, mesh: IngestMesh, tmp_path: Path
) -> None:
    await client.route("shared-tag")
    call = client.open()
    await call.write(request(2, position("shared-tag", "s-1", battery_pct=7.0)))
    await call.read()
    for name in ("beside", "after"):  # the second one starts when nobody says the charge once more
        with running_ingest(mesh.nats, tmp_path / f"{name}.log") as other:
            await learns(other, "shared-tag", 7.0)


@pytest.mark.parametrize("seconds", [time.time_ns() // 10**9 + DAY_S, 2**55], ids=["tomorrow", "beyond the year 9999"])
async def test_a_charge_of_the_future_is_not_the_newest_and_does_not_end_ingest(
    client: Client, mesh: IngestMesh, tmp_path: Path, seconds: int
) -> None:
    device_id = f"dated-{seconds}"
    await client.route(device_id)
    future = position(device_id, "d-2", battery_pct=99.0)
    future.fix_time.seconds = seconds
    call = client.open()
    await call.write(request(3, position(device_id, "d-1", battery_pct=30.0), future))
    answer: Any = await call.read()
    assert list(answer.outcomes) == [ingest_pb2.ACCEPTED, ingest_pb2.REFUSED]
    with running_ingest(mesh.nats, tmp_path / "beside.log") as other:
        await learns(other, device_id, 30.0)


async def learns(mesh: IngestMesh, device_id: str, charge_pct: float) -> None:
    """Returns once an ingest knows the charge of a device that reported to another one."""
    request_ = battery_pb2.ListBatteriesRequest(max_pct=charge_pct)
    async with mesh.connected(), server.channel(mesh.address) as channel, asyncio.timeout(WITHIN_S):
        stub: Any = battery_pb2_grpc.BatteryServiceStub(channel)
        while True:
            answer = await stub.ListBatteries(request_, metadata=server.bearer(MOJ_DESK, SECRET))
            if (device_id, charge_pct) in [(row.device_id, row.charge_pct) for row in answer.devices]:
                return
            await asyncio.sleep(0.1)
