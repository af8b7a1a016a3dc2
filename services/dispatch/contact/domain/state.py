"""State of a first contact with the wearer, and its state after each step. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

from services.dispatch.domain.enums import CallReason, ContactPlan, ContactState
from services.dispatch.domain.events import ContactBegun, ContactStepped

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


def begun_contact(step: ContactBegun) -> WearerContact:
    """The contact after the step that begins it."""
    return WearerContact(
        contact_id=step.contact_id,
        plan=step.plan,
        device_id=step.device_id,
        state=_FIRST_STATES.get(step.plan, ContactState.SENT),
        since_ms=step.at_ms,
        call_reason=CallReason.NO_TAG if step.plan is ContactPlan.CALL else CallReason.UNSPECIFIED,
    )


def stepped_contact(before: WearerContact | None, step: ContactStepped) -> WearerContact:
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
