"""Delivery of commands over the session on which a device was last heard, or with the answer to its report, until a receipt."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence

from services.common import times
from services.common.clock import MeshClock
from services.ingest.admission.routes import Routes
from services.ingest.commands.states import CommandSession, CommandStates, State
from services.ingest.commands.steps import CommandSteps
from services.ingest.domain import Sender
from services.ingest.metrics import IngestMetrics
from services.ingest.sensing.intervals import remaining
from tandem.common.v1 import command_pb2
from tandem.ingest.v1 import ingest_pb2


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
        self._states, self._steps, self._routes, self._clock = states, steps, routes, clock
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
