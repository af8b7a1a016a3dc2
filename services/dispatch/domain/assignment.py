"""State of an assignment, and its state after each step. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum
from typing import TypeAlias, assert_never

from services.common import ids
from services.dispatch.contact.domain.state import WearerContact, begun_contact, stepped_contact
from services.dispatch.domain.enums import (
    CloseCause,
    Demand,
    EscalationReason,
    Task,
    WarningFlag,
)
from services.dispatch.domain.events import (
    BEFORE_ALL,
    BEYOND_ALL,
    KIND_UNSPECIFIED,
    Acknowledged,
    Answer,
    Cause,
    Closed,
    ContactBegun,
    ContactStepped,
    Escalated,
    Flagged,
    LegAbsent,
    LegFinding,
    LegReturned,
    LogPosition,
    NobodyAvailable,
    Notified,
    Offered,
    PrivateStep,
    Progressed,
    Received,
    Rejected,
    Reoffered,
    Retargeted,
    SceneShared,
    SideStep,
    SpoofingSuspected,
    StepsLost,
    StoodDown,
)
from services.dispatch.domain.leg import Leg
from services.dispatch.domain.roster import READY_S, Choice, TravelEstimated
from services.dispatch.duty.domain import Assured, DistressEnded, DistressRaised, Reminded
from services.dispatch.following.domain import Raced
from services.dispatch.notes.domain.note import NoteAdded


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


@dataclass(frozen=True, slots=True)
class Assignment:
    """An assignment: what one leg has to do about one destination of an incident."""

    assignment_id: str
    subject_id: str
    state: AssignmentState
    demand: Demand
    """Gravest demand of an alert for this assignment so far."""
    demanded: LogPosition
    """Log position of the newest alert that demanded the assignment."""
    number: int
    """Number of the assignment's last step, from 1."""
    offered_ms: int | None = None
    """When an alert last caused an offer, mesh time."""
    offer_number: int = 0
    """Number of the step that made the present offer, to a unit or a desk."""
    asked_ms: int | None = None
    """Time of the present offer, mesh time."""
    offer_place: LogPosition = BEFORE_ALL
    """Log position of the alert that caused the present offer. An escalation doesn't change it."""
    offer_demand: Demand = Demand.RECORD
    """Gravest demand since the last offer that an alert caused."""
    due_ms: int | None = None
    """Deadline for the next step, mesh time. After it the assignment is escalated. None if no step is awaited."""
    choice: Choice | None = None
    """Unit or desk of the present offer; None if the offer went to the leg's own desk without the roster, or there was no offer."""
    tried: frozenset[str] = frozenset()
    """Units that were asked since the last offer that an alert caused."""
    repeats: int = 0
    """Number of times that the present offer was escalated to the same desk."""
    escalation_reason: EscalationReason = EscalationReason.UNSPECIFIED
    """Reason for the last escalation."""
    nobody_available_ms: int | None = None
    """Time at which no unit was available, mesh time; None if that never happened or the assignment was accepted since."""
    received_ms: int | None = None
    """When the desk's machine received the present offer, mesh time."""
    acknowledged_ms: int | None = None
    acknowledged_by: str = ""
    kind: int = KIND_UNSPECIFIED
    """Kind of the alert behind the present notice or offer."""
    cause: Cause | None = None
    """Device report behind the present notice or offer; None if no report caused it."""
    rejected_reason: str = ""
    """Reason of the last rejection."""
    stood_down_kind: int = KIND_UNSPECIFIED
    """Kind of the alert that ended the assignment."""
    close_cause: CloseCause | None = None
    close_note: str = ""
    closed_place: LogPosition = BEFORE_ALL
    """Log position of the newest alert that demanded acceptance before the desk closed the assignment."""
    absent_legs: frozenset[Leg] = frozenset()
    """Other legs that showed no step in time, although an alert of this assignment demands their response too."""
    flag: Flagged | None = None
    """Last flag of the protected person that the warning leg raised."""
    retargeted_ms: int | None = None
    """When the responder was last notified that the target moved, mesh time."""
    raced: Raced | None = None
    """Last change of the race against the wearer; None if the race was never being lost."""
    one_scene_ms: int | None = None
    """Time since which both legs go to one scene, since the wearer is at the protected person or place, mesh time; else None."""
    spoofing_suspected_ms: int | None = None
    """When the desk was last notified that positions may be spoofed, mesh time."""
    task: Task = Task.RESPOND
    contact: WearerContact | None = None
    """The first contact with the wearer, if this is its assignment; None in an assignment for which somebody may have to go."""
    notes: int = 0
    """Number of notes that the desk wrote with this assignment."""
    remind_ms: int | None = None
    """When the unit is reminded of the step that `due_ms` is for, mesh time; None if it isn't, or was."""
    reminded_ms: int | None = None
    """When the unit was last reminded of that step, mesh time; None if it wasn't."""
    distress_ms: int | None = None
    """Since when an officer calls for help, mesh time; None if nobody does."""
    distress_unit_id: str = ""
    """Unit of that officer. It may have lost the assignment since, as an officer in distress answers no reminder."""

    @property
    def next_check_ms(self) -> int | None:
        """When a deadline of the assignment has to be looked at next, mesh time; None if it has none."""
        if self.due_ms is None or self.remind_ms is None:
            return self.due_ms
        return min(self.due_ms, self.remind_ms)

    @property
    def unit_id(self) -> str:
        """The unit that has the offer or has accepted the assignment; empty if no unit has."""
        return self.choice.unit_id if self.choice and self.state in UNANSWERED | ACCEPTED else ""

    @property
    def arrival_due_ms(self) -> int | None:
        """When the unit is expected at the destination, mesh time; None without a unit or an estimate of its travel time."""
        if self.asked_ms is None or self.choice is None or not self.choice.unit_id or self.choice.travel_s is None:
            return None
        return self.asked_ms + 1000 * (READY_S + self.choice.travel_s)

    @property
    def losing(self) -> bool:
        """Whether the wearer would arrive before the responder."""
        return self.raced is not None and self.raced.losing


