"""Commands and their states, as read from the stream of commands."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Set
from dataclasses import dataclass, field
from typing import Protocol

from services.common.moments import Moments
from services.ingest.domain import Sender
from services.ingest.sensing.asks import FOLD
from services.ingest.sensing.intervals import CORRECTION_IDS, sets_interval
from tandem.common.v1 import command_pb2
from tandem.ingest.v1 import ingest_pb2

RETRY_AFTER_S = 15.0
"""Time after which a command without a receipt is sent again at the device's next contact, seconds of wall time."""
KEPT_MS = 86_400_000
"""Time after its issue for which a final command is still listed, milliseconds."""
MESH_KEPT_MS = 7_200_000
"""As KEPT_MS, for commands that the decision asks for and for corrections. A wearer near a protected person causes hundreds of them a
day, and each of them is over after an hour."""

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
    closed_because: str | None = None
    """Reason why this process closed the command, empty if its time was over. None while it is open or if its device closed it."""

    @property
    def is_final(self) -> bool:
        """Whether the command has reached its final state."""
        return self.state in _FINAL_STATES

    @property
    def is_mesh_made(self) -> bool:
        """Whether the mesh itself made the command: the decision asks for it, or it corrects an interval."""
        return self.command.issued_by == FOLD or self.command.command_id.startswith(CORRECTION_IDS)

    def is_over(self, now_ms: int) -> bool:
        """Whether the command expired so long ago that it isn't listed any more."""
        kept_ms = MESH_KEPT_MS if self.is_mesh_made else KEPT_MS
        return max(self.command.issued_at_ms + kept_ms, self.command.expires_at_ms) < now_ms

    def was_sent_lately(self, now_s: float) -> bool:
        """Whether this process has sent the command in the last RETRY_AFTER_S."""
        return self.sent_at_s is not None and now_s - self.sent_at_s <= RETRY_AFTER_S


class CommandStates:
    """Commands of the last day, and the open ones of each device. A command is open until it gets a final state or is closed here."""

    def __init__(self) -> None:
        self._all: dict[str, ActiveCommand] = {}
        """Commands by id, in the order of the stream."""
        self._by_device: dict[str, dict[str, ActiveCommand]] = {}
        """Commands by device and id, in the order of the stream."""
        self._open: dict[str, list[ActiveCommand]] = {}
        """Open commands by device."""
        self._expiry: Moments[str] = Moments()
        """When each open command expires, by its id."""

    def __iter__(self) -> Iterator[ActiveCommand]:
        return iter(self._all.values())

    def get(self, command_id: str) -> ActiveCommand | None:
        """Returns the command with an id, or None if the id is unknown."""
        return self._all.get(command_id)

    def of_device(self, device_id: str) -> list[ActiveCommand]:
        """Returns a device's commands, newest first."""
        return list(reversed(self._by_device.get(device_id, {}).values()))

    def unexpired(self, device_id: str, now_ms: int) -> list[ActiveCommand]:
        """Returns the open commands of a device that aren't expired, oldest first."""
        return [active for active in self._open.get(device_id, ()) if active.command.expires_at_ms > now_ms]

    def pop_expired(self, now_ms: int) -> list[ActiveCommand]:
        """Returns the open commands that have expired, each of them once. The caller closes them."""
        return [self._all[command_id] for command_id in self._expiry.pop_due(now_ms)]

    def with_open(self, device_ids: Set[str]) -> Set[str]:
        """Returns the given devices that have open commands."""
        return self._open.keys() & device_ids

    def open_intervals(self, device_id: str) -> list[ActiveCommand]:
        """Returns the open commands of a device that set its interval, oldest first."""
        return [active for active in self._open.get(device_id, ()) if sets_interval(active.command)]

    def add(self, command: command_pb2.Command, now_ms: int) -> ActiveCommand | None:
        """Adds a command. Returns None if it is known already, or over since so long that it isn't listed."""
        active = ActiveCommand(command, since_ms=command.issued_at_ms)
        if command.command_id in self._all or active.is_over(now_ms):
            return None
        self._all[command.command_id] = active
        self._by_device.setdefault(command.device_id, {})[command.command_id] = active
        self._open.setdefault(command.device_id, []).append(active)
        self._expiry.set(command.command_id, command.expires_at_ms)
        return active

    def apply(self, step: command_pb2.CommandStep) -> ActiveCommand | None:
        """Applies a step to its command, and returns the command.

        Returns None if the step changes nothing: its command is unknown or final, or the step doesn't advance the state.
        """
        active = self._all.get(step.command_id)
        if active is None or active.is_final or step.state <= active.state:
            return None
        active.state, active.since_ms, active.reason = step.state, step.at_ms, step.reason
        if step.state in _FINAL_STATES:
            self._remove_open(active)
        return active

    def close(self, active: ActiveCommand, reason: str) -> None:
        """Closes a command for a reason, so that it is sent no more."""
        active.closed_because = reason
        self._remove_open(active)

    def _remove_open(self, active: ActiveCommand) -> None:
        self._expiry.drop(active.command.command_id)
        opened = self._open.get(active.command.device_id, [])
        if active in opened:
            opened.remove(active)
        if not opened:
            self._open.pop(active.command.device_id, None)

    def forget(self, now_ms: int) -> None:
        """Drops the final commands that aren't listed any more."""
        over = []
        for active in self._all.values():
            if active.command.issued_at_ms >= now_ms - MESH_KEPT_MS:
                break  # the later ones are younger
            if active.is_final and active.is_over(now_ms):
                over.append(active)
        for active in over:
            del self._all[active.command.command_id]
            of_device = self._by_device[active.command.device_id]
            del of_device[active.command.command_id]
            if not of_device:
                del self._by_device[active.command.device_id]
