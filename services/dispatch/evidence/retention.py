"""Background task of a leg that copies the evidence of its incidents to files, because the log keeps entries only for days.

It copies an incident when it opens, when it closes, and when late reports amend an account after that. It reads committed rows of the
leg and writes its own files, so an offer never waits for it. All copies that are due share one pass through the streams, which
uses a small share of the time. A failure raises an alarm and is retried.
"""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

from prometheus_client import Counter

from services.common.messaging import flow
from services.common.messaging.bus import Bus
from services.common.messaging.streams import LogMetadata
from services.common.observability.telemetry import logger
from services.common.rpc.errors import NotFound, RetryableError, TandemError
from services.common.storage import durable
from services.dispatch.domain.events import AlertFolded
from services.dispatch.domain.leg import Leg
from services.dispatch.evidence import model
from services.dispatch.evidence import store as store_evidence
from services.dispatch.evidence.collector import EvidenceCollector
from services.dispatch.evidence.model import Evidence
from services.dispatch.leg.store import Store
from services.dispatch.retrying import retried

CHECK_INTERVAL_S = 2.0
COPY_DELAY_S = 5.0
"""Delay before a copy, seconds of wall time: measures and dead letters are stored after their alerts."""
RETRY_FIRST_S, RETRY_LAST_S = 5.0, 300.0
"""First and longest delay of the backoff, seconds of wall time."""
SLEEP_RATIO = 19.0
"""Seconds of sleep per second of work in a pass: two hours of a country's log take seconds to read, and offers come first."""
COPY_BATCH = 200
"""Maximum number of copies in one pass. The pass holds all of them in memory until it ends."""
OPENED, CLOSED, AMENDED = "opened", "closed", "amended"

_KEPT = Counter("tandem_evidence_kept", "Copies of evidence of incidents, by moment", ("moment",))
_FAILED = Counter("tandem_evidence_failed", "Failed attempts to copy the evidence of an incident")


class EvidenceFiles:
    """Copies of evidence on disk, one file per incident and moment. Writes are atomic; only the owner may read the files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def has(self, incident_id: str, moment: str) -> bool:
        """Whether the copy of an incident at a moment (opened, closed or amended) exists."""
        return self._path(incident_id, moment).exists()

    def load(self, incident_id: str) -> list[Evidence]:
        """Loads all copies of an incident, the earliest first."""
        paths = [self._path(incident_id, moment) for moment in (OPENED, CLOSED, AMENDED)]
        return [model.of_bytes(gzip.decompress(path.read_bytes())) for path in paths if path.exists()]

    def has_alert(self, incident_id: str, moment: str, alert_id: str) -> bool:
        """Whether the copy of an incident at a moment exists and holds this alert."""
        if not self.has(incident_id, moment):
            return False
        evidence = model.of_bytes(gzip.decompress(self._path(incident_id, moment).read_bytes()))
        return any(record.subject.endswith(f".{alert_id}") for record in evidence.of(flow.ALERTS.name))

    def save(self, moment: str, evidence: Evidence) -> None:
        """Writes the copy of a moment durably. Raises OSError."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        durable.write(self._path(evidence.incident_id, moment), gzip.compress(evidence.to_bytes(), mtime=0))

    def _path(self, incident_id: str, moment: str) -> Path:
        return self._folder / f"{incident_id}.{moment}.jsonl.gz"


_Key: TypeAlias = tuple[str, str]
"""Incident and moment."""


@dataclass(slots=True)
class _Due:
    """A copy that is due."""

    at_s: float
    """Time of the next attempt, seconds on the clock of the event loop."""
    wait_s: float = RETRY_FIRST_S
    """Delay after the next failed attempt, seconds."""
    alone: bool = False
    """Whether to copy it in a pass of its own: it failed in a batch, where another copy may be the reason."""


