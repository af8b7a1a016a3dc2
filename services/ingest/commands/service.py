"""Commands for devices: from desks and from the decision into the stream COMMANDS, and from there to the devices.

A command is sent again until its receipt arrives or it expires. All ingest processes follow the same stream, so any process that
hears a device has the device's commands.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from functools import partial

from services.common.clock import MeshClock
from services.common.messaging import flow, stored
from services.common.messaging.bus import AlreadyStored, Bus
from services.common.observability.readiness import ReaderHealth
from services.common.retrying import retried
from services.common.rpc.errors import Conflict, InvalidField
from services.ingest.admission.routes import Routes
from services.ingest.commands.delivery import CommandDelivery
from services.ingest.commands.states import ActiveCommand, CommandStates, State
from services.ingest.commands.steps import BY, CommandSteps
from services.ingest.commands.stream import CommandStream
from services.ingest.metrics import IngestMetrics
from services.ingest.sensing.intervals import Intervals, sets_interval
from services.ingest.sensing.observed import ObservedReports
from tandem.common.v1 import command_pb2

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
        self._bus, self._clock, self._observed = bus, clock, observed or ObservedReports()
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
