"""Commands for devices: from desks and from the decision into the stream COMMANDS, and from there to the devices.

A command is sent again until its receipt arrives or it expires. All ingest processes follow the same stream, so any process that
hears a device has the device's commands. A command goes over the session on which its device was last heard, or with the answer to
the device's report.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial

from services.common import times
from services.common.clock import MeshClock
from services.common.errors import Conflict, InvalidField
from services.common.messaging import cursors, dead_letters, flow, pull, stored
from services.common.messaging.bus import AlreadyStored, Bus
from services.common.messaging.cursors import StreamCursor, StreamWentBack
from services.common.observability.health import ReaderHealth
from services.common.retrying import retried
from services.ingest.admission.routes import Routes, read_held
from services.ingest.commands.states import (
    BY,
    ActiveCommand,
    CommandSession,
    CommandStates,
    CommandSteps,
    Intervals,
    State,
    remaining,
    sets_interval,
)
from services.ingest.domain import Sender
from services.ingest.metrics import IngestMetrics
from services.ingest.observed import ObservedReports
from tandem.common.v1 import command_pb2
from tandem.ingest.v1 import ingest_pb2

CHECK_INTERVAL_S = 1.0
CHECKS_PER_CLEANUP = 30
"""Number of expiry checks between two removals of closed sessions."""
FOLLOWED_WITHIN_S = 2.0
"""Time within which this process must have read its own command from the stream, seconds."""
SUPERSEDED = "superseded by a newer interval"
_DELIVERED = (State.COMMAND_STATE_SENT, State.COMMAND_STATE_RECEIVED)


class Commands:
    """Commands of all devices, their states, and the intervals that they ask for."""

    def __init__(
        self,
        bus: Bus,
        routes: Routes,
        clock: MeshClock,
        *,
        metrics: IngestMetrics,
        observed: ObservedReports | None = None,
        health: ReaderHealth | None = None,
    ) -> None:
        self._bus = bus
        self._clock = clock
        self._observed = observed or ObservedReports()
        self._states = CommandStates()
        self._steps = CommandSteps(bus, clock)
        self._intervals = Intervals()
        self._is_loaded = False
        self.delivery = CommandDelivery(self._states, self._steps, routes, clock=clock, metrics=metrics)
        """The way to the devices, for the endpoints."""
        self._stream = CommandStream(bus, self, health=health)

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
            first = await self._first(subject)
            if (first.device_id, first.instruction) != (command.device_id, command.instruction):
                raise Conflict("command_id: another command has this id: choose another id") from None
            return first
        async with asyncio.timeout(FOLLOWED_WITHIN_S):
            await self._stream.reached(ack.seq)
        return command

    async def _first(self, subject: str) -> command_pb2.Command:
        """Returns the command that is stored under a subject. Raises Conflict or Unavailable."""
        try:
            return stored.command(await self._bus.last_of(flow.COMMANDS.name, subject) or b"", subject)
        except InvalidField as error:
            raise Conflict(
                f"command_id: the message that is stored under this id is no command ({error}): choose another id"
            ) from None

    def of_device(self, device_id: str) -> list[ActiveCommand]:
        """Returns a device's commands of the last day, newest first. The mesh's own ones are kept for 2 hours."""
        return self._states.of_device(device_id)

    def get(self, command_id: str) -> ActiveCommand | None:
        """Returns the command with an id, or None if the id is unknown."""
        return self._states.get(command_id)

    @property
    def intervals(self) -> Intervals:
        """The intervals that are asked of devices."""
        return self._intervals

    # ── from the decision ────────────────────────────────────────────────────────────────────────────────────────────

    async def store(self, command: command_pb2.Command) -> None:
        """Stores a command of the decision, unless it is stored already. Returns once this process has read it from the stream.

        Raises Conflict if the stream has another command with this id.
        """
        subject, stored_at = flow.command_subject(BY, command.command_id), list[int]()
        known = self._states.get(command.command_id)
        if known is None:
            ack = await self._bus.publish_until_stored(
                subject, command.SerializeToString(), expected_last=0, on_refused=stored_at.append
            )
            # The next request may depend on it. If the reader of the stream stands still, it doesn't hold up the requests for long.
            with suppress(TimeoutError):
                async with asyncio.timeout(FOLLOWED_WITHIN_S):
                    await self._stream.reached(ack.seq if ack else max(stored_at, default=0))
            known = self._states.get(command.command_id)
        first = known.command if known else await retried(partial(self._first, subject), event="command_awaited")
        if first != command:
            raise Conflict("request_id: another request has this id")

    def is_locating(self, command: command_pb2.Command) -> bool:
        """Whether another command for the same device's position was open when this one was issued, so that it isn't needed."""
        return command.instruction.HasField("locate_now") and any(
            active.command.instruction.HasField("locate_now")
            and active.command.command_id != command.command_id
            and (active.since_ms >= command.issued_at_ms if active.is_final else self._is_unexpired(active))
            for active in self._states.of_device(command.device_id)
        )

    def _is_unexpired(self, active: ActiveCommand) -> bool:
        return active.command.expires_at_ms > self._clock.now_ms()

    # ── the stream ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def load(self) -> None:
        """Reads the stream before any device is heard, so that no final command is sent again."""
        await self._stream.load()
        self._states.forget(self._clock.now_ms())
        self._is_loaded = True
        # A step that ended a command may come long after it in the stream, so steps are recorded only now.
        for active in self._states:
            if active.closed_because is not None and not active.is_final:
                self._steps.record(active, State.COMMAND_STATE_EXPIRED, active.closed_because)

    async def follow(self) -> None:
        """Follows the stream until cancelled."""
        await self._stream.follow(self._resubmit)

    def _resubmit(self) -> None:
        is_in_force = partial(self._intervals.is_in_force, now_ms=self._clock.now_ms())
        self._steps.resubmit(self._states, is_in_force)

    async def publish_steps(self) -> None:
        """Publishes the states of commands until cancelled."""
        await self._steps.publish()

    async def watch_time(self) -> None:
        """Expires overdue commands, corrects intervals and sends what waits for room, until cancelled. Every process does so, and the
        stream keeps the first expiry of each command and the first of equal corrections."""
        checks = 0
        while True:
            await asyncio.sleep(CHECK_INTERVAL_S)
            checks += 1
            now_ms = self._clock.now_ms()
            for active in self._states.pop_expired(now_ms):
                self._expire(active)
            for correction in self._intervals.corrections(now_ms, time.monotonic()):
                self._steps.issue(correction)
            self.delivery.send_waiting()
            if checks % CHECKS_PER_CLEANUP == 0:
                self.delivery.forget_closed_sessions()
                self._states.forget(now_ms)
                self._observed.forget(now_ms)

    def add(self, command: command_pb2.Command) -> None:
        """Adds a command of the stream, and sends it if its device is heard. A known command changes nothing."""
        active = self._states.add(command, self._clock.now_ms())
        if active is None:
            return  # known: the stream is being read again
        if sets_interval(command):
            not_sent = self._intervals.add(command)
            if not_sent:
                self._expire(active, not_sent)
                return
            for other in self._states.open_intervals(command.device_id):
                if other is not active:
                    self._expire(other, SUPERSEDED)
        # Before it is sent: the answer may come before the stream says that the command was sent.
        self._observed.watch(command.device_id, command.expires_at_ms)
        self.delivery.send(command.device_id)

    def apply(self, step: command_pb2.CommandStep) -> None:
        """Applies a step of the stream."""
        active = self._states.get(step.command_id)
        was_sent = active is not None and active.state != State.COMMAND_STATE_WAITING
        active = self._states.apply(step)
        if active is not None and not was_sent and step.state in _DELIVERED and self._is_loaded:
            self._observed.sent(active.command)
        if active is None or not sets_interval(active.command):
            return
        if step.state in _DELIVERED:
            self._observed.delivered(active.command, step.at_ms)
        elif step.state == State.COMMAND_STATE_REFUSED:
            self._intervals.refused(active.command, step.at_ms, step.reason)
        elif step.at_ms >= active.command.expires_at_ms and not was_sent:
            self._intervals.expired_unsent(active.command)

    def _expire(self, active: ActiveCommand, reason: str = "") -> None:
        self._states.close(active, reason)
        if self._is_loaded:
            self._steps.record(active, State.COMMAND_STATE_EXPIRED, reason)


class CommandDelivery:
    """Sends the open commands of devices, and accepts the devices' receipts."""

    def __init__(
        self,
        states: CommandStates,
        steps: CommandSteps,
        routes: Routes,
        *,
        clock: MeshClock,
        metrics: IngestMetrics,
    ) -> None:
        self._states = states
        self._steps = steps
        self._routes = routes
        self._clock = clock
        self._metrics = metrics
        self._sessions: dict[str, CommandSession] = {}
        """Session on which each device was last heard."""
        self._waiting: dict[str, None] = {}
        """Devices for which a session had no room, in their order."""

    def heard(self, sessions: Mapping[str, CommandSession]) -> None:
        """Notes the session on which each device was heard. The device's commands are sent over that session now and from now on."""
        self._sessions.update(sessions)
        for device_id in self._states.with_open(sessions.keys()):
            self._send_all(device_id, sessions[device_id])

    def send(self, device_id: str) -> None:
        """Sends a device's open commands over its session, if it has an open one."""
        session = self._sessions.get(device_id)
        if session is not None and session.open:
            self._send_all(device_id, session)

    def send_waiting(self) -> None:
        """Sends the commands for which a session had no room before, so that they don't wait for their device's next report."""
        waiting, self._waiting = self._waiting, {}
        for device_id in waiting:
            self.send(device_id)

    def due_commands(self, device_ids: Iterable[str]) -> list[ingest_pb2.DeviceCommand]:
        """Returns the due commands of devices that were heard without a session. The caller answers with them and calls `sent`."""
        now_s, now_ms = time.monotonic(), self._clock.now_ms()
        due = []
        for device_id in dict.fromkeys(device_ids):
            for active in self._states.unexpired(device_id, now_ms):
                if not active.was_sent_lately(now_s):
                    active.sent_at_s = now_s
                    due.append(to_device(active.command, now_ms))
        return due

    def sent(self, commands: Iterable[ingest_pb2.DeviceCommand]) -> None:
        """Records that commands were sent with an answer."""
        for command in commands:
            active = self._states.get(command.command_id)
            if active is not None:
                self._steps.record_sent(active)

    def accept_receipts(
        self, sender: Sender, receipts: Sequence[ingest_pb2.CommandReceipt]
    ) -> Sequence[asyncio.Future[None]]:
        """Accepts receipts. Each returned future is done once its receipt is stored.

        If a caller cancels a future, the receipt is stored all the same. A receipt for an unknown command, or for a device of another
        sender, changes nothing and is counted.
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
                stored.append(asyncio.shield(self._steps.record(active, state, receipt.refused_because)))
        return stored

    def forget_closed_sessions(self) -> None:
        """Drops the sessions that are closed."""
        self._sessions = {device_id: session for device_id, session in self._sessions.items() if session.open}

    def _send_all(self, device_id: str, session: CommandSession) -> None:
        if device_id not in self._routes.allowed(session.sender):
            return  # the device moved to another sender since it was heard
        now_s, now_ms = time.monotonic(), self._clock.now_ms()
        for active in self._states.unexpired(device_id, now_ms):
            if active.sent_over is session and active.was_sent_lately(now_s):
                continue
            if not session.enqueue(to_device(active.command, now_ms)):
                self._waiting[device_id] = None
                return
            active.sent_over, active.sent_at_s = session, now_s
            self._steps.record_sent(active)


def to_device(command: command_pb2.Command, now_ms: int) -> ingest_pb2.DeviceCommand:
    """Returns a command in the form that its device gets at a time."""
    return ingest_pb2.DeviceCommand(
        command_id=command.command_id,
        device_id=command.device_id,
        instruction=remaining(command, now_ms),
        expires_at=times.to_timestamp(command.expires_at_ms),
    )


class CommandStream:
    """Reads commands and their steps, and passes over messages that are neither."""

    def __init__(self, bus: Bus, commands: Commands, *, health: ReaderHealth | None) -> None:
        self._bus = bus
        self._commands = commands
        self._health = health
        self._cursor: StreamCursor | None = None
        """Position up to which the stream is read."""
        self._progress = asyncio.Event()

    async def load(self) -> None:
        """Reads the messages that the stream holds now."""
        async for messages in read_held(self._bus, flow.COMMANDS.name, await self._bus.bounds_of(flow.COMMANDS.name)):
            self._read(messages)

    async def follow(self, on_went_back: Callable[[], None]) -> None:
        """Follows the stream until cancelled. A stream that went back is read again from its start."""
        while True:
            try:
                async for messages in pull.read(self._bus, flow.COMMANDS.name, self._cursor or 1, health=self._health):
                    self._read(messages)
            except StreamWentBack as error:
                cursors.alarm(self._bus, error)
                self._cursor = None
                on_went_back()

    async def reached(self, sequence: int) -> None:
        """Waits until the stream is read up to a sequence."""
        while self._cursor is None or self._cursor.sequence < sequence:
            self._progress.clear()
            await self._progress.wait()

    def _read(self, messages: Sequence[pull.Delivered]) -> None:
        for message in messages:
            try:
                if message.subject.startswith("command_step."):
                    self._commands.apply(stored.command_step(message.data, message.subject))
                else:
                    self._commands.add(stored.command(message.data, message.subject))
            except InvalidField as error:
                dead_letters.pass_over(
                    self._bus, "ingest-commands", message.stream, sequence=message.sequence, error=error
                )
        self._cursor = messages[-1].cursor
        self._progress.set()
