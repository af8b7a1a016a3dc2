"""Evidence for a reader: the leg's copies, and what the copies lack, collected from the streams at once."""

from __future__ import annotations

import asyncio

from services.common.messaging.bus import Bus
from services.common.messaging.streams import LogMetadata
from services.common.observability.telemetry import logger
from services.common.rpc.errors import TandemError, Unavailable
from services.dispatch.domain.leg import Leg
from services.dispatch.evidence.collector import EvidenceCollector
from services.dispatch.evidence.files import CopyMoment, EvidenceFiles
from services.dispatch.evidence.model import Evidence
from services.dispatch.evidence.retention import EvidenceRetention

COLLECTED_WITHIN_S = 3.0
"""Maximum time that a unary call waits for the streams, seconds. The call ends after 5 s (rpc.server.UNARY_DEADLINE_S)."""
DOWNLOAD_COLLECTED_WITHIN_S = 120.0
"""Maximum time that a download waits for the streams, seconds. A download has no deadline of its own."""
FRESH_S = 30.0
"""Time for which collected evidence counts as fresh, seconds. A caller who was told to retry then gets it from the file."""
SLEEP_RATIO = 1.0
"""Seconds of sleep per second of work. A person waits for the answer, but offers come first."""


class EvidenceReading:
    """Reads the evidence of one leg's incidents. One incident is collected at a time, however many readers wait."""

    def __init__(
        self, leg: Leg, bus: Bus, log_meta: LogMetadata, *, files: EvidenceFiles, retention: EvidenceRetention
    ) -> None:
        self._files, self._retention = files, retention
        # Without the gate: the caller may hold a place at the gate for its whole call, and would wait for itself.
        self._collector = EvidenceCollector(bus, log_meta, leg, sleep_ratio=SLEEP_RATIO)
        self._one_at_a_time = asyncio.Lock()
        self._running: dict[str, asyncio.Task[None]] = {}
        """Collections that run or wait for their turn, by incident id."""
        self._given_up: set[str] = set()
        """Ids of incidents whose collection runs on although a caller gave up waiting for it."""
        self._fresh_until_s: dict[str, float] = {}
        """Until when the file of such an incident counts as fresh, by the event loop's clock, seconds."""

    async def read(self, incident_id: str, within_s: float) -> list[Evidence]:
        """Copies of an incident with all that is known now, the earliest first; empty if the leg knows no such incident.

        Raises Unavailable if collecting takes longer than `within_s`, seconds. Collecting goes on, so a retry finds the result.
        """
        await self._retention.schedule()
        if self._retention.lacks(incident_id) and not self._is_fresh(incident_id):
            await self._collected(incident_id, within_s)
        return await asyncio.to_thread(self._files.load, incident_id)

    def _is_fresh(self, incident_id: str) -> bool:
        now_s = asyncio.get_running_loop().time()
        self._fresh_until_s = {id_: until_s for id_, until_s in self._fresh_until_s.items() if until_s > now_s}
        return incident_id in self._fresh_until_s

    async def _collected(self, incident_id: str, within_s: float) -> None:
        running = self._running.get(incident_id)
        if running is None:
            running = self._running[incident_id] = asyncio.create_task(self._collect(incident_id))
            running.add_done_callback(lambda task: self._note_done(incident_id, task))
        try:
            async with asyncio.timeout(within_s):
                await asyncio.shield(running)
        except TimeoutError:
            self._given_up.add(incident_id)
            reason = "the incident's evidence is being collected from the log; retry in a few seconds"
            raise Unavailable(reason, retry_after_s=COLLECTED_WITHIN_S) from None

    async def _collect(self, incident_id: str) -> None:
        async with self._one_at_a_time:
            evidence = (await self._retention.collect([incident_id], self._collector)).get(incident_id)
            if evidence is not None:
                # Retention makes the final copies, after a delay for records that are stored late.
                await asyncio.to_thread(self._files.save, CopyMoment.OPENED, evidence)

    def _note_done(self, incident_id: str, task: asyncio.Task[None]) -> None:
        del self._running[incident_id]
        given_up = incident_id in self._given_up
        self._given_up.discard(incident_id)
        if task.cancelled():
            return
        if error := task.exception():
            reason = error.reason if isinstance(error, TandemError) else type(error).__name__
            logger().error("evidence_not_collected", incident_id=incident_id, reason=reason)
        elif given_up:
            self._fresh_until_s[incident_id] = asyncio.get_running_loop().time() + FRESH_S
