"""Which of a command's states are published: what a device's answer says anyhow isn't published before it."""

from __future__ import annotations

import asyncio

import pytest

from services.common.clock import MeshClock
from services.common.messaging import flow
from services.common.messaging.bus import Bus
from services.ingest.commands import steps
from services.ingest.commands.states import ActiveCommand
from tandem.common.v1 import command_pb2
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
