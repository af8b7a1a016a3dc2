"""Which of a command's states are published: what a device's answer says anyhow isn't published before it."""

from __future__ import annotations

import asyncio

import pytest
from prometheus_client import CollectorRegistry

from services.common.clock import MeshClock
from services.common.messaging import flow
from services.common.messaging.bus import Bus
from services.ingest.admission.routes import Routes
from services.ingest.commands import steps
from services.ingest.commands.delivery import CommandDelivery
from services.ingest.commands.states import ActiveCommand, CommandStates
from services.ingest.domain import Sender
from services.ingest.metrics import IngestMetrics
from tandem.common.v1 import command_pb2, log_pb2
from tandem.ingest.v1 import ingest_pb2
from tests.support.ingest.ingest import WITHIN_S


async def test_an_answer_says_that_a_command_was_sent_and_an_expiry_does_not(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "SENT_LINGER_S", 3_600.0)
    recorder = steps.CommandSteps(bus, MeshClock())
    publishing = asyncio.ensure_future(recorder.publish())
    for command_id, last in (("answered", "RECEIVED"), ("refused", "REFUSED"), ("ended", "EXPIRED")):
        active = ActiveCommand(command_pb2.Command(command_id=command_id, device_id="tag"))
        for _ in range(2):  # the second time on a new connection
            recorder.record_sent(active)
        async with asyncio.timeout(WITHIN_S):
            await recorder.record(active, command_pb2.CommandState.Value(f"COMMAND_STATE_{last}"))
        recorder.record_sent(active)

    async def stored_states(command_id: str) -> set[str]:
        states = ("SENT", "RECEIVED", "REFUSED", "EXPIRED")
        subjects = {state: flow.command_step_subject(command_id, state) for state in states}
        return {state for state in states if await bus.last_of(flow.COMMANDS.name, subjects[state])}

    async with asyncio.timeout(WITHIN_S):
        while await stored_states("ended") != {"SENT", "EXPIRED"}:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert await stored_states("answered") == {"RECEIVED"}
    assert await stored_states("refused") == {"REFUSED"}
    publishing.cancel()


async def test_a_caller_that_leaves_before_its_receipt_is_stored_stops_no_other_receipt(bus: Bus) -> None:
    route = log_pb2.DeviceRoute(partitions=[0], vendor_id="v", kind=log_pb2.TAG)
    await bus.publish(f"$KV.{flow.DEVICES_BUCKET}.tag", route.SerializeToString())
    clock, states = MeshClock(), CommandStates()
    routes, recorder = Routes(bus, clock, 1), steps.CommandSteps(bus, clock)
    await routes.load()
    metrics = IngestMetrics(CollectorRegistry())
    delivery = CommandDelivery(states, recorder, routes, clock=clock, metrics=metrics)

    def receipt(command_id: str) -> asyncio.Future[None]:
        now_ms = clock.now_ms()
        states.add(command_pb2.Command(command_id=command_id, device_id="tag", expires_at_ms=now_ms + 600_000), now_ms)
        receipts = [ingest_pb2.CommandReceipt(command_id=command_id, device_id="tag")]
        (stored,) = delivery.accept_receipts(Sender("spiffe://vendor/v", "v", ""), receipts)
        return stored

    asyncio.gather(receipt("left")).cancel()  # as a call does whose caller hangs up
    publishing = asyncio.ensure_future(recorder.publish())
    async with asyncio.timeout(WITHIN_S):
        while not await bus.last_of(flow.COMMANDS.name, flow.command_step_subject("left", "RECEIVED")):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        stored = receipt("stays")
        await asyncio.wait([publishing, stored], return_when=asyncio.FIRST_COMPLETED)
    assert stored.done() and not publishing.done()
    publishing.cancel()
