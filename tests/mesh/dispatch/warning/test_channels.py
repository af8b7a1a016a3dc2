"""Warnings: a protected person is warned although other parts are down, receipts are tracked, and an answer never betrays her."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks import Webhook

from services.common.messaging.bus import Bus
from services.dispatch.settings import DispatchSettings
from services.dispatch.warning import sender
from tandem.common.v1 import geometry_pb2
from tandem.dispatch.v1 import dispatch_pb2
from tests.support.common.nats import TestServer
from tests.support.dispatch import dispatch
from tests.support.dispatch.dispatch import publish, running
from tests.support.dispatch.warned import flagged, rows, until
from tests.support.dispatch.warning import (
    HANDLE,
    SECRET,
    WITHIN_S,
    FakeDevice,
    Gateway,
    RealDevice,
    put_case,
    ring,
    settings,
)
from tests.support.ingest.ingest import running_ingest


@pytest.fixture(params=["gateway", "fake device", "real device"])
async def way(
    request: pytest.FixtureRequest, nats: TestServer, bus: Bus, tmp_path: Path
) -> AsyncIterator[tuple[DispatchSettings, Any]]:
    """Prepares a warning leg with one channel to its person, and the far end of that channel."""
    if request.param == "gateway":
        gateway = Gateway()
        made = settings(nats, tmp_path / "leg", gateway)
        async with gateway.serving():
            await put_case(bus, made)
            yield made, gateway
        return
    made = settings(nats, tmp_path / "leg")
    await put_case(bus, made, "app-1")
    if request.param == "fake device":
        yield made, FakeDevice(bus)
        return
    with running_ingest(nats, tmp_path / "ingest.log") as mesh:
        async with RealDevice.connected(mesh) as device:
            yield made, device


async def test_each_channel_shows_the_text_once_and_its_receipt_is_stored(way: Any, bus: Bus) -> None:
    made, far_end = way
    async with running(made) as leg, leg.desk.subscription() as desk:
        await until(made, "select 1 from contacts")
        await publish(bus, ring(1))
        warning_id, text = await far_end.shown()
        assert text == (
            "Notice: the person of your order: within 1 km of you. Keep your phone with you. "
            "If you can't speak, 112 takes text messages."
        )
        await far_end.arrived(warning_id)
        acknowledged = (await desk.next(dispatch_pb2.ACKNOWLEDGED)).step.assignment
        assert acknowledged.acknowledged_by == f"receipt/{warning_id}"
        await publish(bus, ring(2, 100.0, geometry_pb2.RESPOND))
        second, text = await far_end.shown(2)
        assert second != warning_id and "within 100 m of you. Stay behind a locked door" in text
        await far_end.arrived(second)
        await until(made, "select 1 from messages where delivered_ms is not null limit 1 offset 1")
        await publish(bus, ring(1), ring(2, 100.0, geometry_pb2.RESPOND))
    assert rows(
        made, "select count(*), count(delivered_ms), max(tries) from messages join sendings using (message_id)"
    ) == [(2, 2, 1)]
    assert rows(made, "select flag from told") == [(0,)]


async def test_a_missing_receipt_is_flagged_once_on_each_channel(way: Any, bus: Bus) -> None:
    made, far_end = way

    async with running(made) as leg, leg.desk.subscription() as desk:
        await until(made, "select 1 from contacts")
        await publish(bus, ring(1))
        warning_id, _ = await far_end.shown()
        await flagged(desk, dispatch_pb2.NO_RECEIPT)
        await far_end.arrived(warning_id)
        await flagged(desk, dispatch_pb2.REACHED)
        async with asyncio.timeout(WITHIN_S):  # a step is published shortly after the desk gets it
            while dispatch_pb2.REACHED not in await flags_of_steps(bus):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    assert leg.registry.get_sample_value("tandem_dispatch_not_reached_total", {"leg": "warning"}) == 1
    assert await flags_of_steps(bus) == [dispatch_pb2.NO_RECEIPT, dispatch_pb2.REACHED]


async def flags_of_steps(bus: Bus) -> list[int]:
    """Returns the flags of the leg's steps on INCIDENTS, each distinct time once."""
    steps = await dispatch.stored_steps(bus, "warning", "incident-1", count=1)
    moments = {(step.assignment.person_flag.flag, step.assignment.person_flag.at.ToNanoseconds()) for step in steps}
    return sorted(flag for flag, _ in moments if flag)


async def test_a_message_is_retried_until_the_gateway_accepts_it_and_each_attempt_is_signed(
    nats: TestServer, bus: Bus, tmp_path: Path
) -> None:
    gateway = Gateway()
    gateway.answers = [500, 429, 204]
    made = settings(nats, tmp_path / "leg", gateway)
    await put_case(bus, made)
    async with gateway.serving(), running(made):
        await until(made, "select 1 from contacts")
        await publish(bus, ring(1))
        message = await gateway.message(3)
        await until(made, "select 1 from sendings where outcome = 'handed over' and tries = 3")
    assert message["to"] == HANDLE and message["type"] == "tandem.warning.v1" and message["silent"]
    assert len({headers["webhook-id"] for headers, _ in gateway.requests}) == 1
    for headers, body in gateway.requests:
        assert Webhook(SECRET).verify(body, headers)["warning_id"] == headers["webhook-id"]
    # The handle is in no file of the leg.
    held = b"".join(path.read_bytes() for path in (tmp_path / "leg").rglob("*") if path.is_file())
    assert HANDLE.encode() not in held


async def test_a_hanging_gateway_delays_no_other_channel(
    nats: TestServer, bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "LANE_CONCURRENCY", 2)
    hanging, other = Gateway("hanging"), Gateway("other")
    hanging.hangs.clear()
    made = settings(nats, tmp_path / "leg", hanging, other)
    for number in range(1, 7):
        await put_case(bus, made, f"app-{number}", person_id=f"person-{number}")
    rings = (ring(number, incident=f"incident-{number}", protected=(f"person-{number}",)) for number in range(1, 7))
    await publish(bus, *rings)
    async with hanging.serving(), other.serving(), running(made):
        await other.message(6)
        await until(
            made, "select 1 from sendings where way like 'device/app-%' and outcome = 'handed over' limit 1 offset 5"
        )
        assert len(hanging.requests) == 2
        hanging.hangs.set()
        await hanging.message(6)
