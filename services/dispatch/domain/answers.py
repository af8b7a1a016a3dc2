"""Answers of desks and units to an assignment: receive, acknowledge, reject, progress, close. Pure.

A repeated answer changes nothing. An answer that isn't possible in the present state is refused with an error that names the state.
An answer may carry the offer number and the state that the caller saw. The answer is refused if either has changed since. So an
outdated page can't answer for another unit. Several offers to units may be open: the number says which one is answered.

A desk sends a unit, too: it asks a unit of the roster, or enters the name of one that it ordered to go by radio. Asking is no dispatch:
the assignment changes only when the unit accepts, and the deadlines go on until then.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TypeAlias, assert_never

from services.common.errors import FailedPrecondition, NotFound
from services.dispatch.domain import escalation
from services.dispatch.domain.assignment import ACCEPTED, OVER, PROGRESS, UNANSWERED, Assignment, AssignmentState
from services.dispatch.domain.enums import CloseCause, EscalationReason, UnitOfferState
from services.dispatch.domain.escalation import Situation
from services.dispatch.domain.events import (
    Acknowledged,
    Assured,
    Closed,
    DistressEnded,
    DistressRaised,
    Event,
    LogPosition,
    Progressed,
    Received,
    Rejected,
    SentByRadio,
    UnitAsked,
    WorkLimits,
)
from services.dispatch.domain.incident import Decided, Incident
from services.dispatch.domain.roster import Choice, UnitOffer, choice_of

GIVEN_BACK = UNANSWERED | {AssignmentState.ACKNOWLEDGED, AssignmentState.DISPATCHED, AssignmentState.EN_ROUTE}
"""States in which an assignment can be rejected. A unit on the scene can't give its assignment back."""

NO_SUCH_OFFER = "NO_SUCH_OFFER"
OFFERED_ON = "OFFERED_ON"
MOVED_ON = "MOVED_ON"
CANT_TAKE = "CANT_TAKE"
CANT_REFUSE = "CANT_REFUSE"
CANT_GO_ON = "CANT_GO_ON"
CANT_CLOSE = "CANT_CLOSE"
CANT_ASSURE = "CANT_ASSURE"
NO_UNIT = "NO_UNIT"
NOBODY_ASKED = "NOBODY_ASKED"
STEP_LEFT_OUT, CLOSED_OTHERWISE = "STEP_LEFT_OUT", "CLOSED_OTHERWISE"
"""Machine-readable reasons for refusing an answer."""


class AssignmentHolder(StrEnum):
    """Who has an assignment, for a unit that hasn't. The value is the machine-readable reason for refusing its answer, and the name of
    the tandem.dispatch.v1.TaskEndReason after TASK_."""

    NOBODY = "NOBODY_HAS_IT"
    ANOTHER_UNIT = "ANOTHER_UNIT_HAS_IT"
    DESK = "DESK_HAS_IT"
    OVER = "OVER"


_HOLDER_TEXTS = {
    AssignmentHolder.NOBODY: "the offer to this unit has ended, and nobody has the assignment yet",
    AssignmentHolder.ANOTHER_UNIT: "another unit has the assignment",
    AssignmentHolder.DESK: "the offer to this unit has ended, and the desk has the assignment",
    AssignmentHolder.OVER: "the assignment is over",
}


def holder(state: AssignmentState, has_unit: bool) -> AssignmentHolder:
    """Who has an assignment. `has_unit` says that a unit accepted it, or that one was sent by radio."""
    if state in OVER:
        return AssignmentHolder.OVER
    if state not in ACCEPTED:
        return AssignmentHolder.NOBODY
    # The caller that reported a later state than the acceptance had a unit that goes.
    return (
        AssignmentHolder.ANOTHER_UNIT
        if has_unit or state is not AssignmentState.ACKNOWLEDGED
        else AssignmentHolder.DESK
    )


def not_this_unit(assignment_holder: AssignmentHolder) -> FailedPrecondition:
    """The error for the answer of a unit that doesn't have the assignment and isn't asked any more."""
    return FailedPrecondition(_HOLDER_TEXTS[assignment_holder], assignment_holder.value)


