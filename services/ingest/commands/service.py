"""Commands for devices: given over the sender that a device was last heard by, again and again until a receipt or their end.

All ingest processes follow the same stream, so whichever hears a device has its commands.
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
from services.common.messaging.bus import AlreadyThere, Bus
from services.common.messaging.cursors import StreamCursor, StreamWentBack
from services.common.observability.readiness import ReaderHealth
from services.common.rpc.errors import Conflict, InvalidField
from services.ingest import metrics
from services.ingest.admission.routes import Routes
from services.ingest.domain import Sender
from tandem.common.v1 import command_pb2
from tandem.ingest.v1 import ingest_pb2

BY = "ingest"
"""User of the server under which desks' commands are published."""
RETRY_AFTER_S = 15.0
"""A command that was given and has no receipt is given again at a contact so much later, wall time."""
KEPT_MS = 86_400_000
"""How long a command is listed."""
CHECK_INTERVAL_S = 1.0
FORGET_EVERY = 30
"""Looks between which closed sessions are remembered."""
STEPS_IN_FLIGHT = 8
FOLLOWED_WITHIN_S = 2.0
SUPERSEDED = "superseded by a newer interval"

_INTERVALS = ("report_every", "report_as_usual")

State = command_pb2.CommandState
_OVER = (State.COMMAND_STATE_RECEIVED, State.COMMAND_STATE_REFUSED, State.COMMAND_STATE_EXPIRED)


class CommandSession(Protocol):
    """A way to a sender."""

    sender: Sender
    open: bool

    def give(self, command: ingest_pb2.DeviceCommand) -> bool:
        """Gives a command; false where the way is closed or jammed."""


@dataclass(slots=True)
class ActiveCommand:
    """A command and how far it is."""

    command: command_pb2.Command
    state: State.ValueType = State.COMMAND_STATE_WAITING
    since_ms: int = 0
    reason: str = ""
    given_at_s: float = field(default=float("-inf"))
    """When this process last gave it, by the monotonic clock."""
    given_to: CommandSession | None = None
    said: dict[int, asyncio.Future[None]] = field(default_factory=dict)
    """States that this process has said it came to; each is done once that is stored."""

    @property
    def over(self) -> bool:
        """Whether nothing more is to be done."""
        return self.state in _OVER


