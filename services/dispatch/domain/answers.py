"""What a desk says of an assignment: it has it, takes it, refuses it, how far the unit is, what it was. Pure.

What was said before changes nothing; what can't be said now is refused with the state that the assignment has. Who says which offer
and which state they saw is refused where it is another by now, so that an old page answers for nobody else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

from services.common.rpc.errors import FailedPrecondition, NotFound
from services.dispatch.domain import escalation
from services.dispatch.domain.escalation import Deadlines
from services.dispatch.domain.events import (
    Acknowledged,
    CloseCause,
    Closed,
    EscalationReason,
    Event,
    Progressed,
    Received,
    Rejected,
)
from services.dispatch.domain.evolving import evolve
from services.dispatch.domain.incident import PROGRESS, TAKEN, UNANSWERED, Assignment, AssignmentState, Incident
from services.dispatch.domain.roster import NO_ROSTER, Board

GIVEN_BACK = UNANSWERED | {AssignmentState.ACKNOWLEDGED, AssignmentState.DISPATCHED, AssignmentState.EN_ROUTE}
"""What can be refused; who is there sees it through."""

NO_SUCH_OFFER, OFFERED_ON, MOVED_ON = "NO_SUCH_OFFER", "OFFERED_ON", "MOVED_ON"
CANT_TAKE, CANT_REFUSE, CANT_GO_ON, CANT_CLOSE = "CANT_TAKE", "CANT_REFUSE", "CANT_GO_ON", "CANT_CLOSE"
STEP_LEFT_OUT, CLOSED_OTHERWISE = "STEP_LEFT_OUT", "CLOSED_OTHERWISE"
"""Why an answer is refused, for programs."""


@dataclass(frozen=True, slots=True)
class Receive:
    """The desk's machine has an offer."""

    assignment_id: str
    by: str
    """SPIFFE id of who says so."""
    now_ms: int
    offer_number: int
    """Which offer."""
    deadlines: Deadlines


@dataclass(frozen=True, slots=True)
class Acknowledge:
    """A person takes an assignment."""

    assignment_id: str
    by: str
    now_ms: int
    deadlines: Deadlines
    offer_number: int = 0
    """Which offer; 0 for the present one."""


@dataclass(frozen=True, slots=True)
class Reject:
    """Whoever was asked, or had taken it, can't."""

    assignment_id: str
    by: str
    now_ms: int
    offer_number: int
    reason: str
    deadlines: Deadlines
    board: Board = NO_ROSTER
    seen: AssignmentState | None = None
    """The state that they saw; None where they didn't look."""


@dataclass(frozen=True, slots=True)
class Progress:
    """The unit is one step further."""

    assignment_id: str
    by: str
    now_ms: int
    state: AssignmentState
    offer_number: int = 0
    """Whose unit it is; 0 for the present offer's."""
    seen: AssignmentState | None = None
    """The state before, as they saw it; None where they didn't look."""


@dataclass(frozen=True, slots=True)
class Close:
    """The desk says what it was."""

    assignment_id: str
    by: str
    now_ms: int
    cause: CloseCause
    note: str
    offer_number: int = 0
    """Which offer; 0 for the present one."""
    seen: AssignmentState | None = None
    """The state that they saw; None where they didn't look."""


Answering: TypeAlias = Receive | Acknowledge | Reject | Progress | Close


def decide(incident: Incident, command: Answering) -> Iterator[Event]:
    """What an answer leads to. Raises NotFound or FailedPrecondition."""
    assignment = incident.assignments.get(command.assignment_id)
    if assignment is None:
        raise NotFound("no such assignment")
    if isinstance(command, Receive):
        yield from _receive(assignment, command)
    elif isinstance(command, Acknowledge):
        yield from _acknowledge(assignment, command)
    elif isinstance(command, Reject):
        yield from _reject(incident, assignment, command)
    elif isinstance(command, Progress):
        yield from _progress(assignment, command)
    else:
        yield from _close(assignment, command)