@dataclass(frozen=True, slots=True)
class Receive:
    """Command: the machine of the desk or unit has an offer."""

    assignment_id: str
    by: str
    """SPIFFE id of the caller."""
    offer_number: int
    """Number of the received offer."""


@dataclass(frozen=True, slots=True)
class WarnedOf:
    """The alert that a protected person's receipt is about."""

    place: LogPosition
    """Log position of the alert."""
    alert_id: str
    """Id of the alert; empty for an all-clear or advice, which the leg needn't have applied."""


@dataclass(frozen=True, slots=True)
class Acknowledge:
    """Command: a unit or the desk accepts an assignment."""

    assignment_id: str
    by: str
    offer_number: int = 0
    """Number of the accepted offer; 0 for the present one, or for the open one to `unit_id`."""
    unit_id: str = ""
    """The unit that accepts; empty if the desk takes the assignment itself. The caller states it, so that no rule has to guess from its
    identity whether a machine speaks for a unit or for the desk."""
    warned_of: WarnedOf | None = None
    """The alert that the person knows of, if this is the receipt of a message; None if somebody accepts the offer itself."""


@dataclass(frozen=True, slots=True)
class Reject:
    """Command: the unit or desk refuses an offer, or gives an accepted assignment back."""

    assignment_id: str
    by: str
    offer_number: int
    reason: str
    seen: AssignmentState | None = None
    """State that the caller saw; None skips the check."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Command: the unit reached the next state."""

    assignment_id: str
    by: str
    state: AssignmentState
    offer_number: int = 0
    """Number of the offer to that unit; 0 for the present one."""
    seen: AssignmentState | None = None
    """Previous state that the caller saw; None skips the check."""


@dataclass(frozen=True, slots=True)
class Close:
    """Command: the desk closes an assignment with a cause."""

    assignment_id: str
    by: str
    cause: CloseCause
    note: str
    offer_number: int = 0
    """Number of the closed offer; 0 for the present one."""
    seen: AssignmentState | None = None
    """State that the caller saw; None skips the check."""


@dataclass(frozen=True, slots=True)
class Assure:
    """Command: the unit says that it goes on, on the way or on the scene, so that its limits begin once more."""

    assignment_id: str
    by: str
    offer_number: int = 0
    """Number of the offer to that unit; 0 for the present one."""


@dataclass(frozen=True, slots=True)
class RaiseDistress:
    """Command: an officer of the assignment's unit calls for help."""

    assignment_id: str
    by: str
    unit_id: str


@dataclass(frozen=True, slots=True)
class EndDistress:
    """Command: the desk of a unit ends the call for help of its officer, also if another unit has the assignment by now."""

    assignment_id: str
    by: str
    unit_id: str


Answering: TypeAlias = Receive | Acknowledge | Reject | Progress | Assure | Close | RaiseDistress | EndDistress


def decide(incident: Incident, command: Answering, situation: Situation) -> Iterator[Event]:
    """Events that an answer leads to. Raises NotFound or FailedPrecondition."""
    assignment = incident.assignments.get(command.assignment_id)
    if assignment is None:
        raise NotFound(f"no assignment {command.assignment_id} in the {incident.leg} leg")
    match command:
        case Receive():
            yield from _receive(assignment, command, situation)
        case Acknowledge():
            yield from _acknowledge(incident, command, situation)
        case Reject():
            yield from _reject(incident, command, situation)
        case Progress():
            yield from _progress(assignment, command, situation)
        case Assure():
            yield from _assure(assignment, command, situation)
        case RaiseDistress():
            yield from _raise_distress(assignment, command, situation.now_ms)
        case EndDistress():
            yield from _end_distress(assignment, command, situation.now_ms)
        case Close():
            yield from _close(assignment, command, situation.now_ms)
        case _:
            assert_never(command)


