"""The one path that all doors share: from reports that were read to reports that are durable, or refused with their reason."""

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
from services.ingest.admission.rate_limit import Quotas
from services.ingest.admission.routes import Partitions, Routes
from services.ingest.domain import FUTURE_MS, LIVE_MS, EquipmentEvent, Position, Positions, Reason, Refusal, Sender
from services.ingest.log.republish import LastReports
from services.ingest.log.writer import LogWriter

FORGET_INTERVAL_S = 60.0
PAID_AT_ONCE_S = 1.0
"""Longest wait behind a batch for what was refused: on a stream whatever comes next waits as long, and that may be a panic. Of who
owes more, calls are turned away until it has waited for the rest, save what devices say of themselves."""

_WHY = {
    Reason.INVALID: "must be 1 to 64 characters of A-Z a-z 0-9 . _ - with single dots inside only",
    Reason.CLOCK_AHEAD: "is more than 2 minutes in the future",
    Reason.UNKNOWN_DEVICE: "is no registered device",
    Reason.REVOKED: "is no device in service any more",
    Reason.NOT_YOURS: "is no device of this sender",
    Reason.TOO_OFTEN: "reports more often than it may",
}


@dataclass(slots=True)
class Reports:
    """What a door has read of a batch."""

    count: int
    """Reports in the batch, with those that couldn't be read."""
    positions: Positions
    position_places: Sequence[int]
    """Place of each position in the batch."""
    events: Sequence[EquipmentEvent] = ()
    event_places: Sequence[int] = ()
    unreadable: Sequence[Refusal] = ()
    claimed: Mapping[int, str] = field(default_factory=dict)
    """By place: the device that an unreadable report gave, where it gave one."""
    contexts: Sequence[tuple[int, str]] = ()
    """Of positions that came in several calls: how many came in each W3C context, in their order; empty where all came in that of
    the task that works."""

    @classmethod
    def of(cls, read: Sequence[Position | EquipmentEvent | InvalidField], claimed: Sequence[str]) -> Reports:
        """Of a batch that was read one by one: each report, or why it couldn't be read; and the device that it gave."""
        positions = [(i, one) for i, one in enumerate(read) if isinstance(one, Position)]
        events = [(i, one) for i, one in enumerate(read) if isinstance(one, EquipmentEvent)]
        errors = [(i, one) for i, one in enumerate(read) if isinstance(one, InvalidField)]
        return cls(
            len(read),
            Positions.of([one for _, one in positions]),
            [i for i, _ in positions],
            [one for _, one in events],
            [i for i, _ in events],
            [Refusal(i, one.field, one.reason, Reason.INVALID) for i, one in errors],
            {i: claimed[i] for i, _ in errors},
        )


@dataclass(slots=True)
class _Checked:
    """What is left of a batch after the checks."""

    positions: Positions
    routes: list[Partitions]
    """Of each position."""
    refusals: list[Refusal]
    events: list[tuple[EquipmentEvent, Partitions]] = field(default_factory=list)
    heard: list[tuple[str, str, Partitions]] = field(default_factory=list)
    """Device and report of what was refused for its clock."""


class PendingBatch:
    """A batch on its way into the log."""

    __slots__ = ("_error", "_left", "_on_end", "_waiters", "device_ids", "refusals")

    def __init__(self) -> None:
        self.refusals: list[Refusal] = []
        self.device_ids: list[str] = []
        """Devices of what wasn't refused."""
        self._left = 0
        self._error: BaseException | None = None
        self._waiters: list[asyncio.Future[None]] = []
        self._on_end: Callable[[bool], None] | None = None

    def add(self, stored: asyncio.Future[None]) -> None:
        """Something of it must be stored."""
        self._left += 1
        stored.add_done_callback(self._one_ended)

    def complete(self, on_end: Callable[[bool], None]) -> None:
        """Nothing is added any more. `on_end` is called once, when all is stored (true) or known not to be, whoever waits."""
        if self._left:
            self._on_end = on_end
        else:
            on_end(True)

    @property
    def is_stored(self) -> bool:
        """Whether all that wasn't refused is durable."""
        return not self._left and self._error is None

    async def stored(self) -> None:
        """Returns once all that wasn't refused is durable. Raises StoreFull or Unavailable."""
        if self._left:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter
        if self._error is not None:
            raise self._error

    def _one_ended(self, stored: asyncio.Future[None]) -> None:
        self._left -= 1
        self._error = self._error or stored.exception()
        if self._left or self._on_end is None:
            return
        # Let go of, since it knows this batch in turn: what goes by itself leaves nothing to be looked for as garbage.
        on_end, self._on_end = self._on_end, None
        on_end(self._error is None)
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)


