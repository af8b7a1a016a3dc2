"""Both records of a review side by side, and what each decision causes. Pure."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from services.registry.domain import DEFAULT_RINGS, Order, OrderRing, OrderType, Respondent, Wearer
from services.registry.matching import similarity
from services.registry.matching.weights import MISSING, FieldComparison
from services.registry.reviews.domain import Decision, Event, MatchEvidence, Review

_COMPARED = {
    "national_id": ("national_id",),
    "name": ("name", "name_latin"),
    "birth_date": ("birth_date",),
    "sex": ("sex",),
    "phone": ("phone",),
    "address": ("address",),
}
"""Fields of the records in the order in which people read them, each with its comparisons, of which at most one isn't missing."""


@dataclass(frozen=True, slots=True)
class ReviewedValue:
    """Value of a field in one record, or why it isn't shown."""

    value: str
    stated: bool
    """Whether the record states the field."""
    withheld: bool
    """Whether the record states the field, but the reader's role may not see the value."""


@dataclass(frozen=True, slots=True)
class ReviewedField:
    """A field of both records with its comparison."""

    agreement: FieldComparison
    respondent: ReviewedValue
    wearer: ReviewedValue


@dataclass(frozen=True, slots=True)
class PairHistoryEntry:
    """An entry in the history of a pair: an event, a decision, or a comparison."""

    at_ms: int
    """Mesh time."""
    event: Event | None = None
    decision: Decision | None = None
    decided_by: str = ""
    """SPIFFE id of the person who decided."""
    reason: str = ""
    order_version: int = 0
    wearer_version: int = 0
    evidence: MatchEvidence | None = None
    """For a comparison: its weight, with the fields whose agreement changed."""


@dataclass(frozen=True, slots=True)
class Related:
    """What else concerns the wearer or the order of a review."""

    tags: int
    """Number of tags on the wearer."""
    persons_without_device: int
    """Number of persons whom the order protects and who have no protective device."""
    other_orders_of_wearer: int
    """Number of other orders that are enforced against the wearer."""
    other_wearers_of_order: int
    """Number of other wearers against whom the order is enforced."""
    other_open_reviews: int


@dataclass(frozen=True, slots=True)
class Consequences:
    """What each decision on a review causes."""

    enforced: bool
    """Whether the order is enforced against the wearer now."""
    rings: tuple[OrderRing, ...]
    """Rings that a confirmation enforces, greatest first."""
    valid_from_ms: int
    valid_until_ms: int | None
    """End of the validity, exclusive; an early end counts. None while the order has no end."""
    order_type: OrderType | None
    protected_persons: int
    places: int
    related: Related


def fields_of(
    order: Order, wearer: Wearer, *, of_respondent: Collection[str], of_wearer: Collection[str]
) -> list[ReviewedField]:
    """The fields of a respondent and a wearer. `of_respondent` and `of_wearer` are the fields that the reader's role may see."""
    _, comparison = similarity.compared(order, wearer)
    compared = {field.field: field for field in comparison.evidence}
    fields: list[ReviewedField] = []
    for name, candidates in _COMPARED.items():
        stated = (compared[candidate] for candidate in candidates if compared[candidate].level != MISSING)
        fields.append(
            ReviewedField(
                agreement=next(stated, compared[candidates[0]]),
                respondent=_value(order.respondent, name, name in of_respondent),
                wearer=_value(wearer, name, name in of_wearer),
            )
        )
    return fields


def _value(record: Respondent | Wearer, name: str, visible: bool) -> ReviewedValue:
    texts = {
        "national_id": record.national_id,
        "name": record.name,
        "birth_date": record.birth_date.isoformat(),
        "sex": record.sex.value if record.sex else "",
        "phone": record.phone,
        "address": record.address,
    }
    text = texts[name]
    return ReviewedValue(value=text if visible else "", stated=bool(text), withheld=bool(text) and not visible)


def consequences_of(review: Review, order: Order, related: Related) -> Consequences:
    """What each decision on a review causes."""
    return Consequences(
        enforced=review.enforced,
        rings=tuple(sorted(order.rings or DEFAULT_RINGS, key=lambda ring: -ring.radius_m)),
        valid_from_ms=order.valid_from_ms,
        valid_until_ms=order.ends_ms,
        order_type=order.type,
        protected_persons=len(order.protected_person_ids),
        places=len(order.places),
        related=related,
    )


def changed(before: MatchEvidence | None, after: MatchEvidence) -> MatchEvidence:
    """The evidence after a comparison, with only the fields whose agreement is another than before.

    A field that is no longer stated on both sides is listed as missing. After the first comparison, no field is listed.
    """
    if before is None:
        return MatchEvidence(after.digest, after.weight_bits, ())
    old = {field.field: field for field in before.agreements}
    new = {field.field: field for field in after.agreements}
    gone = (FieldComparison(field=name, level=MISSING, weight=0.0, words="") for name in old if name not in new)
    differing = (field for name, field in new.items() if name not in old or old[name].level != field.level)
    return MatchEvidence(after.digest, after.weight_bits, (*differing, *gone))
