"""What the streams say of an incident, as far as a trace needs it: who did what and when, by ids alone. Pure.

A fact is what one stored message says, so it is the same however often it is read, and each names its message.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, ClassVar


@dataclass(frozen=True, slots=True)
class AlertFact:
    """An alert of the incident. All moments are wall clock, microseconds since 1970 UTC."""

    kind: ClassVar[str] = "alert"
    stream: ClassVar[str] = "ALERTS"

    alert_id: str
    partition: int
    sequence: int
    """Of the entry that decided, in LOG_<partition>."""
    ordinal: int
    stored: int
    """Its own sequence in ALERTS."""
    alert_kind: str
    demand: str
    case_id: str
    legs: tuple[str, ...]
    """That it sends somewhere."""
    ends: bool
    received_us: int | None
    """When ingest had the report that decided; None where it was a case, a rule or the passing of time."""
    entry_us: int
    """When that entry was durable."""
    decided_us: int | None
    """When the evaluator had decided; None where it didn't say."""
    published_us: int
    """When the alert was durable."""
    sender: str = ""
    """W3C context in which the report was sent."""
    together: int = 1
    """Reports in that entry."""
    exercise: str = ""
    """What kind of exercise it is; empty in earnest."""

    @property
    def fact_id(self) -> str:
        """Unique within the incident."""
        return f"alert/{self.alert_id}"

    @property
    def at_us(self) -> int:
        """When it was known to all."""
        return self.published_us

    @property
    def place(self) -> tuple[int, int]:
        """In the order of decisions."""
        return self.sequence, self.ordinal


@dataclass(frozen=True, slots=True)
class StepFact:
    """A step of one leg's assignment."""

    kind: ClassVar[str] = "step"
    stream: ClassVar[str] = "INCIDENTS"

    leg: str
    assignment_id: str
    number: int
    """Place among the assignment's steps, from 1."""
    state: str
    received: bool
    """The desk's machine says that it has the offer."""
    cause_us: int | None
    """When ingest had the report that led to it."""
    done_us: int
    """When the leg had it, by its own clock."""
    published_us: int
    """When it was durable in INCIDENTS, where the other legs read it."""
    stored: int
    """Its sequence in INCIDENTS."""
    escalation_reason: str = ""
    level: str = ""
    offer: int = 0
    """Number of the step that made the present offer; 0 where nobody has to go."""
    due_us: int | None = None
    """When it is offered on; None where nothing is awaited."""
    absent: tuple[str, ...] = ()
    """Other legs that have shown no step of what is demanded of them."""
    flag: str = ""
    """What the warning leg says of the protected person."""

    def same_as(self, other: StepFact) -> bool:
        """Whether the assignment stands as it did after the other step, for all that is told of it."""
        mine, others = ((one.state, one.received, one.offer, one.due_us) for one in (self, other))
        return mine == others

    @property
    def fact_id(self) -> str:
        """Unique within the incident."""
        return f"step/{self.assignment_id}/{self.number}"

    @property
    def at_us(self) -> int:
        """When it was known to all."""
        return self.published_us


Fact = AlertFact | StepFact
_KINDS: dict[str, type[AlertFact] | type[StepFact]] = {one.kind: one for one in (AlertFact, StepFact)}


@dataclass(frozen=True, slots=True)
class Premise:
    """A version of a joint case, on its way into the log."""

    case_id: str
    version: int
    made_us: int
    """When the registry had decided it."""
    sequence: int
    """In the log."""
    stored_us: int
    """When it was durable there."""


@dataclass(frozen=True, slots=True)
class Use:
    """A row of the ledger that names the incident."""

    sequence: int
    at_us: int
    deed: str
    who: str
    """SPIFFE id."""
    legal_basis: str
    purpose: str
    record_kind: str


def to_json(fact: Fact) -> str:
    """A fact as it is kept."""
    return json.dumps({"kind": fact.kind, **asdict(fact)}, separators=(",", ":"))


def of_json(text: str) -> Fact:
    """A fact that was kept."""
    told: dict[str, Any] = json.loads(text)
    kind = _KINDS[told.pop("kind")]
    told |= {name: tuple(told[name]) for name in ("legs", "absent") if name in told}
    return kind(**told)
