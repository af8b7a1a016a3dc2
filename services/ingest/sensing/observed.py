"""What devices do, by the times of their fixes: the interval that they keep, and the requests for a position that they answer.

Only devices of which something is asked are observed, so that the path of the reports costs one look-up for each position.
"""

from __future__ import annotations

import bisect
import enum
import itertools
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field

from services.ingest.domain import LIVE_MS, Positions
from tandem.common.v1 import command_pb2

FIXES = 9
"""Number of fixes that are kept of a device: 8 gaps."""
MIN_FIXES = 4
"""Minimum number of fixes for an interval. The median of 3 gaps isn't changed by one lost report, nor by one step of the clock."""
OBSERVED_MS = 1_800_000
"""Maximum age of a fix that counts, milliseconds. It is longer where a longer interval is asked."""
TOLERANCE, TOLERANCE_MS = 1.25, 5_000
"""A device keeps an interval if its own is at most so many times as long, plus this time: it may have to search for satellites
before it has a fix."""
MISSED_INTERVALS, MISSED_MS = 3, 30_000
"""A device that didn't report for so many intervals, plus this time, doesn't keep the interval."""
SLOW_MS = 150_000
"""Interval from which on silence and the end of an incident are noticed late: the decision counts a device as silent after 180 s."""
ASKED_ABOUT_MS = 3_600_000
"""Time for which a device is observed after somebody asked about it, milliseconds."""


class Obedience(enum.IntEnum):
    """Whether a device keeps the interval in effect; the numbers are those of the proto's Obedience."""

    NOT_ASKED = 1
    NOT_YET = 2
    YES = 3
    NO = 4


@dataclass(slots=True)
class ObservedDevice:
    """Reports of one device."""

    until_ms: int = 0
    """When it isn't observed any more, mesh time."""
    interval_s: int = 0
    """Interval that was delivered last, seconds. 0 if the device reports as usual."""
    since_ms: int = 0
    """When the first of the commands for this interval was delivered, mesh time."""
    fixes_ms: list[int] = field(default_factory=list)
    """Times of its newest fixes, in order."""
    locating: command_pb2.Command | None = None
    """Request for its position that waits for an answer."""
    locates_sent: int = 0
    locates_answered: int = 0

    def accept(self, fix_time_ms: int) -> None:
        """Adds a fix. It may be older than the newest, as another process may have accepted it."""
        fixes_ms = self.fixes_ms
        if not fixes_ms or fix_time_ms > fixes_ms[-1]:
            fixes_ms.append(fix_time_ms)
        else:
            index = bisect.bisect_left(fixes_ms, fix_time_ms)
            if fixes_ms[index] == fix_time_ms:
                return
            fixes_ms.insert(index, fix_time_ms)
        if len(fixes_ms) > FIXES:
            del fixes_ms[0]
        self._answer(fix_time_ms)

    def locate(self, command: command_pb2.Command) -> None:
        """Notes a request for the position. Its answer may have come before the stream said that it was sent."""
        self.locates_sent += 1
        self.locating = command
        for fix_time_ms in self.fixes_ms:
            self._answer(fix_time_ms)

    def _answer(self, fix_time_ms: int) -> None:
        if self.locating is not None and fix_time_ms >= self.locating.issued_at_ms:
            self.locates_answered += fix_time_ms <= self.locating.expires_at_ms
            self.locating = None

    def interval_ms(self, now_ms: int, from_ms: int = 0) -> float | None:
        """Returns the median gap between its newest fixes from a time on, milliseconds. None if there are fewer than MIN_FIXES."""
        from_ms = max(from_ms, now_ms - max(OBSERVED_MS, FIXES * self.interval_s * 1000))
        fixes = [fix_ms for fix_ms in self.fixes_ms if fix_ms >= from_ms]
        if len(fixes) < MIN_FIXES:
            return None
        return statistics.median(later - earlier for earlier, later in itertools.pairwise(fixes))

    def obeys(self, interval_s: int, now_ms: int) -> Obedience:
        """Returns whether the device keeps an interval that it was asked for. Only its reports count, not its receipt."""
        if self.interval_s != interval_s:
            return Obedience.NOT_YET
        asked_ms = interval_s * 1000
        newest_ms = max(self.since_ms, self.fixes_ms[-1] if self.fixes_ms else 0)
        if now_ms - newest_ms > MISSED_INTERVALS * asked_ms + MISSED_MS:
            return Obedience.NO
        observed_ms = self.interval_ms(now_ms, self.since_ms)
        if observed_ms is None:
            return Obedience.NOT_YET
        return Obedience.YES if observed_ms <= TOLERANCE * asked_ms + TOLERANCE_MS else Obedience.NO


class ObservedReports:
    """Fixes of the devices of which something is asked, as this process and the others accepted them."""

    def __init__(self) -> None:
        self._devices: dict[str, ObservedDevice] = {}
        self._unshared: list[tuple[str, int]] = []
        """Fixes that the other processes haven't been told of, by device and time."""

    def get(self, device_id: str) -> ObservedDevice:
        """Returns what was observed of a device."""
        return self._devices.get(device_id) or ObservedDevice()

    def watch(self, device_id: str, until_ms: int) -> None:
        """Observes a device until a time, mesh time."""
        device = self._devices.setdefault(device_id, ObservedDevice())
        device.until_ms = max(device.until_ms, until_ms)

    def accepted(self, positions: Positions, now_ms: int) -> None:
        """Notes accepted positions. Buffered ones say nothing about the interval that a device keeps now."""
        devices = self._devices
        if not devices:
            return
        live_from_ms = now_ms - LIVE_MS
        for device_id, fix_time_ms in zip(positions.device_ids, positions.fix_times_ms, strict=True):
            device = devices.get(device_id)
            if device is not None and fix_time_ms >= live_from_ms:
                device.accept(fix_time_ms)
                self._unshared.append((device_id, fix_time_ms))

    def unshared(self) -> list[tuple[str, int]]:
        """Returns the fixes that weren't returned before, by device and time."""
        fixes, self._unshared = self._unshared, []
        return fixes

    def accepted_elsewhere(self, fixes: Iterable[tuple[str, int]]) -> None:
        """Notes fixes that another process accepted, by device and time. That process observes the devices, so this one does, too."""
        for device_id, fix_time_ms in fixes:
            self.watch(device_id, fix_time_ms + OBSERVED_MS)
            self._devices[device_id].accept(fix_time_ms)

    def sent(self, command: command_pb2.Command) -> None:
        """Notes that a command was sent to its device, once. Of the kinds, only the request for the position counts here."""
        if command.instruction.HasField("locate_now"):
            self.watch(command.device_id, command.expires_at_ms + ASKED_ABOUT_MS)
            self._devices[command.device_id].locate(command)

    def delivered(self, command: command_pb2.Command, at_ms: int) -> None:
        """Notes that the command for an interval was delivered. A renewed interval counts from its first command on."""
        self.watch(command.device_id, command.expires_at_ms)
        device, interval_s = self._devices[command.device_id], command.instruction.report_every.interval_s
        if interval_s != device.interval_s:
            device.interval_s, device.since_ms = interval_s, at_ms

    def forget(self, now_ms: int) -> None:
        """Drops the devices that aren't observed any more."""
        self._devices = {id_: device for id_, device in self._devices.items() if device.until_ms > now_ms}
