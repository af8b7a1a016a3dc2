"""EIDO documents against their JSON Schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fastjsonschema
import pytest

from services.common import times
from services.dispatch.exchange import messages
from tandem.common.v1 import alert_pb2, geometry_pb2
from tandem.dispatch.v1 import dispatch_pb2

DOCS = Path(__file__).parents[4] / "docs" / "reference"
valid_eido = fastjsonschema.compile(json.loads((DOCS / "eido.schema.json").read_text()))


def step(number: int, state: int, *, at_ms: int = 1_783_296_000_999, by: str = "", assignment: str = "1") -> Any:
    return dispatch_pb2.Step(
        step_id=f"step-{assignment}-{number}",
        at=times.to_timestamp(at_ms + number * 1_000),
        number=number,
        assignment=dispatch_pb2.Assignment(
            assignment_id=f"assign-{assignment}",
            incident_id="incident-1",
            leg=alert_pb2.POLICE,
            subject_id="order-1/home-1",
            order_ids=["order-1"],
            state=state,  # type: ignore[arg-type]  # of a later version too
            demand=geometry_pb2.RESPOND,
            kind=alert_pb2.RING_ENTERED,
            acknowledged_by=by,
            cause=alert_pb2.ReportCause(device_id="phone-9", report_id="r-9", received_wall_us=1),
        ),
    )


STORY = [
    step(1, dispatch_pb2.OFFERED),
    step(2, dispatch_pb2.ESCALATED),
    step(3, dispatch_pb2.ACKNOWLEDGED, by="spiffe://npa/desk/seoul"),
    step(4, 99),
    step(5, dispatch_pb2.STOOD_DOWN, by="spiffe://npa/desk/seoul"),
]
"""Steps of one assignment, including a state that this version doesn't know."""


def test_an_incident_of_two_assignments_is_over_when_both_are_over() -> None:
    both = [*STORY, step(1, dispatch_pb2.OFFERED, assignment="2", at_ms=1_783_296_100_000)]
    document = json.loads(messages.eido_document("police", both))
    assert document["incidentComponent"]["status"] == "Open" and len(document["callComponent"]) == 2


def test_odd_characters_of_names_and_links_come_through() -> None:
    odd = step(1, dispatch_pb2.ACKNOWLEDGED, by='link/<&"\x00\x0b\u2028')
    document = json.loads(messages.eido_document("police", [odd], 'https://x.example/a?b=1&c=<2>"'))
    valid_eido(document)
    assert document["emergencyResourceComponent"][0]["unitId"] == 'link/<&"\x00\x0b\u2028'
    assert document["linkComponent"][1] == {"rel": "acknowledge", "href": 'https://x.example/a?b=1&c=<2>"'}


def test_a_long_incident_tells_only_its_newest_steps() -> None:
    many = [step(number, dispatch_pb2.ESCALATED) for number in range(1, 400)]
    document = messages.eido_document("police", many)
    notes = [note["noteId"] for note in json.loads(document)["notesComponent"]]
    assert notes == [f"step-1-{number}" for number in range(400 - messages.MAX_NOTES, 400)]
    assert len(document) < 64 << 10


@pytest.mark.parametrize("count", range(1, len(STORY) + 1))
def test_an_eido_document_matches_its_schema(count: int) -> None:
    document = json.loads(messages.eido_document("police", STORY[:count], "https://x.example/a" if count == 1 else ""))
    valid_eido(document)
    over = count == len(STORY)
    assert document["incidentComponent"]["status"] == ("Closed" if over else "Open")
    assert [call["status"] for call in document["callComponent"]] == [document["notesComponent"][-1]["text"].split()[1]]
    assert [note["noteId"] for note in document["notesComponent"]] == [each.step_id for each in STORY[:count]]
    assert document["issuedAt"] == f"2026-07-06T00:00:{count:02}.999Z" and document["issuedBy"] == "npa-police"
    assert bool(document["emergencyResourceComponent"]) == bool(STORY[count - 1].assignment.acknowledged_by)


def test_the_eido_schema_refuses_unknown_missing_and_malformed_fields() -> None:
    document = json.loads(messages.eido_document("police", STORY))
    for broken in (
        {**document, "locationComponent": [{"lat": 37.5}]},
        {**document, "style": "other"},
        {**document, "issuedAt": "yesterday"},
        {name: value for name, value in document.items() if name != "callComponent"},
    ):
        with pytest.raises(fastjsonschema.JsonSchemaException):
            valid_eido(broken)


def test_eido_contains_no_device_ids() -> None:
    written = messages.eido_document("police", STORY)
    assert b"phone-9" not in written and b"r-9" not in written
