"""An incident of one leg. Pure.

The state is the fold of `evolving.evolve` over the stored events. Alerts may come twice and in any order: what an alert demands is held
until an end that follows it in the order of the log.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from types import MappingProxyType

from services.common import ids
from services.dispatch.domain.events import (
    BEFORE_ALL,
    UNTOLD,
    AlertFolded,
    Cause,
    Choice,
    CloseCause,
    Demand,
    EscalationReason,
    Exercise,
    Flagged,
    Place,
    Raced,
)


class AssignmentState(IntEnum):
    """What has become of an assignment; the numbers are those of tandem.dispatch.v1.AssignmentState."""

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
"""Somebody has to take it and nobody has yet."""
PROGRESS = (
    AssignmentState.ACKNOWLEDGED,
    AssignmentState.DISPATCHED,
    AssignmentState.EN_ROUTE,
    AssignmentState.ON_SCENE,
    AssignmentState.APPREHENDED,
)
"""The way of what was taken, one step after the other."""
TAKEN = frozenset(PROGRESS)
OVER = frozenset((AssignmentState.STOOD_DOWN, AssignmentState.CLOSED))
"""Nobody has anything to do."""

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
"""What a demand asks of each leg; a demand that isn't named asks nothing of it."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """One record for each incident, leg and destination."""

    assignment_id: str
    subject_id: str
    state: AssignmentState
    demand: Demand
    """The gravest so far."""
    demanded: Place
    """The last alert that demanded it, in the log's order."""
    number: int
    """How many steps it has had."""
    offered_ms: int | None = None
    """When it was offered the last time, mesh time."""
    offer_number: int = 0
    """Which of its steps made the present offer, to a unit or a desk."""
    asked_ms: int | None = None
    """When that was, mesh time."""
    offer_demand: Demand = Demand.RECORD
    """The gravest since then."""
    due_ms: int | None = None
    """When it is offered on unless the next step comes before, mesh time."""
    choice: Choice | None = None
    """Whom it is offered to; None where that is the desk itself."""
    tried: frozenset[str] = frozenset()
    """Units that were asked since the last offer that an alert made."""
    repeats: int = 0
    """How often the present offer was escalated to the same desk."""
    escalation_reason: EscalationReason = EscalationReason.UNTOLD
    """Why it was offered on the last time."""
    nobody_ms: int | None = None
    """When there was nobody to be asked, mesh time; None where it was taken since."""
    received_ms: int | None = None
    """When the desk's machine had the present offer, mesh time."""
    acknowledged_ms: int | None = None
    acknowledged_by: str = ""
    kind: int = UNTOLD
    """Kind of the deciding alert."""
    cause: Cause | None = None
    """What that alert rests on."""
    rejected_reason: str = ""
    """What whoever refused it last said."""
    stood_down_kind: int = UNTOLD
    """Kind of the alert with which it was over."""
    close_cause: CloseCause | None = None
    close_note: str = ""
    closed_place: Place = BEFORE_ALL
    """The last alert that asked for it when it was closed."""
    absent_legs: frozenset[str] = frozenset()
    """Other legs that have shown no step of what the same alert demands of them."""
    flag: Flagged | None = None
    """What the warning leg last said of the protected person."""
    retargeted_ms: int | None = None
    """When whoever goes was told the last time that the target is elsewhere, mesh time."""
    raced: Raced | None = None
    """How the race stands; None where it was never being lost."""
    one_scene_ms: int | None = None
    """Since when the wearer is at the destination, mesh time."""
    spoofing_suspected_ms: int | None = None
    """When the desk was notified last that the positions may be spoofed, mesh time."""

    @property
    def unit_id(self) -> str:
        """The unit that has a part in it now; empty where none has."""
        return self.choice.unit_id if self.choice and self.state in UNANSWERED | TAKEN else ""

    @property
    def losing(self) -> bool:
        """Whether the wearer would be there first."""
        return self.raced is not None and self.raced.losing


@dataclass(frozen=True, slots=True)
class DemandingAlerts:
    """The alerts that ask a leg's desk to take an assignment."""

    last: AlertFolded
    """The last of them, in the log's order."""
    threats: frozenset[str]
    """What they are about."""
    answered: AlertFolded | None = None
    """The last of those that were known when the assignment was taken; the answer is to all up to it."""


@dataclass(frozen=True, slots=True)
class RingStatus:
    """What the log says last of one ring."""

    place: Place
    radius_m: float
    entered: bool
    assignment_ids: tuple[str, ...]
    """Where the leg goes because of it."""


@dataclass(frozen=True, slots=True)
class Incident:
    """One leg's share of an incident."""

    incident_id: str
    leg: str
    alert_ids: frozenset[str] = frozenset()
    """Alerts that were folded."""
    order_ids: tuple[str, ...] = ()
    """Orders it is about, sorted."""
    opened_ms: int | None = None
    """When it got its first assignment, mesh time."""
    end: Place = BEFORE_ALL
    """The last alert that ended it."""
    end_ms: int | None = None
    """When that was folded, mesh time."""
    end_kind: int = UNTOLD
    """Its kind."""
    assignments: Mapping[str, Assignment] = field(default_factory=lambda: MappingProxyType({}))
    """By assignment id."""
    asked: Mapping[str, DemandingAlerts] = field(default_factory=lambda: MappingProxyType({}))
    """By assignment id."""
    clearings: frozenset[tuple[Place, str]] = frozenset()
    """Where the log says that a threat is over, and which."""
    awaited: frozenset[str] = frozenset()
    """Other legs of which an alert demanded a response as well."""
    wearer_id: str = ""
    """Whom units follow; empty where nobody is followed."""
    rings: Mapping[str, RingStatus] = field(default_factory=lambda: MappingProxyType({}))
    """By threat."""
    exercise: Exercise = Exercise.NONE
    """Whether it is in earnest; an incident is of one wearer, so all its alerts say the same."""

    def ring_m(self, assignment_id: str) -> float | None:
        """The least ring that the wearer is in, of those that the destination is about; None where there is none."""
        rings = self.rings.values()
        return min(
            (ring.radius_m for ring in rings if ring.entered and assignment_id in ring.assignment_ids), default=None
        )

    @property
    def ended_ms(self) -> int | None:
        """When it ended, mesh time; None while an assignment is open."""
        open_ = any(assignment.state not in OVER for assignment in self.assignments.values())
        return None if open_ else self.end_ms

    def is_asked_anew(self, assignment_id: str) -> bool:
        """Whether an assignment that was taken is asked for once more since a threat that it was taken for, or that joined, was over.

        It looks at places in the log alone, so it doesn't matter which of these alerts came last.
        """
        asked = self.asked.get(assignment_id)
        if asked is None or asked.answered is None or asked.last.place <= asked.answered.place:
            return False
        if asked.answered.kind == UNTOLD:
            # Its clearing may have been passed over by the version of then: once too often, rather than never.
            return True
        return any(
            asked.answered.place < place < asked.last.place and (threat in asked.threats or "" in asked.threats)
            for place, threat in self.clearings
        )


def assignment_id(incident_id: str, leg: str, subject_id: str) -> str:
    """Id of the one assignment of an incident, a leg and a destination."""
    return ids.hash_id("assign", incident_id, leg, subject_id)


def step_id(assignment: Assignment) -> str:
    """Id of an assignment's last step."""
    return ids.hash_id("step", assignment.assignment_id, assignment.state.name, assignment.number)
