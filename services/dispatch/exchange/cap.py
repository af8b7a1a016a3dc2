"""Encodes a leg's steps as messages of the Common Alerting Protocol 1.2 (OASIS): Alert, then Update, at the end Cancel.

A message is addressed to one receiver (scope Private) and names only ids. It contains no area, address or position.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from datetime import UTC, datetime

from services.dispatch.exchange.facts import AGENCIES, Fact, facts, is_over
from tandem.dispatch.v1 import dispatch_pb2

NAMESPACE = "urn:oasis:names:tc:emergency:cap:1.2"
MAX_REFERENCES = 100
"""Maximum number of references in a message. Only the newest are kept, so that the size stays limited."""
EVENT = "Approach to a protected person or place"
_URGENCY = {"RESPOND": ("Immediate", "Severe", "Observed"), "NOTIFY": ("Expected", "Moderate", "Likely")}
"""Urgency, severity and certainty, by demand."""
_DEFAULT_URGENCY = ("Future", "Minor", "Possible")
"""Urgency, severity and certainty of any other demand."""
_ILLEGAL = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

ET.register_namespace("", NAMESPACE)


def message(leg: str, steps: Sequence[dispatch_pb2.Step], addressee: str, *, link: str = "") -> bytes:
    """Encodes the last of an incident's steps as XML, with references to the earlier steps. `link` is the URL for acknowledging."""
    all_facts = facts(steps)
    last, before = all_facts[-1], all_facts[:-1]
    over = is_over(all_facts)
    alert = ET.Element(f"{{{NAMESPACE}}}alert")
    _add(alert, "identifier", last.step_id)
    _add(alert, "sender", _sender(leg))
    _add(alert, "sent", date_time(last.at_ms))
    _add(alert, "status", "Exercise" if last.exercise else "Actual")
    _add(alert, "msgType", "Alert" if not before else "Cancel" if over else "Update")
    _add(alert, "scope", "Private")
    _add(alert, "addresses", _quoted(addressee))
    if before:
        _add(alert, "references", " ".join(_reference(leg, fact) for fact in before[-MAX_REFERENCES:]))
    _add(alert, "incidents", _quoted(last.incident_id))
    _add_info(alert, leg, last, over=over, link=link)
    written: bytes = ET.tostring(alert, encoding="utf-8", xml_declaration=True)
    return written


def _add_info(alert: ET.Element, leg: str, last: Fact, *, over: bool, link: str) -> None:
    urgency, severity, certainty = _URGENCY.get(last.demand, _DEFAULT_URGENCY)
    info = ET.SubElement(alert, f"{{{NAMESPACE}}}info")
    _add(info, "language", "en-US")
    _add(info, "category", "Security")
    _add(info, "event", EVENT)
    _add(
        info, "responseType", "AllClear" if over else "Execute" if last.demand == "RESPOND" or last.task else "Monitor"
    )
    _add(info, "urgency", "Past" if over else urgency)
    _add(info, "severity", severity)
    _add(info, "certainty", certainty)
    _add(info, "senderName", AGENCIES[leg][1])
    _add(info, "headline", f"{last.demand} {last.state}")
    if link:
        _add(info, "web", link)
    parameters = [("assignment", last.assignment_id), ("destination", last.subject_id), ("state", last.state)]
    parameters += [("order", order_id) for order_id in last.order_ids]
    parameters += [
        (name, value) for name, value in (("alertKind", last.kind), ("task", last.task), ("unit", last.unit)) if value
    ]
    for name, value in parameters:
        parameter = ET.SubElement(info, f"{{{NAMESPACE}}}parameter")
        _add(parameter, "valueName", name)
        _add(parameter, "value", value)


def date_time(ms: int) -> str:
    """Formats a time for CAP: whole seconds, with the offset of UTC written as -00:00, never as Z."""
    return datetime.fromtimestamp(ms // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S-00:00")


def _reference(leg: str, before: Fact) -> str:
    return f"{_sender(leg)},{before.step_id},{date_time(before.at_ms)}"


def _sender(leg: str) -> str:
    return f"{AGENCIES[leg][0]}.tandem"


def _quoted(item: str) -> str:
    """Quotes an item of a whitespace-separated list if it contains whitespace."""
    return f'"{item}"' if re.search(r"\s", item) else item


def _add(parent: ET.Element, name: str, text: str) -> None:
    ET.SubElement(parent, f"{{{NAMESPACE}}}{name}").text = _ILLEGAL.sub("\ufffd", text)
