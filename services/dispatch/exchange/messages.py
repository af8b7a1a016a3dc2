"""Bodies of webhooks: one step as JSON, or the leg's half of the incident as it is after that step, as EIDO.

EIDO is one JSON document in the style of NENA's Emergency Incident Data Object. Components have the names of EIDO, and the schema of
the document is docs/reference/eido.schema.json.

It contains only named fields of the leg's steps: ids and states, but no name of a person, no address and no position, no free text, no
measures, nothing about devices. New states and fields of a step don't break the selection. An unknown state is exported by its name.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, assert_never

from google.protobuf import json_format

from services.common import ids, times
from services.common.web.receivers import BodyForm, Receiver
from services.dispatch.leg import translate
from tandem.dispatch.v1 import dispatch_pb2


def delivery_id(leg: str, receiver: str, step: dispatch_pb2.Step) -> str:
    """Returns the id of a webhook message. The same step to the same receiver always has the same id."""
    return ids.hash_id("hook", leg, receiver, step.step_id)


def write_body(
    leg: str,
    receiver: Receiver,
    sequence: int,
    *,
    step: dispatch_pb2.Step,
    before: Sequence[bytes],
    link: str,
) -> tuple[bytes, str]:
    """Returns the body in the receiver's form, and the content type. `before` has the serialised earlier steps of the incident.

    `link` is the URL that accepts the offer; empty if there is none.
    """
    steps = [*map(dispatch_pb2.Step.FromString, before), step]
    match receiver.form:
        case BodyForm.STEP:
            return _step(leg, sequence, step, link=link), "application/json"
        case BodyForm.EIDO:
            return eido_document(leg, steps, link), "application/json"
        case _:
            assert_never(receiver.form)


def _step(leg: str, sequence: int, step: dispatch_pb2.Step, *, link: str) -> bytes:
    """Encodes the fields of tandem.dispatch.v1.Step as JSON."""
    content = {
        "type": "tandem.dispatch.v1.Step",
        "leg": leg,
        "sequence": sequence,
        "step": json_format.MessageToDict(step, preserving_proto_field_name=True),
    }
    if link:
        content["acknowledge_url"] = link
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


OVER = frozenset({"STOOD_DOWN", "CLOSED"})
"""States in which nothing is left to do for an assignment."""
AGENCIES = {
    "probation": ("moj-probation", "Ministry of Justice, probation"),
    "police": ("npa-police", "National Police"),
    "warning": ("tandem-warning", "Warning of protected persons"),
}
"""Id and name of the agency of each leg."""


@dataclass(frozen=True, slots=True)
class Fact:
    """The exported fields of a step."""

    step_id: str
    at_ms: int
    """Mesh time, milliseconds since 1970 UTC."""
    assignment_id: str
    incident_id: str
    order_ids: tuple[str, ...]
    subject_id: str
    state: str
    demand: str
    kind: str
    """Kind of the alert that caused the step; empty if unknown."""
    unit: str
    """Unit that the step asks, or that has the assignment, also by radio; else who acknowledged it."""
    exercise: bool
    task: str
    """Task beside the response, such as CHECK; empty for the response."""


def _step_facts(steps: Sequence[dispatch_pb2.Step]) -> list[Fact]:
    """Returns the exported fields of steps, in their order."""
    return [_fact(step) for step in steps]


def _fact(step: dispatch_pb2.Step) -> Fact:
    fields = json_format.MessageToDict(step, preserving_proto_field_name=True)
    assignment: dict[str, Any] = fields.get("assignment", {})
    return Fact(
        step_id=step.step_id,
        at_ms=times.from_timestamp(step.at),
        assignment_id=step.assignment.assignment_id,
        incident_id=step.assignment.incident_id,
        order_ids=tuple(step.assignment.order_ids),
        subject_id=step.assignment.subject_id,
        state=str(assignment.get("state", "UNKNOWN")),
        demand=str(assignment.get("demand", "UNKNOWN")),
        kind=str(assignment.get("kind", "")),
        unit=translate.unit_of_step(step) or step.assignment.radio_unit or step.assignment.acknowledged_by,
        exercise=bool(assignment.get("exercise")),
        task=str(assignment.get("task", "")),
    )


def _latest_facts(all_facts: Sequence[Fact]) -> list[Fact]:
    """Returns the last fact of each assignment, in the order in which the assignments began."""
    return list({fact.assignment_id: fact for fact in all_facts}.values())


def is_over(all_facts: Sequence[Fact]) -> bool:
    """Whether nothing is left to do for any assignment of the incident."""
    return all(fact.state in OVER for fact in _latest_facts(all_facts))


STYLE = "tandem-eido-1"
MAX_NOTES = 200
"""Maximum number of notes in a document. Only the newest are kept, so that the size stays limited."""


def eido_document(leg: str, steps: Sequence[dispatch_pb2.Step], link: str = "") -> bytes:
    """Encodes an incident after these steps as JSON with sorted keys. `link` is the URL for acknowledging the last step."""
    all_facts = _step_facts(steps)
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
        "callComponent": [_call(agency, all_facts, fact) for fact in _latest_facts(all_facts)],
        "emergencyResourceComponent": [
            {"unitId": fact.unit, "agencyId": agency, "callId": fact.assignment_id, "status": fact.state}
            for fact in _latest_facts(all_facts)
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
