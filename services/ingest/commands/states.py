"""Commands and their states, as read from the stream of commands, and the publication of new states.

The stream keeps the first message of each state, whichever process publishes it. An interval command is an ask (`asks`); when the ask
in effect has changed, a command corrects the device.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, assert_never

from services.common import ids
from services.common.clock import MeshClock, Moments
from services.common.messaging import flow
from services.common.messaging.bus import Bus
from services.ingest.commands.asks import FOLD, Asker, Correction, DeviceAsks, IntervalAsk
from services.ingest.domain import Sender
from tandem.common.v1 import command_pb2
from tandem.ingest.v1 import ingest_pb2

DAY_S = 86_400
CORRECTION_KIND = "interval"
CORRECTION_IDS = f"{CORRECTION_KIND}-"
"""Prefix of the ids of corrections."""
CORRECTION_INTERVAL_S = 5.0
"""Minimum time between two corrections of a device by this process, seconds of wall time. It bounds the commands that two processes
with clocks far apart can send against each other. A smaller interval isn't a correction, so it never waits."""
REGULAR_CHECK = 30
"""Number of calls of `Intervals.corrections` in which each device is checked at least once."""
CORRECTED_BY = "ingest"
"""Issuer of the command with which a device returns to its usual interval, because nobody asks any more."""

_KINDS = ("report_every", "report_as_usual")


def sets_interval(command: command_pb2.Command) -> bool:
    """Whether a command sets the interval between a device's reports."""
    return command.instruction.WhichOneof("kind") in _KINDS


def duration_s(command: command_pb2.Command) -> int:
    """Duration of an interval from the issue of its command, seconds."""
    return command.instruction.report_every.for_s or DAY_S


def remaining(command: command_pb2.Command, now_ms: int) -> command_pb2.Instruction:
    """Returns a command's instruction as it is sent now: an interval holds for the time that remains.

    It never holds for longer than it was asked for, even if the clock was set back.
    """
    if command.instruction.WhichOneof("kind") != "report_every":
        return command.instruction
    instruction = command_pb2.Instruction()
    instruction.CopyFrom(command.instruction)
    left_s = math.ceil((_until_ms(command) - now_ms) / 1000)
    instruction.report_every.for_s = max(1, min(left_s, duration_s(command)))
    return instruction


class Intervals:
    """Asks for all devices."""

    def __init__(self) -> None:
        self._devices: dict[str, DeviceAsks] = {}
        self._checks = 0
        self._corrected_at_s: dict[str, float] = {}
        """Time of this process's last correction of each device, monotonic, seconds."""

    def __iter__(self) -> Iterator[str]:
        return iter(self._devices)

    def of_device(self, device_id: str) -> DeviceAsks:
        """Returns the asks for a device."""
        return self._devices.get(device_id) or DeviceAsks()

    def add(self, command: command_pb2.Command) -> str:
        """Adds an interval command. Returns the reason why it isn't sent, or an empty text."""
        device = self._devices.setdefault(command.device_id, DeviceAsks())
        if command.command_id.startswith(CORRECTION_IDS):
            return device.correct(command.command_id, command.ask_id, command.replaces)
        asker = Asker.of(command.issued_by, command.reference)
        if command.instruction.HasField("report_as_usual"):
            return device.withdraw(asker, command.command_id, command.issued_at_ms)
        return device.ask(
            IntervalAsk(
                command_id=command.command_id,
                asker=asker,
                issued_by=command.issued_by,
                reference=command.reference,
                interval_s=command.instruction.report_every.interval_s,
                issued_at_ms=command.issued_at_ms,
                until_ms=_until_ms(command),
            )
        )

    def is_in_force(self, command: command_pb2.Command, now_ms: int) -> bool:
        """Whether a command is an ask in force, or the command that its device should follow."""
        device = self._devices.get(command.device_id)
        if device is None or not sets_interval(command):
            return False
        asks = {ask.command_id for ask in device.in_force(now_ms)}
        return command.command_id in asks or (
            device.current is not None
            and device.current.command_id == command.command_id
            and device.current.ask_id in asks
        )

    def refused(self, command: command_pb2.Command, at_ms: int, reason: str) -> None:
        """Notes that a device refused the interval of a command."""
        if command.instruction.HasField("report_every"):
            device = self._devices.setdefault(command.device_id, DeviceAsks())
            device.refuse(command.instruction.report_every.interval_s, at_ms, reason)

    def expired_unsent(self, command: command_pb2.Command) -> None:
        """Notes that a command expired before it was sent to its device."""
        if command.device_id in self._devices:
            self._devices[command.device_id].end_unsent(command.command_id)

    def corrections(self, now_ms: int, now_s: float) -> list[command_pb2.Command]:
        """Returns the commands to publish for devices whose ask in effect has changed. Call it each second.

        `now_ms` is mesh time, `now_s` monotonic time in seconds.
        """
        commands = []
        self._checks += 1
        for number, (device_id, device) in enumerate(list(self._devices.items())):
            # If the clock was set back, an ask that seemed to be over is in force. So each device is checked now and then anyway.
            is_regular = (number + self._checks) % REGULAR_CHECK == 0
            if device.check_at_ms > now_ms and not is_regular:
                continue
            correction = device.correction(now_ms)
            if correction is None:
                if is_regular and device.forget(now_ms):
                    del self._devices[device_id]
                    self._corrected_at_s.pop(device_id, None)
            elif now_s - self._corrected_at_s.get(device_id, -math.inf) >= CORRECTION_INTERVAL_S:
                self._corrected_at_s[device_id] = now_s
                commands.append(_command(device_id, correction, now_ms))
        return commands


def _until_ms(command: command_pb2.Command) -> int:
    return command.issued_at_ms + duration_s(command) * 1000


def _command(device_id: str, correction: Correction, now_ms: int) -> command_pb2.Command:
    ask = correction.ask
    command = command_pb2.Command(
        # All processes make the same id for the same change, so that the stream keeps one command.
        command_id=ids.hash_id(CORRECTION_KIND, device_id, correction.replaces, ask.command_id if ask else ""),
        device_id=device_id,
        issued_at_ms=now_ms,
        expires_at_ms=ask.until_ms if ask else now_ms + DAY_S * 1000,
        issued_by=ask.issued_by if ask else CORRECTED_BY,
        reference=ask.reference if ask else "",
        ask_id=ask.command_id if ask else "",
        replaces=correction.replaces,
    )
    if ask is None:
        command.instruction.report_as_usual.SetInParent()
    else:
        command.instruction.report_every.interval_s = ask.interval_s
        command.instruction.report_every.for_s = max(1, math.ceil((ask.until_ms - now_ms) / 1000))
    return command


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
        """Returns the open commands of a device to be sent: those that aren't expired, oldest first.

        Of the warnings of one topic only the newest is sent. A phone that was off must not show what is no longer so.
        """
        opened = [active for active in self._open.get(device_id, ()) if active.command.expires_at_ms > now_ms]
        if not any(active.command.instruction.HasField("show_notice") for active in opened):
            return opened  # nearly always
        newest = {
            active.command.instruction.show_notice.topic: active
            for active in self._by_device[device_id].values()
            if active.command.instruction.HasField("show_notice")
        }
        return [
            active
            for active in opened
            if not active.command.instruction.HasField("show_notice")
            or newest[active.command.instruction.show_notice.topic] is active
        ]

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
        active.state = step.state
        active.since_ms = step.at_ms
        active.reason = step.reason
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
