"""Which of a command's states are published: what a device's answer says anyhow isn't published before it. And commands that wait for
room on a stream."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from prometheus_client import CollectorRegistry

from services.common.clock import MeshClock
from services.common.messaging import flow
from services.common.messaging.bus import Bus
from services.ingest.admission.routes import Routes
from services.ingest.commands import states
from services.ingest.commands.service import CommandDelivery
from services.ingest.commands.states import ActiveCommand, CommandStates, CommandSteps
from services.ingest.domain import Sender
from services.ingest.metrics import IngestMetrics
from tandem.common.v1 import command_pb2, log_pb2
from tandem.ingest.v1 import ingest_pb2
from tests.support.ingest.ingest import WITHIN_S

VENDOR = Sender("spiffe://vendor/v", "v", "")


async def delivery_to(
    bus: Bus, states: CommandStates, recorder: CommandSteps, *, device_ids: Sequence[str]
) -> CommandDelivery:
    """A delivery that knows these devices of the vendor."""
    route = log_pb2.DeviceRoute(partitions=[0], vendor_id=VENDOR.vendor_id, kind=log_pb2.TAG)
    for device_id in device_ids:
        await bus.publish(f"$KV.{flow.DEVICES_BUCKET}.{device_id}", route.SerializeToString())
    routes = Routes(bus, MeshClock(), 1)
    await routes.load()
    return CommandDelivery(states, recorder, routes, clock=MeshClock(), metrics=IngestMetrics(CollectorRegistry()))


def put(states: CommandStates, command_id: str, device_id: str) -> None:
    """Adds an open command for a device."""
    now_ms = MeshClock().now_ms()
    expires_at_ms = now_ms + 600_000
    states.add(command_pb2.Command(command_id=command_id, device_id=device_id, expires_at_ms=expires_at_ms), now_ms)


class Session:
    """A session with room for one command."""

    def __init__(self) -> None:
        self.sender, self.open = VENDOR, True
        self.queued: list[str] = []

    def enqueue(self, command: ingest_pb2.DeviceCommand) -> bool:
        """Implements CommandSession."""
        if self.queued or not self.open:
            return False
        self.queued.append(command.command_id)
        return True


async def test_an_answer_says_that_a_command_was_sent_and_an_expiry_does_not(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(states, "SENT_LINGER_S", 3_600.0)
    recorder = CommandSteps(bus, MeshClock())
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
    states, recorder = CommandStates(), CommandSteps(bus, MeshClock())
    delivery = await delivery_to(bus, states, recorder, device_ids=["tag"])

    def receipt(command_id: str) -> asyncio.Future[None]:
        put(states, command_id, "tag")
        receipts = [ingest_pb2.CommandReceipt(command_id=command_id, device_id="tag")]
        (stored,) = delivery.accept_receipts(VENDOR, receipts)
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


async def test_a_command_that_found_no_room_is_sent_once_there_is_some(bus: Bus) -> None:
    tags = [f"tag-{n}" for n in range(3)]
    states = CommandStates()
    session = Session()
    delivery = await delivery_to(bus, states, CommandSteps(bus, MeshClock()), device_ids=tags)
    delivery.heard(dict.fromkeys(tags, session))
    for tag in tags:
        put(states, f"for-{tag}", tag)
        delivery.send(tag)
    sent = []
    for _ in tags:
        sent += session.queued
        session.queued.clear()
        delivery.send_waiting()
    assert sent == [f"for-{tag}" for tag in tags]
    assert not session.queued


async def test_a_command_waits_for_the_next_session_if_the_one_without_room_closes(bus: Bus) -> None:
    tags = ["tag-0", "tag-1"]
    states = CommandStates()
    session = Session()
    delivery = await delivery_to(bus, states, CommandSteps(bus, MeshClock()), device_ids=tags)
    delivery.heard(dict.fromkeys(tags, session))
    for tag in tags:
        put(states, f"for-{tag}", tag)
        delivery.send(tag)
    session.queued.clear()
    session.open = False
    delivery.send_waiting()
    following = Session()
    delivery.heard({"tag-1": following})
    assert (session.queued, following.queued) == ([], ["for-tag-1"])
