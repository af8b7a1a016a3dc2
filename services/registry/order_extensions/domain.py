"""An extension of an order: a later end and one extension more, with all else as it is stored. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from services.common.rpc.errors import FailedPrecondition, InvalidField
from services.registry.domain import MAX_EXTENSIONS, Order


@dataclass(frozen=True, slots=True)
class OrderExtension:
    """An extension as the police's clerk states it."""

    order_id: str
    source_version: int
    """The agency's version of the extended record."""
    valid_until_ms: int
    """New end of the order's validity, exclusive, milliseconds since 1970 UTC."""
    duration_reason: str = field(default="", repr=False)
    """Reason why the order lasts longer than its type allows; empty keeps the stored one."""


def extended(order: Order, extension: OrderExtension) -> Order:
    """The order as it is after its extension; the order itself if it has this extension already.

    Raises FailedPrecondition if the order was ended early, has no end, or has no extension left; InvalidField if it wouldn't end later.
    """
    reason = extension.duration_reason or order.duration_reason
    stated = (extension.source_version, extension.valid_until_ms, reason)
    if stated == (order.source_version, order.valid_until_ms, order.duration_reason):
        return order
    if order.end is not None:
        raise FailedPrecondition(
            "order_id: the order was ended early: a greater version of its whole record reopens it"
        )
    if order.valid_until_ms is None:
        raise FailedPrecondition("order_id: the order is valid until the court decides, so it can't be extended")
    if order.extensions >= MAX_EXTENSIONS:
        raise FailedPrecondition(f"order_id: the order was extended {MAX_EXTENSIONS} times, which is the maximum")
    # An older version is stored by nobody, whatever it says: the outcome is SUPERSEDED.
    if extension.source_version > order.source_version and extension.valid_until_ms <= order.valid_until_ms:
        raise InvalidField("valid_until", "must be later than the stored end of the order")
    return replace(
        order,
        valid_until_ms=extension.valid_until_ms,
        extensions=order.extensions + 1,
        duration_reason=reason,
        source_version=extension.source_version,
    )
