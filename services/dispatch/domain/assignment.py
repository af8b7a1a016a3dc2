"""State of an assignment, and its state after each step. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum
from typing import TypeAlias, assert_never

from services.common import ids
from services.dispatch.domain.enums import (
    CallReason,
    CloseCause,
    ContactPlan,
    ContactState,
    Demand,
    EscalationReason,
    SubjectKind,
    Task,
    UnitOfferState,
    WarningFlag,
)
from services.dispatch.domain.events import (
    BEFORE_ALL,
    BEYOND_ALL,
    KIND_UNSPECIFIED,
    Acknowledged,
    Answer,
    Assured,
    Cause,
    Closed,
    ContactBegun,
    ContactStepped,
    DistressEnded,
    DistressRaised,
    Escalated,
    Flagged,
    LegAbsent,
    LegFinding,
    LegReturned,
    LogPosition,
    NobodyAvailable,
    NoteAdded,
    Notified,
    NoUnitLeft,
    Offered,
    PanicCalled,
    PanicStep,
    PanicWithdrawn,
    PrivateStep,
    Progressed,
    Raced,
    Received,
    Rejected,
    Reminded,
    Reoffered,
    Retargeted,
    SceneShared,
    SentByRadio,
    SideStep,
    SpoofingSuspected,
    StepsLost,
    StoodDown,
    TargetStep,
    UnitAsked,
    UnitOfferEnded,
    UnitStep,
)
from services.dispatch.domain.leg import Leg
from services.dispatch.domain.roster import READY_S, Choice, TravelEstimated, UnitOffer


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
    """Number of the step that made the present offer, to a unit or a desk. After the acceptance: of the offer that was accepted, of the
    order by radio, or of the acceptance of a desk that wasn't asked itself."""
    asked_ms: int | None = None
    """Time of the present or accepted offer, or of the order by radio, mesh time."""
    offer_place: LogPosition = BEFORE_ALL
    """Log position of the alert that caused the present offer. An escalation doesn't change it."""
    offer_demand: Demand = Demand.RECORD
    """Gravest demand since the last offer that an alert caused."""
    due_ms: int | None = None
    """Deadline for the next step, mesh time. After it the assignment is escalated. None if no step is awaited."""
    choice: Choice | None = None
    """Unit or desk of the present offer, or the one that accepted; None if the offer went to the leg's own desk without the roster, or
    there was no offer."""
    unit_offers: tuple[UnitOffer, ...] = ()
    """The last offer to each unit that was asked since the last offer that an alert caused, in the order of asking."""
    ask_next_ms: int | None = None
    """When the leg asks another unit because those that are asked gave no answer, while the desk has the assignment, mesh time. Until a
    desk or unit has it, `due_ms` is for that."""
    radio_unit: str = ""
    """Name of the unit that the desk sent by radio, as an officer typed it; empty if it sent none so."""
    radio_by: str = ""
    """SPIFFE id of that officer."""
    radio_ms: int | None = None
    """When the officer entered it, mesh time."""
    sent_ms: int | None = None
    """When somebody was first sent since the assignment began, mesh time: a unit accepted, the desk sent one by radio, or the agency's
    own system reported that it did."""
    progressed_by: str = ""
    """SPIFFE id of the caller that reported the present state, of DISPATCHED and the states after it; empty in another state."""
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
    subject_kind: SubjectKind = SubjectKind.UNSPECIFIED
    """What the destination is."""
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
        moments = (self.due_ms, self.remind_ms, self.ask_next_ms, *(offer.open_until_ms for offer in self.open_offers))
        return min((moment for moment in moments if moment is not None), default=None)

    @property
    def unit_id(self) -> str:
        """The unit that accepted the assignment and has it; empty if no unit of the roster has."""
        return self.choice.unit_id if self.choice and self.state in ACCEPTED else ""

    @property
    def responding_unit_id(self) -> str:
        """The unit that has the assignment, or else the one of the present offer; empty if there is neither."""
        return self.choice.unit_id if self.choice and self.state in UNANSWERED | ACCEPTED else ""

    @property
    def open_offers(self) -> tuple[UnitOffer, ...]:
        """The offers that a unit may still accept, in the order of asking."""
        return tuple(offer for offer in self.unit_offers if offer.is_open)

    @property
    def engaged_unit_ids(self) -> frozenset[str]:
        """Units that have the assignment or are asked now."""
        return frozenset({self.unit_id, *(offer.unit_id for offer in self.open_offers)} - {""})

    @property
    def tried(self) -> frozenset[str]:
        """Units that were asked since the last offer that an alert caused."""
        return frozenset(offer.unit_id for offer in self.unit_offers)

    @property
    def newest_offer_number(self) -> int:
        """The greatest number of an offer; 0 if there was none."""
        return max(self.offer_number, *(offer.offer_number for offer in self.unit_offers), 0)

    @property
    def is_with_desk(self) -> bool:
        """Whether the desk has accepted the assignment, and neither a unit nor anybody else goes yet."""
        return self.state is AssignmentState.ACKNOWLEDGED and not self.unit_id

    def offer_numbered(self, offer_number: int) -> UnitOffer | None:
        """The last offer to a unit, if it has this number."""
        return next((offer for offer in self.unit_offers if offer.offer_number == offer_number), None)

    def offer_to(self, unit_id: str) -> UnitOffer | None:
        """The last offer to a unit; None if it wasn't asked."""
        return next((offer for offer in self.unit_offers if offer.unit_id == unit_id), None)

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
            return replace(new, subject_kind=step.subject_kind)
        case Offered():
            offered = replace(new, state=AssignmentState.OFFERED, offered_ms=step.at_ms, task=step.task)
            return _asking(replace(offered, subject_kind=step.subject_kind), step)
        case ContactBegun():
            contact = _begun_contact(step)
            return replace(new, contact=contact, due_ms=step.due_ms, task=Task.CONTACT, subject_kind=SubjectKind.WEARER)
        case _:
            assert_never(step)


