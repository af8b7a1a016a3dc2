"""Selects the fields of a leg's steps that exports contain. New states and fields of a step don't break the selection.

Only the named fields are exported: no free text, no measures, nothing about devices. An unknown state is exported by its name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf import json_format

from services.common import times
from tandem.dispatch.v1 import dispatch_pb2

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
    """Unit that was offered the assignment or has acknowledged it; empty for the desk."""
    exercise: bool
    task: str
    """Task beside the response, such as CHECK; empty for the response."""


def facts(steps: Sequence[dispatch_pb2.Step]) -> list[Fact]:
    """Returns the exported fields of steps, in their order."""
    return [_fact(step) for step in steps]


def _fact(step: dispatch_pb2.Step) -> Fact:
    fields = json_format.MessageToDict(step, preserving_proto_field_name=True)
    assignment: dict[str, Any] = fields.get("assignment", {})
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
        task=str(assignment.get("task", "")),
    )


def latest(all_facts: Sequence[Fact]) -> list[Fact]:
    """Returns the last fact of each assignment, in the order in which the assignments began."""
    return list({fact.assignment_id: fact for fact in all_facts}.values())


def is_over(all_facts: Sequence[Fact]) -> bool:
    """Whether nothing is left to do for any assignment of the incident."""
    return all(fact.state in OVER for fact in latest(all_facts))
