"""Checks of a batch's reports: whether each device is the sender's own, its clock isn't ahead, and its rate is within bounds.

Refused reports are counted by device, sender and reason. The reports' content isn't kept, because no legal basis allows it. Every few
seconds the counts go into a stream of bounded size. So they outlive the process, and the counts of all processes add up.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter
from typing import NamedTuple, cast

from services.common import times
from services.common.clock import MeshClock
from services.common.errors import RetryableError
from services.common.messaging import dead_letters, flow, stored
from services.common.messaging.bus import Bus
from services.common.observability.telemetry import logger
from services.ingest.admission.routes import Partitions, PresenceRefused, Routes, read_held
from services.ingest.batch import Contexts, Reports
from services.ingest.domain import (
    FUTURE_MS,
    EquipmentEvent,
    Positions,
    Reason,
    Refusal,
    ReportedCharge,
    Sender,
    UnitPresence,
)
from services.ingest.metrics import IngestMetrics
from tandem.ingest.v1 import ingest_pb2

BACKFILL_BURSTS = 20
"""Number of bursts that buffered reports may use at once. With a burst of 300, that is 6,000 reports:
about a day of one report every 15 s."""
REFUSALS_PER_S, REFUSALS_BURST = 1_000.0, 5_000
"""Refused reports that a sender may have without a penalty delay: per second in the long run, and at once."""
MAX_PENALTY_S = 30.0
"""Maximum penalty delay of a sender, seconds, however many reports were refused. So the sender can report again soon."""


class RateLimit:
    """Rate limit per key: `per_s` in the long run and `burst` at once. Generic cell rate algorithm (ITU-T I.371)."""

    def __init__(self, per_s: float, burst: int) -> None:
        self._interval_s = 1 / per_s
        self._max_due_ahead_s = burst / per_s
        self._due_s: dict[str, float] = {}
        """By key: when its next report would be due if its reports so far were spaced evenly, seconds."""

    def over(self, device_ids: Sequence[str], now_s: float) -> list[int]:
        """Counts a report for each of these devices. Returns the indexes of the reports over the limit; these aren't counted."""
        due_s = self._due_s
        interval_s = self._interval_s
        latest_s = now_s + self._max_due_ahead_s
        refused: list[int] = []
        for i, device_id in enumerate(device_ids):
            due = due_s.get(device_id, now_s)
            due = (now_s if due < now_s else due) + interval_s
            if due > latest_s:
                refused.append(i)
            else:
                due_s[device_id] = due
        return refused

    def penalty_s(self, sender: str, now_s: float) -> float:
        """Returns the time that a sender has to wait until it is within its rate, seconds."""
        return max(0.0, self._due_s.get(sender, now_s) - now_s - self._max_due_ahead_s)

    def charge(self, sender: str, count: int, now_s: float) -> float:
        """Counts `count` reports of a sender and returns the sender's penalty delay, seconds. A count of 0 causes none."""
        if not count:
            return 0.0
        due_s = max(self._due_s.get(sender, now_s), now_s) + count * self._interval_s
        self._due_s[sender] = min(due_s, now_s + self._max_due_ahead_s + MAX_PENALTY_S)
        return self.penalty_s(sender, now_s)

    def forget(self, now_s: float) -> None:
        """Drops the keys whose due time has passed. They are treated like unknown keys anyway."""
        self._due_s = {device_id: due for device_id, due in self._due_s.items() if due > now_s}


class RateLimits:
    """Separate rate limits for each kind of report and for refused reports, so that none uses up another's."""

    def __init__(self, per_s: float, burst: int) -> None:
        self.live = RateLimit(per_s, burst)
        self.backfill = RateLimit(per_s, BACKFILL_BURSTS * burst)
        self.events = RateLimit(per_s, burst)
        self.presences = RateLimit(per_s, burst)
        """Rate limit of presences, of contacts without a position, and of contacts by reports with a clock that is ahead."""
        self.refusals = RateLimit(REFUSALS_PER_S, REFUSALS_BURST)
        """Rate limit of refused reports, by `Sender.refusal_key`."""

    def forget(self, now_s: float) -> None:
        """Drops the keys of all limits that are in the state of an unknown key."""
        for limit in (self.live, self.backfill, self.events, self.presences, self.refusals):
            limit.forget(now_s)


