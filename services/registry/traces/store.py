"""Reads and writes of the trace tables within one transaction."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy import Connection

from services.common.clock import MeshClock
from services.common.storage import rows as storage
from services.common.storage.rows import RowTarget
from services.registry.disclosure.domain import Deed
from services.registry.ledger.tables import ledger
from services.registry.repository import Repository
from services.registry.traces.domain import facts
from services.registry.traces.domain.facts import AlertFact, CaseVersion, DataUse, Fact
from services.registry.traces.tables import case_versions, trace_facts, trace_positions

_BATCH = (RowTarget(trace_facts, changing=()), RowTarget(trace_positions, changing=("log_id", "sequence", "trail")))
MAX_FACTS = 5_000
"""Maximum number of facts per trace; later facts are omitted. Several days with a warning every 15 s exceed this number."""

MAX_USES = 5_000
"""Maximum number of uses of personal data per trace; later ones are omitted. The ledger has all of them."""

MAX_COMPARED = 50
"""Maximum number of like incidents that a trace is compared with."""
_MAX_ALERTS = 2_000
"""Number of newest alerts among which like incidents are found."""


@dataclass(frozen=True, slots=True)
class TraceBatch:
    """Facts from a batch of messages of one stream."""

    stream: str
    log_id: str
    sequence: int
    """Sequence of the last message in the batch."""
    facts: Sequence[tuple[str, Fact]]
    """Incident id and fact, in order."""
    trail: str = ""
    """Trail of the read entries, serialised."""


def add_batch(connection: Connection, batch: TraceBatch) -> None:
    """Store the facts of a batch and the progress in its stream. Facts that are stored already stay unchanged."""
    rows = [(incident_id, fact.fact_id, fact.at_us, facts.to_json(fact)) for incident_id, fact in batch.facts]
    position = (batch.stream, batch.log_id, batch.sequence, batch.trail)
    storage.write(connection, _BATCH, [rows, [position]])


class StoredVersion(NamedTuple):
    """A version of a case that was stored in the log."""

    case_id: str
    version: int
    sequence: int
    """Sequence in the log."""


class TraceRepository(Repository):
    """The trace tables as one transaction sees them."""

    async def last_sequence(self, stream: str, log_id: str) -> int:
        """Sequence of the last read message of a stream; 0 if no message of this log was read."""
        return (await self.progress(stream, log_id))[0]

    async def progress(self, stream: str, log_id: str) -> tuple[int, str]:
        """Sequence of the last read message of a stream, and the trail; 0 and empty if nothing of this log was read."""
        rows = await self._rows(sa.select(trace_positions).where(trace_positions.c.stream == stream))
        return (rows[0].sequence, rows[0].trail) if rows and rows[0].log_id == log_id else (0, "")

    async def facts(self, incident_id: str) -> list[Fact]:
        """Stored facts of an incident, earliest first. A result of MAX_FACTS + 1 facts means that later facts are omitted."""
        mine = sa.select(trace_facts.c.fact).where(trace_facts.c.incident_id == incident_id)
        rows = await self._rows(mine.order_by(trace_facts.c.at_us, trace_facts.c.fact_id).limit(MAX_FACTS + 1))
        return [facts.of_json(row.fact) for row in rows]

    async def newest_alerts(self) -> dict[str, list[AlertFact]]:
        """The newest alerts of all incidents by incident id, the newest incident first."""
        newest = sa.select(trace_facts.c.incident_id, trace_facts.c.fact).where(trace_facts.c.fact_id.like("alert/%"))
        by_incident: dict[str, list[AlertFact]] = {}
        for row in await self._rows(newest.order_by(trace_facts.c.at_us.desc()).limit(_MAX_ALERTS)):
            fact = facts.of_json(row.fact)
            if isinstance(fact, AlertFact):
                by_incident.setdefault(row.incident_id, []).append(fact)
        return by_incident

    async def facts_of_all(self, incident_ids: Collection[str]) -> dict[str, list[Fact]]:
        """Stored facts of several incidents by incident id, the earliest of each first, at most 4 * MAX_FACTS in all."""
        theirs = sa.select(trace_facts.c.incident_id, trace_facts.c.fact)
        theirs = theirs.where(trace_facts.c.incident_id.in_(list(incident_ids)))
        by_incident: dict[str, list[Fact]] = {}
        for row in await self._rows(theirs.order_by(trace_facts.c.at_us, trace_facts.c.fact_id).limit(4 * MAX_FACTS)):
            by_incident.setdefault(row.incident_id, []).append(facts.of_json(row.fact))
        return {id_: own for id_, own in by_incident.items() if any(isinstance(fact, AlertFact) for fact in own)}

    async def versions_of(self, case_ids: Collection[str], clock: MeshClock) -> dict[str, list[CaseVersion]]:
        """Versions of cases by case id, in the order in which they were made."""
        versions: dict[str, list[CaseVersion]] = {case_id: [] for case_id in case_ids}
        mine = sa.select(case_versions).where(case_versions.c.case_id.in_(list(case_ids)))
        for row in await self._rows(mine.order_by(case_versions.c.version)):
            made_us, stored_us = clock.to_wall_us(row.version), clock.to_wall_us(row.stored_at_ms)
            versions[row.case_id].append(
                CaseVersion(
                    case_id=row.case_id,
                    version=row.version,
                    made_us=made_us,
                    sequence=row.sequence,
                    stored_us=stored_us,
                )
            )
        return versions

    async def uses(self, incident_id: str, clock: MeshClock) -> list[DataUse]:
        """Rows of the ledger that refer to an incident, earliest first, at most MAX_USES + 1."""
        mine = sa.select(ledger).where(ledger.c.reference == incident_id)
        rows = await self._rows(mine.order_by(ledger.c.sequence).limit(MAX_USES + 1))
        return [
            DataUse(
                sequence=row.sequence,
                at_us=clock.to_wall_us(row.at_ms),
                deed=row.deed,
                who=row.recipient or row.who,
                giver=row.who if row.deed == Deed.NOTIFIED.value else "",
                legal_basis=row.legal_basis,
                purpose=row.purpose,
                record_kind=row.record_kind,
            )
            for row in rows
        ]

    async def note_versions(self, stored: Iterable[StoredVersion], stored_at_ms: int) -> None:
        """Store the sequences and the time at which versions of cases were stored in the log."""
        # An upsert, because a version that the log lost is stored in the log a second time.
        await self._upsert(case_versions, [{**version._asdict(), "stored_at_ms": stored_at_ms} for version in stored])

    async def forget_before(self, at_us: int) -> None:
        """Delete facts that are older than a moment, microseconds since 1970 UTC."""
        await self._connection.execute(sa.delete(trace_facts).where(trace_facts.c.at_us < at_us))
