"""Rows of a leg's database: steps, assignments and incidents, which are derived from events, and the other legs' assignments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class StepRow(NamedTuple):
    """Row of a step. `sequence` is the id of the step's event."""

    sequence: int
    step_id: str
    assignment_id: str
    payload: bytes
    """tandem.dispatch.v1.Step, serialised."""
    report_to_published_ms: float | None = None
    """Latency of the offer, milliseconds, from the assignment's row; None if it isn't known yet."""


class AssignmentRow(NamedTuple):
    """Row of an assignment's state, derived from its events."""

    assignment_id: str
    incident_id: str
    state: int
    due_ms: int | None
    """Next time at which its unit is reminded or the assignment is escalated, mesh time; None if it has none."""
    payload: bytes
    """tandem.dispatch.v1.Assignment, serialised."""
    report_to_published_ms: float | None
    unit_id: str | None
    """Unit that has the offer or has accepted the assignment; None if no unit has."""


class IncidentRow(NamedTuple):
    """Row of an incident's state, derived from its events."""

    incident_id: str
    opened_sequence: int
    """Number by which incidents are listed in the order of opening. An update doesn't change it."""
    opened_ms: int
    ended_ms: int | None
    order_ids: list[str]
    exercise: int
    """Number of the domain's Exercise."""


class PeerRow(NamedTuple):
    """Row of the last known step of another leg's assignment."""

    assignment_id: str
    incident_id: str
    number: int
    """Number of the step. A step with a greater number replaces this row."""
    payload: bytes
    """tandem.dispatch.v1.Assignment, serialised."""
    has_arrived: bool = False
    """Whether the unit arrived with this step. Not a column: the statistics keep it, as a later step replaces this row."""


class NoteRow(NamedTuple):
    """Row of a note of a desk, of this leg or shared by another one."""

    note_id: str
    incident_id: str
    at_ms: int
    payload: bytes
    """tandem.dispatch.v1.IncidentNote, serialised."""


class StreamPosition(NamedTuple):
    """Position up to which a stream has been consumed."""

    stream: str
    log_id: str
    """Id of the log when the stream was read. With a new log, sequences start at 1 once more."""
    sequence: int
    """Sequence of the last message whose effect is in this database."""
    trail: str = ""
    """Serialised Trail of consumed messages; empty if it isn't known."""


@dataclass(frozen=True, slots=True)
class ListedIncident:
    """An incident with the assignments of all legs."""

    row: IncidentRow
    own: list[AssignmentRow]
    peers: list[bytes]
    """tandem.dispatch.v1.Assignment, serialised."""