FirstStep: TypeAlias = Notified | Offered | ContactBegun
"""Step that begins an assignment, or restarts an assignment that was over."""
LaterStep: TypeAlias = (
    Reoffered | Escalated | NobodyAvailable | Answer | StoodDown | LegFinding | SideStep | PrivateStep | ContactStepped
)
"""Step of an assignment that has begun."""


def begun(step: FirstStep, before: Assignment | None) -> Assignment:
    """The assignment after the step that begins or restarts it. `before` is the earlier state; None for a new assignment."""
    new = Assignment(
        assignment_id=step.assignment_id,
        subject_id=step.subject_id,
        state=AssignmentState.NOTIFIED,
        demand=max(step.demand, before.demand) if before else step.demand,
        demanded=max(step.place, before.demanded) if before else step.place,
        number=before.number + 1 if before else 1,
        offer_place=step.place,
        offer_demand=step.demand,
        kind=step.kind,
        cause=step.cause,
        flag=before.flag if before else None,
        notes=before.notes if before else 0,
    )
    match step:
        case Notified():
            return new
        case Offered():
            offered = replace(new, state=AssignmentState.OFFERED, offered_ms=step.at_ms, task=step.task)
            return _asking(offered, step)
        case ContactBegun():
            return replace(new, contact=begun_contact(step), due_ms=step.due_ms, task=Task.CONTACT)
        case _:
            assert_never(step)


def after(before: Assignment, step: LaterStep) -> Assignment:
    """The assignment after one of its later steps."""
    new = replace(before, number=before.number + 1)
    match step:
        case Reoffered() | Escalated():
            return _after_offer(new, step)
        case Received() | Acknowledged() | Rejected() | Progressed() | Assured() | Closed():
            return _after_answer(new, step)
        case LegAbsent() | LegReturned() | StepsLost():
            return _after_finding(new, step)
        case Retargeted() | Raced() | SceneShared() | SpoofingSuspected() | Reminded() | TravelEstimated():
            return _after_private_step(new, step)
        case NobodyAvailable():
            return replace(_unlimited(new), state=AssignmentState.NOBODY_AVAILABLE, nobody_available_ms=step.at_ms)
        case Flagged() | NoteAdded() | DistressRaised() | DistressEnded():
            return _after_side_step(new, step)
        case ContactStepped():
            return replace(new, contact=stepped_contact(new.contact, step), due_ms=step.due_ms)
        case StoodDown():
            return replace(_unlimited(new), state=AssignmentState.STOOD_DOWN, stood_down_kind=step.kind)
        case _:
            assert_never(step)


def _unlimited(new: Assignment) -> Assignment:
    """The assignment when no step of anybody is awaited any more."""
    return replace(new, due_ms=None, remind_ms=None, reminded_ms=None)


