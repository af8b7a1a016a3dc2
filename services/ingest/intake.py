"""The path that all endpoints share: it checks the reports of a batch, and writes them to the log or refuses them with a reason.

The reports in flight are limited: those that were read and aren't durable yet, or aren't answered yet. At the limit ingest stops
reading a stream, which pushes back on its sender, and refuses other calls with StoreFull.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict, deque

from services.common.clock import MeshClock
from services.common.errors import StoreFull
from services.ingest.admission.checks import Checks, RateLimits
from services.ingest.batch import Batch, Reports
from services.ingest.domain import LIVE_MS, Endpoint, ReportedBatteries, Sender
from services.ingest.log import LastReports, LogWriters
from services.ingest.metrics import IngestMetrics
from services.ingest.observed import ObservedReports

FORGET_INTERVAL_S = 60.0
MAX_BATCH_PENALTY_S = 1.0
"""Maximum penalty delay after a batch with many rejections, seconds. It also delays the next message on the stream, which may be a
panic event, so keep it short. Senders that owe more get RESOURCE_EXHAUSTED on unary calls, unless these carry equipment events. Their
streams that bring refused reports take turns (`Batches`), so that the delay is the sender's and not each stream's."""


MAX_PANIC_REPORTS = 1_000
"""Maximum number of reports in flight in requests of phones with a panic, beside all other reports. Beyond it a panic waits, and it is
never refused: a phone has one request in it, so the wait is bounded by the number of phones."""


class Intake:
    """Brings batches from the endpoints into the log: admits, checks and writes them, and delays senders of many refused reports."""

    def __init__(
        self,
        checks: Checks,
        writers: LogWriters,
        last_reports: LastReports,
        *,
        rate_limits: RateLimits,
        clock: MeshClock,
        observed: ObservedReports,
        batteries: ReportedBatteries,
        metrics: IngestMetrics,
    ) -> None:
        self._checks = checks
        self._writers = writers
        self._last_reports = last_reports
        self._observed, self._batteries = observed, batteries
        self._rate_limits = rate_limits
        self._clock = clock
        self._metrics = metrics
        self._limiter = InFlightLimiter()
        self._panics = InFlightLimiter(MAX_PANIC_REPORTS, MAX_PANIC_REPORTS)

    @property
    def in_flight(self) -> int:
        """Number of reports that are admitted and not yet durable."""
        return self._limiter.total + self._panics.total

    async def accept(self, sender: Sender, reports: Reports, *, endpoint: Endpoint, is_panic: bool = False) -> Batch:
        """Brings reports into the log. Returns their batch once it is durable. On StoreFull or Unavailable, send them all again.

        `is_panic` is for a phone's request with a panic, of which each phone has one under way (`PanicLane`). It has a lane of its own.
        """
        batch = Batch()
        await self.admit(batch, sender, reports, endpoint=endpoint, patient=False, is_panic=is_panic)
        await batch.ended()
        return batch

    async def admit(
        self,
        batch: Batch,
        sender: Sender,
        reports: Reports,
        *,
        endpoint: Endpoint,
        patient: bool = True,
        is_panic: bool = False,
    ) -> None:
        """Checks each report and starts writing the accepted ones. Returns after the sender's penalty delay for refused reports.

        A `patient` caller waits while its share of the reports in flight is full. Any other caller gets StoreFull then, or if its
        penalty is too long, unless the batch has equipment events. Raises Unavailable if a device can't be looked up. On an error
        nothing was written, and the caller fails the batch.
        """
        batch.check()
        count, live_from_ms = reports.count, self._clock.now_ms() - LIVE_MS
        # Buffered reports have a share and a lane of their own, so that they never delay live reports.
        late = reports.is_backfill or (
            not reports.events and max(reports.positions.fix_times_ms, default=live_from_ms) < live_from_ms
        )
        key = f"{sender.key}/backfill" if late else sender.key
        limiter = self._limiter
        if is_panic:
            key, limiter = f"panic/{sender.device_id}", self._panics
        self._metrics.batch_reports.observe(count)
        # Equipment events, above all a panic, are never turned away, neither for a full share nor for a penalty.
        if not patient and not reports.events:
            self._check_penalty(sender)
        await limiter.enter(key, count, patient or bool(reports.events))
        try:
            checked = await self._checks.check(sender, reports, live_from_ms)
        except BaseException:
            limiter.leave(key, count)
            raise
        self._writers.write(batch, key, checked, is_backfill=reports.is_backfill)
        accepted = count - len(checked.refusals)
        in_flight = accepted + len(checked.heard)
        if in_flight < count:
            limiter.leave(key, count - in_flight)

        def on_written(all_stored: bool) -> None:
            limiter.leave(key, in_flight)
            if all_stored:
                self._metrics.accepted[endpoint].inc(accepted)
                self._last_reports.stored(checked.positions.columns, checked.positions.partitions)
                self._observed.accepted(checked.positions.columns, self._clock.now_ms())
                self._batteries.accepted(checked.charges, checked.device_ids)

        # Refusing a report costs more than accepting it, so senders of many refused reports are slowed down. Their accepted reports
        # are being written during the delay, and the delay holds no other sender's share.
        penalty_s = self._rate_limits.refusals.charge(sender.refusal_key, len(checked.refusals), time.monotonic())
        with batch.delayed():
            batch.write(checked.refusals, checked.device_ids, on_written)
            if penalty_s:
                await asyncio.sleep(min(penalty_s, MAX_BATCH_PENALTY_S))

    async def run(self) -> None:
        """Drops the rate-limit state of quiet devices every FORGET_INTERVAL_S, until cancelled."""
        while True:
            await asyncio.sleep(FORGET_INTERVAL_S)
            self._rate_limits.forget(time.monotonic())

    def is_in_arrears(self, sender: Sender) -> bool:
        """Whether a sender owes a longer penalty delay than a batch may take."""
        return self._owed_s(sender) > MAX_BATCH_PENALTY_S

    def _owed_s(self, sender: Sender) -> float:
        return self._rate_limits.refusals.penalty_s(sender.refusal_key, time.monotonic())

    def _check_penalty(self, sender: Sender) -> None:
        """Raises StoreFull if a sender's penalty delay for refused reports is longer than `MAX_BATCH_PENALTY_S`."""
        penalty_s = self._owed_s(sender)
        if penalty_s > MAX_BATCH_PENALTY_S:
            raise StoreFull(
                "too many reports of this sender were refused: fix them by the reasons given, then send this batch again",
                retry_after_s=penalty_s - MAX_BATCH_PENALTY_S,
            )


