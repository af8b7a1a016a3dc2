"""The path that all endpoints share: it checks reports, and writes them to the log or refuses them with a reason."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

from services.common.clock import MeshClock, wall_us
from services.common.observability import tracing
from services.common.rpc.errors import InvalidField, StoreFull
from services.ingest import metrics
from services.ingest.admission.limiter import InFlightLimiter
from services.ingest.admission.quarantine import Quarantine
from services.ingest.admission.rate_limit import RateLimits
from services.ingest.admission.routes import Partitions, Routes
from services.ingest.domain import FUTURE_MS, LIVE_MS, EquipmentEvent, Position, Positions, Reason, Refusal, Sender
from services.ingest.log.republish import LastReports
from services.ingest.log.writer import LogWriter

FORGET_INTERVAL_S = 60.0
MAX_BATCH_PENALTY_S = 1.0
"""Maximum penalty delay after a batch with many rejections, in s. It also delays the next message on the stream, which may be a
panic event, so keep it short. Senders that owe more get RESOURCE_EXHAUSTED on unary calls, unless these carry equipment events."""

_REASON_TEXTS = {
    Reason.INVALID: "must be 1 to 64 characters of A-Z a-z 0-9 . _ - with single dots inside only",
    Reason.CLOCK_AHEAD: "is more than 2 minutes in the future: correct the device's clock",
    Reason.UNKNOWN_DEVICE: "is no registered device",
    Reason.REVOKED: "is a revoked device: stop sending its reports",
    Reason.NOT_YOURS: "is registered for another sender",
    Reason.TOO_OFTEN: "is over its rate limit: send this report again later",
}


@dataclass(slots=True)
class Reports:
    """A batch of reports as an endpoint has read it."""

    count: int
    """Number of reports in the batch, with those that couldn't be read."""
    positions: Positions
    position_indexes: Sequence[int]
    """Index of each position in the batch."""
    events: Sequence[EquipmentEvent] = ()
    event_indexes: Sequence[int] = ()
    unreadable: Sequence[Refusal] = ()
    claimed: Mapping[int, str] = field(default_factory=dict)
    """Device id that each unreadable report gave, by index in the batch; empty where it gave none."""
    contexts: Sequence[tuple[int, str]] = ()
    """Number of positions in each W3C trace context, in their order, where the positions came in several calls. Empty where all of
    them have the context of the current task."""

    @classmethod
    def of(cls, read: Sequence[Position | EquipmentEvent | InvalidField], claimed: Sequence[str]) -> Reports:
        """Makes a batch of reports that were read one by one: each a report or its error, with the device id that it gave."""
        positions = [(i, report) for i, report in enumerate(read) if isinstance(report, Position)]
        events = [(i, report) for i, report in enumerate(read) if isinstance(report, EquipmentEvent)]
        errors = [(i, report) for i, report in enumerate(read) if isinstance(report, InvalidField)]
        return cls(
            len(read),
            Positions.of([position for _, position in positions]),
            [i for i, _ in positions],
            [event for _, event in events],
            [i for i, _ in events],
            [Refusal(index=i, field=error.field, reason=error.reason, code=Reason.INVALID) for i, error in errors],
            {i: claimed[i] for i, _ in errors},
        )


@dataclass(slots=True)
class _Checked:
    """Result of the checks of a batch: the accepted reports with their partitions, and the refusals."""

    positions: Positions
    routes: list[Partitions]
    """Partitions of each position."""
    refusals: list[Refusal]
    events: list[tuple[EquipmentEvent, Partitions]] = field(default_factory=list)
    heard: list[tuple[str, str, Partitions]] = field(default_factory=list)
    """Device id, report id and partitions of each report that was refused with CLOCK_AHEAD."""