def _receive(assignment: Assignment, command: Receive, situation: Situation) -> Iterator[Event]:
    _check_offer(assignment, command.offer_number)
    offer = assignment.offer_numbered(command.offer_number)
    is_present = assignment.state in UNANSWERED and command.offer_number == assignment.offer_number
    # A late or repeated receipt makes no event, since it changes no deadline.
    if (offer.received_ms if offer else assignment.received_ms) is not None or not (
        offer.is_open if offer else is_present
    ):
        return
    due_ms = escalation.received_due_ms(assignment, situation.deadlines) if is_present else assignment.due_ms
    yield Received(
        at_ms=situation.now_ms,
        assignment_id=assignment.assignment_id,
        by=command.by,
        due_ms=due_ms,
        offer_number=offer.offer_number if offer else 0,
        ask_next_ms=escalation.received_ask_next_ms(assignment, offer, situation.deadlines) if offer else None,
    )


def _accept(assignment: Assignment, command: Acknowledge, situation: Situation) -> Iterator[Event]:
    """The acceptance by a unit whose offer is open, also if others were asked since."""
    offer = assignment.offer_to(command.unit_id)
    is_asked = offer is not None and command.offer_number in (0, offer.offer_number)
    if is_asked and assignment.unit_id == command.unit_id:
        return
    if offer is None or not is_asked or not offer.is_open:
        raise not_this_unit(holder(assignment.state, bool(assignment.unit_id or assignment.radio_unit)))
    limits = escalation.work_limits(replace(assignment, choice=offer.choice), AssignmentState.ACKNOWLEDGED, situation)
    yield Acknowledged(
        at_ms=situation.now_ms,
        assignment_id=assignment.assignment_id,
        by=command.by,
        due_ms=limits.due_ms,
        remind_ms=limits.remind_ms,
        offer_number=offer.offer_number,
    )


def _acknowledge(incident: Incident, command: Acknowledge, situation: Situation) -> Iterator[Event]:
    assignment = incident.assignments[command.assignment_id]
    if command.warned_of:
        _check_warned(incident, assignment, command.warned_of)
    _check_offer(assignment, command.offer_number)
    if command.unit_id:
        yield from _accept(assignment, command, situation)
        return
    offer = assignment.offer_numbered(command.offer_number)
    if command.offer_number and not (offer and offer.is_open):
        _check_present(assignment, command.offer_number)
    if assignment.state in ACCEPTED:
        return
    if assignment.state not in UNANSWERED:
        raise FailedPrecondition(
            f"the assignment is {assignment.state.name}: there is nothing to acknowledge", CANT_TAKE
        )
    yield escalation.accepted_by_desk(assignment, command.by, situation)


def _reject(incident: Incident, command: Reject, situation: Situation) -> Iterator[Event]:
    assignment = incident.assignments[command.assignment_id]
    _check_offer(assignment, command.offer_number)
    offer = assignment.offer_numbered(command.offer_number)
    is_present = command.offer_number == assignment.offer_number
    if offer and offer.state is not UnitOfferState.ACCEPTED and not (offer.is_open and is_present):
        yield from _refuse_other_offer(incident, assignment, offer, command=command, situation=situation)
        return
    if assignment.state not in GIVEN_BACK:
        raise FailedPrecondition(f"the assignment is {assignment.state.name}: it can't be refused", CANT_REFUSE)
    _check_present(assignment, command.offer_number)
    _check_seen(assignment, command.seen)
    decided = Decided(incident)
    decided.add(
        Rejected(at_ms=situation.now_ms, assignment_id=assignment.assignment_id, by=command.by, reason=command.reason)
    )
    assignment = decided.incident.assignments[command.assignment_id]
    decided.add(escalation.escalated(decided.incident, assignment, EscalationReason.REFUSED, situation=situation))
    yield from decided.events


def _refuse_other_offer(
    incident: Incident, assignment: Assignment, offer: UnitOffer, *, command: Reject, situation: Situation
) -> Iterator[Event]:
    """The refusal of an offer beside the present one. If the desk waits for this unit's answer, the next one is asked at once."""
    if not offer.is_open:
        _check_present(assignment, command.offer_number)
        raise FailedPrecondition(f"offer {command.offer_number} has ended: there is nothing to refuse", CANT_REFUSE)
    decided = Decided(incident)
    decided.add(
        Rejected(
            at_ms=situation.now_ms,
            assignment_id=assignment.assignment_id,
            by=command.by,
            reason=command.reason,
            offer_number=offer.offer_number,
        )
    )
    if escalation.is_newest_of(assignment, {offer.unit_id}):
        assignment = decided.incident.assignments[assignment.assignment_id]
        decided.add(escalation.ask_next(decided.incident, assignment, situation))
    yield from decided.events


