"""Translation of first contacts between messages and the domain of a leg."""

from __future__ import annotations

from services.common import fields, times
from services.common.rpc.errors import InvalidField
from services.dispatch.domain.alert import AlertContact
from services.dispatch.domain.assignment import Assignment
from services.dispatch.domain.enums import ContactPlan
from tandem.common.v1 import alert_pb2, first_contact_pb2, notice_pb2
from tandem.dispatch.v1 import calls_pb2, contact_pb2, dispatch_pb2


def alert_contact(message: alert_pb2.Alert) -> AlertContact | None:
    """The statement of an alert about the first contact; None without one, or if this version doesn't know its plan.

    Raises InvalidField if the contact lacks its id.
    """
    contact = message.contact
    if not message.HasField("contact") or int(contact.plan) not in {int(known) for known in ContactPlan}:
        return None
    if contact.device_id:
        fields.required_id("contact.device_id", contact.device_id)
    return AlertContact(
        contact_id=fields.required_id("contact.contact_id", contact.contact_id),
        plan=ContactPlan(contact.plan),
        device_id=contact.device_id,
    )


def add_contact(message: dispatch_pb2.Assignment, assignment: Assignment) -> None:
    """Adds the first contact of an assignment, if it has one."""
    contact = assignment.contact
    if contact is None:
        return
    message.task = notice_pb2.CONTACT
    message.contact.contact_id = contact.contact_id
    message.contact.state = contact_pb2.ContactState.ValueType(contact.state)
    message.contact.plan = first_contact_pb2.ContactPlan.ValueType(contact.plan)
    message.contact.since.CopyFrom(times.to_timestamp(contact.since_ms))
    message.contact.call_reason = contact_pb2.CallReason.ValueType(contact.call_reason)
    message.contact.recorded_by = contact.recorded_by
    if assignment.due_ms is not None and contact.plan is ContactPlan.TAG:
        message.contact.call_at.CopyFrom(times.to_timestamp(assignment.due_ms))


def spoken(result: calls_pb2.CallResult.ValueType) -> bool:
    """The validated result of a call: whether an officer spoke with the wearer. Raises InvalidField."""
    if result not in (calls_pb2.SPOKEN, calls_pb2.NOT_ANSWERED):
        raise InvalidField("result", "is missing or unknown (example: SPOKEN)")
    return result == calls_pb2.SPOKEN
