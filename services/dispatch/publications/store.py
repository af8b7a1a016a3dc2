"""Records which stream message each published step of a leg became, in the leg's own database."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import sqlalchemy as sa

from services.common.messaging import flow
from services.common.messaging.lost_publications import Publication
from services.common.storage import rows, statements
from services.common.storage.rows import RowTarget
from services.dispatch.domain.leg import Leg
from services.dispatch.leg import tables
from services.dispatch.leg.store import Store
from services.dispatch.publications.steps import NumberedStep
from tandem.dispatch.v1 import dispatch_pb2

_PAGE = 500


class StoredAs(NamedTuple):
    """The stream message that a published step became."""

    stream: str
    sequence: int


@dataclass(frozen=True, slots=True)
class Published:
    """Steps that were published, with the stream messages that they became and the latency of their offers."""

    steps: list[NumberedStep] = field(default_factory=list)
    latency_ms: dict[str, float] = field(default_factory=dict)
    """Latency of offers, milliseconds, by assignment id."""
    stored: dict[int, StoredAs] = field(default_factory=dict)
    """Stream messages by the sequence of the step."""


def mark(connection: sa.Connection, published: Published, log_id: str) -> None:
    """Marks steps as published, and records their stream messages and the latency of their offers."""
    dialect = connection.dialect.name
    sequences = [step.sequence for step in published.steps]
    statements.execute(connection, _MARK_PUBLISHED[dialect], [_list(connection, sequences)])
    if published.stored:
        [(last,)] = statements.fetch(connection, _LAST_RECORDED)
        notes = [
            (step_sequence, last + offset, entry.stream, log_id, entry.sequence)
            for offset, (step_sequence, entry) in enumerate(published.stored.items(), 1)
        ]
        rows.write(connection, _NOTES, [notes])
    if published.latency_ms:
        ids, latencies_ms = list(published.latency_ms), list(published.latency_ms.values())
        if statements.is_postgresql(connection):
            statements.execute(connection, _MARK_LATENCY[dialect], (ids, latencies_ms))
        else:
            statements.execute_many(connection, _MARK_LATENCY[dialect], list(zip(latencies_ms, ids, strict=True)))


def _list(connection: sa.Connection, numbers: list[int]) -> object:
    return numbers if statements.is_postgresql(connection) else json.dumps(numbers)


_NOTES = (RowTarget(tables.published_steps, ("recorded", "stream", "log_id", "stream_sequence")),)
"""A later publication of a step replaces an earlier one."""
_MARK_PUBLISHED = {
    "postgresql": "UPDATE steps SET published = true WHERE sequence = ANY($1::BIGINT[])",
    "sqlite": "UPDATE steps SET published = 1 WHERE sequence IN (SELECT value FROM json_each(?1))",
}
_LAST_RECORDED = "SELECT coalesce(max(recorded), 0) FROM published_steps"
_MARK_LATENCY = {
    "postgresql": """
        UPDATE assignments SET report_to_published_ms = offers.ms
            FROM unnest($1::VARCHAR[], $2::DOUBLE PRECISION[]) AS offers (id, ms) WHERE assignment_id = offers.id
    """,
    "sqlite": "UPDATE assignments SET report_to_published_ms = ? WHERE assignment_id = ?",
}

_NOTES_C, _STEPS_C = tables.published_steps.c, tables.steps.c
_OF_STREAM = (
    sa.select(_NOTES_C.recorded, _NOTES_C.stream_sequence, _STEPS_C.step_id, _STEPS_C.payload)
    .select_from(tables.published_steps.join(tables.steps, _NOTES_C.step_sequence == _STEPS_C.sequence))
    .where(_NOTES_C.stream == sa.bindparam("stream"), _NOTES_C.log_id == sa.bindparam("log_id"))
)
_NEWEST = (
    _OF_STREAM.where(_NOTES_C.recorded < sa.bindparam("before"))
    .order_by(_NOTES_C.recorded.desc())
    .limit(sa.bindparam("most"))
)
_HIGHEST = (
    _OF_STREAM.where(_NOTES_C.recorded <= sa.bindparam("up_to")).order_by(_NOTES_C.stream_sequence.desc()).limit(1)
)


class PublishedSteps:
    """A leg's records of its publications on one stream of one log; implements lost_publications.PublicationRecords."""

    def __init__(self, store: Store, leg: Leg, stream: str, *, log_id: str) -> None:
        self._store, self._leg, self.stream, self._log_id = store, leg, stream, log_id

    async def newest(self, before: int, limit: int) -> list[Publication]:
        """The newest publications, as lost_publications.PublicationRecords.newest."""
        return await self._read(_NEWEST, {"before": before, "most": limit})

    async def highest(self, up_to: int) -> Publication | None:
        """The publication with the greatest stream sequence, as lost_publications.PublicationRecords.highest."""
        publications = await self._read(_HIGHEST, {"up_to": up_to})
        return publications[0] if publications else None

    async def unpublish(self, lost: Sequence[Publication]) -> None:
        """Marks steps that the stream has lost as unpublished."""
        notes, steps = tables.published_steps, tables.steps
        positions = [publication.position for publication in lost]

        def work(connection: sa.Connection) -> None:
            for first in range(0, len(positions), _PAGE):
                mine = notes.c.recorded.in_(positions[first : first + _PAGE])
                which = sa.select(notes.c.step_sequence).where(mine)
                connection.execute(sa.update(steps).where(steps.c.sequence.in_(which)).values(published=False))
                connection.execute(sa.delete(notes).where(mine))

        await self._store.transaction(work)

    async def forget_before(self, stream_sequence: int) -> None:
        """Deletes records of messages that the stream no longer keeps, and records of other logs."""
        notes = tables.published_steps
        old = (notes.c.stream_sequence < stream_sequence) | (notes.c.log_id != self._log_id)
        delete = sa.delete(notes).where(notes.c.stream == self.stream, old)
        await self._store.transaction(lambda connection: connection.execute(delete))

    async def _read(self, query: sa.Select[int, int, str, bytes], values: Mapping[str, object]) -> list[Publication]:
        given = {"stream": self.stream, "log_id": self._log_id, **values}
        found = await self._store.reading_history(lambda connection: connection.execute(query, given).all())
        return [
            Publication(position=position, sequence=sequence, subject=self._subject(payload), message_id=step_id)
            for position, sequence, step_id, payload in found
        ]

    def _subject(self, payload: bytes) -> str:
        incident_id = dispatch_pb2.Step.FromString(payload).assignment.incident_id
        if self.stream == flow.ADVICE.name:
            return flow.advice_subject(incident_id)
        return flow.incident_subject(self._leg, incident_id)