class PendingBatch:
    """A batch that is being written to the log."""

    __slots__ = ("_error", "_left", "_on_end", "_waiters", "device_ids", "refusals")

    def __init__(self) -> None:
        self.refusals: list[Refusal] = []
        self.device_ids: list[str] = []
        """Devices of the accepted reports."""
        self._left = 0
        self._error: BaseException | None = None
        self._waiters: list[asyncio.Future[None]] = []
        self._on_end: Callable[[bool], None] | None = None

    def add(self, stored: asyncio.Future[None]) -> None:
        """Adds a write that the batch waits for."""
        self._left += 1
        stored.add_done_callback(self._item_ended)

    def complete(self, on_end: Callable[[bool], None]) -> None:
        """Marks that all writes are added. `on_end` is called once: with true when all are stored, with false when one failed."""
        if self._left:
            self._on_end = on_end
        else:
            on_end(True)

    @property
    def is_stored(self) -> bool:
        """Whether all accepted reports are durable."""
        return not self._left and self._error is None

    async def stored(self) -> None:
        """Returns once all accepted reports are durable. Raises StoreFull or Unavailable."""
        if self._left:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter
        if self._error is not None:
            raise self._error

    def _item_ended(self, stored: asyncio.Future[None]) -> None:
        self._left -= 1
        self._error = self._error or stored.exception()
        if self._left or self._on_end is None:
            return
        # Drop the callback, as it refers to this batch: a reference cycle would need the garbage collector.
        on_end, self._on_end = self._on_end, None
        on_end(self._error is None)
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)


