"""One change of a leg's incidents, read for and written whole: on PostgreSQL each is one round trip, however many tables it concerns.

All in one transaction, which holds the lock of writers: what is read here is what another process of the leg committed last.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

import sqlalchemy as sa

from services.common.storage import rows
from services.common.storage.rows import Into
from services.dispatch.absence import store
from services.dispatch.domain.events import Event
from services.dispatch.leg import chain, tables
from services.dispatch.leg.change import Change
from services.dispatch.leg.store import POSITIONS, StreamPosition

_WRITTEN = (
    Into(tables.events),
    Into(tables.steps),
    Into(tables.assignments, ("state", "due_ms", "payload", "report_to_published_ms", "unit_id")),
    Into(tables.incidents, ("ended_ms", "order_ids")),
    Into(store.awaited_legs, ()),
    POSITIONS,
)
_READ = """
    SELECT 'head' AS what, id AS number, hash AS one, NULL AS two, NULL AS three, CAST(NULL AS DOUBLE PRECISION) AS ms
        FROM events WHERE id = (SELECT max(id) FROM events)
    UNION ALL SELECT 'roster', version, NULL, NULL, NULL, NULL FROM roster
    UNION ALL SELECT 'event', id, incident_id, kind, body, NULL FROM events WHERE incident_id {among}
    UNION ALL SELECT 'latency', NULL, assignment_id, NULL, NULL, report_to_published_ms FROM assignments
        WHERE incident_id {among} AND report_to_published_ms IS NOT NULL
    UNION ALL SELECT 'engaged', NULL, unit_id, assignment_id, incident_id, NULL FROM assignments
        WHERE {asked} AND unit_id IS NOT NULL
    ORDER BY number
"""
_READ_BY_DIALECT = {
    "postgresql": _READ.format(among="= ANY($1::VARCHAR[])", asked="$2::BOOLEAN"),
    "sqlite": _READ.format(among="IN (SELECT value FROM json_each(?1))", asked="?2"),
}


@dataclass(slots=True)
class CommittedState:
    """What is committed, as far as a change rests on it."""

    head: chain.ChainHead = field(default_factory=chain.ChainHead)
    roster_version: int = 0
    events: dict[str, list[Event]] = field(default_factory=dict)
    """By incident, in their order."""
    latency_ms: dict[str, float] = field(default_factory=dict)
    """report_to_published_ms by assignment, where it is known."""
    engaged: dict[str, dict[str, str]] | None = None
    """By unit: the assignments that it has a part in now, each with its incident; None where nobody asked."""


def read(connection: sa.Connection, incident_ids: Sequence[str], engaged: bool) -> CommittedState:
    """The end of the chain, the roster's version, all of these incidents, and where it is asked for who is engaged."""
    dialect = connection.dialect.name
    ids = list(incident_ids) if dialect == "postgresql" else json.dumps(list(incident_ids))
    seen = CommittedState(engaged={} if engaged else None)
    for what, number, one, two, three, ms in connection.exec_driver_sql(_READ_BY_DIALECT[dialect], (ids, engaged)):
        match what:
            case "head":
                seen.head = chain.ChainHead(number, one)
            case "roster":
                seen.roster_version = number
            case "event":
                seen.events.setdefault(one, []).append(chain.read(two, three))
            case "latency":
                seen.latency_ms[one] = ms
            case "engaged" if seen.engaged is not None:
                seen.engaged.setdefault(one, {})[two] = three
    return seen


def write(connection: sa.Connection, change: Change, position: StreamPosition | None) -> None:
    """Writes events with all that is derived from them, what is to be published, and how far a stream was taken in."""
    if not change.links and position is None:
        return
    rows.write(
        connection,
        _WRITTEN,
        (
            [(link.id, link.incident_id, link.kind, link.body, link.hash) for link in change.links],
            [
                (
                    step.sequence,
                    step.step.step_id,
                    step.step.assignment.assignment_id,
                    step.step.SerializeToString(),
                    False,
                )
                for step in change.steps
            ],
            [
                (
                    *(
                        assignment.assignment_id,
                        assignment.incident_id,
                        assignment.state,
                        assignment.due_ms,
                        assignment.payload,
                    ),
                    *(assignment.report_to_published_ms, assignment.unit_id),
                )
                for assignment in change.assignments.values()
            ],
            [
                (
                    *(incident.incident_id, incident.opened_sequence, incident.opened_ms, incident.ended_ms),
                    *(json.dumps(incident.order_ids), incident.exercise),
                )
                for incident in change.incidents.values()
            ],
            [(one.incident_id, one.leg, one.due_ms, one.absent) for one in change.awaited],
            [(position.stream, position.log_id, position.sequence, position.trail)] if position else [],
        ),
    )
