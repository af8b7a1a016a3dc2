"""Rules for personal data: kinds of use, and dates of destruction. Pure."""

from __future__ import annotations

from enum import Enum

from services.registry.domain import EndReason, Order, OrderType, ProtectedPerson, Wearer, WearerEndReason
from services.registry.presence_units.domain import PresenceUnit

DAY_MS = 86_400_000
KEPT_AFTER_END_MS = (5 * 365 + 2) * DAY_MS
"""How long data is kept after its end, milliseconds: 5 years (Tag Act). 5 years have at most two leap days."""


class Deed(Enum):
    """Kind of use of personal data, as a row of the ledger states it."""

    READ = "READ"
    SHARED = "SHARED"
    SHARE_ENDED = "SHARE_ENDED"
    """End of a share that lasted for a time."""
    DESTROYED = "DESTROYED"
    NOTIFIED = "NOTIFIED"
    """The Ministry notified a protected person of the wearer, or gave a location with the notice."""


_IMMEDIATE = (EndReason.NON_PROSECUTION, EndReason.ACQUITTAL)


_ARTICLES = {
    OrderType.STALKING_APPROACH: "STALKING_9_1_2",
    OrderType.STALKING_TELECOM: "STALKING_9_1_3",
    OrderType.STALKING_TAG: "STALKING_9_1_3_2",
    OrderType.POLICE_EMERGENCY: "STALKING_4",
    OrderType.DV_TEMPORARY: "DV_29_1",
    OrderType.DV_PROTECTION: "DV_PROTECTION",
    OrderType.STALKING_PROTECTION: "STALKING_17_6",
    OrderType.STALKING_INTERIM: "STALKING_17_7",
    OrderType.TAG_CONDITION: "TAG_9_2_1_3",
}
"""Code of the article on which each type of order rests."""


def article_of(order: Order) -> str:
    """Code of the article on which an order rests; empty if it states no type."""
    return _ARTICLES[order.type] if order.type else ""


def destroy_order_at_ms(order: Order) -> int | None:
    """When an order is destroyed: 5 years after its end, or immediately after non-prosecution or an acquittal.

    None while the order has no end.
    """
    if order.ends_ms is None:
        return None
    immediate = order.end is not None and order.end.reason in _IMMEDIATE
    return order.ends_ms if immediate else order.ends_ms + KEPT_AFTER_END_MS


def destroy_wearer_at_ms(wearer: Wearer) -> int | None:
    """When a wearer is destroyed: 5 years after a completed term, or immediately after an acquittal or a lapsed order.

    None while the wearer's case runs.
    """
    if wearer.end is None:
        return None
    return wearer.end.at_ms + (KEPT_AFTER_END_MS if wearer.end.reason is WearerEndReason.COMPLETED else 0)


def destroy_person_at_ms(person: ProtectedPerson) -> int | None:
    """When a protected person is destroyed: 5 years after the end; None while the person is protected."""
    return None if person.ended_at_ms is None else person.ended_at_ms + KEPT_AFTER_END_MS


def destroy_unit_at_ms(unit: PresenceUnit) -> int | None:
    """When a home unit or beacon is destroyed: 5 years after its removal; None while it is installed for an unlimited time."""
    return None if unit.installed_until_ms is None else unit.installed_until_ms + KEPT_AFTER_END_MS


def ground_fell(order: Order) -> bool:
    """Whether an order for a tag ended in a way that also requires the immediate destruction of the tag's data."""
    return order.type is OrderType.STALKING_TAG and order.end is not None and order.end.reason in _IMMEDIATE
