"""The worker beside a leg that copies what an incident rests on, when it opens, when it closes, and when late reports amend an account
of it after that: the log forgets after days.

It reads what the leg has committed and writes files of its own, so an offer never waits for it. All copies that are due are made in
one pass through the streams, which takes a small share of the time. What fails is an alarm, and is tried again.
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
from services.dispatch.evidence import model
from services.dispatch.evidence import store as store_evidence
from services.dispatch.evidence.collector import EvidenceCollector
from services.dispatch.evidence.model import Evidence
from services.dispatch.leg.store import Store
from services.dispatch.retrying import retried

CHECK_INTERVAL_S = 2.0
SETTLES_S = 5.0
"""Figures and what is parked come behind the alerts: so long they are waited for, wall time."""
RETRY_FIRST_S, RETRY_LAST_S = 5.0, 300.0
REST = 19.0
"""Seconds of rest for each second of a pass: two hours of a country's log take seconds, and the leg is here to offer."""
AT_ONCE = 200
"""Copies that are made in one pass: what it has found is in memory until its end."""
OPENED, CLOSED, AMENDED = "opened", "closed", "amended"

_KEPT = Counter("tandem_evidence_kept", "Copies of what an incident rests on, by moment", ("moment",))
_FAILED = Counter("tandem_evidence_failed", "Tries to copy what an incident rests on that failed")


class EvidenceFiles:
    """Copies on disk, one file for each incident and moment, whole or not at all, readable by their owner only."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def has(self, incident_id: str, moment: str) -> bool:
        """Whether it was kept."""
        return self._path(incident_id, moment).exists()

    def load(self, incident_id: str) -> list[Evidence]:
        """What was kept of an incident, the earliest first."""
        paths = [self._path(incident_id, moment) for moment in (OPENED, CLOSED, AMENDED)]
        return [model.of_bytes(gzip.decompress(path.read_bytes())) for path in paths if path.exists()]

    def has_alert(self, incident_id: str, moment: str, alert_id: str) -> bool:
        """Whether the copy of a moment was kept, with this alert in it."""
        if not self.has(incident_id, moment):
            return False
        kept = model.of_bytes(gzip.decompress(self._path(incident_id, moment).read_bytes()))
        return any(record.subject.endswith(f".{alert_id}") for record in kept.of(flow.ALERTS.name))

    def save(self, moment: str, found: Evidence) -> None:
        """Keeps it durably. Raises OSError."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        durable.write(self._path(found.incident_id, moment), gzip.compress(found.to_bytes(), mtime=0))

    def _path(self, incident_id: str, moment: str) -> Path:
        return self._folder / f"{incident_id}.{moment}.jsonl.gz"


_Key: TypeAlias = tuple[str, str]
"""Incident and moment."""


@dataclass(slots=True)
class _Due:
    """A copy that is still to be made."""

    at_s: float
    """When it is tried, by the loop's clock."""
    wait_s: float = RETRY_FIRST_S
    """How long after a try that fails."""
    alone: bool = False
    """It failed together with others, one of which may be the reason."""


class EvidenceKeeper:
    """Keeps the evidence of one leg's incidents."""

    def __init__(self, leg: str, store: Store, bus: Bus, log_meta: LogMetadata, files: EvidenceFiles) -> None:
        self._leg, self._store, self._bus, self._log_meta, self._files = leg, store, bus, log_meta, files
        self._open: set[str] = set()
        """Incidents whose end isn't kept yet."""
        self._seen = 0
        """How far it has come in the order in which incidents opened."""
        self._due: dict[_Key, _Due] = {}
        """By incident and moment."""
        self._seen_event = 0
        """How far it has come among the leg's events in its search for amended accounts."""

    async def run(self) -> None:
        """Works for ever."""
        while True:
            await retried(self._look)
            now_s = asyncio.get_running_loop().time()
            due = [key for key, one in self._due.items() if one.at_s <= now_s]
            together = [key for key in due if not self._due[key].alone]
            for first in range(0, len(together), AT_ONCE):
                await self._keep(together[first : first + AT_ONCE])
            for key in due:
                if key not in together:
                    await self._keep([key])
            await asyncio.sleep(CHECK_INTERVAL_S)

    async def _look(self) -> None:
        """Notes which incidents have opened, and which of the open ones have ended."""
        while opened := await self._store.transaction(partial(store_evidence.opened_after, opened_sequence=self._seen)):
            for self._seen, incident_id in opened:
                if not self._files.has(incident_id, CLOSED):
                    self._open.add(incident_id)
                    if not self._files.has(incident_id, OPENED):
                        self._await(incident_id, OPENED)
        if self._open:
            incident_ids = sorted(self._open)
            ended = await self._store.transaction(partial(store_evidence.ended_of, incident_ids=incident_ids))
            for incident_id in ended:
                self._await(incident_id, CLOSED)
        last_event, amended = await self._store.transaction(
            partial(store_evidence.amended_after, event_id=self._seen_event)
        )
        for incident_id, alert_id in amended:
            # After a restart all of them are found: most are kept.
            if not await asyncio.to_thread(self._files.has_alert, incident_id, AMENDED, alert_id):
                self._await(incident_id, AMENDED)
        self._seen_event = last_event

    def _await(self, incident_id: str, moment: str) -> None:
        self._due.setdefault((incident_id, moment), _Due(asyncio.get_running_loop().time() + SETTLES_S))

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
            found = await EvidenceCollector(self._bus, self._log_meta, self._leg, rest=REST).of(alert_ids)
        except Exception as error:  # whatever it is: the leg goes on with its offers, and this is tried again
            for key in keys:
                self._failed(key, error, alone=len(keys) > 1 and not isinstance(error, RetryableError))
            return
        for key in keys:
            incident_id, moment = key
            try:
                if incident_id not in found:
                    raise NotFound("ALERTS holds none of the incident's alerts")
                await asyncio.to_thread(self._files.save, moment, found[incident_id])
            except Exception as error:
                self._failed(key, error)
            else:
                self._kept(key, found[incident_id])

    def _failed(self, key: _Key, error: Exception, alone: bool = False) -> None:
        _FAILED.inc()
        (incident_id, moment), due = key, self._due[key]
        reason = error.reason if isinstance(error, TandemError) else type(error).__name__
        logger().error("evidence_not_kept", incident_id=incident_id, moment=moment, reason=reason)
        due.at_s = asyncio.get_running_loop().time() + due.wait_s
        due.wait_s = min(2 * due.wait_s, RETRY_LAST_S)
        due.alone = due.alone or alone

    def _kept(self, key: _Key, found: Evidence) -> None:
        incident_id, moment = key
        del self._due[key]
        if moment == CLOSED:
            self._open.discard(incident_id)
        _KEPT.labels(moment).inc()
        logger().info("evidence_kept", incident_id=incident_id, moment=moment, records=len(found.records))
        if not found.whole:
            logger().error("evidence_incomplete", incident_id=incident_id, moment=moment)
