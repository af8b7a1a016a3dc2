"""Background task of a leg that copies the evidence of its incidents to files, because the log keeps entries only for days.

An incident is copied when it opens, when it closes, and when late reports amend an account after that. The task reads committed rows
of the leg and writes its own files, so no offer waits for it. All copies that are due share one pass through the streams. The pass
sleeps most of the time. A failed copy is logged as an error and retried.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from services.common.messaging.bus import Bus
from services.common.messaging.streams import LogMetadata
from services.common.observability.telemetry import logger
from services.common.retrying import Backoff, retried
from services.common.rpc.errors import NotFound, RetryableError, TandemError
from services.dispatch.domain.events import AlertFolded
from services.dispatch.domain.leg import Leg
from services.dispatch.evidence import store as store_evidence
from services.dispatch.evidence.collector import EvidenceCollector
from services.dispatch.evidence.files import CopyMoment, EvidenceFiles
from services.dispatch.evidence.metrics import EvidenceMetrics
from services.dispatch.evidence.model import Evidence
from services.dispatch.leg.store import Store

CHECK_INTERVAL_S = 2.0
COPY_DELAY_S = 5.0
"""Delay before a copy, seconds of wall time. Measures and dead letters are stored some time after their alerts."""
RETRY = Backoff(5.0, 300.0)
"""Delays after failed copies, seconds of wall time."""
SLEEP_RATIO = 19.0
"""Seconds of sleep per second of work in a pass. Two hours of a country's log take seconds to read, and offers come first."""
COPY_BATCH = 200
"""Maximum number of copies in one pass. The pass holds all of them in memory until it ends."""


class _CopyKey(NamedTuple):
    """Key of a copy: an incident and the moment of the copy."""

    incident_id: str
    moment: CopyMoment


@dataclass(slots=True)
class _DueCopy:
    """A copy that is due."""

    at_s: float
    """Time of the next attempt, seconds on the clock of the event loop."""
    failures: int = 0
    alone: bool = False
    """Whether the copy gets a pass of its own. It failed in a batch, where another copy may be the reason."""


class EvidenceRetention:
    """Copies the evidence of one leg's incidents to files."""

    def __init__(
        self,
        leg: Leg,
        store: Store,
        bus: Bus,
        *,
        log_meta: LogMetadata,
        files: EvidenceFiles,
        metrics: EvidenceMetrics,
    ) -> None:
        self._store, self._files, self._metrics = store, files, metrics
        self._collector = EvidenceCollector(bus, log_meta, leg, sleep_ratio=SLEEP_RATIO)
        self._open: set[str] = set()
        """Ids of incidents without a copy at their end."""
        self._last_opened = 0
        """Opening sequence of the newest incident that was read."""
        self._due: dict[_CopyKey, _DueCopy] = {}
        self._last_event = 0
        """Id of the last event of the leg that was searched for amended accounts."""

    async def run(self) -> None:
        """Copies evidence until cancelled."""
        while True:
            await retried(self._schedule)
            now_s = asyncio.get_running_loop().time()
            due = [key for key, copy in self._due.items() if copy.at_s <= now_s]
            batched = [key for key in due if not self._due[key].alone]
            for first in range(0, len(batched), COPY_BATCH):
                await self._copy(batched[first : first + COPY_BATCH])
            for key in due:
                if key not in batched:
                    await self._copy([key])
            await asyncio.sleep(CHECK_INTERVAL_S)

    # ── scheduling ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def _schedule(self) -> None:
        """Schedules a copy for each incident that has opened, ended, or has an amended account."""
        await self._schedule_opened()
        if self._open:
            incident_ids = sorted(self._open)
            ended = await self._store.transaction(partial(store_evidence.ended_of, incident_ids=incident_ids))
            for incident_id in ended:
                self._add_due(incident_id, CopyMoment.CLOSED)
        await self._schedule_amended()

    async def _schedule_opened(self) -> None:
        while opened := await self._store.transaction(
            partial(store_evidence.opened_after, opened_sequence=self._last_opened)
        ):
            for self._last_opened, incident_id in opened:
                if not self._files.has(incident_id, CopyMoment.CLOSED):
                    self._open.add(incident_id)
                    if not self._files.has(incident_id, CopyMoment.OPENED):
                        self._add_due(incident_id, CopyMoment.OPENED)

    async def _schedule_amended(self) -> None:
        last_event, amended = await self._store.transaction(
            partial(store_evidence.amended_after, event_id=self._last_event)
        )
        for incident_id, alert_id in amended:
            # After a restart the query finds all amended accounts, and most of them are copied already.
            if not await asyncio.to_thread(self._files.has_alert, incident_id, CopyMoment.AMENDED, alert_id):
                self._add_due(incident_id, CopyMoment.AMENDED)
        self._last_event = last_event

    def _add_due(self, incident_id: str, moment: CopyMoment) -> None:
        at_s = asyncio.get_running_loop().time() + COPY_DELAY_S
        self._due.setdefault(_CopyKey(incident_id, moment), _DueCopy(at_s))

    # ── copying ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _copy(self, keys: Sequence[_CopyKey]) -> None:
        if not keys:
            return
        try:
            collected = await self._collect([key.incident_id for key in keys])
        except Exception as error:  # no failure of a copy may stop the leg's offers; the copy is retried
            for key in keys:
                self._note_failure(key, error, alone=len(keys) > 1 and not isinstance(error, RetryableError))
            return
        for key in keys:
            await self._save(key, collected.get(key.incident_id))

    async def _collect(self, incident_ids: Sequence[str]) -> Mapping[str, Evidence]:
        events = await self._store.transaction(partial(self._store.events, incident_ids=incident_ids))
        return await self._collector.of(
            {
                id_: [event.alert_id for event in events.get(id_, ()) if isinstance(event, AlertFolded)]
                for id_ in incident_ids
            }
        )

    async def _save(self, key: _CopyKey, evidence: Evidence | None) -> None:
        try:
            if evidence is None:
                raise NotFound("ALERTS holds none of the incident's alerts")
            await asyncio.to_thread(self._files.save, key.moment, evidence)
        except Exception as error:
            self._note_failure(key, error)
        else:
            self._note_success(key, evidence)

    def _note_failure(self, key: _CopyKey, error: Exception, alone: bool = False) -> None:
        self._metrics.failed.inc()
        reason = error.reason if isinstance(error, TandemError) else type(error).__name__
        logger().error("evidence_not_kept", incident_id=key.incident_id, moment=key.moment, reason=reason)
        due = self._due[key]
        due.at_s = asyncio.get_running_loop().time() + RETRY.delay_s(due.failures)
        due.failures += 1
        due.alone = due.alone or alone

    def _note_success(self, key: _CopyKey, evidence: Evidence) -> None:
        del self._due[key]
        if key.moment is CopyMoment.CLOSED:
            self._open.discard(key.incident_id)
        self._metrics.kept.labels(key.moment).inc()
        fields = {"incident_id": key.incident_id, "moment": key.moment}
        logger().info("evidence_kept", **fields, records=len(evidence.records))
        if not evidence.whole:
            logger().error("evidence_incomplete", **fields)
