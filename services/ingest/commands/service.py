"""Commands for devices: sent over the session on which a device was last heard, and resent until a receipt or their expiry.

All ingest processes follow the same stream, so any process that hears a device has its commands.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from services.common import times
from services.common.clock import MeshClock
from services.common.messaging import cursors, dead_letters, flow, pull, stored
from services.common.messaging.bus import AlreadyStored, Bus
from services.common.messaging.cursors import StreamCursor, StreamWentBack
from services.common.observability.readiness import ReaderHealth
from services.common.rpc.errors import Conflict, InvalidField
from services.ingest.admission.routes import Routes
from services.ingest.domain import Sender
from services.ingest.metrics import IngestMetrics
from tandem.common.v1 import command_pb2
from tandem.ingest.v1 import ingest_pb2

BY = "ingest"
"""NATS user under which desks' commands are published."""
RETRY_AFTER_S = 15.0
"""Wall time after which a sent command without a receipt is sent again at the device's next contact, in s."""
KEPT_MS = 86_400_000
"""Time for which a command is listed, in ms."""
CHECK_INTERVAL_S = 1.0
CHECKS_PER_CLEANUP = 30
"""Checks of expiry between two removals of closed sessions."""
STEPS_IN_FLIGHT = 8
FOLLOWED_WITHIN_S = 2.0
"""Time within which this process must have read its own command from the stream, in s."""
SUPERSEDED = "superseded by a newer interval"

_INTERVALS = ("report_every", "report_as_usual")

State = command_pb2.CommandState
_FINAL_STATES = (State.COMMAND_STATE_RECEIVED, State.COMMAND_STATE_REFUSED, State.COMMAND_STATE_EXPIRED)


class CommandSession(Protocol):
    """Connection to a sender, over which commands for its devices can be sent."""

    sender: Sender
    open: bool

    def enqueue(self, command: ingest_pb2.DeviceCommand) -> bool:
        """Queues a command for sending; false where the session is closed or its queue is full."""


@dataclass(slots=True)
class ActiveCommand:
    """A command with its state."""

    command: command_pb2.Command
    state: State.ValueType = State.COMMAND_STATE_WAITING
    since_ms: int = 0
    reason: str = ""
    sent_at_s: float = field(default=float("-inf"))
    """Time at which this process last sent the command, by the monotonic clock."""
    sent_over: CommandSession | None = None
    recorded: dict[int, asyncio.Future[None]] = field(default_factory=dict)
    """States that this process has recorded; each future is done once the state is stored."""

    @property
    def is_final(self) -> bool:
        """Whether the command has reached its final state."""
        return self.state in _FINAL_STATES