def _progress(assignment: Assignment, command: Progress, situation: Situation) -> Iterator[Event]:
    if command.offer_number:
        _check_offer(assignment, command.offer_number)
        _check_present(assignment, command.offer_number)
    if assignment.state not in ACCEPTED:
        raise FailedPrecondition(
            f"the assignment is {assignment.state.name}: nobody has it who could go on", CANT_GO_ON
        )
    if assignment.state is not command.state:
        _check_seen(assignment, command.seen)
    present, reported = PROGRESS.index(assignment.state), PROGRESS.index(command.state)
    if reported <= present:
        return
    if reported > present + 1:
        before = PROGRESS[reported - 1].name
        raise FailedPrecondition(
            f"the assignment is {assignment.state.name}: {command.state.name} comes after {before}", STEP_LEFT_OUT
        )
    if assignment.is_with_desk and situation.board.asks_units():
        raise FailedPrecondition(
            "nobody was sent: no unit has accepted the assignment. Ask one (SendUnit), or enter the name of the one that was sent "
            "by radio (SendByRadio)",
            NOBODY_ASKED,
        )
    limits = escalation.work_limits(assignment, command.state, situation)
    yield Progressed(
        at_ms=situation.now_ms,
        assignment_id=assignment.assignment_id,
        by=command.by,
        state=int(command.state),
        due_ms=limits.due_ms,
        remind_ms=limits.remind_ms,
    )


def _assure(assignment: Assignment, command: Assure, situation: Situation) -> Iterator[Event]:
    if command.offer_number:
        _check_offer(assignment, command.offer_number)
        _check_present(assignment, command.offer_number)
    if assignment.state not in (AssignmentState.EN_ROUTE, AssignmentState.ON_SCENE):
        raise FailedPrecondition(
            f"the assignment is {assignment.state.name}: only a unit on its way or on the scene goes on", CANT_ASSURE
        )
    limits = escalation.work_limits(assignment, assignment.state, situation)
    if limits.due_ms is not None:
        yield Assured(
            at_ms=situation.now_ms,
            assignment_id=assignment.assignment_id,
            by=command.by,
            due_ms=limits.due_ms,
            remind_ms=limits.remind_ms,
        )


def _raise_distress(assignment: Assignment, command: RaiseDistress, now_ms: int) -> Iterator[Event]:
    if command.unit_id not in assignment.engaged_unit_ids:
        raise FailedPrecondition(f"the assignment isn't unit {command.unit_id}'s", NO_UNIT)
    if assignment.distress_unit_id != command.unit_id:
        yield DistressRaised(now_ms, assignment.assignment_id, by=command.by, unit_id=command.unit_id)


def _end_distress(assignment: Assignment, command: EndDistress, now_ms: int) -> Iterator[Event]:
    if assignment.distress_unit_id == command.unit_id:
        yield DistressEnded(now_ms, assignment.assignment_id, command.by)


def _close(assignment: Assignment, command: Close, now_ms: int) -> Iterator[Event]:
    if command.offer_number:
        _check_offer(assignment, command.offer_number)
        _check_present(assignment, command.offer_number)
    if assignment.state is AssignmentState.CLOSED:
        if assignment.close_cause is not command.cause:
            raise FailedPrecondition(f"the assignment is CLOSED, as {_name(assignment.close_cause)}", CLOSED_OTHERWISE)
        return
    if assignment.state not in ACCEPTED | {AssignmentState.STOOD_DOWN}:
        raise FailedPrecondition(
            f"the assignment is {assignment.state.name}: acknowledge it before closing it", CANT_CLOSE
        )
    _check_seen(assignment, command.seen)
    yield Closed(
        at_ms=now_ms,
        assignment_id=assignment.assignment_id,
        by=command.by,
        cause=command.cause,
        note=command.note,
    )


