"""Encodes a leg's steps as one JSON document in the style of NENA's Emergency Incident Data Object (EIDO).

Components have the names of EIDO. The schema of the document is docs/reference/eido.schema.json.
A document contains ids and states, but no name of a person, no address and no position.
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
"""Maximum number of notes in a document. Only the newest are kept, so that the size stays limited."""


def document(leg: str, steps: Sequence[dispatch_pb2.Step], link: str = "") -> bytes:
    """Encodes an incident after these steps as JSON with sorted keys. `link` is the URL for acknowledging the last step."""
    all_facts = facts(steps)
    first, last = all_facts[0], all_facts[-1]
    agency = AGENCIES[leg][0]
    over = is_over(all_facts)
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
            "orderIds": sorted({order_id for fact in all_facts for order_id in fact.order_ids}),
            "exercise": last.exercise,
        },
        "agencyComponent": [{"agencyId": agency, "name": AGENCIES[leg][1], "role": leg}],
        "callComponent": [_call(agency, all_facts, fact) for fact in latest(all_facts)],
        "emergencyResourceComponent": [
            {"unitId": fact.unit, "agencyId": agency, "callId": fact.assignment_id, "status": fact.state}
            for fact in latest(all_facts)
            if fact.unit
        ],
        "notesComponent": [
            {
                "noteId": fact.step_id,
                "at": times.to_rfc3339(fact.at_ms),
                "agencyId": agency,
                "text": f"{fact.assignment_id} {fact.state}",
            }
            for fact in all_facts[-MAX_NOTES:]
        ],
        "linkComponent": links,
    }
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _call(agency: str, all_facts: Sequence[Fact], now: Fact) -> dict[str, Any]:
    began = next(fact for fact in all_facts if fact.assignment_id == now.assignment_id)
    return {
        "callId": now.assignment_id,
        "agencyId": agency,
        "status": now.state,
        "priority": now.demand,
        "destinationId": now.subject_id,
        "alertKind": now.kind or None,
        "task": now.task or None,
        "createdAt": times.to_rfc3339(began.at_ms),
        "changedAt": times.to_rfc3339(now.at_ms),
    }