class Commands:
    """Commands of all devices, their sessions and their states."""

    def __init__(
        self,
        bus: Bus,
        routes: Routes,
        clock: MeshClock,
        *,
        metrics: IngestMetrics,
        health: ReaderHealth | None = None,
    ) -> None:
        self._health, self._metrics = health, metrics
        self._bus, self._routes, self._clock = bus, routes, clock
        self._all: dict[str, ActiveCommand] = {}
        """Commands by id, in the order of the stream."""
        self._waiting: dict[str, list[ActiveCommand]] = {}
        """Commands that aren't final, by device."""
        self._sessions: dict[str, CommandSession] = {}
        self._steps: asyncio.Queue[tuple[command_pb2.CommandStep | command_pb2.Command, asyncio.Future[None]]] = (
            asyncio.Queue()
        )
        """Steps to be published, and commands to be published again because the stream lost them."""
        self._cursor: StreamCursor | None = None
        """Position up to which the stream is read."""
        self._progress = asyncio.Event()

    # ── from the desks ───────────────────────────────────────────────────────────────────────────────────────────────

    async def command(self, command: command_pb2.Command) -> command_pb2.Command:
        """Publishes a command and returns the stored one: the first command with this id.

        Raises Conflict where the stored command differs, StoreFull, or Unavailable (perhaps stored: send it again).
        """
        subject = flow.command_subject(BY, command.command_id)
        try:
            ack = await self._bus.publish(subject, command.SerializeToString(), expected_last=0)
        except AlreadyStored:
            data = await self._bus.last_of(flow.COMMANDS.name, subject)
            try:
                first = stored.command(data or b"", subject)
            except InvalidField as error:
                raise Conflict(
                    f"command_id: the message that is stored under this id is no command ({error}): choose another id"
                ) from None
            if (first.device_id, first.instruction) != (command.device_id, command.instruction):
                raise Conflict("command_id: another command has this id: choose another id") from None
            return first
        async with asyncio.timeout(FOLLOWED_WITHIN_S):
            while self._cursor is None or self._cursor.sequence < ack.seq:
                self._progress.clear()
                await self._progress.wait()
        return command

    def of_device(self, device_id: str) -> list[ActiveCommand]:
        """Returns a device's commands of the last day, newest first."""
        return [active for active in reversed(self._all.values()) if active.command.device_id == device_id]

    # ── to and from the devices ──────────────────────────────────────────────────────────────────────────────────────

    def heard(self, sessions: Mapping[str, CommandSession]) -> None:
        """Notes the session on which each device was heard, and sends its commands over it, now and from now on."""
        self._sessions.update(sessions)
        if self._waiting:
            for device_id in self._waiting.keys() & sessions.keys():
                self._send_all(device_id, sessions[device_id])

    def due_commands(self, device_ids: Iterable[str]) -> list[ingest_pb2.DeviceCommand]:
        """Returns the due commands of devices that were heard without a session. Send them with the answer, then call `sent`."""
        now_s = time.monotonic()
        due = []
        for device_id in dict.fromkeys(device_ids):
            for active in self._unexpired(device_id):
                if now_s - active.sent_at_s > RETRY_AFTER_S:
                    active.sent_at_s = now_s
                    due.append(to_device(active.command))
        return due

    def sent(self, commands: Iterable[ingest_pb2.DeviceCommand]) -> None:
        """Records that commands were sent with an answer."""
        for command in commands:
            active = self._all.get(command.command_id)
            if active is not None:
                self._record_state(active, State.COMMAND_STATE_SENT)

    def accept_receipts(
        self, sender: Sender, receipts: Sequence[ingest_pb2.CommandReceipt]
    ) -> Sequence[asyncio.Future[None]]:
        """Accepts receipts. Each returned future is done once its receipt is stored.

        A receipt for an unknown command, or for a device of another sender, changes nothing and is counted.
        """
        stored = []
        for receipt in receipts:
            active = self._all.get(receipt.command_id)
            if (
                active is None
                or active.command.device_id != receipt.device_id
                or receipt.device_id not in self._routes.allowed(sender)
            ):
                self._metrics.receipts_unknown.inc()
            elif not active.is_final:
                state = State.COMMAND_STATE_REFUSED if receipt.refused_because else State.COMMAND_STATE_RECEIVED
                stored.append(self._record_state(active, state, receipt.refused_because))
        return stored

    # ── the stream ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def load(self) -> None:
        """Reads the stream before any device is heard, so that no final command is sent again."""
        bounds = await self._bus.bounds_of(flow.COMMANDS.name)
        if bounds.first > bounds.last:
            return
        async for messages in pull.read(self._bus, flow.COMMANDS.name, bounds.first):
            self._read(messages)
            if messages[-1].sequence >= bounds.last:
                return

    async def follow(self) -> None:
        """Follows the stream until cancelled. Where it went back, it is read again from its start; known commands change nothing."""
        while True:
            try:
                async for messages in pull.read(self._bus, flow.COMMANDS.name, self._cursor or 1, health=self._health):
                    self._read(messages)
            except StreamWentBack as error:
                cursors.alarm(error)
                self._cursor = None
                self._republish()

    def _republish(self) -> None:
        """Queues desks' open commands and the states of all commands for publishing; the server refuses those that it has.

        The warning leg republishes its notices itself. They stay here, and are sent to their devices, while this process runs.
        """
        for active in self._all.values():
            if not active.is_final and not active.command.command_id.startswith(flow.NOTICE_IDS):
                self._steps.put_nowait((active.command, asyncio.get_running_loop().create_future()))
            if active.state != State.COMMAND_STATE_WAITING:
                self._steps.put_nowait((self._step_of(active), asyncio.get_running_loop().create_future()))

    def _read(self, messages: Sequence[pull.Delivered]) -> None:
        for message in messages:
            try:
                if message.subject.startswith("command_step."):
                    self._step(stored.command_step(message.data, message.subject))
                else:
                    self._command(stored.command(message.data, message.subject))
            except InvalidField as error:
                dead_letters.pass_over("ingest-commands", message.stream, message.sequence, error=error)
        self._cursor = messages[-1].cursor
        self._progress.set()

    async def publish_steps(self) -> None:
        """Publishes the states of commands until cancelled. The stream keeps the first message of each state."""
        async with asyncio.TaskGroup() as tasks:
            for _ in range(STEPS_IN_FLIGHT):
                tasks.create_task(self._publish_steps())

    async def _publish_steps(self) -> None:
        while True:
            message, done = await self._steps.get()
            if isinstance(message, command_pb2.CommandStep):
                state = State.Name(message.state).removeprefix("COMMAND_STATE_")
                subject = flow.command_step_subject(message.command_id, state)
            else:
                subject = flow.command_subject(BY, message.command_id)
            await self._bus.publish_until_stored(subject, message.SerializeToString(), expected_last=0)
            done.set_result(None)

    async def watch_time(self) -> None:
        """Expires commands until cancelled. Every process does so; the first message counts."""
        checks = 0
        while True:
            await asyncio.sleep(CHECK_INTERVAL_S)
            checks += 1
            if checks % CHECKS_PER_CLEANUP == 0:
                self._sessions = {device_id: session for device_id, session in self._sessions.items() if session.open}
            now_ms = self._clock.now_ms()
            for waiting in list(self._waiting.values()):
                for active in list(waiting):
                    if active.command.expires_at_ms <= now_ms:
                        self._end(active, "")
            for command_id, active in list(self._all.items()):
                if active.command.issued_at_ms >= now_ms - KEPT_MS:
                    break
                if active.is_final:
                    del self._all[command_id]

    def _command(self, command: command_pb2.Command) -> None:
        if command.command_id in self._all:
            return  # known: the stream is being read again
        active = ActiveCommand(command, since_ms=command.issued_at_ms)
        self._all[command.command_id] = active
        if command.instruction.WhichOneof("kind") in _INTERVALS:
            # Resending an older interval later would undo the newer one.
            for other in list(self._waiting.get(command.device_id, ())):
                if other.command.instruction.WhichOneof("kind") in _INTERVALS:
                    self._end(other, SUPERSEDED)
        self._waiting.setdefault(command.device_id, []).append(active)
        session = self._sessions.get(command.device_id)
        if session is not None:
            self._send_all(command.device_id, session)

    def _step(self, step: command_pb2.CommandStep) -> None:
        active = self._all.get(step.command_id)
        if active is None or active.is_final or step.state <= active.state:
            return
        active.state, active.since_ms, active.reason = step.state, step.at_ms, step.reason
        if step.state in _FINAL_STATES:
            self._drop(active)

    def _unexpired(self, device_id: str) -> list[ActiveCommand]:
        now_ms = self._clock.now_ms()
        return [active for active in self._waiting.get(device_id, ()) if active.command.expires_at_ms > now_ms]

    def _send_all(self, device_id: str, session: CommandSession) -> None:
        if device_id not in self._routes.allowed(session.sender):
            return  # the device moved to another sender since it was heard
        now_s = time.monotonic()
        for active in self._unexpired(device_id):
            if active.sent_over is session and now_s - active.sent_at_s < RETRY_AFTER_S:
                continue
            if not session.enqueue(to_device(active.command)):
                return
            active.sent_over, active.sent_at_s = session, now_s
            self._record_state(active, State.COMMAND_STATE_SENT)

    def _end(self, active: ActiveCommand, reason: str) -> None:
        self._drop(active)
        self._record_state(active, State.COMMAND_STATE_EXPIRED, reason)

    def _drop(self, active: ActiveCommand) -> None:
        waiting = self._waiting.get(active.command.device_id, [])
        if active in waiting:
            waiting.remove(active)
        if not waiting:
            self._waiting.pop(active.command.device_id, None)

    def _record_state(self, active: ActiveCommand, state: State.ValueType, reason: str = "") -> asyncio.Future[None]:
        """Queues a state for storing, once. The future is done when it is stored."""
        stored = active.recorded.get(state)
        if stored is None:
            stored = active.recorded[state] = asyncio.get_running_loop().create_future()
            self._steps.put_nowait((self._step_of(active, state, reason), stored))
        return stored

    def _step_of(
        self, active: ActiveCommand, state: State.ValueType | None = None, reason: str = ""
    ) -> command_pb2.CommandStep:
        """Makes the step of a command to `state` now; without `state`, its current step."""
        return command_pb2.CommandStep(
            command_id=active.command.command_id,
            device_id=active.command.device_id,
            state=active.state if state is None else state,
            at_ms=active.since_ms if state is None else self._clock.now_ms(),
            reason=active.reason if state is None else reason,
        )


def to_device(command: command_pb2.Command) -> ingest_pb2.DeviceCommand:
    """Returns a command in the form that its device gets."""
    return ingest_pb2.DeviceCommand(
        command_id=command.command_id,
        device_id=command.device_id,
        instruction=command.instruction,
        expires_at=times.to_timestamp(command.expires_at_ms),
    )
