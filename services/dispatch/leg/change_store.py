"""Reads and writes one change of a leg's incidents. On PostgreSQL each takes one round trip, whatever the number of tables.

Read and write run in one transaction that holds the writers' lock. So the read returns the last commit of any process of the leg.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from services.common.storage import rows, statements
from services.common.storage.rows import RowTarget
from services.dispatch.absence import store
from services.dispatch.domain.events import Event
from services.dispatch.leg import chain, tables
from services.dispatch.leg.change import Change
from services.dispatch.leg.rows import StreamPosition
from services.dispatch.leg.store import POSITIONS
from services.dispatch.publications.steps import NumberedStep

_WRITTEN = (
    RowTarget(tables.events),
    RowTarget(tables.steps),
    RowTarget(tables.assignments, ("state", "due_ms", "payload", "report_to_published_ms", "unit_id")),
    RowTarget(tables.incidents, ("ended_ms", "order_ids")),
    RowTarget(store.awaited_legs, ()),
    RowTarget(tables.notes, ()),
    POSITIONS,
)
_READ_HEAD = """
    SELECT 'head' AS what, id AS number, hash AS text1, NULL AS text2, NULL AS text3, CAST(NULL AS DOUBLE PRECISION) AS ms
        FROM events WHERE id = (SELECT max(id) FROM events)
    UNION ALL SELECT 'roster', version, NULL, NULL, NULL, NULL FROM roster
"""
_READ = """
    {head}
    UNION ALL SELECT 'event', id, incident_id, kind, body, NULL FROM events WHERE incident_id {among}
    UNION ALL SELECT 'latency', NULL, assignment_id, NULL, NULL, report_to_published_ms FROM assignments
        WHERE incident_id {among} AND report_to_published_ms IS NOT NULL
    UNION ALL SELECT 'engaged', NULL, unit_id, assignment_id, incident_id, NULL FROM assignments
        WHERE {asked} AND unit_id IS NOT NULL
    ORDER BY number
"""
_READ_BY_DIALECT = {
    "postgresql": _READ.format(head=_READ_HEAD, among="= ANY($1::VARCHAR[])", asked="$2::BOOLEAN"),
    "sqlite": _READ.format(head=_READ_HEAD, among="IN (SELECT value FROM json_each(?1))", asked="?2"),
}


@dataclass(slots=True)
class CommittedState:
    """State that the transaction of a change reads from the store."""

    head: chain.ChainHead = field(default_factory=chain.ChainHead)
    roster_version: int = 0
    events: dict[str, list[Event]] = field(default_factory=dict)
    """Events by incident, in their order."""
    latency_ms: dict[str, float] = field(default_factory=dict)
    """Known latencies of offers (report_to_published_ms), by assignment id."""
    engaged: dict[str, dict[str, str]] | None = None
    """Incident id by assignment id, for the open assignments of each unit id; None if they weren't requested."""


def read(connection: sa.Connection, incident_ids: Sequence[str], engaged: bool) -> CommittedState:
    """Reads the chain's head, the roster's version and the events of incidents; if `engaged`, also the units' open assignments."""
    state = CommittedState(engaged={} if engaged else None)
    for what, number, text1, text2, text3, ms in _rows(connection, incident_ids, engaged):
        match what:
            case "head":
                state.head = chain.ChainHead(number, text1)
            case "roster":
                state.roster_version = number
            case "event":
                state.events.setdefault(text1, []).append(chain.read(text2, text3))
            case "latency":
                state.latency_ms[text1] = ms
            case "engaged" if state.engaged is not None:
                state.engaged.setdefault(text1, {})[text2] = text3
    return state


def _rows(connection: sa.Connection, incident_ids: Sequence[str], engaged: bool) -> Sequence[tuple[Any, ...]]:
    if not incident_ids and not engaged:  # a desk's answer, as its incident is in memory
        return statements.fetch(connection, _READ_HEAD)
    ids = list(incident_ids) if statements.is_postgresql(connection) else json.dumps(list(incident_ids))
    return statements.fetch(connection, _READ_BY_DIALECT[connection.dialect.name], (ids, engaged))


def write(connection: sa.Connection, change: Change, positions: Sequence[StreamPosition]) -> None:
    """Writes the events of a change, the rows derived from them, unpublished steps, and the stream positions that they came from."""
    if not change.links and not positions:
        return
    rows.write(
        connection,
        _WRITTEN,
        (
            change.links,
            [_step_row(step) for step in change.steps],
            list(change.assignments.values()),
            [(*row[:4], json.dumps(row.order_ids), row.exercise) for row in change.incidents.values()],
            change.awaited,
            change.notes,
            positions,
        ),
    )


def _step_row(step: NumberedStep) -> tuple[object, ...]:
    message, published = step.step, False
    return (step.sequence, message.step_id, message.assignment.assignment_id, message.SerializeToString(), published)
