"""State of one leg's share of an incident. Pure.

The state is the fold of `evolving.evolve` over the stored events. Alerts may come twice and in any order. An alert's demand holds
until an end that follows it in the order of the log.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from types import MappingProxyType

from services.common import ids
from services.dispatch.domain.enums import CloseCause, Demand, EscalationReason, Exercise
from services.dispatch.domain.events import (
    BEFORE_ALL,
    KIND_UNSPECIFIED,
    AlertFolded,
    Cause,
    Choice,
    Flagged,
    LogPosition,
    Raced,
)


class AssignmentState(IntEnum):
    """State of an assignment; numbers of tandem.dispatch.v1.AssignmentState."""

    NOTIFIED = 1
    OFFERED = 2
    ESCALATED = 3
    ACKNOWLEDGED = 4
    STOOD_DOWN = 5
    DISPATCHED = 6
    EN_ROUTE = 7
    ON_SCENE = 8
    APPREHENDED = 9
    CLOSED = 10
    NOBODY_AVAILABLE = 11
    REJECTED = 12


UNANSWERED = frozenset((AssignmentState.OFFERED, AssignmentState.ESCALATED))
"""States in which an assignment must be accepted and hasn't been yet."""
PROGRESS = (
    AssignmentState.ACKNOWLEDGED,
    AssignmentState.DISPATCHED,
    AssignmentState.EN_ROUTE,
    AssignmentState.ON_SCENE,
    AssignmentState.APPREHENDED,
)
"""States of an accepted assignment, in their order."""
ACCEPTED = frozenset(PROGRESS)
"""States of an assignment that a person accepted."""
OVER = frozenset((AssignmentState.STOOD_DOWN, AssignmentState.CLOSED))
"""Final states, in which nothing is left to do."""

FIRST_STATE: Mapping[str, Mapping[Demand, AssignmentState]] = MappingProxyType(
    {
        "probation": {Demand.NOTIFY: AssignmentState.NOTIFIED, Demand.RESPOND: AssignmentState.OFFERED},
        "police": {Demand.NOTIFY: AssignmentState.NOTIFIED, Demand.RESPOND: AssignmentState.OFFERED},
        "warning": {
            Demand.WARN: AssignmentState.OFFERED,
            Demand.NOTIFY: AssignmentState.OFFERED,
            Demand.RESPOND: AssignmentState.OFFERED,
        },
    }
)
"""First state of an assignment, by leg and demand. A demand that isn't listed makes no assignment in that leg."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """An assignment: the one record of an incident, a leg and a destination."""

    assignment_id: str
    subject_id: str
    state: AssignmentState
    demand: Demand
    """Gravest demand so far."""
    demanded: LogPosition
    """Position of the last alert that demanded the assignment, in the log's order."""
    number: int
    """Number of its last step, from 1."""
    offered_ms: int | None = None
    """When an alert last caused an offer, mesh time."""
    offer_number: int = 0
    """Number of the step that made the present offer, to a unit or a desk."""
    asked_ms: int | None = None
    """Time of the present offer, mesh time."""
    offer_demand: Demand = Demand.RECORD
    """Gravest demand since the last offer that an alert caused."""
    due_ms: int | None = None
    """When the offer is escalated unless the next step comes before, mesh time."""
    choice: Choice | None = None
    """Unit or desk of the present offer; None where there is no roster and the desk itself has it."""
    tried: frozenset[str] = frozenset()
    """Units that were asked since the last offer that an alert caused."""
    repeats: int = 0
    """Number of times that the present offer was escalated to the same desk."""
    escalation_reason: EscalationReason = EscalationReason.UNSPECIFIED
    """Reason for the last escalation."""
    nobody_ms: int | None = None
    """When no unit was available, mesh time; None where the assignment was accepted since."""
    received_ms: int | None = None
    """When the desk's machine received the present offer, mesh time."""
    acknowledged_ms: int | None = None
    acknowledged_by: str = ""
    kind: int = KIND_UNSPECIFIED
    """Kind of the deciding alert."""
    cause: Cause | None = None
    """Report that decided that alert."""
    rejected_reason: str = ""
    """Reason of the last rejection."""
    stood_down_kind: int = KIND_UNSPECIFIED
    """Kind of the alert that ended the assignment."""
    close_cause: CloseCause | None = None
    close_note: str = ""
    closed_place: LogPosition = BEFORE_ALL
    """Position of the last alert that demanded the assignment before it was closed."""
    absent_legs: frozenset[str] = frozenset()
    """Other legs that have shown no step although the same alert demands their response."""
    flag: Flagged | None = None
    """Last flag of the protected person that the warning leg raised."""
    retargeted_ms: int | None = None
    """When the responder was last notified that the target moved, mesh time."""
    raced: Raced | None = None
    """Last change of the race; None where it was never being lost."""
    one_scene_ms: int | None = None
    """Since when the wearer is at the destination, mesh time; None while the wearer isn't there."""
    spoofing_suspected_ms: int | None = None
    """When the desk was last notified that positions may be spoofed, mesh time."""

    @property
    def unit_id(self) -> str:
        """The unit that has a part in the assignment now; empty where none has."""
        return self.choice.unit_id if self.choice and self.state in UNANSWERED | ACCEPTED else ""

    @property
    def losing(self) -> bool:
        """Whether the wearer would arrive before the responder."""
        return self.raced is not None and self.raced.losing