def _after_offer(new: Assignment, step: Reoffered | Escalated) -> Assignment:
    match step:
        case Reoffered():
            new = replace(
                new,
                state=AssignmentState.OFFERED,
                offered_ms=step.at_ms,
                offer_demand=step.demand,
                kind=step.kind,
                cause=step.cause,
                tried=frozenset(),
                escalation_reason=EscalationReason.UNSPECIFIED,
                raced=None,
            )
            return _asking(new, step)
        case Escalated():
            same_desk = step.choice == new.choice and new.state in UNANSWERED
            new = replace(new, state=AssignmentState.ESCALATED, escalation_reason=step.escalation_reason)
            return replace(new, due_ms=step.due_ms, repeats=new.repeats + 1) if same_desk else _asking(new, step)
        case _:
            assert_never(step)


def _asking(new: Assignment, offer: Offered | Reoffered | Escalated) -> Assignment:
    """The assignment after an offer to a unit or desk that was not asked before."""
    choice = offer.choice
    return replace(
        new,
        offer_number=new.number,
        asked_ms=offer.at_ms,
        choice=choice,
        tried=new.tried | {choice.unit_id} if choice and choice.unit_id else new.tried,
        repeats=0,
        received_ms=None,
        acknowledged_ms=None,
        acknowledged_by="",
        due_ms=offer.due_ms,
        remind_ms=None,
        reminded_ms=None,
    )


def _after_answer(new: Assignment, answer: Answer) -> Assignment:
    match answer:
        case Received():
            return replace(new, received_ms=answer.at_ms, due_ms=answer.due_ms)
        case Acknowledged():
            return replace(
                new,
                state=AssignmentState.ACKNOWLEDGED,
                acknowledged_ms=answer.at_ms,
                acknowledged_by=answer.by,
                due_ms=answer.due_ms,
                remind_ms=answer.remind_ms,
                nobody_available_ms=None,
            )
        case Rejected():
            return replace(
                _unlimited(new),
                state=AssignmentState.REJECTED,
                rejected_reason=answer.reason,
                acknowledged_ms=None,
                acknowledged_by="",
            )
        case Progressed():
            new = replace(new, state=AssignmentState(answer.state), reminded_ms=None)
            return replace(new, due_ms=answer.due_ms, remind_ms=answer.remind_ms)
        case Assured():
            return replace(new, due_ms=answer.due_ms, remind_ms=answer.remind_ms, reminded_ms=None)
        case Closed():
            return replace(
                _unlimited(new), state=AssignmentState.CLOSED, close_cause=answer.cause, close_note=answer.note
            )
        case _:
            assert_never(answer)


def _after_finding(new: Assignment, finding: LegFinding) -> Assignment:
    match finding:
        case LegAbsent():
            return replace(new, absent_legs=new.absent_legs | {finding.leg})
        case LegReturned():
            return replace(new, absent_legs=new.absent_legs - {finding.leg})
        case StepsLost():
            return replace(new, number=finding.number + 1)
        case _:
            assert_never(finding)


def _after_side_step(new: Assignment, step: SideStep) -> Assignment:
    match step:
        case Flagged():
            # Only the desk ends duress. A wearer who is far away doesn't end it: somebody else may be threatening her.
            return replace(new, flag=step, demanded=BEYOND_ALL if step.flag is WarningFlag.DURESS else new.demanded)
        case NoteAdded():
            return replace(new, notes=new.notes + 1)
        case DistressRaised():
            return replace(new, distress_ms=step.at_ms, distress_unit_id=step.unit_id)
        case DistressEnded():
            return replace(new, distress_ms=None, distress_unit_id="")
        case _:
            assert_never(step)


def _after_private_step(new: Assignment, step: PrivateStep) -> Assignment:
    match step:
        case Retargeted():
            return replace(new, retargeted_ms=step.at_ms)
        case Raced():
            return replace(new, raced=step, due_ms=new.due_ms if step.due_ms is None else step.due_ms)
        case SceneShared():
            return replace(new, one_scene_ms=step.at_ms if step.one_scene else None)
        case SpoofingSuspected():
            return replace(new, spoofing_suspected_ms=step.at_ms)
        case Reminded():
            return replace(new, remind_ms=None, reminded_ms=step.at_ms)
        case TravelEstimated():
            return replace(
                new, choice=new.choice and replace(new.choice, travel_s=step.travel_s, estimate=step.estimate)
            )
        case _:
            assert_never(step)


def assignment_id(incident_id: str, leg: Leg, subject_id: str, *, task: Task = Task.RESPOND) -> str:
    """Id of the assignment of an incident, a leg, a destination and a task."""
    others = () if task is Task.RESPOND else (task.name,)
    return ids.hash_id("assign", incident_id, leg, subject_id, *others)


def step_id(assignment: Assignment) -> str:
    """Id of an assignment's last step, the same at each retry."""
    return ids.hash_id("step", assignment.assignment_id, assignment.state.name, assignment.number)
