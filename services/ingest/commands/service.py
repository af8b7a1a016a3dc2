"""Commands for devices, which are sent over the session on which a device was last heard.

A command is sent again until its receipt arrives or it expires. All ingest processes follow the same stream, so any process that
hears a device has the device's commands.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence

from services.common import times
from services.common.clock import MeshClock
from services.common.messaging import cursors, dead_letters, flow, pull, stored
from services.common.messaging.bus import AlreadyStored, Bus
from services.common.messaging.cursors import StreamCursor, StreamWentBack
from services.common.observability.readiness import ReaderHealth
from services.common.rpc.errors import Conflict, InvalidField
from services.ingest.admission.routes import Routes
from services.ingest.commands.states import ActiveCommand, CommandSession, CommandStates, State
from services.ingest.commands.steps import BY, CommandSteps
from services.ingest.domain import Sender
from services.ingest.held import read_held
from services.ingest.metrics import IngestMetrics
from tandem.common.v1 import command_pb2
from tandem.ingest.v1 import ingest_pb2

CHECK_INTERVAL_S = 1.0
CHECKS_PER_CLEANUP = 30
"""Number of expiry checks between two removals of closed sessions."""
FOLLOWED_WITHIN_S = 2.0
"""Time within which this process must have read its own command from the stream, seconds."""
SUPERSEDED = "superseded by a newer interval"


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
        self._states = CommandStates()
        self._steps = CommandSteps(bus, clock)
        self._sessions: dict[str, CommandSession] = {}
        """Session on which each device was last heard."""
        self._cursor: StreamCursor | None = None
        """Position up to which the stream is read."""
        self._progress = asyncio.Event()

    # ── from the desks ───────────────────────────────────────────────────────────────────────────────────────────────

    async def command(self, command: command_pb2.Command) -> command_pb2.Command:
        """Publishes a command and returns the stored one: the first command with this id.

        Raises Conflict if the stored command differs, StoreFull, Unavailable, or TimeoutError if this process doesn't read the command
        from the stream in time. After the last two, the command may be stored: send it again.
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
        return self._states.of_device(device_id)

    # ── to and from the devices ──────────────────────────────────────────────────────────────────────────────────────

    def heard(self, sessions: Mapping[str, CommandSession]) -> None:
        """Notes the session on which each device was heard. The device's commands are sent over that session now and from now on."""
        self._sessions.update(sessions)
        for device_id in self._states.with_open(sessions.keys()):
            self._send_all(device_id, sessions[device_id])

    def due_commands(self, device_ids: Iterable[str]) -> list[ingest_pb2.DeviceCommand]:
        """Returns the due commands of devices that were heard without a session. The caller answers with them and calls `sent`."""
        now_s, now_ms = time.monotonic(), self._clock.now_ms()
        due = []
        for device_id in dict.fromkeys(device_ids):
            for active in self._states.unexpired(device_id, now_ms):
                if not active.was_sent_lately(now_s):
                    active.sent_at_s = now_s
                    due.append(to_device(active.command))
        return due

    def sent(self, commands: Iterable[ingest_pb2.DeviceCommand]) -> None:
        """Records that commands were sent with an answer."""
        for command in commands:
            active = self._states.get(command.command_id)
            if active is not None:
                self._steps.record(active, State.COMMAND_STATE_SENT)

    def accept_receipts(
        self, sender: Sender, receipts: Sequence[ingest_pb2.CommandReceipt]
    ) -> Sequence[asyncio.Future[None]]:
        """Accepts receipts. Each returned future is done once its receipt is stored.

        A receipt for an unknown command, or for a device of another sender, changes nothing and is counted.
        """
        stored = []
        for receipt in receipts:
            active = self._states.get(receipt.command_id)
            if (
                active is None
                or active.command.device_id != receipt.device_id
                or receipt.device_id not in self._routes.allowed(sender)
            ):
                self._metrics.receipts_unknown.inc()
            elif not active.is_final:
                state = State.COMMAND_STATE_REFUSED if receipt.refused_because else State.COMMAND_STATE_RECEIVED
                stored.append(self._steps.record(active, state, receipt.refused_because))
        return stored

    # ── the stream ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def load(self) -> None:
        """Reads the stream before any device is heard, so that no final command is sent again."""
        stream = flow.COMMANDS.name
        async for messages in read_held(self._bus, stream, await self._bus.bounds_of(stream)):
            self._read(messages)

    async def follow(self) -> None:
        """Follows the stream until cancelled. A stream that went back is read again from its start; known commands change nothing."""
        while True:
            try:
                async for messages in pull.read(self._bus, flow.COMMANDS.name, self._cursor or 1, health=self._health):
                    self._read(messages)
            except StreamWentBack as error:
                cursors.alarm(self._bus, error)
                self._cursor = None
                self._steps.resubmit(self._states)

    def _read(self, messages: Sequence[pull.Delivered]) -> None:
        for message in messages:
            try:
                if message.subject.startswith("command_step."):
                    self._states.apply(stored.command_step(message.data, message.subject))
                else:
                    self._add(stored.command(message.data, message.subject))
            except InvalidField as error:
                dead_letters.pass_over(
                    self._bus, "ingest-commands", message.stream, sequence=message.sequence, error=error
                )
        self._cursor = messages[-1].cursor
        self._progress.set()

    async def publish_steps(self) -> None:
        """Publishes the states of commands until cancelled."""
        await self._steps.publish()

    async def watch_time(self) -> None:
        """Expires overdue commands until cancelled. Every process does so, and the stream keeps the first expiry of each command."""
        checks = 0
        while True:
            await asyncio.sleep(CHECK_INTERVAL_S)
            checks += 1
            if checks % CHECKS_PER_CLEANUP == 0:
                self._sessions = {device_id: session for device_id, session in self._sessions.items() if session.open}
            now_ms = self._clock.now_ms()
            for active in self._states.expired(now_ms):
                self._expire(active)
            self._states.forget(now_ms)

    def _add(self, command: command_pb2.Command) -> None:
        superseded = self._states.add(command)
        if superseded is None:
            return  # known: the stream is being read again
        for other in superseded:
            self._expire(other, SUPERSEDED)
        session = self._sessions.get(command.device_id)
        if session is not None:
            self._send_all(command.device_id, session)

    def _send_all(self, device_id: str, session: CommandSession) -> None:
        if device_id not in self._routes.allowed(session.sender):
            return  # the device moved to another sender since it was heard
        now_s = time.monotonic()
        for active in self._states.unexpired(device_id, self._clock.now_ms()):
            if active.sent_over is session and active.was_sent_lately(now_s):
                continue
            if not session.enqueue(to_device(active.command)):
                return
            active.sent_over, active.sent_at_s = session, now_s
            self._steps.record(active, State.COMMAND_STATE_SENT)

    def _expire(self, active: ActiveCommand, reason: str = "") -> None:
        self._states.close(active)
        self._steps.record(active, State.COMMAND_STATE_EXPIRED, reason)


def to_device(command: command_pb2.Command) -> ingest_pb2.DeviceCommand:
    """Returns a command in the form that its device gets."""
    return ingest_pb2.DeviceCommand(
        command_id=command.command_id,
        device_id=command.device_id,
        instruction=command.instruction,
        expires_at=times.to_timestamp(command.expires_at_ms),
    )