def after(before: Assignment, step: LaterStep) -> Assignment:
    """The assignment after one of its later steps."""
    new = replace(before, number=before.number + 1)
    match step:
        case Reoffered() | Escalated():
            return _after_offer(new, step)
        case Received() | Acknowledged() | Rejected() | Progressed() | SentByRadio() | Assured() | Closed():
            return _after_answer(new, step)
        case LegAbsent() | LegReturned() | StepsLost():
            return _after_finding(new, step)
        case UnitAsked() | NoUnitLeft() | UnitOfferEnded():
            return _after_unit_step(new, step)
        case (
            Retargeted()
            | Raced()
            | SceneShared()
            | SpoofingSuspected()
            | Reminded()
            | TravelEstimated()
            | PanicCalled()
            | PanicWithdrawn()
        ):
            return _after_private_step(new, step)
        case NobodyAvailable():
            return replace(_unlimited(new), state=AssignmentState.NOBODY_AVAILABLE, nobody_available_ms=step.at_ms)
        case Flagged() | NoteAdded() | DistressRaised() | DistressEnded():
            return _after_side_step(new, step)
        case ContactStepped():
            return replace(new, contact=_stepped_contact(new.contact, step), due_ms=step.due_ms)
        case StoodDown():
            return replace(_over(new), state=AssignmentState.STOOD_DOWN, stood_down_kind=step.kind)
        case _:
            assert_never(step)


def _unlimited(new: Assignment) -> Assignment:
    """The assignment when no step of anybody is awaited any more."""
    return replace(new, due_ms=None, remind_ms=None, reminded_ms=None, ask_next_ms=None)


def _over(new: Assignment) -> Assignment:
    """The assignment when it is over: nobody is awaited, and nobody is asked."""
    return replace(_unlimited(new), unit_offers=_ended(new.unit_offers), progressed_by="")


def _ended(offers: tuple[UnitOffer, ...], but: int = 0) -> tuple[UnitOffer, ...]:
    """The offers when no unit is needed but the one that accepted the offer numbered `but`."""
    return tuple(
        replace(offer, state=UnitOfferState.ACCEPTED if offer.offer_number == but else UnitOfferState.NOT_NEEDED)
        if offer.is_open
        else offer
        for offer in offers
    )


def _marked(new: Assignment, offer_number: int, state: UnitOfferState) -> tuple[UnitOffer, ...]:
    """The offers when one of them has ended in a state."""
    return tuple(
        replace(offer, state=state) if offer.offer_number == offer_number else offer for offer in new.unit_offers
    )


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
                unit_offers=(),
                escalation_reason=EscalationReason.UNSPECIFIED,
                raced=None,
            )
            return _asking(new, step)
        case Escalated():
            same_desk = step.choice == new.choice and new.state in UNANSWERED
            new = replace(
                new,
                state=AssignmentState.ESCALATED,
                escalation_reason=step.escalation_reason,
                unit_offers=_after_escalation(new, step.escalation_reason),
            )
            return replace(new, due_ms=step.due_ms, repeats=new.repeats + 1) if same_desk else _asking(new, step)
        case _:
            assert_never(step)


