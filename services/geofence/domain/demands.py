"""The one table that says what an alert demands, and where each leg then goes."""

from __future__ import annotations

from services.geofence.domain.alerts import Kind, Leg
from services.geofence.domain.entries import Case, Demand, Equipment, Target

EQUIPMENT: dict[Equipment, tuple[Kind, Demand]] = {
    # A tag that may be off its wearer: the Decree (23-13) has police told at once, and nobody knows where the wearer is.
    Equipment.STRAP_OPEN: (Kind.TAMPERED, Demand.RESPOND),
    Equipment.STRAP_CLOSED: (Kind.TAMPERED, Demand.RECORD),
    Equipment.CASE_OPEN: (Kind.TAMPERED, Demand.RESPOND),
    Equipment.CASE_CLOSED: (Kind.TAMPERED, Demand.RECORD),
    Equipment.PANIC_BUTTON: (Kind.PANIC, Demand.RESPOND),
    Equipment.PANIC_CANCELLED: (Kind.PANIC, Demand.RECORD),
    Equipment.BATTERY_LOW: (Kind.LOW_BATTERY, Demand.RECORD),
}

_TAG_SAYS = (Equipment.STRAP_OPEN, Equipment.STRAP_CLOSED, Equipment.CASE_OPEN, Equipment.CASE_CLOSED)
OF_TAGS = frozenset((*_TAG_SAYS, Equipment.BATTERY_LOW))
"""What a tag can say."""
OF_PERSONS = frozenset((Equipment.PANIC_BUTTON, Equipment.PANIC_CANCELLED, Equipment.BATTERY_LOW))
"""What a protective device can say."""

ENDS: dict[Equipment, Equipment] = {
    Equipment.STRAP_CLOSED: Equipment.STRAP_OPEN,
    Equipment.CASE_CLOSED: Equipment.CASE_OPEN,
    Equipment.PANIC_CANCELLED: Equipment.PANIC_BUTTON,
}
"""Which event takes back which; what is taken back holds the incident open until then."""


def of_ring(action: Demand, entered: bool) -> Demand:
    """Entering a ring demands the ring's action; the all-clear is for the record."""
    return action if entered else Demand.RECORD


def _subject(case: Case, target: Target) -> str:
    """A person's id, or `order/place`: an agency numbers places within their order, and ids hold no slash."""
    return target.target_id if target.is_person else f"{case.order_id}/{target.target_id}"


def destinations(case: Case, target: Target | None) -> tuple[tuple[Leg, str], ...]:
    """Probation to the wearer, police to what is under threat, a warning to each person who is.

    Without a target, as when a tag is cut, all that the order protects is under threat.
    """
    persons = [other.target_id for other in case.targets if other.is_person]
    threatened = [_subject(case, target)] if target else persons or [_subject(case, other) for other in case.targets]
    warned = [target.target_id] if target and target.is_person else persons
    return (
        (Leg.PROBATION, case.wearer_id),
        *((Leg.POLICE, subject_id) for subject_id in threatened),
        *((Leg.WARNING, person_id) for person_id in warned),
    )