@dataclass(frozen=True, slots=True)
class DemandingAlerts:
    """The alerts that demand the acceptance of an assignment."""

    last: AlertFolded
    """The last of these alerts, in the log's order."""
    threats: frozenset[str]
    """Threats of these alerts."""
    answered: AlertFolded | None = None
    """The last alert that was known when the assignment was accepted. The acceptance answers all alerts up to this one."""


@dataclass(frozen=True, slots=True)
class RingStatus:
    """Last known status of one ring, by the log."""

    place: LogPosition
    radius_m: float
    entered: bool
    assignment_ids: tuple[str, ...]
    """Assignments of the leg that the ring caused."""


@dataclass(frozen=True, slots=True)
class Incident:
    """One leg's share of an incident."""

    incident_id: str
    leg: str
    alert_ids: frozenset[str] = frozenset()
    """Alerts that were applied."""
    order_ids: tuple[str, ...] = ()
    """Orders that the incident concerns, sorted."""
    opened_ms: int | None = None
    """When the incident got its first assignment, mesh time."""
    end: LogPosition = BEFORE_ALL
    """Position of the last alert that ended the incident."""
    end_ms: int | None = None
    """When that alert was applied, mesh time."""
    end_kind: int = KIND_UNSPECIFIED
    """Kind of that alert."""
    assignments: Mapping[str, Assignment] = field(default_factory=lambda: MappingProxyType({}))
    """Assignments by id."""
    asked: Mapping[str, DemandingAlerts] = field(default_factory=lambda: MappingProxyType({}))
    """Demanding alerts by assignment id."""
    clearings: frozenset[tuple[LogPosition, str]] = frozenset()
    """Position and threat of each alert which says that a threat is over."""
    awaited: frozenset[str] = frozenset()
    """Other legs of which an alert demanded a response as well."""
    wearer_id: str = ""
    """Wearer whom units follow; empty where nobody is followed."""
    rings: Mapping[str, RingStatus] = field(default_factory=lambda: MappingProxyType({}))
    """Ring status by threat."""
    exercise: Exercise = Exercise.NONE
    """Whether the incident is live or an exercise. An incident belongs to one wearer, so all its alerts agree."""

    def ring_m(self, assignment_id: str) -> float | None:
        """Radius, metres, of the smallest ring of a destination that the wearer is in; None where there is none."""
        rings = self.rings.values()
        return min(
            (ring.radius_m for ring in rings if ring.entered and assignment_id in ring.assignment_ids), default=None
        )

    @property
    def ended_ms(self) -> int | None:
        """When the incident ended, mesh time; None while an assignment is open."""
        open_ = any(assignment.state not in OVER for assignment in self.assignments.values())
        return None if open_ else self.end_ms

    def needs_reoffer(self, assignment_id: str) -> bool:
        """Whether an accepted assignment must be re-offered, because a later alert demands it after one of its threats was over.

        Only positions in the log count, so the order in which the alerts arrive doesn't matter.
        """
        asked = self.asked.get(assignment_id)
        if asked is None or asked.answered is None or asked.last.place <= asked.answered.place:
            return False
        if asked.answered.kind == KIND_UNSPECIFIED:
            # The version that stored this event kept no clearings. One offer too many is better than none.
            return True
        return any(
            asked.answered.place < position < asked.last.place and (threat in asked.threats or "" in asked.threats)
            for position, threat in self.clearings
        )


def assignment_id(incident_id: str, leg: str, subject_id: str) -> str:
    """Id of the assignment of an incident, a leg and a destination."""
    return ids.hash_id("assign", incident_id, leg, subject_id)


def step_id(assignment: Assignment) -> str:
    """Id of an assignment's last step, the same at each retry."""
    return ids.hash_id("step", assignment.assignment_id, assignment.state.name, assignment.number)
