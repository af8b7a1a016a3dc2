"""What can happen to an incident of one leg, as it is written down. Pure.

Events are kept for good: a field that is added later has a default, which is what the events of before say.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TypeAlias


class Demand(IntEnum):
    """What must be done about an alert, from least to most; the numbers are those of tandem.common.v1.Demand."""

    RECORD = 1
    WARN = 2
    NOTIFY = 3
    RESPOND = 4


Place: TypeAlias = tuple[int, int]
"""(sequence, ordinal): where an alert stands in the order of the log."""
BEFORE_ALL: Place = (0, -1)

UNTOLD = 0
"""Kind of an alert that was folded before kinds and clearings were kept, or that doesn't tell."""


@dataclass(frozen=True, slots=True)
class Cause:
    """The report that made a decision."""

    device_id: str
    report_id: str
    received_wall_us: int
    """When ingest received it, wall clock, microseconds since 1970 UTC."""


@dataclass(frozen=True, slots=True)
class AlertFolded:
    """An alert was taken in; the steps that it leads to follow."""

    at_ms: int
    alert_id: str
    place: Place
    demand: Demand
    order_id: str
    assignment_ids: tuple[str, ...]
    """What it demands something of."""
    ends: bool
    kind: int = UNTOLD
    """Number of the tandem.common.v1.AlertKind, which may be one that this leg doesn't know yet."""
    threat: str = ""
    """What it is about, as Alert.threat."""
    cause: Cause | None = None


@dataclass(frozen=True, slots=True)
class Notified:
    """The desk is told."""

    at_ms: int
    assignment_id: str
    subject_id: str
    demand: Demand
    place: Place
    cause: Cause | None
    kind: int = UNTOLD


@dataclass(frozen=True, slots=True)
class Offered:
    """The desk is asked to take it."""

    at_ms: int
    assignment_id: str
    subject_id: str
    demand: Demand
    place: Place
    cause: Cause | None
    due_ms: int
    kind: int = UNTOLD


@dataclass(frozen=True, slots=True)
class OfferedAgain:
    """The desk took it, and is asked anew: the threat came back after it was over, or grew."""

    at_ms: int
    assignment_id: str
    alert_id: str
    """The alert that asks for it; another one may have shown that it does."""
    demand: Demand
    kind: int
    cause: Cause | None
    due_ms: int


@dataclass(frozen=True, slots=True)
class Escalated:
    """Nobody took it in time: the supervisor is asked too."""

    at_ms: int
    assignment_id: str
    due_ms: int


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """A person took it."""

    at_ms: int
    assignment_id: str
    by: str


@dataclass(frozen=True, slots=True)
class StoodDown:
    """It is no longer needed."""

    at_ms: int
    assignment_id: str


Step: TypeAlias = Notified | Offered | OfferedAgain | Escalated | Acknowledged | StoodDown
Event: TypeAlias = AlertFolded | Step
