"""Translates match reviews from the registry's messages into the types of the pages."""

from __future__ import annotations

from services.common import times
from services.console.domain import match_reviews
from services.console.domain.match_reviews import (
    AgreementCard,
    ConsequencesCard,
    FieldRow,
    HistoryRow,
    OpenedReview,
    Part,
    ReviewCard,
    RingRow,
    ValueCard,
    WaitingReviews,
)
from services.console.translate import moment
from tandem.common.v1 import geometry_pb2
from tandem.registry.v1 import match_review_pb2, registry_pb2, review_pb2


def waiting(message: match_review_pb2.GetReviewQueueResponse) -> WaitingReviews:
    """Translates the queue of reviews."""
    return WaitingReviews(open=message.open, since_ms=moment(message, "oldest_since"), alarmed=message.alarmed)


def card(message: review_pb2.Review) -> ReviewCard:
    """Translates a review."""
    return ReviewCard(
        case_id=message.case_id,
        order_id=message.order_id,
        wearer_id=message.wearer_id,
        state=review_pb2.ReviewState.Name(message.state).removeprefix("REVIEW_STATE_"),
        enforced=message.enforced,
        weight_bits=message.weight_bits,
        agreements=tuple(map(_agreement, message.agreements)),
        since_ms=times.from_timestamp(message.since),
        alarmed_ms=moment(message, "alarmed_at"),
        decided_by=message.decided_by,
        legal_basis=message.legal_basis,
        evidence=message.evidence.hex(),
    )


def read_review(message: match_review_pb2.ReadReviewResponse) -> OpenedReview:
    """Translates a review with both records."""
    return OpenedReview(
        card=card(message.review),
        fields=tuple(map(_field, message.fields)),
        history=tuple(map(_entry, message.history)),
        consequences=_consequences(message.consequences),
    )


def _agreement(message: review_pb2.FieldAgreement) -> AgreementCard:
    return AgreementCard(
        field=review_pb2.ComparedField.Name(message.field).removeprefix("COMPARED_FIELD_"),
        level=review_pb2.AgreementLevel.Name(message.level).removeprefix("AGREEMENT_LEVEL_"),
        weight_bits=message.weight_bits,
    )


def _field(message: match_review_pb2.ReviewedField) -> FieldRow:
    return FieldRow(
        agreement=_agreement(message.agreement),
        respondent=_value(message.agreement.field, message.respondent, message.wearer),
        wearer=_value(message.agreement.field, message.wearer, message.respondent),
    )


def _value(
    field: review_pb2.ComparedField.ValueType,
    mine: match_review_pb2.ReviewedValue,
    other: match_review_pb2.ReviewedValue,
) -> ValueCard:
    if field == review_pb2.COMPARED_FIELD_SEX:  # a code, which the page names in its language
        both = bool(mine.value and other.value)
        parts: tuple[Part, ...] = (Part(mine.value, both and mine.value != other.value),) if mine.value else ()
    else:
        parts = match_reviews.marked(mine.value, other.value)
    return ValueCard(parts=parts, stated=mine.stated, withheld=mine.withheld)


def _entry(message: match_review_pb2.ReviewHistoryEntry) -> HistoryRow:
    name = ""
    if message.kind == match_review_pb2.REVIEW_HISTORY_KIND_EVENT:
        name = registry_pb2.MatchEvent.Name(message.event).removeprefix("MATCH_EVENT_")
    elif message.kind == match_review_pb2.REVIEW_HISTORY_KIND_DECISION:
        name = review_pb2.Decision.Name(message.decision).removeprefix("DECISION_")
    return HistoryRow(
        at_ms=times.from_timestamp(message.at),
        what=match_review_pb2.ReviewHistoryKind.Name(message.kind).removeprefix("REVIEW_HISTORY_KIND_"),
        name=name,
        by=message.decided_by,
        reason=message.reason,
        order_version=message.order_version,
        wearer_version=message.wearer_version,
        weight_bits=message.weight_bits,
        changed=tuple(map(_agreement, message.changed)),
    )


def _consequences(message: match_review_pb2.ReviewConsequences) -> ConsequencesCard:
    order_type = registry_pb2.OrderType.Name(message.order_type).removeprefix("ORDER_TYPE_")
    return ConsequencesCard(
        enforced=message.enforced,
        rings=tuple(RingRow(ring.radius_m, geometry_pb2.Demand.Name(ring.action)) for ring in message.rings),
        from_ms=times.from_timestamp(message.valid_from),
        until_ms=moment(message, "valid_until"),
        order_type=order_type if message.order_type else "",
        tags=message.tags,
        persons=message.protected_persons,
        persons_without_device=message.persons_without_device,
        places=message.places,
        other_orders=message.other_orders_of_wearer,
        other_wearers=message.other_wearers_of_order,
        other_reviews=message.other_open_reviews,
    )
