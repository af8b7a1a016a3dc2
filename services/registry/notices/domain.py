"""The ground on which the Ministry may notify the persons whom an order protects, for each wearer of its joint cases. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from services.common.privacy import notices
from services.common.privacy.notices import NoticeGround, TagBasis
from services.registry.domain import Order, OrderType, Tag


@dataclass(frozen=True, slots=True)
class OrderGround:
    """The ground of an order for one wearer, and what it follows from."""

    case_id: str
    wearer_id: str
    order_type: OrderType | None
    tag_bases: tuple[TagBasis, ...]
    """Reasons for the tags that the wearer wears, sorted, without duplicates."""
    order_over: bool
    """Whether the order's validity has ended, so that no notice is given under it any more."""

    @property
    def ground(self) -> NoticeGround | None:
        """The ground; None if there is none."""
        return notices.ground_of(self.tag_bases, self._type)

    @property
    def why_none(self) -> str:
        """Why there is no ground, in words; empty if there is one."""
        return notices.why_none(self.tag_bases, self._type)

    @property
    def police_must_check(self) -> bool:
        """Whether the police must look into each notice about the wearer's acts."""
        return notices.police_must_check(self.tag_bases, self._type)

    @property
    def _type(self) -> str:
        return type_name(self.order_type)


def type_name(order_type: OrderType | None) -> str:
    """Name of an order's type; empty if the order has none."""
    return order_type.value if order_type else ""


def order_ground(case_id: str, order: Order, wearer_id: str, *, tags: Iterable[Tag], now_ms: int) -> OrderGround:
    """The ground of an order for a wearer at a moment, milliseconds of mesh time. Tags that were removed don't count."""
    bases = {tag.basis for tag in tags if tag.wearer_id == wearer_id and tag.removed_at_ms is None}
    return OrderGround(
        case_id=case_id,
        wearer_id=wearer_id,
        order_type=order.type,
        tag_bases=tuple(sorted(bases)),
        order_over=order.is_over(now_ms),
    )