class EvidenceRetention:
    """Copies the evidence of one leg's incidents to files."""

    def __init__(self, leg: Leg, store: Store, bus: Bus, *, log_meta: LogMetadata, files: EvidenceFiles) -> None:
        self._leg, self._store, self._bus, self._log_meta, self._files = leg, store, bus, log_meta, files
        self._open: set[str] = set()
        """Incidents without a copy of their end."""
        self._last_opened = 0
        """Opening sequence of the newest incident that was read."""
        self._due: dict[_Key, _Due] = {}
        """Due copies by incident and moment."""
        self._last_event = 0
        """Id of the newest event of the leg that was searched for amended accounts."""

    async def run(self) -> None:
        """Copies evidence until cancelled."""
        while True:
            await retried(self._schedule)
            now_s = asyncio.get_running_loop().time()
            due = [key for key, copy in self._due.items() if copy.at_s <= now_s]
            batched = [key for key in due if not self._due[key].alone]
            for first in range(0, len(batched), COPY_BATCH):
                await self._keep(batched[first : first + COPY_BATCH])
            for key in due:
                if key not in batched:
                    await self._keep([key])
            await asyncio.sleep(CHECK_INTERVAL_S)

    async def _schedule(self) -> None:
        """Schedules a copy for each incident that has opened, ended, or has an amended account."""
        while opened := await self._store.transaction(
            partial(store_evidence.opened_after, opened_sequence=self._last_opened)
        ):
            for self._last_opened, incident_id in opened:
                if not self._files.has(incident_id, CLOSED):
                    self._open.add(incident_id)
                    if not self._files.has(incident_id, OPENED):
                        self._add_due(incident_id, OPENED)
        if self._open:
            incident_ids = sorted(self._open)
            ended = await self._store.transaction(partial(store_evidence.ended_of, incident_ids=incident_ids))
            for incident_id in ended:
                self._add_due(incident_id, CLOSED)
        last_event, amended = await self._store.transaction(
            partial(store_evidence.amended_after, event_id=self._last_event)
        )
        for incident_id, alert_id in amended:
            # After a restart this finds all amended accounts, most of them already copied.
            if not await asyncio.to_thread(self._files.has_alert, incident_id, AMENDED, alert_id):
                self._add_due(incident_id, AMENDED)
        self._last_event = last_event

    def _add_due(self, incident_id: str, moment: str) -> None:
        self._due.setdefault((incident_id, moment), _Due(asyncio.get_running_loop().time() + COPY_DELAY_S))

    async def _keep(self, keys: Sequence[_Key]) -> None:
        if not keys:
            return
        try:
            incident_ids = [incident_id for incident_id, _ in keys]
            events = await self._store.transaction(partial(self._store.events, incident_ids=incident_ids))
            alert_ids = {
                id_: [event.alert_id for event in events.get(id_, ()) if isinstance(event, AlertFolded)]
                for id_ in incident_ids
            }
            collected = await EvidenceCollector(self._bus, self._log_meta, self._leg, sleep_ratio=SLEEP_RATIO).of(
                alert_ids
            )
        except Exception as error:  # any failure: offers must go on, and the copy is retried
            for key in keys:
                self._failed(key, error, alone=len(keys) > 1 and not isinstance(error, RetryableError))
            return
        for key in keys:
            incident_id, moment = key
            try:
                if incident_id not in collected:
                    raise NotFound("ALERTS holds none of the incident's alerts")
                await asyncio.to_thread(self._files.save, moment, collected[incident_id])
            except Exception as error:
                self._failed(key, error)
            else:
                self._kept(key, collected[incident_id])

    def _failed(self, key: _Key, error: Exception, alone: bool = False) -> None:
        _FAILED.inc()
        (incident_id, moment), due = key, self._due[key]
        reason = error.reason if isinstance(error, TandemError) else type(error).__name__
        logger().error("evidence_not_kept", incident_id=incident_id, moment=moment, reason=reason)
        due.at_s = asyncio.get_running_loop().time() + due.wait_s
        due.wait_s = min(2 * due.wait_s, RETRY_LAST_S)
        due.alone = due.alone or alone

    def _kept(self, key: _Key, evidence: Evidence) -> None:
        incident_id, moment = key
        del self._due[key]
        if moment == CLOSED:
            self._open.discard(incident_id)
        _KEPT.labels(moment).inc()
        logger().info("evidence_kept", incident_id=incident_id, moment=moment, records=len(evidence.records))
        if not evidence.whole:
            logger().error("evidence_incomplete", incident_id=incident_id, moment=moment)
