"""Tables of a leg's own database, except the roster, and the rows of steps, assignments and incidents, which follow from events."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import sqlalchemy as sa

from services.dispatch.domain.leg import Leg

metadata = sa.MetaData()

_UNPUBLISHED: dict[str, Any] = {
    "sqlite_where": sa.text("published = 0"),
    "postgresql_where": sa.text("NOT published"),
}
_ENGAGING: dict[str, Any] = {
    "sqlite_where": sa.text("unit_ids IS NOT NULL"),
    "postgresql_where": sa.text("unit_ids IS NOT NULL"),
}

events = sa.Table(
    "events",
    metadata,
    sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("incident_id", sa.String, nullable=False, index=True),
    sa.Column("kind", sa.String, nullable=False),
    sa.Column("body", sa.String, nullable=False),
    sa.Column("hash", sa.String, nullable=False),
)
steps = sa.Table(
    "steps",
    metadata,
    sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("step_id", sa.String, nullable=False, unique=True),
    sa.Column("assignment_id", sa.String, nullable=False, index=True),
    sa.Column("payload", sa.LargeBinary, nullable=False),
    sa.Column("published", sa.Boolean, nullable=False),
    sa.Index("steps_unpublished", "sequence", **_UNPUBLISHED),
)
assignments = sa.Table(
    "assignments",
    metadata,
    sa.Column("assignment_id", sa.String, primary_key=True),
    sa.Column("incident_id", sa.String, nullable=False, index=True),
    sa.Column("state", sa.Integer, nullable=False, index=True),
    sa.Column("due_ms", sa.BigInteger, index=True),
    sa.Column("payload", sa.LargeBinary, nullable=False),
    sa.Column("report_to_published_ms", sa.Float),
    sa.Column("unit_ids", sa.String),
    # Few assignments engage a unit, so all of these are read along it.
    sa.Index("assignments_engaging", "unit_ids", **_ENGAGING),
)
incidents = sa.Table(
    "incidents",
    metadata,
    sa.Column("incident_id", sa.String, primary_key=True),
    sa.Column("opened_sequence", sa.BigInteger, nullable=False, index=True),
    sa.Column("opened_ms", sa.BigInteger, nullable=False),
    sa.Column("ended_ms", sa.BigInteger),
    sa.Column("order_ids", sa.JSON, nullable=False),
    sa.Column("exercise", sa.Integer, nullable=False),
    # Most incidents are canaries, which the list of incidents omits.
    sa.Index(
        *("incidents_but_canaries", "opened_sequence"),
        sqlite_where=sa.text("exercise <> 2"),
        postgresql_where=sa.text("exercise <> 2"),
    ),
    # For the statistics, which leave exercises out.
    sa.Index(
        *("incidents_live", "opened_ms"),
        sqlite_where=sa.text("exercise = 0"),
        postgresql_where=sa.text("exercise = 0"),
    ),
)
peers = sa.Table(
    "peer_assignments",
    metadata,
    sa.Column("assignment_id", sa.String, primary_key=True),
    sa.Column("incident_id", sa.String, nullable=False, index=True),
    sa.Column("number", sa.BigInteger, nullable=False),
    sa.Column("payload", sa.LargeBinary, nullable=False),
)
notes = sa.Table(
    "notes",
    metadata,
    sa.Column("note_id", sa.String, primary_key=True),
    sa.Column("incident_id", sa.String, nullable=False, index=True),
    sa.Column("at_ms", sa.BigInteger, nullable=False),
    sa.Column("payload", sa.LargeBinary, nullable=False),
)

positions = sa.Table(
    "positions",
    metadata,
    sa.Column("stream", sa.String, primary_key=True),
    sa.Column("log_id", sa.String, nullable=False),
    sa.Column("sequence", sa.BigInteger, nullable=False),
    sa.Column("trail", sa.String, nullable=False),
)
published_steps = sa.Table(
    "published_steps",
    metadata,
    sa.Column("step_sequence", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("recorded", sa.BigInteger, nullable=False, index=True),
    sa.Column("stream", sa.String, nullable=False),
    sa.Column("log_id", sa.String, nullable=False),
    sa.Column("stream_sequence", sa.BigInteger, nullable=False),
    sa.Index("published_steps_newest", "stream", "log_id", "recorded"),
    sa.Index("published_steps_furthest", "stream", "log_id", "stream_sequence"),
)
"""The message in the stream for each published step. `recorded` is the order in which the publications were recorded."""

disclosures = sa.Table(
    "disclosures",
    metadata,
    sa.Column("disclosure_id", sa.String, primary_key=True),
    sa.Column("payload", sa.LargeBinary, nullable=False),
    sa.Column("at_ms", sa.BigInteger, nullable=False, index=True),
)

owner = sa.Table(
    "owner",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("leg", sa.String, nullable=False),
)


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
    unit_ids: str | None
    """Units that have the assignment or are asked now, separated by spaces; None if there is none."""

    def engages(self, unit_id: str) -> bool:
        """Whether a unit has the assignment or is asked now."""
        return self.unit_ids is not None and unit_id in self.unit_ids.split()


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


figures = sa.Table(
    "figures",
    metadata,
    sa.Column("assignment_id", sa.String, primary_key=True),
    sa.Column("incident_id", sa.String, nullable=False),
    sa.Column("leg", sa.String, nullable=False),
    sa.Column("subject_id", sa.String, nullable=False),
    sa.Column("order_ids", sa.String, nullable=False),
    sa.Column("opened_ms", sa.BigInteger, nullable=False),
    sa.Column("task", sa.Integer, nullable=False),
    sa.Column("offered_ms", sa.BigInteger),
    sa.Column("received_ms", sa.BigInteger),
    sa.Column("acknowledged_ms", sa.BigInteger),
    sa.Column("arrived_ms", sa.BigInteger),
    sa.Column("arrival_due_ms", sa.BigInteger),
    sa.Column("has_arrived", sa.Boolean, nullable=False),
    sa.Column("office_id", sa.String, nullable=False),
    sa.Column("kind", sa.Integer, nullable=False),
    sa.Column("outcome", sa.Integer, nullable=False),
    sa.Column("receipt_took_ms", sa.Integer),
    sa.Column("acceptance_took_ms", sa.Integer),
    sa.Column("arrival_took_ms", sa.Integer),
    sa.Column("arrived_in_time", sa.Boolean),
    # Over a long period each statistic is counted along an index that has its groups in their order, so that none is sorted.
    sa.Index("figures_receipt", "leg", "office_id", "receipt_took_ms", "opened_ms", "offered_ms"),
    sa.Index("figures_acceptance", "leg", "office_id", "acceptance_took_ms", "opened_ms", "offered_ms"),
    sa.Index("figures_arrival", "leg", "office_id", "arrival_took_ms", "arrived_in_time", "opened_ms", "offered_ms"),
    sa.Index("figures_outcome", "leg", "outcome", "kind", "opened_ms"),
    sa.Index("figures_subject", "leg", "subject_id", "opened_ms", "outcome", "task"),
    # Over a short period all are counted along this one, so that the other years' rows aren't read. It has all of their columns.
    sa.Index(
        "figures_period",
        *("leg", "opened_ms", "acceptance_took_ms", "office_id", "receipt_took_ms", "arrival_took_ms"),
        *("arrived_in_time", "offered_ms", "outcome", "kind", "task", "subject_id"),
    ),
)
"""A row for each assignment of an incident that isn't an exercise. The columns that end with `took_ms` are rounded."""

figures_progress = sa.Table(
    "figures_progress",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("step_sequence", sa.BigInteger, nullable=False),
)
"""Sequence of the last step of this leg that the figures have. One row."""

figures_changed_peers = sa.Table(
    "figures_changed_peers",
    metadata,
    sa.Column("assignment_id", sa.String, primary_key=True),
    sa.Column("has_arrived", sa.Boolean, nullable=False),
)
"""Other legs' assignments that changed and that the figures don't have yet. Written together with the assignment. `has_arrived` says
that one of the changes was an arrival: only the last change is kept."""


awaited_legs = sa.Table(
    "awaited_legs",
    metadata,
    sa.Column("incident_id", sa.String, primary_key=True),
    sa.Column("leg", sa.String, primary_key=True),
    sa.Column("due_ms", sa.BigInteger, nullable=False, index=True),
    sa.Column("absent", sa.Boolean, nullable=False),
    sa.Index("awaited_legs_next", "absent", "due_ms"),
)


class AwaitedRow(NamedTuple):
    """Another leg that has to show a step in an incident."""

    incident_id: str
    leg: Leg
    due_ms: int
    """Deadline for the first step, mesh time."""
    absent: bool = False
    """The desk was notified that the leg missed the deadline."""
