"""The path that all endpoints share: it checks the reports of a batch, and writes them to the log or refuses them with a reason."""

from __future__ import annotations

import asyncio
import time

from services.common.clock import MeshClock
from services.common.rpc.errors import StoreFull
from services.ingest.admission.checks import Checks
from services.ingest.admission.limiter import InFlightLimiter
from services.ingest.admission.rate_limit import RateLimits
from services.ingest.batch import Batch, Reports
from services.ingest.batteries.charges import ReportedBatteries
from services.ingest.domain import LIVE_MS, Endpoint, Sender
from services.ingest.log.partitions import LogWriters
from services.ingest.log.republish import LastReports
from services.ingest.metrics import IngestMetrics
from services.ingest.sensing.observed import ObservedReports

FORGET_INTERVAL_S = 60.0
MAX_BATCH_PENALTY_S = 1.0
"""Maximum penalty delay after a batch with many rejections, seconds. It also delays the next message on the stream, which may be a
panic event, so keep it short. Senders that owe more get RESOURCE_EXHAUSTED on unary calls, unless these carry equipment events. Their
streams that bring refused reports take turns (`Batches`), so that the delay is the sender's and not each stream's."""


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
        self._checks, self._writers, self._last_reports = checks, writers, last_reports
        self._observed, self._batteries = observed, batteries
        self._rate_limits, self._clock, self._metrics = rate_limits, clock, metrics
        self._limiter = InFlightLimiter()

    @property
    def in_flight(self) -> int:
        """Number of reports that are admitted and not yet durable."""
        return self._limiter.total

    async def accept(self, sender: Sender, reports: Reports, *, endpoint: Endpoint) -> Batch:
        """Brings reports into the log. Returns their batch once it is durable. On StoreFull or Unavailable, send them all again."""
        batch = Batch()
        await self.admit(batch, sender, reports, endpoint=endpoint, patient=False)
        await batch.ended()
        return batch

    async def admit(
        self, batch: Batch, sender: Sender, reports: Reports, *, endpoint: Endpoint, patient: bool = True
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
        self._metrics.batch_reports.observe(count)
        # Equipment events, above all a panic, are never turned away, neither for a full share nor for a penalty.
        if not patient and not reports.events:
            self._check_penalty(sender)
        await self._limiter.enter(key, count, patient or bool(reports.events))
        try:
            checked = await self._checks.check(sender, reports, live_from_ms)
        except BaseException:
            self._limiter.leave(key, count)
            raise
        self._writers.write(batch, key, checked, is_backfill=reports.is_backfill)
        accepted = count - len(checked.refusals)
        in_flight = accepted + len(checked.heard)
        if in_flight < count:
            self._limiter.leave(key, count - in_flight)

        def on_written(all_stored: bool) -> None:
            self._limiter.leave(key, in_flight)
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
