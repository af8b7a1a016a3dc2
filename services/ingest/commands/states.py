"""Commands and their states, as read from the stream of commands."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Set
from dataclasses import dataclass, field
from typing import Protocol

from services.ingest.domain import Sender
from tandem.common.v1 import command_pb2
from tandem.ingest.v1 import ingest_pb2

RETRY_AFTER_S = 15.0
"""Time after which a command without a receipt is sent again at the device's next contact, seconds of wall time."""
KEPT_MS = 86_400_000
"""Time after its issue for which a final command is still listed, milliseconds."""

_INTERVALS = ("report_every", "report_as_usual")

State = command_pb2.CommandState
_FINAL_STATES = (State.COMMAND_STATE_RECEIVED, State.COMMAND_STATE_REFUSED, State.COMMAND_STATE_EXPIRED)


class CommandSession(Protocol):
    """Connection to a sender, over which commands for its devices can be sent."""

    sender: Sender
    open: bool

    def enqueue(self, command: ingest_pb2.DeviceCommand) -> bool:
        """Queues a command for sending. Returns False if the session is closed or its queue is full."""


@dataclass(slots=True)
class ActiveCommand:
    """A command with its state."""

    command: command_pb2.Command
    state: State.ValueType = State.COMMAND_STATE_WAITING
    since_ms: int = 0
    reason: str = ""
    sent_at_s: float | None = None
    """Time at which this process last sent the command, monotonic, seconds. None if it hasn't sent the command."""
    sent_over: CommandSession | None = None
    recorded: dict[int, asyncio.Future[None]] = field(default_factory=dict)
    """States that this process has recorded; each future is done once the state is stored."""

    @property
    def is_final(self) -> bool:
        """Whether the command has reached its final state."""
        return self.state in _FINAL_STATES

    @property
    def sets_interval(self) -> bool:
        """Whether the command sets how often its device reports."""
        return self.command.instruction.WhichOneof("kind") in _INTERVALS

    def was_sent_lately(self, now_s: float) -> bool:
        """Whether this process has sent the command in the last RETRY_AFTER_S."""
        return self.sent_at_s is not None and now_s - self.sent_at_s <= RETRY_AFTER_S


class CommandStates:
    """Commands of the last day, and the open ones of each device. A command is open until it gets a final state or is closed here."""

    def __init__(self) -> None:
        self._all: dict[str, ActiveCommand] = {}
        """Commands by id, in the order of the stream."""
        self._open: dict[str, list[ActiveCommand]] = {}
        """Open commands by device."""

    def __iter__(self) -> Iterator[ActiveCommand]:
        return iter(self._all.values())

    def get(self, command_id: str) -> ActiveCommand | None:
        """Returns the command with an id, or None if the id is unknown."""
        return self._all.get(command_id)

    def of_device(self, device_id: str) -> list[ActiveCommand]:
        """Returns a device's commands, newest first."""
        return [active for active in reversed(self._all.values()) if active.command.device_id == device_id]

    def unexpired(self, device_id: str, now_ms: int) -> list[ActiveCommand]:
        """Returns the open commands of a device that aren't expired, oldest first."""
        return [active for active in self._open.get(device_id, ()) if active.command.expires_at_ms > now_ms]

    def expired(self, now_ms: int) -> list[ActiveCommand]:
        """Returns the open commands that are expired."""
        opened = (active for of_device in self._open.values() for active in of_device)
        return [active for active in opened if active.command.expires_at_ms <= now_ms]

    def with_open(self, device_ids: Set[str]) -> Set[str]:
        """Returns the given devices that have open commands."""
        return self._open.keys() & device_ids

    def add(self, command: command_pb2.Command) -> list[ActiveCommand] | None:
        """Adds a command and returns the open commands that it supersedes, or None if the command is known already.

        An interval supersedes older ones, because resending an older interval later would undo the newer one.
        """
        if command.command_id in self._all:
            return None
        active = ActiveCommand(command, since_ms=command.issued_at_ms)
        self._all[command.command_id] = active
        opened = self._open.setdefault(command.device_id, [])
        superseded = [other for other in opened if other.sets_interval] if active.sets_interval else []
        opened.append(active)
        return superseded

    def apply(self, step: command_pb2.CommandStep) -> None:
        """Applies a step to its command. A step that doesn't advance the state, or comes after a final one, changes nothing."""
        active = self._all.get(step.command_id)
        if active is None or active.is_final or step.state <= active.state:
            return
        active.state, active.since_ms, active.reason = step.state, step.at_ms, step.reason
        if step.state in _FINAL_STATES:
            self.close(active)

    def close(self, active: ActiveCommand) -> None:
        """Closes a command, so that it is sent no more."""
        opened = self._open.get(active.command.device_id, [])
        if active in opened:
            opened.remove(active)
        if not opened:
            self._open.pop(active.command.device_id, None)

    def forget(self, now_ms: int) -> None:
        """Drops the final commands that are older than KEPT_MS."""
        for command_id, active in list(self._all.items()):
            if active.command.issued_at_ms >= now_ms - KEPT_MS:
                break
            if active.is_final:
                del self._all[command_id]