def _receive(assignment: Assignment, command: Receive) -> Iterator[Event]:
    _check_offer(assignment, command.offer_number)
    due_ms = escalation.received_due_ms(assignment, command.deadlines)
    # A receipt that comes late, or again, tells nothing that anybody waits for.
    if (
        assignment.state in UNANSWERED
        and assignment.received_ms is None
        and command.offer_number == assignment.offer_number
        and due_ms is not None
    ):
        yield Received(command.now_ms, assignment.assignment_id, command.by, due_ms)


def _acknowledge(assignment: Assignment, command: Acknowledge) -> Iterator[Event]:
    _check_offer(assignment, command.offer_number)
    if command.offer_number:
        _check_present(assignment, command.offer_number)
    if assignment.state in TAKEN:
        return
    if assignment.state not in UNANSWERED:
        raise FailedPrecondition(
            f"the assignment is {assignment.state.name}: there is nothing to acknowledge", CANT_TAKE
        )
    due_ms = command.now_ms + command.deadlines.dispatch_ms if assignment.choice else None
    yield Acknowledged(command.now_ms, assignment.assignment_id, command.by, due_ms)


def _reject(incident: Incident, assignment: Assignment, command: Reject) -> Iterator[Event]:
    _check_offer(assignment, command.offer_number)
    if assignment.state not in GIVEN_BACK:
        raise FailedPrecondition(f"the assignment is {assignment.state.name}: it can't be refused", CANT_REFUSE)
    _check_present(assignment, command.offer_number)
    _check_seen(assignment, command.seen)
    rejected = Rejected(command.now_ms, assignment.assignment_id, command.by, command.reason)
    yield rejected
    incident = evolve(incident, rejected)
    assignment = incident.assignments[assignment.assignment_id]
    yield escalation.climbed(
        incident, assignment, EscalationReason.REFUSED, command.now_ms, command.deadlines, command.board
    )


def _progress(assignment: Assignment, command: Progress) -> Iterator[Event]:
    if command.offer_number:
        _check_offer(assignment, command.offer_number)
        _check_present(assignment, command.offer_number)
    if assignment.state not in TAKEN:
        raise FailedPrecondition(
            f"the assignment is {assignment.state.name}: nobody has it who could go on", CANT_GO_ON
        )
    if assignment.state is not command.state:
        _check_seen(assignment, command.seen)
    known, told = PROGRESS.index(assignment.state), PROGRESS.index(command.state)
    if told <= known:
        return
    if told > known + 1:
        before = PROGRESS[told - 1].name
        raise FailedPrecondition(
            f"the assignment is {assignment.state.name}: {command.state.name} comes after {before}", STEP_LEFT_OUT
        )
    yield Progressed(command.now_ms, assignment.assignment_id, command.by, int(command.state))


def _close(assignment: Assignment, command: Close) -> Iterator[Event]:
    if command.offer_number:
        _check_offer(assignment, command.offer_number)
        _check_present(assignment, command.offer_number)
    if assignment.state is AssignmentState.CLOSED:
        if assignment.close_cause is not command.cause:
            raise FailedPrecondition(f"the assignment is CLOSED, as {_name(assignment.close_cause)}", CLOSED_OTHERWISE)
        return
    if assignment.state not in TAKEN | {AssignmentState.STOOD_DOWN}:
        raise FailedPrecondition(
            f"the assignment is {assignment.state.name}: nobody has taken it who could close it", CANT_CLOSE
        )
    _check_seen(assignment, command.seen)
    yield Closed(command.now_ms, assignment.assignment_id, command.by, command.cause, command.note)


def _check_offer(assignment: Assignment, offer_number: int) -> None:
    if offer_number > assignment.offer_number:
        raise FailedPrecondition(f"there is no such offer: the last is {assignment.offer_number}", NO_SUCH_OFFER)


def _check_present(assignment: Assignment, offer_number: int) -> None:
    if offer_number != assignment.offer_number:
        raise FailedPrecondition(f"it was offered on since, as offer {assignment.offer_number}", OFFERED_ON)


def _check_seen(assignment: Assignment, seen: AssignmentState | None) -> None:
    if seen not in (None, assignment.state):
        raise FailedPrecondition(f"the assignment is {assignment.state.name} by now, not {seen.name}", MOVED_ON)


def _name(cause: CloseCause | None) -> str:
    return cause.name if cause else ""