FLUSH_INTERVAL_S = 5.0
MAX_KEYS = 10_000
"""Maximum number of keys between two flushes. Refusals with further keys are counted without their device."""
MAX_SENDER_KEYS = 500
"""Maximum number of the keys of a vendor or a phone, so that a sender of invented ids doesn't displace the counts of others."""
MESSAGE_KEYS = 1_000
MAX_LISTED = 10_000
FULL_SHARE = 0.9
"""Fill level of the stream, 0 to 1, from which missing old messages count as dropped for its size. Below it they only aged out."""

_COUNT_MAX = (1 << 63) - 1


class _Key(NamedTuple):
    """Key of a count of refused reports."""

    device_id: str
    sender: str
    code: int

    @classmethod
    def of(cls, quarantined: ingest_pb2.Quarantined) -> _Key:
        return cls(quarantined.device_id, quarantined.sender, quarantined.code)


class Quarantine:
    """Counts refused reports, and lists the counts of all processes."""

    def __init__(self, bus: Bus, clock: MeshClock, metrics: IngestMetrics) -> None:
        self._bus = bus
        self._clock = clock
        self._metrics = metrics
        self._subject = flow.quarantine_subject(uuid.uuid4().hex)
        self._counts: dict[_Key, ingest_pb2.Quarantined] = {}
        self._keys_of: Counter[str] = Counter()
        """Number of keys since the last flush, by the SPIFFE id of the vendor, or the device of the phone."""
        self._devices_merged = False
        """Whether a refusal was counted without its device since the last flush, because there were too many keys."""

    def refused(self, sender: str, device_id: str, reason: Reason, *, phone_id: str = "") -> None:
        """Counts a refused report. `device_id` may be any text; a text of more than 64 characters is dropped.

        `phone_id` is the device whose token the request had. Phones have no SPIFFE id, so without it they would share one bound.
        """
        self._metrics.refused.labels(reason.name).inc()
        now = times.to_timestamp(self._clock.now_ms())
        quarantined = ingest_pb2.Quarantined(
            device_id=device_id if len(device_id) <= 64 else "",
            sender=sender,
            code=ingest_pb2.RefusalCode.ValueType(reason.value),
            count=1,
            first=now,
            last=now,
        )
        self._count(quarantined, sender or phone_id)

    async def run(self) -> None:
        """Flushes the counts every FLUSH_INTERVAL_S until cancelled, and once at the end."""
        try:
            while True:
                await asyncio.sleep(FLUSH_INTERVAL_S)
                await self._flush()
        finally:
            await self._flush()

    async def listed(self, device_id: str) -> ingest_pb2.ListQuarantineResponse:
        """Returns the counts of all processes for a device or, if `device_id` is empty, for all devices. Raises Unavailable."""
        totals: dict[_Key, ingest_pb2.Quarantined] = {}
        stream = flow.QUARANTINE.name
        bounds, merged = await self._bus.bounds_of(stream), self._devices_merged
        async for messages in read_held(self._bus, stream, bounds):
            own = [message for message in messages if flow.QUARANTINE.holds(message.subject)]
            for counts in dead_letters.parse_or_pass_over(
                self._bus, "ingest-quarantine", own, parse=lambda data, _: stored.quarantine_counts(data)
            ):
                merged = merged or counts.devices_merged
                _add_all(totals, counts.quarantined, device_id)
        _add_all(totals, list(self._counts.values()), device_id)
        newest = sorted(totals.values(), key=lambda quarantined: -times.from_timestamp(quarantined.last))
        return ingest_pb2.ListQuarantineResponse(
            quarantined=newest[:MAX_LISTED],
            incomplete=len(newest) > MAX_LISTED or merged or (bounds.first > 1 and await self._is_full()),
        )

    async def _is_full(self) -> bool:
        """Whether the stream drops old counts because of its size limit. Raises Unavailable."""
        answer = await self._bus.api(f"STREAM.INFO.{flow.QUARANTINE.name}", {})
        held: int = answer["state"]["bytes"]
        return held >= FULL_SHARE * flow.QUARANTINE.max_bytes

    async def _flush(self) -> None:
        flushed, self._counts = self._counts, {}
        merged, self._devices_merged = self._devices_merged, False
        self._keys_of.clear()
        left = list(flushed.values())
        while left:
            chunk, left = left[:MESSAGE_KEYS], left[MESSAGE_KEYS:]
            data = ingest_pb2.QuarantineCounts(quarantined=chunk, devices_merged=merged).SerializeToString()
            try:
                await self._bus.publish(self._subject, data)
            except RetryableError as error:
                # The outcome may be unknown: counting twice is better than losing counts.
                logger().warning("quarantine_not_kept", reason=error.reason)
                self._devices_merged = self._devices_merged or merged
                for quarantined in (*chunk, *left):
                    self._count(quarantined, quarantined.sender)
                return

    def _count(self, quarantined: ingest_pb2.Quarantined, counted_for: str) -> None:
        if _Key.of(quarantined) not in self._counts:
            if len(self._counts) >= MAX_KEYS or self._keys_of[counted_for] >= MAX_SENDER_KEYS:
                self._devices_merged = self._devices_merged or bool(quarantined.device_id)
                quarantined.device_id = ""
            self._keys_of[counted_for] += 1
        _add(self._counts, quarantined)