def _check_offer(assignment: Assignment, offer_number: int) -> None:
    if offer_number > assignment.newest_offer_number:
        raise FailedPrecondition(
            f"offer_number {offer_number} doesn't exist: the last offer is {assignment.newest_offer_number}",
            NO_SUCH_OFFER,
        )


def _check_present(assignment: Assignment, offer_number: int) -> None:
    if offer_number != assignment.offer_number:
        raise FailedPrecondition(
            f"offer {offer_number} was offered on since: the present one is {assignment.offer_number}", OFFERED_ON
        )


def _check_warned(incident: Incident, assignment: Assignment, warned_of: WarnedOf) -> None:
    """Refuses a receipt that says nothing about the present offer."""
    if warned_of.place < assignment.offer_place:
        raise FailedPrecondition("the receipt is of a message before the present offer", OFFERED_ON)
    if warned_of.alert_id and warned_of.alert_id not in incident.alerts:
        # The alert may cause another offer, which is the one that the receipt acknowledges.
        raise NotFound("the leg hasn't applied the alert of the receipt's message yet: retry after it is applied")


def _check_seen(assignment: Assignment, seen: AssignmentState | None) -> None:
    if seen not in (None, assignment.state):
        raise FailedPrecondition(
            f"the assignment is {assignment.state.name} by now, not {seen.name}: reload it and answer", MOVED_ON
        )


def _name(cause: CloseCause | None) -> str:
    return cause.name if cause else ""


CANT_SEND = "CANT_SEND"
UNIT_HAS_IT = "UNIT_HAS_IT"
NOT_ON_DUTY = "NOT_ON_DUTY"
NO_ROSTER, IS_EXERCISE = "NO_ROSTER", "IS_EXERCISE"
"""Machine-readable reasons for refusing to send a unit."""


@dataclass(frozen=True, slots=True)
class SendUnit:
    """Command: an officer asks a unit of the roster to take an assignment."""

    assignment_id: str
    by: str
    unit_id: str
    offer_number: int
    """Number of the newest offer that the officer saw; 0 if there was none."""


@dataclass(frozen=True, slots=True)
class SendByRadio:
    """Command: an officer enters the unit that was ordered to go by radio or telephone."""

    assignment_id: str
    by: str
    unit_name: str
    """Name of the unit as the officer typed it."""
    offer_number: int
    """Number of the newest offer that the officer saw; 0 if there was none."""


Sending: TypeAlias = SendUnit | SendByRadio


def decide_sending(incident: Incident, command: Sending, situation: Situation) -> Iterable[Event]:
    """Events by which a unit is sent. Raises NotFound or FailedPrecondition."""
    assignment = incident.assignments.get(command.assignment_id)
    if assignment is None:
        raise NotFound(f"no assignment {command.assignment_id} in the {incident.leg} leg")
    match command:
        case SendUnit():
            return _send_unit(incident, assignment, command, situation=situation)
        case SendByRadio():
            return _send_by_radio(incident, assignment, command, situation=situation)
        case _:
            assert_never(command)


def _send_unit(
    incident: Incident, assignment: Assignment, command: SendUnit, *, situation: Situation
) -> Iterable[Event]:
    now_ms, id_ = situation.now_ms, assignment.assignment_id
    _check_sendable(assignment)
    if incident.exercise:
        raise FailedPrecondition(
            "an exercise asks no unit, which may be missing in a live incident: enter the name of a unit by radio",
            IS_EXERCISE,
        )
    if not situation.board.asks_units():
        raise FailedPrecondition("the leg has no roster: send a unit by radio and enter its name", NO_ROSTER)
    _check_unsent(assignment)
    _check_seen_offer(assignment, command)
    choice = _choice(incident, assignment, command.unit_id, situation=situation)
    decided = Decided(incident)
    if assignment.state in UNANSWERED and not assignment.responding_unit_id:
        decided.add(escalation.accepted_by_desk(assignment, command.by, situation))
        assignment = decided.incident.assignments[id_]
    known = assignment.offer_to(command.unit_id)
    if known is None or not known.is_open:
        due_ms = escalation.due_ms(choice, situation)
        decided.add(
            UnitAsked(
                at_ms=now_ms,
                assignment_id=id_,
                choice=choice,
                open_until_ms=escalation.open_until(choice, situation) or due_ms,
                by=command.by,
                ask_next_ms=due_ms if assignment.is_with_desk else None,
            )
        )
    return decided.events


