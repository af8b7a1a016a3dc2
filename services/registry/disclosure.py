"""What was done with personal data, what each role sees of it, and when it is destroyed. Pure."""

from __future__ import annotations

from enum import Enum

from services.common.rpc.identity import Role
from services.registry.domain import EndReason, Order, OrderType, ProtectedPerson, Wearer, WearerEndReason

DAY_MS = 86_400_000
KEPT_AFTER_END_MS = (5 * 365 + 2) * DAY_MS
"""Data is destroyed 5 years after the end (Tag Act); no 5 years hold more than two leap days."""


class Deed(Enum):
    """What was done."""

    READ = "READ"
    SHARED = "SHARED"
    SHARE_ENDED = "SHARE_ENDED"
    """A share that went on for a while is over."""
    DESTROYED = "DESTROYED"


_AT_ONCE = (EndReason.NON_PROSECUTION, EndReason.ACQUITTAL)


def destroy_order_at_ms(order: Order) -> int:
    """When an order is destroyed: 5 years after its end, and at once where it falls with the prosecution or by acquittal."""
    at_once = order.end is not None and order.end.reason in _AT_ONCE
    return order.ends_ms if at_once else order.ends_ms + KEPT_AFTER_END_MS


def destroy_at_ms(record: Wearer | ProtectedPerson | Order) -> int | None:
    """When a record is destroyed: 5 years after its end, at once where the ground of an item 3-2 tag fell; None: no end yet."""
    match record:
        case Order():
            return destroy_order_at_ms(record)
        case Wearer():
            kept_ms = KEPT_AFTER_END_MS if record.end and record.end.reason is WearerEndReason.COMPLETED else 0
            return None if record.end is None else record.end.at_ms + kept_ms
        case ProtectedPerson():
            return None if record.ended_at_ms is None else record.ended_at_ms + KEPT_AFTER_END_MS


def ground_fell(order: Order) -> bool:
    """Whether it was an order for a tag, and fell in a way that destroys the data of the tag too."""
    return order.type is OrderType.STALKING_TAG and order.end is not None and order.end.reason in _AT_ONCE


_WHOLE = frozenset({"national_id", "name", "birth_date", "sex", "phone", "address"})
WEARER_SHOWS = {
    Role.ROLE_MOJ_RECORDS: _WHOLE,
    Role.ROLE_MOJ_DESK: _WHOLE - {"national_id"},
    # The police look for the person, not for the file.
    Role.ROLE_NPA_DESK: frozenset({"name", "birth_date", "sex", "phone"}),
    Role.ROLE_REVIEWER: _WHOLE,
}
"""Fields of a wearer that a role sees; what isn't named is left out."""
PERSON_SHOWS = {
    Role.ROLE_NPA_RECORDS: frozenset({"name", "relation", "places"}),
    Role.ROLE_NPA_DESK: frozenset({"name", "relation", "places"}),
    # Probation goes to the wearer; it needs no way to where the protected person lives.
    Role.ROLE_MOJ_DESK: frozenset({"name", "relation"}),
    Role.ROLE_REVIEWER: frozenset({"name", "relation"}),
}
"""Fields of a protected person that a role sees; `places` are the protected places of the orders."""
