"""Decisions on a first contact with the wearer: the message of the tag, and the call of an officer. Pure.

The decision orders the message, so it goes out while this leg is down, too. The leg follows it: a message that the tag refuses or
doesn't confirm, or that doesn't turn the wearer back, brings the call onto the officers' list. A contact delays and replaces no
response.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias, assert_never

from services.common import ids
from services.common.errors import FailedPrecondition, NotFound
from services.dispatch.domain.assignment import OVER, Assignment
from services.dispatch.domain.enums import CallReason, ContactPlan, ContactState
from services.dispatch.domain.events import ContactBegun, ContactStepped
from services.dispatch.domain.incident import Alert, Incident
from services.dispatch.domain.leg import Leg

CONFIRM_MS = 130_000
"""Time in which the tag must confirm the message, milliseconds of mesh time: the 2 minutes for which it is sent, and its way."""
CALL_AFTER_MS = 180_000
"""Time from the tag's confirmation until an officer calls a wearer who hasn't turned back, milliseconds of mesh time. By then the ring
of a wearer who turns round at once is cleared."""
CONTACT_OVER = "CONTACT_OVER"
CONTACT_OTHER = "CONTACT_OTHER"
NOBODY_CALLS = "NOBODY_CALLS"
"""Machine-readable reasons for refusing the result of a call."""


@dataclass(frozen=True, slots=True)
class Confirm:
    """Command: record that the tag confirmed the message, or why an officer has to call."""

    assignment_id: str
    contact_id: str
    reason: CallReason | None
    """Why a call is needed; None if the tag confirmed the message."""


@dataclass(frozen=True, slots=True)
class RecordCall:
    """Command: record the result of an officer's call."""

    assignment_id: str
    by: str
    """SPIFFE id of the caller."""
    contact_id: str
    spoken: bool
    """Whether the officer spoke with the wearer."""


ContactCommand: TypeAlias = Confirm | RecordCall


def contact_assignment_id(incident_id: str, leg: Leg, wearer_id: str) -> str:
    """Id of the assignment of an incident's first contacts."""
    return ids.hash_id("assign", incident_id, leg, wearer_id, "contact")


def fold_contact(incident: Incident, alert: Alert, now_ms: int) -> Iterator[ContactBegun | ContactStepped]:
    """Events that an alert's contact leads to: the contact begins, or the wearer has turned back."""
    contact, wearer_id = alert.contact, alert.wearer_id
    if contact is None or not wearer_id or not incident.leg.policy.contacts_wearer:
        return
    id_ = contact_assignment_id(incident.incident_id, incident.leg, wearer_id)
    present = incident.assignments.get(id_)
    if contact.plan is ContactPlan.TURNED_BACK:
        if present and _is_present(present, contact.contact_id):
            yield _step(present, ContactState.TURNED_BACK, now_ms)
        return
    if contact.plan is ContactPlan.WITHHELD or alert.place <= incident.end:
        return
    if present is None or present.demanded < alert.place:
        yield ContactBegun(
            at_ms=now_ms,
            assignment_id=id_,
            subject_id=wearer_id,
            demand=alert.demand,
            place=alert.place,
            cause=alert.cause,
            kind=alert.kind,
            contact_id=contact.contact_id,
            plan=contact.plan,
            device_id=contact.device_id,
            # The confirmation of a message has a deadline. Other contacts have none: nothing would change once it passed.
            due_ms=now_ms + CONFIRM_MS if contact.plan is ContactPlan.TAG else None,
        )


def decide_contact(incident: Incident, command: ContactCommand, now_ms: int) -> Iterator[ContactStepped]:
    """Events that a command leads to. Raises NotFound or FailedPrecondition if the desk records an impossible result."""
    assignment = incident.assignments.get(command.assignment_id)
    match command:
        case Confirm():
            if assignment and _is_present(assignment, command.contact_id):
                yield from _confirmed(assignment, command.reason, now_ms)
        case RecordCall():
            if assignment is None or assignment.contact is None:
                raise NotFound(f"no contact {command.assignment_id} in the {incident.leg} leg")
            yield from _called(assignment, command, now_ms)
        case _:
            assert_never(command)


def pass_contact_deadline(assignment: Assignment, now_ms: int) -> Iterator[ContactStepped]:
    """Events of a contact whose deadline has passed: an officer has to call, or the contact remains without an answer."""
    contact = assignment.contact
    if contact is None or assignment.due_ms is None or assignment.due_ms > now_ms:
        return
    if contact.state is ContactState.SENT:
        yield _step(assignment, ContactState.CALL_DUE, now_ms, reason=CallReason.NOT_CONFIRMED)
    elif contact.state is ContactState.CONTACTED:
        yield _step(assignment, ContactState.CALL_DUE, now_ms, reason=CallReason.NOT_TURNED_BACK)


def _is_present(assignment: Assignment, contact_id: str) -> bool:
    """Whether a contact is the assignment's present one, and still open."""
    contact = assignment.contact
    return contact is not None and assignment.state not in OVER and contact.contact_id == contact_id


def _confirmed(assignment: Assignment, reason: CallReason | None, now_ms: int) -> Iterator[ContactStepped]:
    contact = assignment.contact
    if contact is None:
        return
    is_late = contact.state in (ContactState.CALL_DUE, ContactState.NO_ANSWER) and not contact.recorded_by
    if reason is None and (contact.state is ContactState.SENT or is_late):
        due_ms = now_ms + CALL_AFTER_MS if contact.plan is ContactPlan.TAG else None
        yield _step(assignment, ContactState.CONTACTED, now_ms, due_ms=due_ms)
    elif reason is not None and contact.state is ContactState.SENT:
        yield _step(assignment, ContactState.CALL_DUE, now_ms, reason=reason)


def _called(assignment: Assignment, command: RecordCall, now_ms: int) -> Iterator[ContactStepped]:
    contact = assignment.contact
    if contact is None or contact.contact_id != command.contact_id:
        raise FailedPrecondition("contact_id: another contact has begun since: reload the list", CONTACT_OTHER)
    result = ContactState.CONTACTED if command.spoken else ContactState.NO_ANSWER
    if contact.recorded_by and contact.state is result:
        return
    if assignment.state in OVER:
        raise FailedPrecondition(
            f"the contact is {assignment.state.name}: its order or incident has ended", CONTACT_OVER
        )
    if contact.plan not in (ContactPlan.TAG, ContactPlan.CALL):
        raise FailedPrecondition(
            f"the contact is {contact.plan.name}: the order's budget of contacts is used up, so nobody calls",
            NOBODY_CALLS,
        )
    if contact.state is ContactState.TURNED_BACK:
        raise FailedPrecondition("the wearer has turned back: there is nobody to call", CONTACT_OVER)
    yield _step(assignment, result, now_ms, reason=contact.call_reason, by=command.by)


def _step(
    assignment: Assignment,
    state: ContactState,
    now_ms: int,
    *,
    reason: CallReason = CallReason.UNSPECIFIED,
    by: str = "",
    due_ms: int | None = None,
) -> ContactStepped:
    return ContactStepped(
        at_ms=now_ms,
        assignment_id=assignment.assignment_id,
        state=state,
        call_reason=reason,
        by=by,
        due_ms=due_ms,
    )
