"""Notices of the Ministry to a protected person: the articles that allow them, and the ground that a tag and an order give. Pure.

Two articles allow such a notice. Which of them applies depends on why the wearer wears the tag and on the order that is breached.
Without one of them the Ministry gives no notice and no location; the police's own warning needs neither.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum, StrEnum

TRACKING_CENTRE = "spiffe://moj/desk/tracking-centre"
"""SPIFFE id of the giver of notices: the Ministry's location tracking centre, for the probation office (Tag Act Decree 13-2(1),
23-14(3))."""
_RECIPIENT = "spiffe://tandem/protected-person/"
_RECIPIENT_PATTERN = re.compile(rf"{_RECIPIENT}[A-Za-z0-9._-]{{1,64}}")


class TagBasis(StrEnum):
    """Why a wearer wears a tag."""

    UNKNOWN = ""
    """The Ministry hasn't said. Such a tag gives no ground."""
    JUDGMENT = "JUDGMENT"
    """A judgment for an earlier offence (Tag Act 9)."""
    STALKING_ORDER = "STALKING_ORDER"
    """A decision under Stalking Punishment Act 9(1) item 3-2."""
    OTHER = "OTHER"
    """Another ground, such as parole or bail. It allows no notice."""


class NoticeGround(Enum):
    """The article on which a notice of the Ministry to a protected person rests. The value is its code in LEGAL_BASES."""

    JUDGMENT = "TAG_15_2"
    """Tag Act 15-2: breach, or marked risk of a breach, of a condition 9-2(1)3 that names her."""
    STALKING_ORDER = "TAG_31_6_4"
    """Tag Act 31-6(4), proviso: breach, or risk of a breach, of the no-approach order of a wearer of an item 3-2 tag."""


class Giver(Enum):
    """Who gives a notice or a location."""

    MINISTRY = "MINISTRY"
    """The probation office or the Ministry's location tracking centre."""


class Recipient(Enum):
    """Who gets a notice or a location."""

    PROTECTED_PERSON = "PROTECTED_PERSON"
    """The victim, or another person whom the order names: a cohabitant or family."""


@dataclass(frozen=True, slots=True)
class NoticeTerms:
    """The terms of an article that allows the Ministry to notify a protected person, or to give a location with the notice."""

    ground: NoticeGround
    """The ground to which the article belongs."""
    order_type: str
    """Name of the registry's OrderType that the breached order must have."""
    tag_basis: TagBasis
    """Why the wearer must wear the tag."""
    needs: str
    """What else the article needs, in words."""
    gives_location: bool = False
    """Whether the article allows a location together with the notice. Otherwise it allows the notice alone."""
    giver: Giver = Giver.MINISTRY
    recipient: Recipient = Recipient.PROTECTED_PERSON


@dataclass(frozen=True, slots=True)
class _Ground:
    """What a ground needs, and the article under which a location may go with its notices."""

    order_type: str
    tag_basis: TagBasis
    location_basis: str


_GROUNDS: Mapping[NoticeGround, _Ground] = {
    NoticeGround.JUDGMENT: _Ground("TAG_CONDITION", TagBasis.JUDGMENT, "TAG_16_2_5"),
    NoticeGround.STALKING_ORDER: _Ground("STALKING_APPROACH", TagBasis.STALKING_ORDER, "TAG_31_8_2_5"),
}
_OF_ITEM_3_2 = frozenset({"STALKING_APPROACH", "STALKING_TAG"})
"""Types of orders of one decision under Stalking Punishment Act 9(1) whose wearer's acts the police are notified of."""


def terms(ground: NoticeGround, needs: str, *, gives_location: bool = False) -> NoticeTerms:
    """The terms of an article that belongs to a ground."""
    needed = _GROUNDS[ground]
    return NoticeTerms(
        ground=ground,
        order_type=needed.order_type,
        tag_basis=needed.tag_basis,
        needs=needs,
        gives_location=gives_location,
    )


def ground_of(tag_bases: Iterable[str], order_type: str) -> NoticeGround | None:
    """The ground on which the Ministry may notify the persons whom an order protects; None if there is none.

    `tag_bases` are the reasons for the tags that the wearer wears (values of TagBasis), and `order_type` is the name of the registry's
    OrderType, empty if the order has none. An earlier tag and a police measure, the most frequent case, give no ground.
    """
    worn = set(tag_bases)
    found = (
        ground
        for ground, needed in _GROUNDS.items()
        if needed.order_type == order_type and needed.tag_basis.value in worn
    )
    return next(found, None)


def police_must_check(tag_bases: Iterable[str], order_type: str) -> bool:
    """Whether Tag Act 31-6(4) obliges the Ministry to notify the police of the wearer's acts under an order, who must then look into
    them (31-6(5)): the wearer wears an item 3-2 tag, and the order belongs to that decision. `tag_bases` and `order_type` are those of
    `ground_of`."""
    return TagBasis.STALKING_ORDER.value in set(tag_bases) and order_type in _OF_ITEM_3_2


def why_none(tag_bases: Iterable[str], order_type: str) -> str:
    """Why the Ministry may not notify anybody under an order, in words; empty if it may. The arguments are those of `ground_of`."""
    worn = set(tag_bases)
    if ground_of(worn, order_type) is not None:
        return ""
    if not worn:
        return "the wearer wears no tag"
    needed = next((needed for needed in _GROUNDS.values() if needed.order_type == order_type), None)
    if needed is None:
        return f"no article covers a notice under an order of the type {order_type or 'UNSPECIFIED'}"
    return f"an order of the type {order_type} needs a tag of the basis {needed.tag_basis.value}"


def location_basis(ground: NoticeGround) -> str:
    """Code of the article under which a location may be given together with a notice on this ground, where it is urgent."""
    return _GROUNDS[ground].location_basis


def recipient_id(person_id: str) -> str:
    """The id of a protected person as the recipient of a notice in the ledger, in the form of a SPIFFE id. It has no role anywhere."""
    return f"{_RECIPIENT}{person_id}"


def recipient_of(text: str) -> str:
    """The person's id in an id of `recipient_id`; empty if the text is none."""
    return text.removeprefix(_RECIPIENT) if is_recipient(text) else ""


def is_recipient(text: str) -> bool:
    """Whether a text is an id of `recipient_id`."""
    return _RECIPIENT_PATTERN.fullmatch(text) is not None
