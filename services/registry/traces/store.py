"""What is kept of traces, as one transaction sees it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection

from services.common.clock import MeshClock
from services.common.storage import db
from services.registry.tables_ledger import ledger
from services.registry.tables_traces import case_versions, trace_facts, trace_positions
from services.registry.traces.domain import facts
from services.registry.traces.domain.facts import Fact, Premise, Use

MAX_FACTS = 5_000
"""Facts of one incident that are looked at, the earliest; an incident of days with a warning each 15 s may have more."""


@dataclass(frozen=True, slots=True)
class TraceBatch:
    """What one look at a stream brought."""

    stream: str
    log_id: str
    sequence: int
    """How far the stream is read with it."""
    facts: Sequence[tuple[str, Fact]]
    """With their incidents."""
    trail: str = ""
    """A Trail of the entries that are read, written."""


def take(connection: Connection, taken: TraceBatch) -> None:
    """Keeps facts, and with them how far their stream is read. What is there already stays as it is."""
    rows = [
        {"incident_id": incident_id, "fact_id": fact.fact_id, "at_us": fact.at_us, "fact": facts.to_json(fact)}
        for incident_id, fact in taken.facts
    ]
    db.insert_new(connection, trace_facts, rows)
    mine = trace_positions.c.stream == taken.stream
    values = {"log_id": taken.log_id, "sequence": taken.sequence, "trail": taken.trail}
    if not connection.execute(sa.update(trace_positions).where(mine).values(values)).rowcount:
        connection.execute(sa.insert(trace_positions).values(stream=taken.stream, **values))


class TraceRecords:
    """The tables of traces within a transaction."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def _rows(self, statement: sa.Executable) -> Sequence[sa.Row[Any]]:
        return (await self._connection.execute(statement)).all()

    async def position(self, stream: str, log_id: str) -> int:
        """How far a stream is read; 0 where it is another log's."""
        return (await self.reading(stream, log_id))[0]

    async def reading(self, stream: str, log_id: str) -> tuple[int, str]:
        """How far a stream is read, and the trail of that; nothing where it is another log's."""
        rows = await self._rows(sa.select(trace_positions).where(trace_positions.c.stream == stream))
        return (rows[0].sequence, rows[0].trail) if rows and rows[0].log_id == log_id else (0, "")

    async def facts(self, incident_id: str) -> list[Fact]:
        """What is known of an incident, the earliest first, and one more than MAX_FACTS where that isn't all."""
        mine = sa.select(trace_facts.c.fact).where(trace_facts.c.incident_id == incident_id)
        rows = await self._rows(mine.order_by(trace_facts.c.at_us, trace_facts.c.fact_id).limit(MAX_FACTS + 1))
        return [facts.of_json(row.fact) for row in rows]

    async def log_meta(self, case_ids: Collection[str], clock: MeshClock) -> dict[str, list[Premise]]:
        """The versions of cases, by case, in the order in which they were made."""
        found: dict[str, list[Premise]] = {case_id: [] for case_id in case_ids}
        mine = sa.select(case_versions).where(case_versions.c.case_id.in_(list(case_ids)))
        for row in await self._rows(mine.order_by(case_versions.c.version)):
            made_us, stored_us = clock.to_wall_us(row.version), clock.to_wall_us(row.stored_at_ms)
            found[row.case_id].append(Premise(row.case_id, row.version, made_us, row.sequence, stored_us))
        return found

    async def uses(self, incident_id: str, clock: MeshClock) -> list[Use]:
        """Rows of the ledger that name an incident."""
        rows = await self._rows(sa.select(ledger).where(ledger.c.reference == incident_id).order_by(ledger.c.sequence))
        return [
            Use(
                row.sequence,
                clock.to_wall_us(row.at_ms),
                row.deed,
                row.recipient or row.who,
                row.legal_basis,
                row.purpose,
                row.record_kind,
            )
            for row in rows
        ]

    async def note_version(self, case_id: str, version: int, sequence: int, stored_at_ms: int) -> None:
        """Keeps when a version of a case came into the log, and where."""
        values = {"case_id": case_id, "version": version, "sequence": sequence, "stored_at_ms": stored_at_ms}
        # A version that the log had lost comes into it a second time.
        key = {name: values.pop(name) for name in ("case_id", "version")}
        await db.upsert(self._connection, case_versions, key, values)

    async def forget_before(self, at_us: int) -> None:
        """Deletes what is older."""
        await self._connection.execute(sa.delete(trace_facts).where(trace_facts.c.at_us < at_us))
