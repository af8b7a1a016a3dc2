"""Match reviews as the pages show them: rows, bars, marked differences, and how long a review has been waiting. Pure.

Times are milliseconds since 1970 UTC by the mesh's clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import NamedTuple

BAR_BITS = 20.0
"""Weight that fills half a bar, in bits; greater weights are cut."""
BAR_WIDTH = 100.0
ACTS = ("confirm", "reject", "undo")
"""Answers to a review: one person, two persons, and the withdrawal of an earlier answer."""
DECIDED = frozenset({"CONFIRMED", "REJECTED"})
MAX_REASON = 500
"""Maximum number of characters of a reason."""


@dataclass(frozen=True, slots=True)
class WaitingReviews:
    """The reviews that wait for a person."""

    open: int
    since_ms: int | None
    """Since when the oldest has been waiting; None if none waits."""
    alarmed: int
    """Number of reviews that are an alarm at both agencies."""


class ReviewBadge(NamedTuple):
    """The waiting reviews as the badge on each page shows them."""

    open: int
    minutes: int
    """For how many minutes the oldest has been waiting."""
    alarmed: int


@dataclass(frozen=True, slots=True)
class AgreementCard:
    """How one field of both records agrees."""

    field: str
    """Name of the field, such as BIRTH_DATE."""
    level: str
    """Name of the level, such as YEAR_APART; MISSING if a record doesn't state the field."""
    weight_bits: float


@dataclass(frozen=True, slots=True)
class ReviewCard:
    """A review without personal data."""

    case_id: str
    order_id: str
    wearer_id: str
    state: str
    enforced: bool
    weight_bits: float
    agreements: tuple[AgreementCard, ...]
    since_ms: int
    alarmed_ms: int | None
    decided_by: str
    legal_basis: str
    """Code of the order's article; empty if the reader has to name one."""
    evidence: str
    """Digest of the evidence, hex digits."""


class Bar(NamedTuple):
    """Bar of a weight, which grows from the middle: to the right for one person, to the left against."""

    x: float
    width: float
    is_for: bool


class Part(NamedTuple):
    """Part of a value, which differs from the other record's value or not."""

    text: str
    differs: bool


@dataclass(frozen=True, slots=True)
class ValueCard:
    """Value of one record."""

    parts: tuple[Part, ...]
    stated: bool
    withheld: bool
    """Whether the user's role may not see it."""


@dataclass(frozen=True, slots=True)
class FieldRow:
    """A field of both records side by side."""

    agreement: AgreementCard
    respondent: ValueCard
    wearer: ValueCard


@dataclass(frozen=True, slots=True)
class HistoryRow:
    """An entry in the history of a pair. `what` is EVENT, DECISION or COMPARED; the fields of other kinds are empty."""

    at_ms: int
    what: str
    name: str
    """Name of the event or the decision."""
    by: str
    reason: str
    order_version: int
    wearer_version: int
    weight_bits: float
    changed: tuple[AgreementCard, ...]


class RingRow(NamedTuple):
    """A ring that a confirmation enforces."""

    radius_m: float
    demand: str


@dataclass(frozen=True, slots=True)
class ConsequencesCard:
    """What each answer causes."""

    enforced: bool
    rings: tuple[RingRow, ...]
    from_ms: int
    until_ms: int | None
    """None while the order has no end."""
    order_type: str
    """Name of the order's type; empty if it states none."""
    tags: int
    persons: int
    persons_without_device: int
    places: int
    other_orders: int
    other_wearers: int
    other_reviews: int


@dataclass(frozen=True, slots=True)
class OpenedReview:
    """A review with both records, as the user's role may see them."""

    card: ReviewCard
    fields: tuple[FieldRow, ...]
    history: tuple[HistoryRow, ...]
    consequences: ConsequencesCard

    @property
    def acts(self) -> tuple[str, ...]:
        """Answers that make sense in the review's state."""
        if self.card.state in DECIDED:
            return ("undo",)
        return ("reject",) if self.card.state == "CERTAIN" else ("confirm", "reject")


def bar(weight_bits: float) -> Bar:
    """Returns the bar of a weight, in units of which the whole width is BAR_WIDTH."""
    half = BAR_WIDTH / 2
    width = round(min(abs(weight_bits) / BAR_BITS, 1.0) * half, 1)
    return Bar(half if weight_bits >= 0 else half - width, width, weight_bits >= 0)


def marked(mine: str, other: str) -> tuple[Part, ...]:
    """Returns a value in parts, of which those are marked that the other value doesn't have at the same place."""
    if not other or not mine:
        return (Part(mine, differs=False),) if mine else ()
    parts = []
    for operation, start, end, *_ in SequenceMatcher(None, mine, other, autojunk=False).get_opcodes():
        if start < end:
            parts.append(Part(mine[start:end], differs=operation != "equal"))
    return tuple(parts)


def waiting_minutes(since_ms: int, now_ms: int) -> int:
    """Returns for how many whole minutes a review has been waiting."""
    return max(0, now_ms - since_ms) // 60_000


def badge(waiting: WaitingReviews, now_ms: int) -> ReviewBadge:
    """Returns the badge of the waiting reviews."""
    minutes = 0 if waiting.since_ms is None else waiting_minutes(waiting.since_ms, now_ms)
    return ReviewBadge(waiting.open, minutes, waiting.alarmed)


def is_alarm(card: ReviewCard) -> bool:
    """Returns whether a review is an alarm at both agencies."""
    return card.state == "OPEN" and card.alarmed_ms is not None


def by_age(cards: Iterable[ReviewCard]) -> list[ReviewCard]:
    """Returns reviews, the longest waiting first."""
    return sorted(cards, key=lambda card: (card.since_ms, card.case_id))


def newest_first(cards: Iterable[ReviewCard], most: int) -> Sequence[ReviewCard]:
    """Returns at most `most` reviews, the last decided first."""
    return sorted(cards, key=lambda card: (-card.since_ms, card.case_id))[:most]