class Intake:
    """Takes reports into the log."""

    def __init__(
        self,
        routes: Routes,
        writers: Mapping[int, LogWriter],
        last_reports: LastReports,
        quarantine: Quarantine,
        quotas: Quotas,
        clock: MeshClock,
    ) -> None:
        self._routes, self._writers, self._last_reports = routes, writers, last_reports
        self._quarantine, self._quotas, self._clock = quarantine, quotas, clock
        self._limiter = InFlightLimiter()
        metrics.WAITING.set_function(lambda: self._limiter.total)

    async def take(self, sender: Sender, reports: Reports, backfill: bool, endpoint: str) -> PendingBatch:
        """Returns once all that isn't refused is durable. Raises StoreFull or Unavailable: send all of it again."""
        taken = await self.admit(sender, reports, backfill, endpoint, patient=False)
        await taken.stored()
        return taken

    async def admit(
        self, sender: Sender, reports: Reports, backfill: bool, endpoint: str, patient: bool = True
    ) -> PendingBatch:
        """Checks each report and sends what is sound on its way. A `patient` caller waits while its share of the room is full.

        Who brings much that is refused waits behind that. Raises StoreFull (to the impatient), or Unavailable where a device can't be
        looked up: nothing of it was sent then.
        """
        count, live_from_ms = reports.count, self._clock.now_ms() - LIVE_MS
        # What was buffered has a share of the room of its own, as it has a lane of its own: it is in nobody's way.
        late = backfill or (
            not reports.events and max(reports.positions.fix_times_ms, default=live_from_ms) < live_from_ms
        )
        key = f"{sender.key}/backfill" if late else sender.key
        metrics.BATCH_REPORTS.observe(count)
        # What a device says of itself, a panic above all, is never turned away: not for want of room, nor for what was refused.
        if not patient and not reports.events:
            self._turn_away(sender)
        await self._limiter.enter(key, count, patient or bool(reports.events))
        try:
            checked = await self._check(sender, reports, live_from_ms)
        except BaseException:
            self._limiter.leave(key, count)
            raise
        taken = PendingBatch()
        taken.refusals = sorted(checked.refusals, key=lambda refusal: refusal.index)
        self._send(taken, key, checked, backfill, reports.contexts)
        accepted = count - len(taken.refusals)
        under_way = accepted + len(checked.heard)
        if under_way < count:
            self._limiter.leave(key, count - under_way)

        def on_end(stored: bool) -> None:
            self._limiter.leave(key, under_way)
            if stored:
                metrics.ACCEPTED[endpoint].inc(accepted)
                self._last_reports.stored(checked.positions, checked.routes)

        taken.complete(on_end)
        # To refuse costs more than to accept. Whoever brings much that is refused is listened to more slowly: what was sound is
        # on its way by now, and nobody else's room is taken meanwhile.
        wait_s = self._quotas.refusals.wait_s(sender.answers_for, len(taken.refusals), time.monotonic())
        if wait_s:
            await asyncio.sleep(min(wait_s, PAID_AT_ONCE_S))
        return taken

    def _turn_away(self, sender: Sender) -> None:
        """Raises StoreFull where a sender owes more than `PAID_AT_ONCE_S` for what was refused of it."""
        owed_s = self._quotas.refusals.owed_s(sender.answers_for, time.monotonic())
        if owed_s > PAID_AT_ONCE_S:
            raise StoreFull("too much of what this sender brings is refused", retry_after_s=owed_s - PAID_AT_ONCE_S)

    def refused_at_the_door(self, sender: Sender, device_id: str, reason: Reason) -> None:
        """Counts what never became a report."""
        self._quarantine.refused(sender.spiffe_id, device_id, reason)

    async def run(self) -> None:
        """Forgets which devices have been quiet, for ever."""
        while True:
            await asyncio.sleep(FORGET_INTERVAL_S)
            self._quotas.forget(time.monotonic())

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
                    for i, found in enumerate(routes)
                    if (
                        route := await self._why_not(
                            sender,
                            checked,
                            reports.position_places[i],
                            (positions.device_ids[i], positions.report_ids[i]),
                            ("fix_time", positions.fix_times_ms[i], now_ms),
                            found,
                        )
                    )
                ]
                places = [reports.position_places[i] for i, _ in kept]
                checked.positions = positions.only([i for i, _ in kept])
                checked.routes = [route for _, route in kept]
            else:
                places = list(reports.position_places)
                checked.routes = cast(list[Partitions], routes)
            self._limit_positions(sender, checked, places, live_from_ms)
        for place, event in zip(reports.event_places, reports.events, strict=True):
            of, at = (event.device_id, event.report_id), ("event_time", event.event_time_ms, now_ms)
            found = self._routes.allowed(sender).get(event.device_id)
            route = await self._why_not(sender, checked, place, of, at, found)
            if route and self._quotas.events.over([event.device_id], time.monotonic()):
                self._refuse(sender, checked, place, event.device_id, "device_id", Reason.TOO_OFTEN)
            elif route:
                checked.events.append((event, route))
        return checked

    async def _why_not(
        self,
        sender: Sender,
        checked: _Checked,
        place: int,
        of: tuple[str, str],
        at: tuple[str, int, int],
        found: Partitions | None,
    ) -> Partitions | None:
        """The partitions that need a report, or None once its refusal is noted.

        `of` are device and report; `at` the field of its time, the time and now; `found` the partitions that are known.
        """
        device_id, report_id = of
        field_name, time_ms, now_ms = at
        route = found or await self._routes.allow(sender, device_id)
        if isinstance(route, Reason):
            self._refuse(sender, checked, place, device_id, "device_id", route)
            return None
        if time_ms > now_ms + FUTURE_MS:
            self._refuse(sender, checked, place, device_id, field_name, Reason.CLOCK_AHEAD)
            checked.heard.append((device_id, report_id, route))
            return None
        return route

    def _limit_positions(self, sender: Sender, checked: _Checked, places: Sequence[int], live_from_ms: int) -> None:
        positions, now_s = checked.positions, time.monotonic()
        # An hour that was buffered comes at once, and leaves what is live its own rate.
        if min(positions.fix_times_ms, default=live_from_ms) < live_from_ms:
            late = [i for i, fix_time_ms in enumerate(positions.fix_times_ms) if fix_time_ms < live_from_ms]
            live = [i for i, fix_time_ms in enumerate(positions.fix_times_ms) if fix_time_ms >= live_from_ms]
            over = {late[i] for i in self._quotas.backfill.over([positions.device_ids[i] for i in late], now_s)}
            over |= {live[i] for i in self._quotas.live.over([positions.device_ids[i] for i in live], now_s)}
        else:
            over = set(self._quotas.live.over(positions.device_ids, now_s))
        if not over:
            return
        for i in sorted(over):
            device_id = checked.positions.device_ids[i]
            self._refuse(sender, checked, places[i], device_id, "device_id", Reason.TOO_OFTEN)
        kept = [i for i in range(len(checked.positions)) if i not in over]
        checked.positions = checked.positions.only(kept)
        checked.routes = [checked.routes[i] for i in kept]

    def _refuse(
        self, sender: Sender, checked: _Checked, place: int, device_id: str, field_name: str, reason: Reason
    ) -> None:
        checked.refusals.append(Refusal(place, field_name, _WHY[reason], reason))
        self._quarantine.refused(sender.spiffe_id, device_id, reason)

    # ── on its way ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _send(
        self, taken: PendingBatch, sender: str, checked: _Checked, backfill: bool, contexts: Sequence[tuple[int, str]]
    ) -> None:
        """Nothing is sent before all is checked, so that a look-up that fails leaves nothing half done."""
        received_us = wall_us()
        known = sum(count for count, _ in contexts)
        taken.device_ids = checked.positions.device_ids + [event.device_id for event, _ in checked.events]
        for route, late, positions in self._lanes(checked, backfill):
            # Of positions that don't go all together it isn't known any more which came in which: then none names any.
            mine = contexts if known == len(positions) else ((len(positions), tracing.carried() if not known else ""),)
            for partition in route:
                taken.add(self._writers[partition].positions(sender, positions, received_us, mine, backfill=late))
        for event, route in checked.events:
            for partition in route:
                taken.add(self._writers[partition].equipment(sender, event, received_us))
        for device_id, report_id, route in checked.heard:
            for partition in route:
                taken.add(self._writers[partition].heard(sender, device_id, report_id, received_us))

    def _lanes(self, checked: _Checked, backfill: bool) -> Iterator[tuple[Partitions, bool, Positions]]:
        """The positions by partitions and lane; nearly always they all go one way."""
        positions, routes = checked.positions, checked.routes
        if not positions:
            return
        live_from_ms = self._clock.now_ms() - LIVE_MS
        all_late = backfill or max(positions.fix_times_ms) < live_from_ms
        if routes.count(routes[0]) == len(routes) and (all_late or min(positions.fix_times_ms) >= live_from_ms):
            yield routes[0], all_late, positions
            return
        ways: dict[tuple[Partitions, bool], list[int]] = {}
        for i, route in enumerate(routes):
            ways.setdefault((route, backfill or positions.fix_times_ms[i] < live_from_ms), []).append(i)
        for (route, late), rows in ways.items():
            yield route, late, positions.only(rows)
