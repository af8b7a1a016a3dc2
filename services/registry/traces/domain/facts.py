"""Facts about an incident that its trace is built from: alerts, steps, case versions and uses of data, by id only. Pure.

A fact is derived from one stored message and names it, so reading the message again gives the same fact.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import Any, ClassVar


@dataclass(frozen=True, slots=True)
class AlertFact:
    """An alert of an incident. All times are wall time, microseconds since 1970 UTC."""

    kind: ClassVar[str] = "alert"
    stream: ClassVar[str] = "ALERTS"

    alert_id: str
    partition: int
    sequence: int
    """Sequence of the entry in LOG_<partition> that caused the alert."""
    ordinal: int
    """Number of the alert among the alerts of that entry."""
    stored: int
    """Sequence of the alert in ALERTS."""
    alert_kind: str
    demand: str
    case_id: str
    legs: tuple[str, ...]
    """Legs that the alert dispatches."""
    ends: bool
    """Whether the alert ends the incident."""
    received_us: int | None
    """When ingest received the report that caused the alert; None if a case, a rule or elapsed time caused it."""
    entry_us: int
    """When the entry was durable."""
    decided_us: int | None
    """When the evaluator decided; None if the alert has no such header."""
    published_us: int
    """When the alert was durable."""
    sender: str = ""
    """W3C trace context of the report's sender."""
    together: int = 1
    """Number of reports in the entry."""
    exercise: str = ""
    """Kind of exercise; empty for a live alert."""
    notice: str = ""
    """Article of the Ministry's notice that is due or has ended with the alert; empty if there is none."""
    checked_by: tuple[str, ...] = ()
    """Legs that must look into the wearer's act."""

    @property
    def fact_id(self) -> str:
        """Id of the fact, unique within the incident."""
        return f"alert/{self.alert_id}"

    @property
    def at_us(self) -> int:
        """When all readers of the stream could see the alert."""
        return self.published_us

    @property
    def log_position(self) -> tuple[int, int]:
        """Sort key in the order of decisions: sequence in the log and ordinal."""
        return self.sequence, self.ordinal


@dataclass(frozen=True, slots=True)
class StepFact:
    """A step of one leg's assignment. All times are wall time, microseconds since 1970 UTC."""

    kind: ClassVar[str] = "step"
    stream: ClassVar[str] = "INCIDENTS"

    leg: str
    assignment_id: str
    number: int
    """Number of the step within the assignment, from 1."""
    state: str
    received: bool
    """Whether the desk's client has confirmed that it received the offer."""
    cause_us: int | None
    """When ingest received the report that caused the step; None if no report caused it."""
    done_us: int
    """When the leg made the step, by the leg's clock."""
    published_us: int
    """When the step was durable in INCIDENTS, where the other legs read it."""
    stored: int
    """Sequence of the step in INCIDENTS."""
    escalation_reason: str = ""
    level: str = ""
    offer: int = 0
    """Number of the step that made the current offer; 0 if nobody has to go."""
    due_us: int | None = None
    """When the offer escalates; None if no answer is awaited."""
    absent: tuple[str, ...] = ()
    """Other legs that have published no step although a response is demanded of them."""
    flag: str = ""
    """Flag of the warning leg about the protected person."""
    task: str = ""
    """Task of the assignment, such as CHECK; empty for the response."""
    contact: str = ""
    """State of the first contact with the wearer; empty in an assignment for which somebody may have to go."""

    receipt_due_us: int | None = None
    """Warning leg's offer: until when a receipt of the warning is awaited; None in any other step."""

    def same_as(self, other: StepFact) -> bool:
        """Whether both steps leave the assignment in the same state, as far as the facts show."""
        return (self.state, self.received, self.offer, self.due_us, self.contact) == (
            other.state,
            other.received,
            other.offer,
            other.due_us,
            other.contact,
        )

    @property
    def fact_id(self) -> str:
        """Id of the fact, unique within the incident."""
        return f"step/{self.assignment_id}/{self.number}"

    @property
    def at_us(self) -> int:
        """When all readers of the stream could see the step."""
        return self.published_us


Fact = AlertFact | StepFact
_KINDS: dict[str, type[AlertFact] | type[StepFact]] = {fact_type.kind: fact_type for fact_type in (AlertFact, StepFact)}
_FIELDS = {fact_type: tuple(field.name for field in fields(fact_type)) for fact_type in _KINDS.values()}


@dataclass(frozen=True, slots=True)
class CaseVersion:
    """A version of a joint case, and when it was made and stored: wall time, microseconds since 1970 UTC."""

    case_id: str
    version: int
    made_us: int
    """When the registry made the version."""
    sequence: int
    """Sequence of the version in the log."""
    stored_us: int
    """When the version was durable in the log."""


@dataclass(frozen=True, slots=True)
class DataUse:
    """A use of personal data for an incident, from a row of the ledger."""

    sequence: int
    at_us: int
    deed: str
    who: str
    """SPIFFE id of the recipient, or of the reader if nothing was shared."""
    legal_basis: str
    purpose: str
    record_kind: str
    giver: str = ""
    """SPIFFE id of the giver of a notice; empty for any other use."""


def to_json(fact: Fact) -> str:
    """Serialise a fact for the database."""
    values = {name: getattr(fact, name) for name in _FIELDS[type(fact)]}
    return json.dumps({"kind": fact.kind, **values}, separators=(",", ":"))


def of_json(text: str) -> Fact:
    """Parse a fact from the database."""
    values: dict[str, Any] = json.loads(text)
    kind = _KINDS[values.pop("kind")]
    values |= {name: tuple(values[name]) for name in ("legs", "absent", "checked_by") if name in values}
    return kind(**values)
