"""Publishes the states of commands. The stream keeps the first message of each state, whichever process publishes it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NamedTuple, assert_never

from services.common.clock import MeshClock
from services.common.messaging import flow
from services.common.messaging.bus import Bus
from services.ingest.commands.states import ActiveCommand, CommandStates, State
from tandem.common.v1 import command_pb2

BY = "ingest"
"""NATS user under which desks' commands are published."""
CONCURRENCY = 8
"""Number of messages that are published concurrently."""


class _Unpublished(NamedTuple):
    """A message that waits to be published: a step, or a command that the stream lost."""

    message: command_pb2.CommandStep | command_pb2.Command
    stored: asyncio.Future[None]

    @property
    def subject(self) -> str:
        match self.message:
            case command_pb2.CommandStep() as step:
                return flow.command_step_subject(step.command_id, State.Name(step.state).removeprefix("COMMAND_STATE_"))
            case command_pb2.Command() as command:
                return flow.command_subject(BY, command.command_id)
            case unknown:
                assert_never(unknown)


class CommandSteps:
    """Steps of commands that wait to be published."""

    def __init__(self, bus: Bus, clock: MeshClock) -> None:
        self._bus, self._clock = bus, clock
        self._unpublished: asyncio.Queue[_Unpublished] = asyncio.Queue()

    def record(self, active: ActiveCommand, state: State.ValueType, reason: str = "") -> asyncio.Future[None]:
        """Queues the step with which a command reaches a state, once per state. The future is done when the step is stored."""
        if state not in active.recorded:
            step = _step(active, state, at_ms=self._clock.now_ms(), reason=reason)
            active.recorded[state] = self._put(step)
        return active.recorded[state]

    def issue(self, command: command_pb2.Command) -> None:
        """Queues a command for publishing. If another process has published the same command, the server rejects this one."""
        self._put(command)

    def resubmit(self, states: CommandStates, is_in_force: Callable[[command_pb2.Command], bool]) -> None:
        """Queues the commands that are open or in force, and the states of all commands, for publishing. The server rejects those that
        it still has.

        The warning leg republishes its notices itself. Meanwhile this process keeps the notices and sends them to their devices.
        """
        for active in states:
            if active.command.command_id.startswith(flow.NOTICE_IDS):
                pass
            elif not active.is_final or is_in_force(active.command):
                self._put(active.command)
            if active.state != State.COMMAND_STATE_WAITING:
                self._put(_step(active, active.state, at_ms=active.since_ms, reason=active.reason))

    async def publish(self) -> None:
        """Publishes the steps until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for _ in range(CONCURRENCY):
                tasks.create_task(self._publish())

    async def _publish(self) -> None:
        while True:
            unpublished = await self._unpublished.get()
            await self._bus.publish_until_stored(
                unpublished.subject, unpublished.message.SerializeToString(), expected_last=0
            )
            unpublished.stored.set_result(None)

    def _put(self, message: command_pb2.CommandStep | command_pb2.Command) -> asyncio.Future[None]:
        stored: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._unpublished.put_nowait(_Unpublished(message, stored))
        return stored


def _step(active: ActiveCommand, state: State.ValueType, *, at_ms: int, reason: str) -> command_pb2.CommandStep:
    command = active.command
    return command_pb2.CommandStep(
        command_id=command.command_id, device_id=command.device_id, state=state, at_ms=at_ms, reason=reason
    )
