"""Reads the incidents of an order, and what this leg's steps say of each task. The steps are the only record of units sent earlier."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import sqlalchemy as sa

from services.dispatch.leg import tables
from tandem.dispatch.v1 import dispatch_pb2

_BATCH = 200
_HAS_ORDER = {
    "sqlite": sa.text("EXISTS (SELECT 1 FROM json_each(incidents.order_ids) WHERE json_each.value = :order_id)"),
    "postgresql": sa.text("CAST(incidents.order_ids AS jsonb) @> to_jsonb(CAST(:order_id AS text))"),
}
"""Condition that an incident concerns an order, by SQL dialect."""


@dataclass(frozen=True, slots=True)
class IncidentOfOrder:
    """An incident of an order, with the tasks of all legs as last known."""

    incident_id: str
    opened_ms: int
    ended_ms: int | None
    exercise: int
    own: list[dispatch_pb2.Assignment] = field(default_factory=list)
    others: list[dispatch_pb2.Assignment] = field(default_factory=list)
    counts: dict[str, Counter[int]] = field(default_factory=dict)
    """Number of this leg's steps by state, for each of its assignments."""


def incidents_of(connection: sa.Connection, order_id: str, from_ms: int, *, limit: int) -> list[IncidentOfOrder]:
    """Up to `limit` incidents of an order that were opened at `from_ms` or later, newest first. Canaries are left out."""
    incidents = tables.incidents.c
    query = (
        sa.select(incidents.incident_id, incidents.opened_ms, incidents.ended_ms, incidents.exercise)
        .where(sa.text("exercise <> 2"), incidents.opened_ms >= from_ms, _HAS_ORDER[connection.dialect.name])
        .order_by(incidents.opened_sequence.desc())
        .limit(limit)
    )
    found = {
        incident_id: IncidentOfOrder(incident_id, opened_ms, ended_ms, exercise=exercise)
        for incident_id, opened_ms, ended_ms, exercise in connection.execute(query, {"order_id": order_id})
    }
    for ids in _batches(list(found)):
        _add_own(connection, found, ids)
        _add_others(connection, found, ids)
    return list(found.values())


def _add_own(connection: sa.Connection, found: dict[str, IncidentOfOrder], incident_ids: Sequence[str]) -> None:
    assignments = tables.assignments.c
    query = sa.select(assignments.incident_id, assignments.payload).where(assignments.incident_id.in_(incident_ids))
    incident_of: dict[str, IncidentOfOrder] = {}
    for incident_id, payload in connection.execute(query.order_by(assignments.assignment_id)):
        assignment = dispatch_pb2.Assignment.FromString(payload)
        incident = incident_of[assignment.assignment_id] = found[incident_id]
        incident.own.append(assignment)
        incident.counts[assignment.assignment_id] = Counter()
    for ids in _batches(list(incident_of)):
        steps = sa.select(tables.steps.c.payload).where(tables.steps.c.assignment_id.in_(ids))
        for (payload,) in connection.execute(steps):
            step = dispatch_pb2.Step.FromString(payload).assignment
            incident_of[step.assignment_id].counts[step.assignment_id][step.state] += 1


def _add_others(connection: sa.Connection, found: dict[str, IncidentOfOrder], incident_ids: Sequence[str]) -> None:
    peers = tables.peers.c
    query = sa.select(peers.incident_id, peers.payload).where(peers.incident_id.in_(incident_ids))
    for incident_id, payload in connection.execute(query.order_by(peers.assignment_id)):
        found[incident_id].others.append(dispatch_pb2.Assignment.FromString(payload))


def _batches(ids: Sequence[str]) -> Iterable[Sequence[str]]:
    return (ids[start : start + _BATCH] for start in range(0, len(ids), _BATCH))
