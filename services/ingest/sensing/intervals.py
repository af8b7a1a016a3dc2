"""Interval commands of the stream COMMANDS as asks, and the commands that correct a device when the ask in effect has changed."""

from __future__ import annotations

import math
from collections.abc import Iterator

from services.common import ids
from services.ingest.sensing.asks import Asker, Correction, DeviceAsks, IntervalAsk
from tandem.common.v1 import command_pb2

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