def _add_all(
    totals: dict[_Key, ingest_pb2.Quarantined], counts: Iterable[ingest_pb2.Quarantined], device_id: str
) -> None:
    for count in counts:
        if not device_id or count.device_id == device_id:
            _add(totals, count)


def _add(totals: dict[_Key, ingest_pb2.Quarantined], quarantined: ingest_pb2.Quarantined) -> None:
    key = _Key.of(quarantined)
    total = totals.get(key)
    if total is None:
        totals[key] = total = ingest_pb2.Quarantined()
        total.CopyFrom(quarantined)
        return
    total.count = min(total.count + quarantined.count, _COUNT_MAX)
    if times.from_timestamp(quarantined.first) < times.from_timestamp(total.first):
        total.first.CopyFrom(quarantined.first)
    if times.from_timestamp(quarantined.last) > times.from_timestamp(total.last):
        total.last.CopyFrom(quarantined.last)


_INDEX = attrgetter("index")
_REASON_TEXTS = {
    Reason.INVALID: "must be 1 to 64 characters of A-Z a-z 0-9 . _ - with single dots inside only",
    Reason.CLOCK_AHEAD: "is more than 2 minutes in the future: correct the device's clock",
    Reason.UNKNOWN_DEVICE: "is no registered device",
    Reason.REVOKED: "is a revoked device: stop sending its reports",
    Reason.NOT_YOURS: "is registered for another sender",
    Reason.TOO_OFTEN: "is over its rate limit: send this report again later",
}


class HeardDevice(NamedTuple):
    """A device of whose report the log keeps only the contact: its clock was too far ahead, or it had no position."""

    device_id: str
    report_id: str
    partitions: Partitions


class _Report(NamedTuple):
    """The parts of a report that decide whether it is accepted."""

    number: int
    """Index of the report in its batch."""
    device_id: str
    report_id: str
    time_field: str
    time_ms: int


@dataclass(slots=True)
class RoutedPositions:
    """Positions with the partitions that need each of them."""

    columns: Positions
    partitions: Sequence[Partitions]
    """Partitions of each position."""
    contexts: Contexts
    """Trace contexts of the positions. Empty if all have the context of the current task."""

    def only(self, rows: Sequence[int]) -> RoutedPositions:
        """Returns a copy with these rows only."""
        context_of = [context for count, context in self.contexts for _ in range(count)]
        return RoutedPositions(
            self.columns.only(rows),
            [self.partitions[i] for i in rows],
            [(1, context_of[i]) for i in rows] if context_of else (),
        )