class Commands:
    """What devices are told."""

    def __init__(self, bus: Bus, routes: Routes, clock: MeshClock, health: ReaderHealth | None = None) -> None:
        self._health = health
        self._bus, self._routes, self._clock = bus, routes, clock
        self._all: dict[str, ActiveCommand] = {}
        """By id, in the order of the stream."""
        self._waiting: dict[str, list[ActiveCommand]] = {}
        """By device: those that aren't over."""
        self._sessions: dict[str, CommandSession] = {}
        self._steps: asyncio.Queue[tuple[command_pb2.CommandStep | command_pb2.Command, asyncio.Future[None]]] = (
            asyncio.Queue()
        )
        """Steps on their way into the stream, and commands that it lost."""
        self._behind: StreamCursor | None = None
        """The message up to which the stream is read."""
        self._progress = asyncio.Event()

    # ── from those who command ───────────────────────────────────────────────────────────────────────────────────────

    async def command(self, command: command_pb2.Command) -> command_pb2.Command:
        """Puts a command into the stream and returns it as it stands there: the first with its id.

        Raises Conflict where that says something else, StoreFull or Unavailable (perhaps stored: command again).
        """
        subject = flow.command_subject(BY, command.command_id)
        try:
            ack = await self._bus.publish(subject, command.SerializeToString(), expected_last=0)
        except AlreadyThere:
            data = await self._bus.last_of(flow.COMMANDS.name, subject)
            try:
                first = stored.command(data or b"", subject)
            except InvalidField as error:
                raise Conflict(f"what is stored under this command_id is no command ({error})") from None
            if (first.device_id, first.instruction) != (command.device_id, command.instruction):
                raise Conflict("another command has this command_id") from None
            return first
        async with asyncio.timeout(FOLLOWED_WITHIN_S):
            while self._behind is None or self._behind.sequence < ack.seq:
                self._progress.clear()
                await self._progress.wait()
        return command

    def of_device(self, device_id: str) -> list[ActiveCommand]:
        """The device's commands of the last day, the newest first."""
        return [one for one in reversed(self._all.values()) if one.command.device_id == device_id]

    # ── to and from the devices ──────────────────────────────────────────────────────────────────────────────────────

    def heard(self, over: Mapping[str, CommandSession]) -> None:
        """Devices were heard, each over a session: their commands go down it, now and from now on."""
        self._sessions.update(over)
        if self._waiting:
            for device_id in self._waiting.keys() & over.keys():
                self._give_all(device_id, over[device_id])

    def for_contact(self, device_ids: Iterable[str]) -> list[ingest_pb2.DeviceCommand]:
        """What waits for devices that were heard without a session, to be given with the answer; then call `sent`."""
        now_s = time.monotonic()
        found = []
        for device_id in dict.fromkeys(device_ids):
            for one in self._live(device_id):
                if now_s - one.given_at_s > RETRY_AFTER_S:
                    one.given_at_s = now_s
                    found.append(to_device(one.command))
        return found

    def sent(self, commands: Iterable[ingest_pb2.DeviceCommand]) -> None:
        """Notes that commands went out with an answer."""
        for command in commands:
            standing = self._all.get(command.command_id)
            if standing is not None:
                self._say(standing, State.COMMAND_STATE_SENT)

    def receipts(self, sender: Sender, receipts: Sequence[ingest_pb2.CommandReceipt]) -> Sequence[asyncio.Future[None]]:
        """Takes receipts; what it returns is done once they are stored.

        One for what the sender has no part in, or what isn't waited for, changes nothing and is counted.
        """
        stored = []
        for receipt in receipts:
            standing = self._all.get(receipt.command_id)
            if (
                standing is None
                or standing.command.device_id != receipt.device_id
                or receipt.device_id not in self._routes.allowed(sender)
            ):
                metrics.RECEIPTS_UNKNOWN.inc()
            elif not standing.over:
                state = State.COMMAND_STATE_REFUSED if receipt.refused_because else State.COMMAND_STATE_RECEIVED
                stored.append(self._say(standing, state, receipt.refused_because))
        return stored

    # ── the stream ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def load(self) -> None:
        """Reads what the stream holds, before anybody is heard: what is over by now is given to nobody."""
        bounds = await self._bus.bounds_of(flow.COMMANDS.name)
        if bounds.first > bounds.last:
            return
        async for messages in pull.read(self._bus, flow.COMMANDS.name, bounds.first):
            self._read(messages)
            if messages[-1].sequence >= bounds.last:
                return

    async def follow(self) -> None:
        """Follows the stream for ever; where it went back it is read once more from its start: what is known changes nothing."""
        while True:
            try:
                async for messages in pull.read(self._bus, flow.COMMANDS.name, self._behind or 1, health=self._health):
                    self._read(messages)
            except StreamWentBack as error:
                cursors.alarm(error)
                self._behind = None
                self._put_back()

    def _put_back(self) -> None:
        """Has desks' open commands, and the states that commands came to, published again; the server refuses what is there.

        A notice is the warning leg's to publish. It stays here, and is given to its device, as long as this process runs.
        """
        for standing in self._all.values():
            if not standing.over and not standing.command.command_id.startswith(flow.NOTICE_IDS):
                self._steps.put_nowait((standing.command, asyncio.get_running_loop().create_future()))
            if standing.state != State.COMMAND_STATE_WAITING:
                self._steps.put_nowait((self._step_of(standing), asyncio.get_running_loop().create_future()))

    def _read(self, messages: Sequence[pull.Delivered]) -> None:
        for message in messages:
            try:
                if message.subject.startswith("command_step."):
                    self._step(stored.command_step(message.data, message.subject))
                else:
                    self._command(stored.command(message.data, message.subject))
            except InvalidField as error:
                dead_letters.pass_over("ingest-commands", message.stream, message.sequence, error)
        self._behind = messages[-1].cursor
        self._progress.set()

    async def publish_steps(self) -> None:
        """Puts what became of commands into the stream, for ever. Of each state the first is kept."""
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
        """Ends what is over, for ever. Every process does, the first counts."""
        looks = 0
        while True:
            await asyncio.sleep(CHECK_INTERVAL_S)
            looks += 1
            if looks % FORGET_EVERY == 0:
                self._sessions = {device_id: session for device_id, session in self._sessions.items() if session.open}
            now_ms = self._clock.now_ms()
            for standings in list(self._waiting.values()):
                for standing in list(standings):
                    if standing.command.expires_at_ms <= now_ms:
                        self._end(standing, "")
            for command_id, one in list(self._all.items()):
                if one.command.issued_at_ms >= now_ms - KEPT_MS:
                    break
                if one.over:
                    del self._all[command_id]

    def _command(self, command: command_pb2.Command) -> None:
        if command.command_id in self._all:
            return  # the stream is read once more
        standing = ActiveCommand(command, since_ms=command.issued_at_ms)
        self._all[command.command_id] = standing
        if command.instruction.WhichOneof("kind") in _INTERVALS:
            # An older interval that was given again later would undo the newer one.
            for other in list(self._waiting.get(command.device_id, ())):
                if other.command.instruction.WhichOneof("kind") in _INTERVALS:
                    self._end(other, SUPERSEDED)
        self._waiting.setdefault(command.device_id, []).append(standing)
        session = self._sessions.get(command.device_id)
        if session is not None:
            self._give_all(command.device_id, session)

    def _step(self, step: command_pb2.CommandStep) -> None:
        standing = self._all.get(step.command_id)
        if standing is None or standing.over or step.state <= standing.state:
            return
        standing.state, standing.since_ms, standing.reason = step.state, step.at_ms, step.reason
        if step.state in _OVER:
            self._drop(standing)

    def _live(self, device_id: str) -> list[ActiveCommand]:
        now_ms = self._clock.now_ms()
        return [one for one in self._waiting.get(device_id, ()) if one.command.expires_at_ms > now_ms]

    def _give_all(self, device_id: str, session: CommandSession) -> None:
        if device_id not in self._routes.allowed(session.sender):
            return  # it was bound to somebody else since it was heard
        now_s = time.monotonic()
        for one in self._live(device_id):
            if one.given_to is session and now_s - one.given_at_s < RETRY_AFTER_S:
                continue
            if not session.give(to_device(one.command)):
                return
            one.given_to, one.given_at_s = session, now_s
            self._say(one, State.COMMAND_STATE_SENT)

    def _end(self, standing: ActiveCommand, reason: str) -> None:
        self._drop(standing)
        self._say(standing, State.COMMAND_STATE_EXPIRED, reason)

    def _drop(self, standing: ActiveCommand) -> None:
        waiting = self._waiting.get(standing.command.device_id, [])
        if standing in waiting:
            waiting.remove(standing)
        if not waiting:
            self._waiting.pop(standing.command.device_id, None)

    def _say(self, standing: ActiveCommand, state: State.ValueType, reason: str = "") -> asyncio.Future[None]:
        """Has a state stored, once; done when it is."""
        said = standing.said.get(state)
        if said is None:
            said = standing.said[state] = asyncio.get_running_loop().create_future()
            self._steps.put_nowait((self._step_of(standing, state, reason), said))
        return said

    def _step_of(
        self, standing: ActiveCommand, state: State.ValueType | None = None, reason: str = ""
    ) -> command_pb2.CommandStep:
        """That a command comes to a state now; without one the state that it has."""
        return command_pb2.CommandStep(
            command_id=standing.command.command_id,
            device_id=standing.command.device_id,
            state=standing.state if state is None else state,
            at_ms=standing.since_ms if state is None else self._clock.now_ms(),
            reason=standing.reason if state is None else reason,
        )


def to_device(command: command_pb2.Command) -> ingest_pb2.DeviceCommand:
    """The command as its device gets it."""
    return ingest_pb2.DeviceCommand(
        command_id=command.command_id,
        device_id=command.device_id,
        instruction=command.instruction,
        expires_at=times.to_timestamp(command.expires_at_ms),
    )
