"""Queries of evidence retention on the leg's database. The queries run often, so each reads a single table once."""

from __future__ import annotations

import json
from collections.abc import Sequence

import sqlalchemy as sa

from services.dispatch.domain.events import AlertFolded
from services.dispatch.leg.chain import STORED_NAMES
from services.dispatch.leg.tables import metadata
from tandem.common.v1 import alert_pb2

_incidents, _events = metadata.tables["incidents"], metadata.tables["events"]
_PAGE = 500


def opened_after(connection: sa.Connection, opened_sequence: int) -> list[tuple[int, str]]:
    """Returns the next incidents in the order of opening, at most 500: their opening sequences and ids.

    Canaries are left out.
    """
    query = (
        sa.select(_incidents.c.opened_sequence, _incidents.c.incident_id)
        .where(_incidents.c.opened_sequence > opened_sequence, sa.text("exercise <> 2"))
        .order_by(_incidents.c.opened_sequence)
        .limit(_PAGE)
    )
    return [(sequence, incident_id) for sequence, incident_id in connection.execute(query)]


def ended_of(connection: sa.Connection, incident_ids: Sequence[str]) -> list[str]:
    """Returns those of the given incident ids whose incidents have ended."""
    ended: list[str] = []
    for first in range(0, len(incident_ids), _PAGE):
        page = incident_ids[first : first + _PAGE]
        query = sa.select(_incidents.c.incident_id).where(
            _incidents.c.incident_id.in_(page), _incidents.c.ended_ms.is_not(None)
        )
        ended += connection.scalars(query)
    return ended


def amended_after(connection: sa.Connection, event_id: int) -> tuple[int, list[tuple[str, str]]]:
    """Returns the id of the newest event, and the incident id and alert id of each amended account after `event_id`."""
    last_id = connection.scalar(sa.select(sa.func.max(_events.c.id))) or 0
    query = (
        sa.select(_events.c.incident_id, _events.c.body)
        .where(_events.c.id > event_id, _events.c.id <= last_id, _events.c.kind == STORED_NAMES[AlertFolded])
        .where(_events.c.body.contains(f'"kind":{alert_pb2.ACCOUNT_AMENDED},'))
        .order_by(_events.c.id)
    )
    return last_id, [(incident_id, json.loads(body)["alert_id"]) for incident_id, body in connection.execute(query)]