@dataclass(slots=True)
class Checked:
    """Result of the checks of a batch: the accepted reports with their partitions, and the refusals."""

    positions: RoutedPositions
    refusals: list[Refusal]
    refused_devices: list[str]
    """Device id in each refused report, in the order in which the reports were refused."""
    events: list[tuple[EquipmentEvent, Partitions]] = field(default_factory=list)
    presences: list[tuple[UnitPresence, Partitions]] = field(default_factory=list)
    heard: list[HeardDevice] = field(default_factory=list)
    """Devices of refused reports that the log notes as heard."""
    contacts: list[HeardDevice] = field(default_factory=list)
    """Devices of accepted reports without a position."""
    charges: Sequence[ReportedCharge] = ()
    """Battery charges whose time isn't ahead of the mesh's, also those of refused reports."""

    @property
    def device_ids(self) -> list[str]:
        """Devices of the accepted reports."""
        others = [event.device_id for event, _ in self.events]
        others += [presence.device_id for presence, _ in self.presences]
        others += [contact.device_id for contact in self.contacts]
        return self.positions.columns.device_ids + others if others else self.positions.columns.device_ids

    def accept(self, report: _Report, route: Partitions | Reason, latest_ms: int) -> Partitions | None:
        """Returns the partitions of an accepted report, or adds a refusal and returns None. `latest_ms` is the latest accepted time."""
        if isinstance(route, Reason):
            self.refuse(report.number, report.device_id, route)
            return None
        if report.time_ms > latest_ms:
            self.refuse(report.number, report.device_id, Reason.CLOCK_AHEAD, field_name=report.time_field)
            self.heard.append(HeardDevice(report.device_id, report.report_id, route))
            return None
        return route

    def refuse(self, index: int, device_id: str, reason: Reason, *, field_name: str = "device_id") -> None:
        """Adds the refusal of a report."""
        self.refusals.append(Refusal(index=index, field=field_name, reason=_REASON_TEXTS[reason], code=reason))
        self.refused_devices.append(device_id)


