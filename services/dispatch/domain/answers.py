"""A desk's answers to an assignment: receive, acknowledge, reject, progress, close. Pure.

A repeated answer changes nothing. An answer that isn't possible in the present state is refused with an error that names the state.
An answer may carry the offer number and the state that the caller saw. The answer is refused if either has changed since. So an
outdated page can't answer for another unit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias, assert_never

from services.common.rpc.errors import FailedPrecondition, NotFound
from services.dispatch.domain import escalation
from services.dispatch.domain.assignment import ACCEPTED, PROGRESS, UNANSWERED, Assignment, AssignmentState
from services.dispatch.domain.enums import CloseCause, EscalationReason
from services.dispatch.domain.escalation import Situation
from services.dispatch.domain.events import Acknowledged, Closed, Event, LogPosition, Progressed, Received, Rejected
from services.dispatch.domain.incident import Decided, Incident
from services.dispatch.duty.domain import Assured, DistressEnded, DistressRaised

GIVEN_BACK = UNANSWERED | {AssignmentState.ACKNOWLEDGED, AssignmentState.DISPATCHED, AssignmentState.EN_ROUTE}
"""States in which an assignment can be rejected. A unit on the scene can't give its assignment back."""

NO_SUCH_OFFER, OFFERED_ON, MOVED_ON = "NO_SUCH_OFFER", "OFFERED_ON", "MOVED_ON"
CANT_TAKE, CANT_REFUSE, CANT_GO_ON, CANT_CLOSE = "CANT_TAKE", "CANT_REFUSE", "CANT_GO_ON", "CANT_CLOSE"
CANT_ASSURE, NO_UNIT = "CANT_ASSURE", "NO_UNIT"
STEP_LEFT_OUT, CLOSED_OTHERWISE = "STEP_LEFT_OUT", "CLOSED_OTHERWISE"
"""Machine-readable reasons for refusing an answer."""


@dataclass(frozen=True, slots=True)
class Receive:
    """Command: the desk's machine has an offer."""

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
    """Command: a person accepts an assignment."""

    assignment_id: str
    by: str
    offer_number: int = 0
    """Number of the accepted offer; 0 for the present one."""
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
    due_ms = escalation.received_due_ms(assignment, situation.deadlines)
    # A late or repeated receipt makes no event, since it changes no deadline.
    if (
        assignment.state in UNANSWERED
        and assignment.received_ms is None
        and command.offer_number == assignment.offer_number
        and due_ms is not None
    ):
        yield Received(at_ms=situation.now_ms, assignment_id=assignment.assignment_id, by=command.by, due_ms=due_ms)


def _acknowledge(incident: Incident, command: Acknowledge, situation: Situation) -> Iterator[Event]:
    assignment = incident.assignments[command.assignment_id]
    if command.warned_of:
        _check_warned(incident, assignment, command.warned_of)
    _check_offer(assignment, command.offer_number)
    if command.offer_number:
        _check_present(assignment, command.offer_number)
    if assignment.state in ACCEPTED:
        return
    if assignment.state not in UNANSWERED:
        raise FailedPrecondition(
            f"the assignment is {assignment.state.name}: there is nothing to acknowledge", CANT_TAKE
        )
    limits = escalation.work_limits(assignment, AssignmentState.ACKNOWLEDGED, situation)
    yield Acknowledged(
        at_ms=situation.now_ms,
        assignment_id=assignment.assignment_id,
        by=command.by,
        due_ms=limits.due_ms,
        remind_ms=limits.remind_ms,
    )


def _reject(incident: Incident, command: Reject, situation: Situation) -> Iterator[Event]:
    assignment = incident.assignments[command.assignment_id]
    _check_offer(assignment, command.offer_number)
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
    if assignment.unit_id != command.unit_id:
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
    if offer_number > assignment.offer_number:
        raise FailedPrecondition(
            f"offer_number {offer_number} doesn't exist: the last offer is {assignment.offer_number}", NO_SUCH_OFFER
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
