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
SENT_LINGER_S = 1.0
"""Time after which it is published that a command was sent, seconds. Most devices answer sooner, and their answer says it too."""


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


class _Sent(NamedTuple):
    """When a command was sent, and the timer of its step."""

    at_ms: int
    timer: asyncio.TimerHandle


class CommandSteps:
    """Steps of commands that wait to be published."""

    def __init__(self, bus: Bus, clock: MeshClock) -> None:
        self._bus, self._clock = bus, clock
        self._unpublished: asyncio.Queue[_Unpublished] = asyncio.Queue()
        self._lingering: dict[str, _Sent] = {}
        """Commands that were sent and whose step isn't queued yet, by command id."""

    def record_sent(self, active: ActiveCommand) -> None:
        """Queues the step that a command was sent, once: after SENT_LINGER_S, unless the device has answered by then."""
        command_id, at_ms = active.command.command_id, self._clock.now_ms()
        if command_id in self._lingering or active.recorded:
            return

        def record() -> None:
            del self._lingering[command_id]
            if not active.is_final:  # another process may have had the answer
                self._record(active, State.COMMAND_STATE_SENT, at_ms=at_ms)

        timer = asyncio.get_running_loop().call_later(SENT_LINGER_S, record)
        self._lingering[command_id] = _Sent(at_ms, timer)

    def record(self, active: ActiveCommand, state: State.ValueType, reason: str = "") -> asyncio.Future[None]:
        """Queues the step with which a command reaches its last state, once. The future is done when the step is stored."""
        sent = self._lingering.pop(active.command.command_id, None)
        if sent:
            sent.timer.cancel()
            if state == State.COMMAND_STATE_EXPIRED:  # the only last state that doesn't say that the command was sent
                self._record(active, State.COMMAND_STATE_SENT, at_ms=sent.at_ms)
        return self._record(active, state, at_ms=self._clock.now_ms(), reason=reason)

    def _record(
        self, active: ActiveCommand, state: State.ValueType, *, at_ms: int, reason: str = ""
    ) -> asyncio.Future[None]:
        if state not in active.recorded:
            active.recorded[state] = self._put(_step(active, state, at_ms=at_ms, reason=reason))
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
