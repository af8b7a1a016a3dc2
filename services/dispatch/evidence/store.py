"""Queries of evidence retention on the leg's database. A query of the running leg reads only events that it hasn't read yet."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import sqlalchemy as sa

from services.dispatch.domain.enums import Exercise
from services.dispatch.domain.events import AlertFolded
from services.dispatch.leg.chain import STORED_NAMES
from services.dispatch.leg.tables import metadata
from tandem.common.v1 import alert_pb2

_incidents, _events = metadata.tables["incidents"], metadata.tables["events"]
_ALERT_FOLDED = STORED_NAMES[AlertFolded]
_PAGE = 500
_NEXT_EVENTS = (
    sa.select(_events.c.id, _events.c.incident_id, _events.c.kind, _events.c.body)
    .where(_events.c.id > sa.bindparam("after"))
    .order_by(_events.c.id)
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


def incidents_after(connection: sa.Connection, opened_sequence: int) -> list[StoredIncident]:
    """Returns the next incidents in the order of opening, at most 500. Canaries are left out."""
    query = (
        sa.select(_incidents.c.opened_sequence, _incidents.c.incident_id, _incidents.c.ended_ms.is_not(None))
        .where(_incidents.c.opened_sequence > opened_sequence, sa.text("exercise <> 2"))
        .order_by(_incidents.c.opened_sequence)
        .limit(_PAGE)
    )
    return [StoredIncident._make(row) for row in connection.execute(query)]


def amended(connection: sa.Connection) -> tuple[int, list[FoldedAlert]]:
    """Returns the id of the newest event, and all alerts that amend an account."""
    last_id = connection.scalar(sa.select(sa.func.max(_events.c.id))) or 0
    query = (
        sa.select(_events.c.incident_id, _events.c.body)
        .where(_events.c.id <= last_id, _events.c.kind == _ALERT_FOLDED)
        .where(_events.c.body.contains(f'"kind":{alert_pb2.ACCOUNT_AMENDED},'))
        .order_by(_events.c.id)
    )
    return last_id, [_folded(incident_id, json.loads(body)) for incident_id, body in connection.execute(query)]


def folded_after(connection: sa.Connection, event_id: int) -> tuple[int | None, list[FoldedAlert]]:
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