class Intake:
    """Checks reports, limits their rates and writes the accepted ones to the log."""

    def __init__(
        self,
        routes: Routes,
        writers: Mapping[int, LogWriter],
        last_reports: LastReports,
        *,
        quarantine: Quarantine,
        rate_limits: RateLimits,
        clock: MeshClock,
    ) -> None:
        self._routes, self._writers, self._last_reports = routes, writers, last_reports
        self._quarantine, self._rate_limits, self._clock = quarantine, rate_limits, clock
        self._limiter = InFlightLimiter()
        metrics.WAITING.set_function(lambda: self._limiter.total)

    async def accept(self, sender: Sender, reports: Reports, backfill: bool, *, endpoint: str) -> PendingBatch:
        """Returns once all accepted reports are durable. On StoreFull or Unavailable, send the whole batch again."""
        batch = await self.admit(sender, reports, backfill, endpoint=endpoint, patient=False)
        await batch.stored()
        return batch

    async def admit(
        self, sender: Sender, reports: Reports, backfill: bool, *, endpoint: str, patient: bool = True
    ) -> PendingBatch:
        """Checks each report and starts writing the accepted ones. Returns after the sender's penalty delay for refused reports.

        A `patient` caller waits while its share of the reports in flight is full; another gets StoreFull. Raises Unavailable where a
        device can't be looked up. On an error nothing was written.
        """
        count, live_from_ms = reports.count, self._clock.now_ms() - LIVE_MS
        # Buffered reports have a share of their own, as they have a lane of their own, so they never delay live reports.
        late = backfill or (
            not reports.events and max(reports.positions.fix_times_ms, default=live_from_ms) < live_from_ms
        )
        key = f"{sender.key}/backfill" if late else sender.key
        metrics.BATCH_REPORTS.observe(count)
        # Equipment events, above all a panic, are never turned away, neither for a full share nor for a penalty.
        if not patient and not reports.events:
            self._check_penalty(sender)
        await self._limiter.enter(key, count, patient or bool(reports.events))
        try:
            checked = await self._check(sender, reports, live_from_ms)
        except BaseException:
            self._limiter.leave(key, count)
            raise
        batch = PendingBatch()
        batch.refusals = sorted(checked.refusals, key=lambda refusal: refusal.index)
        self._send(batch, key, checked, backfill=backfill, contexts=reports.contexts)
        accepted = count - len(batch.refusals)
        in_flight = accepted + len(checked.heard)
        if in_flight < count:
            self._limiter.leave(key, count - in_flight)

        def on_end(stored: bool) -> None:
            self._limiter.leave(key, in_flight)
            if stored:
                metrics.ACCEPTED[endpoint].inc(accepted)
                self._last_reports.stored(checked.positions, checked.routes)

        batch.complete(on_end)
        # Refusing a report costs more than accepting it, so senders of many refused reports are slowed down. Their accepted reports
        # are being written by now, and the delay holds no other sender's share.
        penalty_s = self._rate_limits.refusals.charge(sender.refusal_key, len(batch.refusals), time.monotonic())
        if penalty_s:
            await asyncio.sleep(min(penalty_s, MAX_BATCH_PENALTY_S))
        return batch

    def _check_penalty(self, sender: Sender) -> None:
        """Raises StoreFull where a sender's penalty delay for refused reports is longer than `MAX_BATCH_PENALTY_S`."""
        penalty_s = self._rate_limits.refusals.penalty_s(sender.refusal_key, time.monotonic())
        if penalty_s > MAX_BATCH_PENALTY_S:
            raise StoreFull(
                "too many reports of this sender were refused: fix them by the reasons given, then send this batch again",
                retry_after_s=penalty_s - MAX_BATCH_PENALTY_S,
            )

    def count_refusal(self, sender: Sender, device_id: str, reason: Reason) -> None:
        """Counts a request that was refused before it became a report."""
        self._quarantine.refused(sender.spiffe_id, device_id, reason)

    async def run(self) -> None:
        """Drops the rate-limit state of quiet devices every FORGET_INTERVAL_S, until cancelled."""
        while True:
            await asyncio.sleep(FORGET_INTERVAL_S)
            self._rate_limits.forget(time.monotonic())

    # ── checks ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _check(self, sender: Sender, reports: Reports, live_from_ms: int) -> _Checked:
        positions, now_ms = reports.positions, self._clock.now_ms()
        checked = _Checked(positions, [], list(reports.unreadable))
        for refusal in reports.unreadable:
            self._quarantine.refused(sender.spiffe_id, reports.claimed.get(refusal.index, ""), refusal.code)
        if positions:
            allowed = self._routes.allowed(sender)
            routes = [allowed.get(device_id) for device_id in positions.device_ids]
            if None in routes or max(positions.fix_times_ms) > now_ms + FUTURE_MS:
                kept = [
                    (i, route)
                    for i, known in enumerate(routes)
                    if (
                        route := await self._route_or_refuse(
                            sender,
                            checked,
                            reports.position_indexes[i],
                            ids=(positions.device_ids[i], positions.report_ids[i]),
                            at=("fix_time", positions.fix_times_ms[i], now_ms),
                            known=known,
                        )
                    )
                ]
                indexes = [reports.position_indexes[i] for i, _ in kept]
                checked.positions = positions.only([i for i, _ in kept])
                checked.routes = [route for _, route in kept]
            else:
                indexes = list(reports.position_indexes)
                checked.routes = cast(list[Partitions], routes)
            self._limit_positions(sender, checked, indexes, live_from_ms=live_from_ms)
        for index, event in zip(reports.event_indexes, reports.events, strict=True):
            ids, at = (event.device_id, event.report_id), ("event_time", event.event_time_ms, now_ms)
            known = self._routes.allowed(sender).get(event.device_id)
            route = await self._route_or_refuse(sender, checked, index, ids=ids, at=at, known=known)
            if route and self._rate_limits.events.over([event.device_id], time.monotonic()):
                self._refuse(
                    sender, checked, index, device_id=event.device_id, field_name="device_id", reason=Reason.TOO_OFTEN
                )
            elif route:
                checked.events.append((event, route))
        return checked

    async def _route_or_refuse(
        self,
        sender: Sender,
        checked: _Checked,
        index: int,
        *,
        ids: tuple[str, str],
        at: tuple[str, int, int],
        known: Partitions | None,
    ) -> Partitions | None:
        """Returns the partitions that need a report, or refuses it and returns None.

        `ids` are those of the device and the report. `at` is the name of the report's time field, its time and now, in ms. `known` are
        the device's partitions, if known.
        """
        device_id, report_id = ids
        field_name, time_ms, now_ms = at
        route = known or await self._routes.resolve(sender, device_id)
        if isinstance(route, Reason):
            self._refuse(sender, checked, index, device_id=device_id, field_name="device_id", reason=route)
            return None
        if time_ms > now_ms + FUTURE_MS:
            self._refuse(sender, checked, index, device_id=device_id, field_name=field_name, reason=Reason.CLOCK_AHEAD)
            checked.heard.append((device_id, report_id, route))
            return None
        return route

    def _limit_positions(self, sender: Sender, checked: _Checked, indexes: Sequence[int], *, live_from_ms: int) -> None:
        positions, now_s = checked.positions, time.monotonic()
        # An hour of buffered positions comes at once. It must not use up the rate of live positions.
        if min(positions.fix_times_ms, default=live_from_ms) < live_from_ms:
            late = [i for i, fix_time_ms in enumerate(positions.fix_times_ms) if fix_time_ms < live_from_ms]
            live = [i for i, fix_time_ms in enumerate(positions.fix_times_ms) if fix_time_ms >= live_from_ms]
            over = {late[i] for i in self._rate_limits.backfill.over([positions.device_ids[i] for i in late], now_s)}
            over |= {live[i] for i in self._rate_limits.live.over([positions.device_ids[i] for i in live], now_s)}
        else:
            over = set(self._rate_limits.live.over(positions.device_ids, now_s))
        if not over:
            return
        for i in sorted(over):
            device_id = checked.positions.device_ids[i]
            self._refuse(
                sender, checked, indexes[i], device_id=device_id, field_name="device_id", reason=Reason.TOO_OFTEN
            )
        kept = [i for i in range(len(checked.positions)) if i not in over]
        checked.positions = checked.positions.only(kept)
        checked.routes = [checked.routes[i] for i in kept]

    def _refuse(
        self, sender: Sender, checked: _Checked, index: int, *, device_id: str, field_name: str, reason: Reason
    ) -> None:
        checked.refusals.append(Refusal(index=index, field=field_name, reason=_REASON_TEXTS[reason], code=reason))
        self._quarantine.refused(sender.spiffe_id, device_id, reason)

    # ── writes ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _send(
        self,
        batch: PendingBatch,
        sender: str,
        checked: _Checked,
        *,
        backfill: bool,
        contexts: Sequence[tuple[int, str]],
    ) -> None:
        """Starts writing the accepted reports. Call it after all checks, so that a failed look-up leaves nothing half done."""
        received_us = wall_us()
        known = sum(count for count, _ in contexts)
        batch.device_ids = checked.positions.device_ids + [event.device_id for event, _ in checked.events]
        for route, late, positions in self._lanes(checked, backfill):
            # Where positions are split over lanes, their contexts can't be assigned any more, so they are dropped.
            mine = contexts if known == len(positions) else ((len(positions), tracing.carried() if not known else ""),)
            for partition in route:
                batch.add(
                    self._writers[partition].positions(sender, positions, received_us, contexts=mine, backfill=late)
                )
        for event, route in checked.events:
            for partition in route:
                batch.add(self._writers[partition].equipment(sender, event, received_us))
        for device_id, report_id, route in checked.heard:
            for partition in route:
                batch.add(self._writers[partition].heard(sender, device_id, report_id, received_wall_us=received_us))

    def _lanes(self, checked: _Checked, backfill: bool) -> Iterator[tuple[Partitions, bool, Positions]]:
        """Yields the positions by partitions and lane (true for backfill). Nearly always all share one lane."""
        positions, routes = checked.positions, checked.routes
        if not positions:
            return
        live_from_ms = self._clock.now_ms() - LIVE_MS
        all_late = backfill or max(positions.fix_times_ms) < live_from_ms
        if routes.count(routes[0]) == len(routes) and (all_late or min(positions.fix_times_ms) >= live_from_ms):
            yield routes[0], all_late, positions
            return
        lanes: dict[tuple[Partitions, bool], list[int]] = {}
        for i, route in enumerate(routes):
            lanes.setdefault((route, backfill or positions.fix_times_ms[i] < live_from_ms), []).append(i)
        for (route, late), rows in lanes.items():
            yield route, late, positions.only(rows)
