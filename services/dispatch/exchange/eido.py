"""A leg's steps as one JSON document in the style of NENA's Emergency Incident Data Object.

Components are named as there; the document's own schema is docs/eido.schema.json. It tells ids and states, and no name, address or
position.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from services.common import times
from services.dispatch.exchange.facts import AGENCIES, Fact, facts, is_over, latest
from tandem.dispatch.v1 import dispatch_pb2

STYLE = "tandem-eido-1"
MAX_NOTES = 200
"""The newest; a document must not grow for ever."""


def document(leg: str, steps: Sequence[dispatch_pb2.Step], link: str = "") -> bytes:
    """The incident after these steps of it, JSON with sorted keys. `link` is where the last one can be answered."""
    told = facts(steps)
    first, last = told[0], told[-1]
    agency = AGENCIES[leg][0]
    over = is_over(told)
    links = [{"rel": "incident", "href": f"urn:tandem:incident:{last.incident_id}"}]
    if link:
        links.append({"rel": "acknowledge", "href": link})
    content: dict[str, Any] = {
        "$id": f"urn:tandem:eido:{last.step_id}",
        "style": STYLE,
        "issuedAt": times.to_rfc3339(last.at_ms),
        "issuedBy": agency,
        "incidentComponent": {
            "incidentId": last.incident_id,
            "status": "Closed" if over else "Open",
            "openedAt": times.to_rfc3339(first.at_ms),
            "closedAt": times.to_rfc3339(last.at_ms) if over else None,
            "orderIds": sorted({order_id for one in told for order_id in one.order_ids}),
            "exercise": last.exercise,
        },
        "agencyComponent": [{"agencyId": agency, "name": AGENCIES[leg][1], "role": leg}],
        "callComponent": [_call(agency, told, one) for one in latest(told)],
        "emergencyResourceComponent": [
            {"unitId": one.unit, "agencyId": agency, "callId": one.assignment_id, "status": one.state}
            for one in latest(told)
            if one.unit
        ],
        "notesComponent": [
            {
                "noteId": one.step_id,
                "at": times.to_rfc3339(one.at_ms),
                "agencyId": agency,
                "text": f"{one.assignment_id} {one.state}",
            }
            for one in told[-MAX_NOTES:]
        ],
        "linkComponent": links,
    }
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _call(agency: str, told: Sequence[Fact], now: Fact) -> dict[str, Any]:
    began = next(one for one in told if one.assignment_id == now.assignment_id)
    return {
        "callId": now.assignment_id,
        "agencyId": agency,
        "status": now.state,
        "priority": now.demand,
        "destinationId": now.subject_id,
        "alertKind": now.kind or None,
        "createdAt": times.to_rfc3339(began.at_ms),
        "changedAt": times.to_rfc3339(now.at_ms),
    }
