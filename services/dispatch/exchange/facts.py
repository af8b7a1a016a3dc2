"""What exports say of a leg's steps, whatever states and fields there come to be.

Named fields only go out: no free text, no figure, nothing about devices. A state that this code doesn't know is told by its name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf import json_format

from services.common import times
from tandem.dispatch.v1 import dispatch_pb2

OVER = frozenset({"STOOD_DOWN", "CLOSED"})
"""States in which an assignment asks nothing of anybody any more."""
AGENCIES = {
    "probation": ("moj-probation", "Ministry of Justice, probation"),
    "police": ("npa-police", "National Police"),
    "warning": ("tandem-warning", "Warning of protected persons"),
}


@dataclass(frozen=True, slots=True)
class Fact:
    """A step, in the words of an export."""

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
    """Of the alert that led to it; empty where it is unknown."""
    unit: str
    """Who is asked or has taken it; empty where that is the desk."""
    exercise: bool


def facts(steps: Sequence[dispatch_pb2.Step]) -> list[Fact]:
    """The facts of steps, in their order."""
    return [_fact(step) for step in steps]


def _fact(step: dispatch_pb2.Step) -> Fact:
    told = json_format.MessageToDict(step, preserving_proto_field_name=True)
    assignment: dict[str, Any] = told.get("assignment", {})
    choice = assignment.get("choice", {})
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
        unit=str(choice.get("unit_id", "") or assignment.get("acknowledged_by", "")),
        exercise=bool(assignment.get("exercise")),
    )


def latest(told: Sequence[Fact]) -> list[Fact]:
    """The last fact of each assignment, in the order of the first ones."""
    return list({one.assignment_id: one for one in told}.values())


def is_over(told: Sequence[Fact]) -> bool:
    """Whether no assignment of the incident asks anything any more."""
    return all(one.state in OVER for one in latest(told))