def _after_escalation(before: Assignment, reason: EscalationReason) -> tuple[UnitOffer, ...]:
    """The offers when somebody else is asked. An offer that is open stays so, unless its unit is gone. A unit that had accepted has the
    assignment no more."""
    present = before.offer_numbered(before.offer_number)
    if present is None:
        return before.unit_offers
    if reason is EscalationReason.UNIT_GONE:
        return _marked(before, present.offer_number, UnitOfferState.OFF_DUTY)
    if present.state is UnitOfferState.ACCEPTED:
        return _marked(before, present.offer_number, UnitOfferState.REPLACED)
    return before.unit_offers


def _asking(new: Assignment, offer: Offered | Reoffered | Escalated) -> Assignment:
    """The assignment after an offer to a unit or desk that was not asked before."""
    choice = offer.choice
    if choice and choice.unit_id:
        open_until_ms = offer.due_ms if offer.open_until_ms is None else offer.open_until_ms
        new = _with_offer(new, UnitOffer(choice, new.number, asked_ms=offer.at_ms, open_until_ms=open_until_ms))
    return replace(
        new,
        offer_number=new.number,
        asked_ms=offer.at_ms,
        choice=choice,
        radio_unit="",
        radio_by="",
        radio_ms=None,
        progressed_by="",
        repeats=0,
        received_ms=None,
        acknowledged_ms=None,
        acknowledged_by="",
        due_ms=offer.due_ms,
        remind_ms=None,
        reminded_ms=None,
        ask_next_ms=None,
    )


def _with_offer(new: Assignment, offer: UnitOffer) -> Assignment:
    """The assignment with one more offer, in the place of an earlier one to the same unit."""
    others = (each for each in new.unit_offers if each.unit_id != offer.unit_id)
    return replace(new, unit_offers=(*others, offer))


def _after_answer(new: Assignment, answer: Answer) -> Assignment:
    match answer:
        case Received():
            return _received(new, answer)
        case Acknowledged():
            return _acknowledged(new, answer)
        case Rejected():
            new = replace(new, rejected_reason=answer.reason)
            if answer.offer_number:
                return replace(new, unit_offers=_marked(new, answer.offer_number, UnitOfferState.REFUSED))
            return replace(
                _unlimited(new),
                state=AssignmentState.REJECTED,
                unit_offers=_marked(new, new.offer_number, UnitOfferState.REFUSED),
                progressed_by="",
                acknowledged_ms=None,
                acknowledged_by="",
            )
        case Progressed():
            return replace(
                new,
                state=AssignmentState(answer.state),
                progressed_by=answer.by,
                sent_ms=answer.at_ms if new.sent_ms is None else new.sent_ms,
                unit_offers=_ended(new.unit_offers),
                due_ms=answer.due_ms,
                remind_ms=answer.remind_ms,
                reminded_ms=None,
                ask_next_ms=None,
            )
        case SentByRadio():
            return _sent_by_radio(new, answer)
        case Assured():
            return replace(new, due_ms=answer.due_ms, remind_ms=answer.remind_ms, reminded_ms=None)
        case Closed():
            return replace(_over(new), state=AssignmentState.CLOSED, close_cause=answer.cause, close_note=answer.note)
        case _:
            assert_never(answer)


def _received(new: Assignment, received: Received) -> Assignment:
    if received.offer_number in (0, new.offer_number):
        new = replace(new, received_ms=received.at_ms)
    offers = (
        replace(offer, received_ms=received.at_ms) if offer.offer_number == received.offer_number else offer
        for offer in new.unit_offers
    )
    return replace(new, unit_offers=tuple(offers), due_ms=received.due_ms, ask_next_ms=received.ask_next_ms)


def _acknowledged(new: Assignment, answer: Acknowledged) -> Assignment:
    accepted = new.offer_numbered(answer.offer_number)
    new = replace(
        new,
        state=AssignmentState.ACKNOWLEDGED,
        acknowledged_ms=answer.at_ms,
        acknowledged_by=answer.by,
        due_ms=answer.due_ms,
        remind_ms=answer.remind_ms,
        reminded_ms=None,
        ask_next_ms=answer.ask_next_ms,
        nobody_available_ms=None,
    )
    if accepted:
        return replace(
            new,
            choice=accepted.choice,
            offer_number=accepted.offer_number,
            asked_ms=accepted.asked_ms,
            received_ms=accepted.received_ms,
            unit_offers=_ended(new.unit_offers, accepted.offer_number),
            sent_ms=answer.at_ms if new.sent_ms is None else new.sent_ms,
        )
    if new.choice and new.choice.unit_id:
        # The desk takes what a unit was asked. A number of its own keeps its answers apart from that unit's, which may still accept.
        return replace(new, choice=new.choice.for_desk(), offer_number=new.number)
    return new


