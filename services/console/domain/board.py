"""Incidents on the live page: their order, their groups, and the state of each leg. Pure.

The browser gets an incident as a plain dict. Times are milliseconds since 1970 UTC by the mesh's clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from services.common.messaging.flow import LEGS as LEGS

OFFERS = frozenset({"OFFERED", "ESCALATED"})
"""States in which an offer waits for an answer."""
UNANSWERED = frozenset({"OFFERED", "ESCALATED", "NOBODY_AVAILABLE", "REJECTED"})
ON_THE_WAY = frozenset({"ACKNOWLEDGED", "DISPATCHED", "EN_ROUTE", "ON_SCENE", "APPREHENDED"})
OVER = frozenset({"STOOD_DOWN", "CLOSED"})
_GRAVITY = (
    *("NOTIFIED", "CLOSED", "STOOD_DOWN", "APPREHENDED", "ON_SCENE", "EN_ROUTE", "DISPATCHED", "ACKNOWLEDGED"),
    "OFFERED",
    "REJECTED",
    "ESCALATED",
    "NOBODY_AVAILABLE",
)
"""States by urgency, ascending."""
_DEMANDS = ("DEMAND_UNSPECIFIED", "RECORD", "WARN", "NOTIFY", "RESPOND")
FAILING, ESCALATED, WAITING, UNDER_WAY, NOTHING_AWAITED, ENDED = range(6)
"""Levels of urgency of an incident, most urgent first."""
NEVER_MS = 1 << 60


class ShownFlag(NamedTuple):
    """What is unusual about an assignment, such as `losing`, `duress` or `absent-police`."""

    name: str
    level: int = NOTHING_AWAITED
    """Least urgent level of an open incident that has it."""


@dataclass(frozen=True, slots=True)
class AssignmentCard:
    """Assignment of one destination of one leg, as the pages show it."""

    assignment_id: str
    incident_id: str
    leg: str
    subject_id: str
    order_ids: tuple[str, ...]
    state: str
    demand: str
    kind: str
    """Kind of the alert that led to the assignment; empty if the assignment's leg doesn't disclose the kind to this leg."""
    offer_number: int = 0
    offered_ms: int | None = None
    received_ms: int | None = None
    acknowledged_ms: int | None = None
    acknowledged_by: str = ""
    due_ms: int | None = None
    latency_ms: float | None = None
    office_id: str = ""
    unit_id: str = ""
    """Unit to which the own leg offered the assignment; empty for another leg's assignment, and if a desk was chosen."""
    escalation_level: str = ""
    close_cause: str = ""
    flags: frozenset[ShownFlag] = frozenset()
    exercise: bool = False
    notes: int = 0
    """Number of notes that the leg's desk wrote with the assignment."""
    is_contact: bool = False
    """Whether it is the first contact with the wearer, for which nobody goes."""
    is_check: bool = False
    """Whether the task is to look into the wearer's act after a notice of the Ministry."""


class IncidentTimes(NamedTuple):
    """What a step says of its incident besides the assignment."""

    opened_ms: int
    ended_ms: int | None
    """None while the incident hasn't ended."""
    is_new: bool
    """Whether the step opened the incident, so that its leg has no other assignment in it."""


@dataclass(frozen=True, slots=True)
class IncidentCard:
    """Incident with the assignments of all legs, as the pages show it."""

    incident_id: str
    opened_ms: int
    ended_ms: int | None
    assignments: tuple[AssignmentCard, ...] = field(repr=False)

    def of(self, leg: str) -> list[AssignmentCard]:
        """Returns the assignments of one leg."""
        return [assignment for assignment in self.assignments if assignment.leg == leg]


def leg_state(assignments: Iterable[AssignmentCard]) -> str:
    """Returns the most urgent state of the assignments; empty if there are none."""
    states = [assignment.state for assignment in assignments if assignment.state in _GRAVITY]
    return max(states, key=_GRAVITY.index, default="")


def due_ms(assignments: Iterable[AssignmentCard]) -> int | None:
    """Returns the earliest deadline of the assignments; None if no assignment waits for an answer."""
    return min((assignment.due_ms for assignment in assignments if assignment.due_ms is not None), default=None)


