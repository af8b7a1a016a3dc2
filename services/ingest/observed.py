"""What devices do, by their accepted reports: the interval that they keep, the requests for a position that they answer, their charge.

Only devices of which something is asked are observed, so that the path of the reports costs one look-up for each position.

A device may report to several processes in turn. Each of them must know all fixes, or it would see an interval that is too long. So
fixes of asked devices, and battery charges of all, are shared with the other ingest processes by the stream OBSERVED.
"""

from __future__ import annotations

import asyncio
import bisect
import enum
import itertools
import statistics
import uuid
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

import grpc.aio

from services.common import fields, times
from services.common.errors import RetryableError
from services.common.messaging import cursors, dead_letters, flow, pull, stored
from services.common.messaging.bus import Bus
from services.common.messaging.cursors import StreamCursor, StreamWentBack
from services.common.observability.health import ReaderHealth
from services.common.observability.telemetry import logger
from services.common.rpc import server
from services.ingest.admission.routes import DEVICE_KINDS, Routes
from services.ingest.domain import LIVE_MS, BatteryCharge, Positions, ReportedBatteries, ReportedCharge
from tandem.common.v1 import command_pb2, log_pb2
from tandem.ingest.v1 import battery_pb2, battery_pb2_grpc, ingest_pb2

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


SHARE_INTERVAL_S = 5.0
MESSAGE_FIXES = 10_000
"""Maximum number of fixes in a message."""


class ObservedSharing:
    """Publishes this process's fixes and charges, and reads those of the others."""

    def __init__(
        self, bus: Bus, observed: ObservedReports, batteries: ReportedBatteries, *, health: ReaderHealth | None = None
    ) -> None:
        self._bus = bus
        self._observed = observed
        self._batteries = batteries
        self._health = health
        self._subject = flow.observed_subject(uuid.uuid4().hex)
        self._cursor: StreamCursor | None = None
        """Position up to which the stream is read."""

    async def publish(self) -> None:
        """Publishes the new fixes and charges every SHARE_INTERVAL_S until cancelled. If it can't, they are dropped, because newer ones
        follow."""
        while True:
            await asyncio.sleep(SHARE_INTERVAL_S)
            fixes = self._observed.unshared()
            try:
                for first in range(0, len(fixes), MESSAGE_FIXES):
                    device_ids, fix_times_ms = zip(*fixes[first : first + MESSAGE_FIXES], strict=True)
                    message = ingest_pb2.ObservedFixes(device_ids=device_ids, fix_times_ms=fix_times_ms)
                    await self._bus.publish(self._subject, message.SerializeToString())
                await self._publish_charges()
            except RetryableError as error:
                logger().warning("fixes_not_shared", fixes=len(fixes), reason=error.reason)

    async def _publish_charges(self) -> None:
        charges = self._batteries.unshared()
        for first in range(0, len(charges), MESSAGE_FIXES):
            device_ids, charge_pcts, fix_times_ms = zip(*charges[first : first + MESSAGE_FIXES], strict=True)
            message = battery_pb2.ReportedCharges(
                device_ids=device_ids, charge_pcts=charge_pcts, fix_times_ms=fix_times_ms
            )
            await self._bus.publish(self._subject, ingest_pb2.ObservedFixes(charges=message).SerializeToString())

    async def follow(self) -> None:
        """Follows the stream until cancelled. A fix or charge that is known already changes nothing."""
        while True:
            try:
                async for messages in pull.read(self._bus, flow.OBSERVED.name, self._cursor or 1, health=self._health):
                    others = [message for message in messages if message.subject != self._subject]
                    for fixes in dead_letters.parse_or_pass_over(
                        self._bus, "ingest-observed", others, parse=lambda data, _: stored.observed_fixes(data)
                    ):
                        self._observed.accepted_elsewhere(zip(fixes.device_ids, fixes.fix_times_ms, strict=True))
                        self._batteries.accepted_elsewhere(
                            map(
                                ReportedCharge,
                                fixes.charges.device_ids,
                                fixes.charges.charge_pcts,
                                fixes.charges.fix_times_ms,
                            )
                        )
                    self._cursor = messages[-1].cursor
            except StreamWentBack as error:
                cursors.alarm(self._bus, error)
                self._cursor = None


MAX_DEVICES = 1_000


class BatteryApi(battery_pb2_grpc.BatteryServiceServicer):
    """Lists devices by their battery charge."""

    def __init__(self, batteries: ReportedBatteries, routes: Routes) -> None:
        self._batteries, self._routes = batteries, routes

    async def ListBatteries(
        self, request: battery_pb2.ListBatteriesRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> battery_pb2.ListBatteriesResponse:
        kinds = DEVICE_KINDS[server.caller().role]
        if request.device_id:
            return battery_pb2.ListBatteriesResponse(devices=self._only(request.device_id, kinds))
        max_pct = fields.number("max_pct", request.max_pct, 0, greatest=100) if request.HasField("max_pct") else 100
        answer = battery_pb2.ListBatteriesResponse()
        for device_id, charge in self._batteries.lowest_first(max_pct):
            known = self._routes.registration(device_id)
            if known is None or known.revoked or known.kind not in kinds:
                continue
            if len(answer.devices) >= MAX_DEVICES:
                answer.incomplete = True
                break
            answer.devices.append(_row(device_id, known.subject_id, charge))
        return answer

    def _only(self, device_id: str, kinds: Collection[log_pb2.DeviceKind.ValueType]) -> list[battery_pb2.DeviceBattery]:
        known = self._routes.required(device_id, kinds)
        charge = self._batteries.get(device_id)
        return [] if charge is None else [_row(device_id, known.subject_id, charge)]


def _row(device_id: str, subject_id: str, charge: BatteryCharge) -> battery_pb2.DeviceBattery:
    row = battery_pb2.DeviceBattery(
        device_id=device_id,
        subject_id=subject_id,
        charge_pct=charge.charge_pct,
        reported_at=times.to_timestamp(charge.at_ms),
    )
    if charge.empty_ms is not None and charge.empty_ms <= times.MAX_MS:
        row.empty_at.CopyFrom(times.to_timestamp(charge.empty_ms))
    return row
