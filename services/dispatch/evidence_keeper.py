"""The worker beside a leg that copies what an incident rests on, when it opens and when it closes: the log forgets after days.

It reads what the leg has committed and writes files of its own, so an offer never waits for it. What fails is an alarm, and is
tried again.
"""

from __future__ import annotations

import asyncio
import gzip
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from prometheus_client import Counter

from services.common.bus import Bus
from services.common.errors import TandemError
from services.common.streams import Premises
from services.common.telemetry import logger
from services.dispatch import evidence
from services.dispatch.domain.events import AlertFolded
from services.dispatch.evidence import Evidence
from services.dispatch.leg import retried
from services.dispatch.store import ListedIncident, Store

LOOK_EVERY_S = 2.0
SETTLES_S = 5.0
"""Figures and what is parked come behind the alerts: so long they are waited for, wall time."""
RETRY_FIRST_S, RETRY_LAST_S = 5.0, 300.0
OPENED, CLOSED = "opened", "closed"
_PAGE = 100

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
        paths = [self._path(incident_id, moment) for moment in (OPENED, CLOSED)]
        return [evidence.of_bytes(gzip.decompress(path.read_bytes())) for path in paths if path.exists()]

    def save(self, moment: str, found: Evidence) -> None:
        """Keeps it durably. Raises OSError."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._path(found.incident_id, moment)
        draft = path.with_suffix(".draft")
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(gzip.compress(found.to_bytes(), mtime=0))
            file.flush()
            os.fsync(file.fileno())
        draft.rename(path)
        directory = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def _path(self, incident_id: str, moment: str) -> Path:
        return self._folder / f"{incident_id}.{moment}.jsonl.gz"


@dataclass(slots=True)
class _Due:
    """A copy that is still to be made."""

    at_s: float
    """When it is tried, by the loop's clock."""
    wait_s: float = RETRY_FIRST_S
    """How long after a try that fails."""


class EvidenceKeeper:
    """Keeps the evidence of one leg's incidents."""

    def __init__(self, leg: str, store: Store, bus: Bus, premises: Premises, files: EvidenceFiles) -> None:
        self._leg, self._store, self._bus, self._premises, self._files = leg, store, bus, premises, files
        self._open: set[str] = set()
        """Incidents whose end isn't kept yet."""
        self._seen: set[str] = set()
        self._due: dict[tuple[str, str], _Due] = {}
        """By incident and moment."""

    async def run(self) -> None:
        """Works for ever."""
        while True:
            await retried(self._look)
            now_s = asyncio.get_running_loop().time()
            for (incident_id, moment), due in list(self._due.items()):
                if due.at_s <= now_s:
                    await self._keep(incident_id, moment, due)
            await asyncio.sleep(LOOK_EVERY_S)

    async def _look(self) -> None:
        """Notes which incidents have opened, and which of the open ones have ended."""
        before = ""
        while page := await self._store.incidents("", _PAGE, before):
            known = {one.row.incident_id for one in page} & self._seen
            self._note(page)
            before = page[-1].row.incident_id
            if known:
                break
        # One look for all that are open: one for each would stand before the offers where a thousand are.
        for incident_id in await self._store.transaction(partial(self._store.ended, incident_ids=sorted(self._open))):
            self._await(incident_id, CLOSED)

    def _note(self, listed: Iterable[ListedIncident]) -> None:
        for one in listed:
            incident_id = one.row.incident_id
            if incident_id not in self._seen:
                self._seen.add(incident_id)
                if not self._files.has(incident_id, CLOSED):
                    self._open.add(incident_id)
                    if not self._files.has(incident_id, OPENED):
                        self._await(incident_id, OPENED)

    def _await(self, incident_id: str, moment: str) -> None:
        self._due.setdefault((incident_id, moment), _Due(asyncio.get_running_loop().time() + SETTLES_S))

    async def _keep(self, incident_id: str, moment: str, due: _Due) -> None:
        try:
            events = await self._store.transaction(partial(self._store.events, incident_ids=[incident_id]))
            alert_ids = [one.alert_id for one in events.get(incident_id, ()) if isinstance(one, AlertFolded)]
            found = await evidence.gather(self._bus, self._premises, alert_ids, self._leg)
            await asyncio.to_thread(self._files.save, moment, found)
        except Exception as error:  # whatever it is: the leg goes on with its offers, and this is tried again
            _FAILED.inc()
            reason = error.reason if isinstance(error, TandemError) else type(error).__name__
            logger().error("evidence_not_kept", incident_id=incident_id, moment=moment, reason=reason)
            due.at_s = asyncio.get_running_loop().time() + due.wait_s
            due.wait_s = min(2 * due.wait_s, RETRY_LAST_S)
            return
        del self._due[incident_id, moment]
        if moment == CLOSED:
            self._open.discard(incident_id)
        _KEPT.labels(moment).inc()
        logger().info("evidence_kept", incident_id=incident_id, moment=moment, records=len(found.records))
        if not found.whole:
            logger().error("evidence_incomplete", incident_id=incident_id, moment=moment)