def _choice(incident: Incident, assignment: Assignment, unit_id: str, *, situation: Situation) -> Choice:
    """The choice of a unit that an officer asks. Raises NotFound or FailedPrecondition."""
    board = situation.board
    if unit_id not in board.units:
        raise NotFound(f"unit_id: the roster has no unit {unit_id}")
    query = escalation.query(
        incident, assignment.assignment_id, assignment.subject_id, kind=assignment.kind, now_ms=situation.now_ms
    )
    choice = choice_of(board, query, unit_id, tried=assignment.tried)
    if choice is None:
        raise FailedPrecondition(f"unit_id: {unit_id} isn't on duty: choose another unit", NOT_ON_DUTY)
    return choice


def _send_by_radio(
    incident: Incident, assignment: Assignment, command: SendByRadio, *, situation: Situation
) -> Iterator[Event]:
    _check_sendable(assignment)
    if assignment.unit_id:
        raise _unit_has_it(assignment)
    if assignment.radio_unit == command.unit_name:
        return
    _check_seen_offer(assignment, command)
    decided = Decided(incident)
    if assignment.state in UNANSWERED:
        decided.add(escalation.accepted_by_desk(assignment, command.by, situation))
        assignment = decided.incident.assignments[command.assignment_id]
    limits = WorkLimits(assignment.remind_ms, assignment.due_ms)
    if assignment.is_with_desk:
        sent = replace(assignment, radio_unit=command.unit_name)
        limits = escalation.work_limits(sent, AssignmentState.DISPATCHED, situation)
    decided.add(
        SentByRadio(
            at_ms=situation.now_ms,
            assignment_id=assignment.assignment_id,
            by=command.by,
            unit_name=command.unit_name,
            due_ms=limits.due_ms,
            remind_ms=limits.remind_ms,
        )
    )
    yield from decided.events


def _check_sendable(assignment: Assignment) -> None:
    """Refuses to send somebody where nobody has to go."""
    if assignment.contact or assignment.state not in UNANSWERED | ACCEPTED:
        raise FailedPrecondition(f"the assignment is {assignment.state.name}: nobody has to go", CANT_SEND)


def _check_unsent(assignment: Assignment) -> None:
    """Refuses to ask a unit while another one goes: two units would come to believe that the assignment is theirs."""
    if assignment.state in ACCEPTED and not assignment.is_with_desk:
        raise _unit_has_it(assignment)


def _unit_has_it(assignment: Assignment) -> FailedPrecondition:
    if assignment.unit_id:
        whose = f"unit {assignment.unit_id} has the assignment"
    elif assignment.radio_unit:
        whose = f"{assignment.radio_by} sent {assignment.radio_unit} by radio"
    else:
        whose = f"the assignment is {assignment.state.name}"
    return FailedPrecondition(f"{whose}: give it back before another unit is sent", UNIT_HAS_IT)


def _check_seen_offer(assignment: Assignment, command: Sending) -> None:
    """Refuses an order of an officer who didn't see that another officer sent a unit. What the leg asked by itself refuses nothing."""
    if command.offer_number > assignment.newest_offer_number:
        raise FailedPrecondition(
            f"offer_number {command.offer_number} doesn't exist: the last offer is {assignment.newest_offer_number}",
            NO_SUCH_OFFER,
        )
    for offer in reversed(assignment.unit_offers):
        if offer.offer_number > command.offer_number and offer.asked_by not in ("", command.by):
            raise FailedPrecondition(
                f"{offer.asked_by} asked unit {offer.unit_id} since: look at the assignment, and send another unit if it is needed",
                OFFERED_ON,
            )
    if assignment.radio_unit and assignment.offer_number > command.offer_number and assignment.radio_by != command.by:
        raise FailedPrecondition(
            f"{assignment.radio_by} sent {assignment.radio_unit} by radio since: look at the assignment", OFFERED_ON
        )