def _sent_by_radio(new: Assignment, sent: SentByRadio) -> Assignment:
    """The assignment after an order by radio. A corrected name changes no state."""
    new = replace(
        new,
        radio_unit=sent.unit_name,
        radio_by=sent.by,
        radio_ms=sent.at_ms,
        offer_number=new.number,
        due_ms=sent.due_ms,
        remind_ms=sent.remind_ms,
    )
    if new.state is not AssignmentState.ACKNOWLEDGED:
        return new
    return replace(
        new,
        state=AssignmentState.DISPATCHED,
        progressed_by=sent.by,
        asked_ms=sent.at_ms,
        sent_ms=sent.at_ms if new.sent_ms is None else new.sent_ms,
        unit_offers=_ended(new.unit_offers),
        reminded_ms=None,
        ask_next_ms=None,
    )


def _after_unit_step(new: Assignment, step: UnitStep) -> Assignment:
    match step:
        case UnitAsked():
            offer = UnitOffer(
                step.choice, new.number, asked_ms=step.at_ms, open_until_ms=step.open_until_ms, asked_by=step.by
            )
            return replace(_with_offer(new, offer), ask_next_ms=step.ask_next_ms)
        case NoUnitLeft():
            return replace(new, ask_next_ms=None)
        case UnitOfferEnded():
            return replace(new, unit_offers=_marked(new, step.offer_number, step.state))
        case _:
            assert_never(step)


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


def _after_private_step(new: Assignment, step: TargetStep | Reminded | PanicStep) -> Assignment:
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
        case PanicCalled() | PanicWithdrawn():
            return new  # the incident has the calls: one call concerns all its destinations
        case TravelEstimated():
            choice = new.choice and replace(new.choice, travel_s=step.travel_s, estimate=step.estimate)
            offers = (
                replace(offer, choice=choice) if choice and offer.offer_number == new.offer_number else offer
                for offer in new.unit_offers
            )
            return replace(new, choice=choice, unit_offers=tuple(offers))
        case _:
            assert_never(step)


def assignment_id(incident_id: str, leg: Leg, subject_id: str, *, task: Task = Task.RESPOND) -> str:
    """Id of the assignment of an incident, a leg, a destination and a task."""
    others = () if task is Task.RESPOND else (task.name,)
    return ids.hash_id("assign", incident_id, leg, subject_id, *others)


def step_id(assignment: Assignment) -> str:
    """Id of an assignment's last step, the same at each retry."""
    return ids.hash_id("step", assignment.assignment_id, assignment.state.name, assignment.number)


_FIRST_STATES = {ContactPlan.CALL: ContactState.CALL_DUE, ContactPlan.OUT_OF_BUDGET: ContactState.OUT_OF_BUDGET}
"""First state of a contact by its plan; for all other plans it is SENT."""


@dataclass(frozen=True, slots=True)
class WearerContact:
    """The first contact with the wearer, in an assignment of its own."""

    contact_id: str
    plan: ContactPlan
    device_id: str
    """Device that gets the message; empty if none does."""
    state: ContactState
    since_ms: int
    """When the state began, mesh time."""
    call_reason: CallReason = CallReason.UNSPECIFIED
    recorded_by: str = ""
    """SPIFFE id of the caller that recorded the result of a call; empty if nobody has."""


def _begun_contact(step: ContactBegun) -> WearerContact:
    """The contact after the step that begins it."""
    return WearerContact(
        contact_id=step.contact_id,
        plan=step.plan,
        device_id=step.device_id,
        state=_FIRST_STATES.get(step.plan, ContactState.SENT),
        since_ms=step.at_ms,
        call_reason=CallReason.NO_TAG if step.plan is ContactPlan.CALL else CallReason.UNSPECIFIED,
    )


def _stepped_contact(before: WearerContact | None, step: ContactStepped) -> WearerContact:
    """The contact after a later step. Raises ValueError if there is no contact."""
    if before is None:
        raise ValueError(f"assignment {step.assignment_id} has no contact")
    return replace(
        before,
        state=step.state,
        since_ms=step.at_ms,
        call_reason=step.call_reason,
        recorded_by=step.by or before.recorded_by,
    )
