"""Steps of the unit that has an assignment, beside its progress: reminders, its word that it goes on, and officers' distress. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class WorkLimits(NamedTuple):
    """When the unit of an accepted assignment is reminded, and when the assignment escalates, mesh time; None without a limit."""

    remind_ms: int | None = None
    due_ms: int | None = None


UNLIMITED = WorkLimits()


@dataclass(frozen=True, slots=True)
class Reminded:
    """The unit was reminded of its next step. The assignment escalates at its deadline unless the step comes."""

    at_ms: int
    assignment_id: str


@dataclass(frozen=True, slots=True)
class Assured:
    """The unit, or its desk for it, said that it goes on: still on the way, or still busy on the scene. The limits begin once more."""

    at_ms: int
    assignment_id: str
    by: str
    due_ms: int | None
    remind_ms: int | None


@dataclass(frozen=True, slots=True)
class DistressRaised:
    """An officer of the unit calls for help. Both agencies' desks see it."""

    at_ms: int
    assignment_id: str
    by: str
    unit_id: str


@dataclass(frozen=True, slots=True)
class DistressEnded:
    """The desk of the unit ended an officer's call for help."""

    at_ms: int
    assignment_id: str
    by: str