MAX_SENDER = 50_000
"""Maximum number of reports in flight of one sender: about 0.3 s of the log's throughput, and 15 MB."""
MAX_ALL = 400_000
"""Maximum number of reports in flight of all senders."""


class InFlightLimiter:
    """Limits the reports in flight, by sender. A sender that fills its share waits alone; the others aren't delayed."""

    def __init__(self, max_sender: int = MAX_SENDER, max_all: int = MAX_ALL) -> None:
        self._max_sender, self._max_all = max_sender, max_all
        self._in_flight: dict[str, int] = defaultdict(int)
        self._total = 0
        self._queues: dict[str, deque[tuple[int, asyncio.Future[None]]]] = {}

    @property
    def total(self) -> int:
        """Number of reports in flight now."""
        return self._total

    async def enter(self, sender: str, reports: int, patient: bool) -> None:
        """Admits reports. If they don't fit, a `patient` call waits for its turn, and any other call raises StoreFull."""
        if sender not in self._queues and self._fits(sender, reports):
            self._count(sender, reports)
            return
        if not patient:
            raise StoreFull(
                "too many reports of this sender, or of all senders, wait to be stored: send this batch again later",
                retry_after_s=1.0,
            )
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queues.setdefault(sender, deque()).append((reports, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave(sender, reports)
            raise

    def leave(self, sender: str, reports: int) -> None:
        """Releases reports that are no longer in flight, and admits the waiting ones that fit."""
        self._total -= reports
        self._in_flight[sender] -= reports
        if not self._in_flight[sender]:
            del self._in_flight[sender]
        for waiting in list(self._queues):
            self._admit(waiting)

    def _admit(self, sender: str) -> None:
        queue = self._queues[sender]
        while queue:
            reports, turn = queue[0]
            if turn.done():  # its caller was cancelled
                queue.popleft()
            elif self._fits(sender, reports):
                queue.popleft()
                self._count(sender, reports)
                turn.set_result(None)
            else:
                break
        if queue:
            # Senders take turns: this one goes to the end of the line.
            self._queues[sender] = self._queues.pop(sender)
        else:
            del self._queues[sender]

    def _fits(self, sender: str, reports: int) -> bool:
        mine = self._in_flight.get(sender, 0)
        return (not mine or mine + reports <= self._max_sender) and self._total + reports <= self._max_all

    def _count(self, sender: str, reports: int) -> None:
        self._total += reports
        self._in_flight[sender] += reports