def demand(incident: IncidentCard) -> str:
    """Returns the gravest demand of an incident's assignments."""
    return max((assignment.demand for assignment in incident.assignments), key=_DEMANDS.index, default=_DEMANDS[0])


def is_new_alarm(incident: IncidentCard) -> bool:
    """Returns whether the incident demands a response that nobody has acknowledged."""
    return any(assignment.state in UNANSWERED and assignment.demand == "RESPOND" for assignment in incident.assignments)


def is_over(incident: IncidentCard) -> bool:
    """Returns whether nothing is left to do for either agency. A notice, which asks nobody to act, has no end of its own."""
    states = {assignment.state for assignment in incident.assignments if assignment.leg != "warning"}
    return incident.ended_ms is not None and states <= OVER | {"NOTIFIED"}


def flags(incident: IncidentCard) -> frozenset[ShownFlag]:
    """Returns the flags of all assignments of an incident."""
    return frozenset[ShownFlag]().union(*(assignment.flags for assignment in incident.assignments))


def rank(incident: IncidentCard) -> tuple[int, int, int]:
    """Returns the sort key of an incident, most urgent first.

    The order is: failing, waiting, under way, over; then the earliest deadline; then the newest.
    """
    assignments = incident.assignments
    agencies = [assignment for assignment in assignments if assignment.leg != "warning"]
    states = {agency.state for agency in agencies}
    if incident.ended_ms is not None or (states and states <= OVER):
        level = ENDED
    else:
        level = min([_level(states), *(flag.level for flag in flags(incident))])
    awaited = due_ms(agencies)
    return level, awaited if awaited is not None else NEVER_MS, -incident.opened_ms


def _level(states: Set[str]) -> int:
    """Returns the level of an open incident by the states of its assignments."""
    if "NOBODY_AVAILABLE" in states:
        return FAILING
    if states & {"ESCALATED", "REJECTED"}:
        return ESCALATED
    if "OFFERED" in states:
        return WAITING
    return UNDER_WAY if states & ON_THE_WAY else NOTHING_AWAITED


def cause(incident: IncidentCard) -> str:
    """Returns the kind of alert with the gravest demand; empty if no leg discloses one."""
    by_demand = sorted(incident.assignments, key=lambda assignment: _DEMANDS.index(assignment.demand), reverse=True)
    return next((assignment.kind for assignment in by_demand if assignment.kind), "")


def shown(incident: IncidentCard, group: str = "") -> dict[str, Any]:
    """Returns an incident as the browser gets it. An incident that demands a response ignores `group`, which may be outdated."""
    level, awaited, _ = rank(incident)
    gravest = demand(incident)
    return {
        "id": incident.incident_id,
        "opened": incident.opened_ms,
        "ended": incident.ended_ms,
        "level": level,
        "due": awaited if awaited != NEVER_MS else None,
        "demand": gravest,
        "cause": cause(incident),
        "group": "" if gravest == "RESPOND" else group,
        "alarm": is_new_alarm(incident),
        "orders": sorted({id_ for assignment in incident.assignments for id_ in assignment.order_ids}),
        "exercise": any(assignment.exercise for assignment in incident.assignments),
        "flags": sorted(flag.name for flag in flags(incident)),
        "notes": sum(assignment.notes for assignment in incident.assignments),
        "legs": {leg: [_assignment(assignment) for assignment in incident.of(leg)] for leg in LEGS},
    }


def _assignment(assignment: AssignmentCard) -> dict[str, Any]:
    return {
        "id": assignment.assignment_id,
        "subject": assignment.subject_id,
        "state": assignment.state,
        "demand": assignment.demand,
        "offer": assignment.offer_number,
        "offered": assignment.offered_ms,
        "accepted": assignment.acknowledged_ms,
        "by": assignment.acknowledged_by,
        "due": assignment.due_ms,
        "office": assignment.office_id,
        "unit": assignment.unit_id,
        "escalation_level": assignment.escalation_level,
        "received": assignment.received_ms,
        "closed": assignment.close_cause,
        "contact": assignment.is_contact,
    }
