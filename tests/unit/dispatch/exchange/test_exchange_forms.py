"""CAP 1.2 messages against the rules of the standard's schema, element by element, and EIDO documents against the JSON Schema."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from itertools import pairwise
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

ALERT_ORDER = (
    *("identifier", "sender", "sent", "status", "msgType", "source", "scope", "restriction", "addresses", "code"),
    *("note", "references", "incidents", "info"),
)
INFO_ORDER = (
    *("language", "category", "event", "responseType", "urgency", "severity", "certainty", "audience", "eventCode"),
    *("effective", "onset", "expires", "senderName", "headline", "description", "instruction", "web", "contact"),
    *("parameter", "resource", "area"),
)
REQUIRED = {"identifier", "sender", "sent", "status", "msgType", "scope"}
INFO_REQUIRED = {"category", "event", "urgency", "severity", "certainty"}
ALLOWED = {
    "status": {"Actual", "Exercise", "System", "Test", "Draft"},
    "msgType": {"Alert", "Update", "Cancel", "Ack", "Error"},
    "scope": {"Public", "Restricted", "Private"},
    "category": {
        *("Geo", "Met", "Safety", "Security", "Rescue", "Fire", "Health", "Env", "Transport", "Infra", "CBRNE", "Other")
    },
    "responseType": {
        *("Shelter", "Evacuate", "Prepare", "Execute", "Avoid", "Monitor", "Assess", "AllClear", "None"),
    },
    "urgency": {"Immediate", "Expected", "Future", "Past", "Unknown"},
    "severity": {"Extreme", "Severe", "Moderate", "Minor", "Unknown"},
    "certainty": {"Observed", "Likely", "Possible", "Unlikely", "Unknown"},
}
DATE_TIME = r"\d\d\d\d-\d\d-\d\dT\d\d:\d\d:\d\d[-+]\d\d:\d\d"


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


def parsed(message: bytes) -> ET.Element:
    """The parsed message, after checking it against the standard."""
    assert message.startswith(b"<?xml version='1.0' encoding='utf-8'?>")
    alert = ET.fromstring(message)  # noqa: S314  # our own
    assert alert.tag == f"{{{messages.CAP_NAMESPACE}}}alert"
    keeps_to(alert, ALERT_ORDER, REQUIRED, {"info"})
    for info in alert.findall(f"{{{messages.CAP_NAMESPACE}}}info"):
        keeps_to(info, INFO_ORDER, INFO_REQUIRED, {"category", "responseType", "parameter"})
    assert re.fullmatch(DATE_TIME, text(alert, "sent"))
    for name in ("identifier", "sender"):
        assert not re.search(r"[\s,<&]", text(alert, name))
    assert (text(alert, "scope") == "Private") <= bool(text(alert, "addresses"))
    for reference in text(alert, "references").split():
        sender, identifier, sent = reference.split(",")
        assert sender == text(alert, "sender") and identifier and re.fullmatch(DATE_TIME, sent)
    return alert


def keeps_to(element: ET.Element, order: tuple[str, ...], required: set[str], repeated: set[str]) -> None:
    names = [child.tag.removeprefix(f"{{{messages.CAP_NAMESPACE}}}") for child in element]
    assert set(names) <= set(order) and required <= set(names)
    assert [order.index(name) for name in names] == sorted(order.index(name) for name in names)
    assert all(names.count(name) == 1 for name in set(names) - repeated)
    for child, name in zip(element, names, strict=True):
        assert child.text in ALLOWED[name] if name in ALLOWED else True


def text(element: ET.Element, name: str) -> str:
    return element.findtext(f".//{{{messages.CAP_NAMESPACE}}}{name}") or ""


def test_cap_alerts_then_updates_and_cancels_at_the_end_with_references_to_all_before() -> None:
    sent = [parsed(messages.cap_message("police", STORY[:count], "cad")) for count in range(1, len(STORY) + 1)]
    assert [text(message, "msgType") for message in sent] == ["Alert", "Update", "Update", "Update", "Cancel"]
    assert [text(message, "references").count(",") // 2 for message in sent] == [0, 1, 2, 3, 4]
    for earlier, later in pairwise(sent):
        mine = f"{text(earlier, 'sender')},{text(earlier, 'identifier')},{text(earlier, 'sent')}"
        assert text(later, "references").split()[-1] == mine
    assert text(sent[0], "sent") == "2026-07-06T00:00:01-00:00"
    assert [text(message, "urgency") for message in sent] == ["Immediate"] * 4 + ["Past"]
    assert (text(sent[0], "scope"), text(sent[0], "addresses")) == ("Private", "cad")


def test_an_incident_of_two_assignments_is_over_when_both_are_over() -> None:
    both = [*STORY, step(1, dispatch_pb2.OFFERED, assignment="2", at_ms=1_783_296_100_000)]
    assert text(parsed(messages.cap_message("police", both, "cad")), "msgType") == "Update"
    document = json.loads(messages.eido_document("police", both))
    assert document["incidentComponent"]["status"] == "Open" and len(document["callComponent"]) == 2


def test_characters_with_a_meaning_in_xml_are_escaped() -> None:
    odd = step(1, dispatch_pb2.ACKNOWLEDGED, by='link/<&"\x00\x0b')
    alert = parsed(messages.cap_message("police", [odd], 'two words & "more"', link="https://x.example/a?b=1&c=<2>"))
    assert text(alert, "web") == "https://x.example/a?b=1&c=<2>"
    assert 'link/<&"\ufffd\ufffd' in [element.text for element in alert.iter()]
    assert text(alert, "addresses") == '"two words & "more""'


def test_a_long_incident_refers_only_to_its_newest_messages() -> None:
    many = [step(number, dispatch_pb2.ESCALATED) for number in range(1, 400)]
    message = messages.cap_message("police", many, "cad")
    assert len(text(parsed(message), "references").split()) == messages.MAX_REFERENCES
    document = messages.eido_document("police", many)
    assert len(json.loads(document)["notesComponent"]) == messages.MAX_NOTES
    assert len(message) < 64 << 10 and len(document) < 64 << 10


@pytest.mark.parametrize("count", range(1, len(STORY) + 1))
def test_an_eido_document_matches_its_schema(count: int) -> None:
    document = json.loads(messages.eido_document("police", STORY[:count], "https://x.example/a" if count == 1 else ""))
    valid_eido(document)
    over = count == len(STORY)
    assert document["incidentComponent"]["status"] == ("Closed" if over else "Open")
    assert [call["status"] for call in document["callComponent"]] == [document["notesComponent"][-1]["text"].split()[1]]
    assert len(document["notesComponent"]) == count
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


def test_cap_and_eido_contain_no_device_ids() -> None:
    for written in (messages.cap_message("police", STORY, "cad"), messages.eido_document("police", STORY)):
        assert b"phone-9" not in written and b"r-9" not in written
