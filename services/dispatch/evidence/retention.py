"""Background task of a leg that copies the evidence of its incidents to files, because the log keeps entries only for 7 days.

An incident is copied when it is over, and when late reports amend an account after that. An incident that stays open is copied too,
and the copy is renewed. Copies wait, and then share one pass through the streams, which costs the same for one incident as for
many. So the first minutes of an incident are left to its offers. The task reads committed rows of the leg and writes its own files. A
failed copy is logged as an error and retried, unless the incident's alerts have aged out.

A reader who asks for an incident that isn't copied yet doesn't wait for the pass: `EvidenceReading` collects it at once.

A query of the running leg reads only events that it hasn't read yet.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import sqlalchemy as sa

from services.common.clock import MeshClock
from services.common.errors import NotFound, RetryableError, TandemError
from services.common.evidence.collector import CopyMoment, EvidenceCollector, EvidenceFiles
from services.common.evidence.model import Evidence
from services.common.messaging.bus import Bus
from services.common.messaging.streams import LogMetadata
from services.common.observability.telemetry import logger
from services.common.priority import PriorityGate
from services.common.retrying import Backoff, retried
from services.dispatch.domain.enums import Exercise
from services.dispatch.domain.events import AlertFolded
from services.dispatch.domain.leg import Leg
from services.dispatch.leg import tables
from services.dispatch.leg.chain import STORED_NAMES
from services.dispatch.leg.store import Store
from services.dispatch.metrics import EvidenceMetrics
from tandem.common.v1 import alert_pb2

CHECK_INTERVAL_S = 10.0
"""Interval at which new events of the leg are read and due copies are made, seconds."""
QUIET_S = 5.0
"""Minimum delay before a copy, seconds of wall time. Measures and dead letters are stored some time after their alerts."""
COPY_WITHIN_MS = 600_000
"""Delay of the copy of an incident that is over, milliseconds of mesh time. All such copies then share a pass."""
OPEN_COPY_WITHIN_MS = 3_600_000
"""Delay of the first copy of an incident that stays open, milliseconds of mesh time. The log keeps its entries 7 days."""
OPEN_COPY_INTERVAL_MS = 86_400_000
"""Interval at which the copy of an open incident is renewed, milliseconds of mesh time."""
RETRY = Backoff(5.0, 300.0)
"""Delays after failed copies, seconds of wall time."""
MISSING_TRIES = 10
"""Number of attempts after which a copy is given up because ALERTS holds none of the incident's alerts, some 25 minutes. A stream that
went back has them again within minutes; those that have aged out never come back."""
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
    """A copy that is put off. Times are on the clock of the event loop, seconds."""

    since_s: float
    """When the copy was scheduled."""
    ready_at_s: float
    """Earliest time at which the copy may join a pass that is made for another copy."""
    pass_due_at_s: float
    """Time at which a pass is made for this copy."""
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
        gate: PriorityGate,
        metrics: EvidenceMetrics,
    ) -> None:
        self._store = store
        self._files = files
        self._metrics = metrics
        self._clock: MeshClock = log_meta.clock
        self._collector = EvidenceCollector(
            bus, log_meta, leg, may_locate_person=leg.policy.may_locate_person, sleep_ratio=SLEEP_RATIO, gate=gate
        )
        self._open: set[str] = set()
        """Ids of incidents that aren't over."""
        self._due: dict[_CopyKey, _DueCopy] = {}
        self._last_event: int | None = None
        """Id of the last event of the leg that was read. None before the store was read once."""
        self._scheduling = asyncio.Lock()

    async def run(self) -> None:
        """Copies evidence until cancelled."""
        self._metrics.put_off_age_s.set_function(self._oldest_s)
        while True:
            try:
                await retried(self.schedule)
                await self._copy_due()
            except Exception as error:  # a folder that can't be read mustn't stop the leg's offers
                self._metrics.failed.inc()
                logger().error("evidence_not_kept", reason=_reason(error))
            await asyncio.sleep(CHECK_INTERVAL_S)

    def lacks(self, incident_id: str) -> bool:
        """Whether the files lack something that the leg knows about an incident. Call `schedule` first."""
        return incident_id in self._open or any(_CopyKey(incident_id, moment) in self._due for moment in CopyMoment)

    # ── scheduling ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def schedule(self) -> None:
        """Schedules the copies that follow from the leg's new events. Raises Unavailable."""
        async with self._scheduling:
            if self._last_event is None:
                self._last_event = await self._schedule_stored()
            while last := await self._schedule_next(self._last_event):
                self._last_event = last
        self._metrics.put_off.set(len(self._due))

    async def _schedule_next(self, after: int) -> int | None:
        """Schedules the copies that follow from a page of events, and returns the id of the page's last; None if no event follows."""
        read = partial(_folded_after, event_id=after)
        last, alerts = await self._store.reading_history(read)
        for alert in alerts:
            self._schedule_alert(alert)
        return last

    async def _schedule_stored(self) -> int:
        """Schedules the copies that the files lack, and returns the id of the leg's newest event."""
        # On a snapshot: the search for amendments reads all events, and no offer may wait for it.
        last_event, amended = await self._store.reading_history(_amended_incidents)
        opened_sequence = 0
        while incidents := await self._store.reading_history(
            partial(_incidents_after, opened_sequence=opened_sequence)
        ):
            for incident in incidents:
                if not incident.ended:
                    self._open.add(incident.incident_id)
                    self._put_off(incident.incident_id, CopyMoment.OPENED)
                elif not self._files.has(incident.incident_id, CopyMoment.CLOSED):
                    self._put_off(incident.incident_id, CopyMoment.CLOSED)
            opened_sequence = incidents[-1].opened_sequence
        for alert in amended:
            # Most amended accounts are copied already.
            if not await asyncio.to_thread(
                self._files.has_alert, alert.incident_id, CopyMoment.AMENDED, alert.alert_id
            ):
                self._put_off(alert.incident_id, CopyMoment.AMENDED)
        return last_event

    def _schedule_alert(self, alert: FoldedAlert) -> None:
        if alert.amends:
            self._put_off(alert.incident_id, CopyMoment.AMENDED)
        elif alert.ends:
            self._open.discard(alert.incident_id)
            self._due.pop(_CopyKey(alert.incident_id, CopyMoment.OPENED), None)
            self._put_off(alert.incident_id, CopyMoment.CLOSED)
        else:
            self._open.add(alert.incident_id)
            self._put_off(alert.incident_id, CopyMoment.OPENED)

    def _put_off(self, incident_id: str, moment: CopyMoment, delay_ms: int | None = None) -> None:
        is_open = moment is CopyMoment.OPENED
        delay_s = self._clock.wall_s(delay_ms or (OPEN_COPY_WITHIN_MS if is_open else COPY_WITHIN_MS))
        now_s = asyncio.get_running_loop().time()
        copy = _DueCopy(
            since_s=now_s, ready_at_s=now_s + (delay_s if is_open else QUIET_S), pass_due_at_s=now_s + delay_s
        )
        self._due.setdefault(_CopyKey(incident_id, moment), copy)

    def _oldest_s(self) -> float:
        """Longest time that a copy has been put off, seconds. Copies of open incidents don't count before they are due."""
        now_s = asyncio.get_running_loop().time()
        pending = (copy.since_s for key, copy in list(self._due.items()) if key.moment is not CopyMoment.OPENED)
        return now_s - min(pending, default=now_s)

    # ── copying ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _copy_due(self) -> None:
        """Makes all copies that are ready, if a pass is due for one of them."""
        now_s = asyncio.get_running_loop().time()
        if not any(copy.pass_due_at_s <= now_s for copy in self._due.values()):
            return
        ready = [key for key, copy in self._due.items() if copy.ready_at_s <= now_s]
        batched = [key for key in ready if not self._due[key].alone]
        for first in range(0, len(batched), COPY_BATCH):
            await self._copy(batched[first : first + COPY_BATCH])
        for key in ready:
            if key not in batched:
                await self._copy([key])

    async def _copy(self, keys: Sequence[_CopyKey]) -> None:
        if not keys:
            return
        try:
            collected = await self.collect([key.incident_id for key in keys], self._collector)
        except Exception as error:  # no failure of a copy may stop the leg's offers; the copy is retried
            for key in keys:
                self._note_failure(key, error, alone=len(keys) > 1 and not isinstance(error, RetryableError))
            return
        for key in keys:
            await self._save(key, collected.get(key.incident_id))

    async def collect(self, incident_ids: Sequence[str], collector: EvidenceCollector) -> Mapping[str, Evidence]:
        """Collects the evidence of incidents from the streams. Incidents without a stored alert are left out. Raises Unavailable."""
        events = await self._store.reading_history(partial(self._store.events, incident_ids=incident_ids))
        return await collector.of(
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
        logger().error("evidence_not_kept", incident_id=key.incident_id, moment=key.moment, reason=_reason(error))
        if due := self._due.get(key):  # None if the incident ended during the copy
            due.ready_at_s = due.pass_due_at_s = asyncio.get_running_loop().time() + RETRY.delay_s(due.failures)
            due.failures += 1
            due.alone = due.alone or alone
            if isinstance(error, NotFound) and due.failures >= MISSING_TRIES:
                del self._due[key]
                logger().error("evidence_lost", incident_id=key.incident_id, moment=key.moment)

    def _note_success(self, key: _CopyKey, evidence: Evidence) -> None:
        self._due.pop(key, None)
        if key.moment is CopyMoment.OPENED and key.incident_id in self._open:
            self._put_off(key.incident_id, CopyMoment.OPENED, OPEN_COPY_INTERVAL_MS)
        self._metrics.put_off.set(len(self._due))
        self._metrics.kept.labels(key.moment).inc()
        fields = {"incident_id": key.incident_id, "moment": key.moment}
        logger().info("evidence_kept", **fields, records=len(evidence.records))
        if not evidence.whole:
            logger().error("evidence_incomplete", **fields)


def _reason(error: Exception) -> str:
    return error.reason if isinstance(error, TandemError) else type(error).__name__


_ALERT_FOLDED = STORED_NAMES[AlertFolded]
_PAGE = 500
_NEXT_EVENTS = (
    sa.select(tables.events.c.id, tables.events.c.incident_id, tables.events.c.kind, tables.events.c.body)
    .where(tables.events.c.id > sa.bindparam("after"))
    .order_by(tables.events.c.id)
    .limit(_PAGE)
)


class StoredIncident(NamedTuple):
    """An incident in the leg's database."""

    opened_sequence: int
    incident_id: str
    ended: bool


class FoldedAlert(NamedTuple):
    """An alert that the leg has applied to an incident."""

    incident_id: str
    alert_id: str
    ends: bool
    """Whether the alert ends the incident."""
    amends: bool
    """Whether the alert amends an account."""


def _incidents_after(connection: sa.Connection, opened_sequence: int) -> list[StoredIncident]:
    """Returns the next incidents in the order of opening, at most 500. Canaries are left out."""
    query = (
        sa.select(
            tables.incidents.c.opened_sequence, tables.incidents.c.incident_id, tables.incidents.c.ended_ms.is_not(None)
        )
        .where(tables.incidents.c.opened_sequence > opened_sequence, sa.text("exercise <> 2"))
        .order_by(tables.incidents.c.opened_sequence)
        .limit(_PAGE)
    )
    return [StoredIncident._make(row) for row in connection.execute(query)]


def _amended_incidents(connection: sa.Connection) -> tuple[int, list[FoldedAlert]]:
    """Returns the id of the newest event, and all alerts that amend an account."""
    last_id = connection.scalar(sa.select(sa.func.max(tables.events.c.id))) or 0
    query = (
        sa.select(tables.events.c.incident_id, tables.events.c.body)
        .where(tables.events.c.id <= last_id, tables.events.c.kind == _ALERT_FOLDED)
        .where(tables.events.c.body.contains(f'"kind":{alert_pb2.ACCOUNT_AMENDED},'))
        .order_by(tables.events.c.id)
    )
    return last_id, [_folded(incident_id, json.loads(body)) for incident_id, body in connection.execute(query)]


def _folded_after(connection: sa.Connection, event_id: int) -> tuple[int | None, list[FoldedAlert]]:
    """Returns the id of the last event among the next 500, and the alerts among them. Canaries are left out.

    The id is None if no event follows.
    """
    rows = connection.execute(_NEXT_EVENTS, {"after": event_id}).all()
    bodies = [(row.incident_id, json.loads(row.body)) for row in rows if row.kind == _ALERT_FOLDED]
    alerts = [_folded(incident_id, body) for incident_id, body in bodies if body.get("exercise") != Exercise.CANARY]
    return rows[-1].id if rows else None, alerts


def _folded(incident_id: str, body: Mapping[str, Any]) -> FoldedAlert:
    return FoldedAlert(
        incident_id=incident_id,
        alert_id=body["alert_id"],
        ends=body["ends"],
        amends=body.get("kind") == alert_pb2.ACCOUNT_AMENDED,
    )