class Checks:
    """Decides which reports of a batch are accepted, and counts the refused ones."""

    def __init__(self, routes: Routes, quarantine: Quarantine, rate_limits: RateLimits, *, clock: MeshClock) -> None:
        self._routes = routes
        self._quarantine = quarantine
        self._rate_limits = rate_limits
        self._clock = clock

    async def check(self, sender: Sender, reports: Reports, live_from_ms: int) -> Checked:
        """Checks each report of a batch. Positions from `live_from_ms` on are live; older ones are buffered.

        Raises Unavailable if a device can't be looked up. Then no report was counted by the rate limits or the quarantine.
        """
        allowed, device_ids = self._routes.allowed(sender), reports.positions.device_ids
        # Nearly always every device is known and every clock is right, so positions are checked together and not one by one.
        partitions = [allowed.get(device_id) for device_id in device_ids]
        missing = [device_ids[i] for i, found in enumerate(partitions) if found is None] if None in partitions else []
        events = [(event, allowed.get(event.device_id)) for event in reports.events]
        missing += [event.device_id for event, known in events if known is None]
        others = [id_ for presence in reports.presences for id_ in (presence.device_id, presence.unit_id)]
        others += [contact.device_id for contact in reports.contacts]
        current = not (missing or others) or await self._routes.is_current([*missing, *others])
        resolve = partial(self._routes.resolve, sender, is_current=current)
        routes = {device_id: await resolve(device_id) for device_id in dict.fromkeys(missing)}
        at_units = [
            await self._routes.resolve_presence(sender, presence, is_current=current) for presence in reports.presences
        ]
        contacts = [await resolve(contact.device_id) for contact in reports.contacts]
        latest_ms = self._clock.now_ms() + FUTURE_MS
        checked = Checked(
            RoutedPositions(reports.positions, cast(list[Partitions], partitions), reports.contexts),
            list(reports.unreadable),
            [reports.claimed.get(refusal.index, "") for refusal in reports.unreadable],
            # A charge of the future would count as the newest for good, and one before 1970 can't be shared.
            charges=[charge for charge in reports.charges if 0 <= charge.fix_time_ms <= latest_ms],
        )
        indexes = reports.position_indexes
        if missing or max(reports.positions.fix_times_ms, default=latest_ms) > latest_ms:
            indexes = _accept_positions(checked, reports, routes, latest_ms=latest_ms)
        self._limit_positions(checked, indexes, live_from_ms)
        for index, (event, known) in zip(reports.event_indexes, events, strict=True):
            report = _Report(
                number=index,
                device_id=event.device_id,
                report_id=event.report_id,
                time_field="event_time",
                time_ms=event.event_time_ms,
            )
            route = checked.accept(report, known or routes[event.device_id], latest_ms)
            if route and self._rate_limits.events.over([event.device_id], time.monotonic()):
                checked.refuse(index, event.device_id, Reason.TOO_OFTEN)
            elif route:
                checked.events.append((event, route))
        self._accept_presences(checked, reports, at_units, latest_ms=latest_ms)
        self._accept_contacts(checked, reports, contacts)
        self._limit_heard(checked)
        for refusal, device_id in zip(checked.refusals, checked.refused_devices, strict=True):
            self._quarantine.refused(sender.spiffe_id, device_id, refusal.code, phone_id=sender.device_id)
        checked.refusals.sort(key=_INDEX)
        return checked

    def _accept_presences(
        self, checked: Checked, reports: Reports, found: Sequence[Partitions | PresenceRefused], *, latest_ms: int
    ) -> None:
        """Accepts or refuses each presence. `found` holds the partitions of each, or why it is refused."""
        for index, presence, of_presence in zip(reports.presence_indexes, reports.presences, found, strict=True):
            device_id = presence.device_id
            if isinstance(of_presence, PresenceRefused):
                checked.refuse(index, device_id, of_presence.reason, field_name=of_presence.field)
                continue
            report = _Report(
                number=index,
                device_id=device_id,
                report_id=presence.report_id,
                time_field="seen",
                time_ms=presence.seen_ms,
            )
            route = checked.accept(report, of_presence, latest_ms)
            if route and self._rate_limits.presences.over([device_id], time.monotonic()):
                checked.refuse(index, device_id, Reason.TOO_OFTEN)
            elif route:
                checked.presences.append((presence, route))

    def _accept_contacts(self, checked: Checked, reports: Reports, found: Sequence[Partitions | Reason]) -> None:
        """Accepts or refuses each contact without a position. `found` holds the partitions of each, or why it is refused."""
        for index, contact, route in zip(reports.contact_indexes, reports.contacts, found, strict=True):
            device_id = contact.device_id
            if isinstance(route, Reason):
                checked.refuse(index, device_id, route)
            elif self._rate_limits.presences.over([device_id], time.monotonic()):
                checked.refuse(index, device_id, Reason.TOO_OFTEN)
            else:
                checked.contacts.append(HeardDevice(device_id, contact.report_id, route))

    def _limit_heard(self, checked: Checked) -> None:
        """Drops the contacts over the rate limit of their device, so that a wrong clock doesn't let a device write without a limit."""
        over = set(self._rate_limits.presences.over([heard.device_id for heard in checked.heard], time.monotonic()))
        checked.heard = [heard for i, heard in enumerate(checked.heard) if i not in over]

    def _limit_positions(self, checked: Checked, indexes: Sequence[int], live_from_ms: int) -> None:
        """Refuses the positions over the rate limit of their device. `indexes` holds the index of each position in the batch."""
        columns, now_s = checked.positions.columns, time.monotonic()
        device_ids, times_ms = columns.device_ids, columns.fix_times_ms
        # A device may send an hour of buffered positions at once. They must not use up its rate of live positions.
        if min(times_ms, default=live_from_ms) < live_from_ms:
            late = [i for i, fix_time_ms in enumerate(times_ms) if fix_time_ms < live_from_ms]
            live = [i for i, fix_time_ms in enumerate(times_ms) if fix_time_ms >= live_from_ms]
            over = {late[i] for i in self._rate_limits.backfill.over([device_ids[i] for i in late], now_s)}
            over |= {live[i] for i in self._rate_limits.live.over([device_ids[i] for i in live], now_s)}
        else:
            over = set(self._rate_limits.live.over(device_ids, now_s))
        if over:
            for i in sorted(over):
                checked.refuse(indexes[i], device_ids[i], Reason.TOO_OFTEN)
            checked.positions = checked.positions.only([i for i in range(len(columns)) if i not in over])


def _accept_positions(
    checked: Checked, reports: Reports, routes: Mapping[str, Partitions | Reason], *, latest_ms: int
) -> Sequence[int]:
    """Accepts or refuses each position by itself, and returns the indexes of the accepted positions in their batch.

    `routes` holds the partitions, or the reason for the refusal, of each device that has no partitions in `checked`.
    """
    positions, indexes = reports.positions, reports.position_indexes
    accepted: dict[int, Partitions] = {}
    for i, known in enumerate(checked.positions.partitions):
        device_id = positions.device_ids[i]
        report = _Report(
            number=indexes[i],
            device_id=device_id,
            report_id=positions.report_ids[i],
            time_field="fix_time",
            time_ms=positions.fix_times_ms[i],
        )
        if route := checked.accept(report, known or routes[device_id], latest_ms):
            accepted[i] = route
    checked.positions = checked.positions.only(list(accepted))
    checked.positions.partitions = list(accepted.values())
    return [indexes[i] for i in accepted]
