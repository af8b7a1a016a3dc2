"""Translation of a review with both records into its message."""

from __future__ import annotations

from collections.abc import Iterable

from services.common import times
from services.registry.records import translate as records
from services.registry.reviews.domain import Review, ReviewQueue
from services.registry.reviews.reading import ReviewWithRecords
from services.registry.reviews.side_by_side import Consequences, PairHistoryEntry, ReviewedField, ReviewedValue
from services.registry.reviews.translate import agreement_to_proto, match_event_to_proto, review_to_proto
from tandem.common.v1 import geometry_pb2
from tandem.registry.v1 import match_review_pb2, registry_pb2, review_pb2

_DEMANDS = {action: demand for demand, action in records.ACTIONS.items()}


def read_review_to_proto(read: ReviewWithRecords, disclosure_ids: Iterable[str]) -> match_review_pb2.ReadReviewResponse:
    """A review with both records as a message."""
    return match_review_pb2.ReadReviewResponse(
        review=review_to_proto(read.review),
        fields=map(_field, read.fields),
        history=map(_entry, read.history),
        consequences=_consequences(read.consequences),
        disclosure_ids=disclosure_ids,
    )


def queue_to_proto(queue: ReviewQueue) -> match_review_pb2.GetReviewQueueResponse:
    """The reviews that wait for a person, as a message."""
    since_ms = queue.oldest_since_ms
    return match_review_pb2.GetReviewQueueResponse(
        open=queue.open,
        oldest_since=None if since_ms is None else times.to_timestamp(since_ms),
        alarmed=queue.alarmed,
        alarms=map(_alarm, queue.alarms),
    )


def _alarm(review: Review) -> match_review_pb2.AlarmedReview:
    return match_review_pb2.AlarmedReview(
        case_id=review.case_id,
        wearer_id=review.wearer_id,
        order_id=review.order_id,
        since=times.to_timestamp(review.since_ms),
        alarmed_at=times.to_timestamp(review.paged_at_ms or review.since_ms),
    )


def _field(field: ReviewedField) -> match_review_pb2.ReviewedField:
    return match_review_pb2.ReviewedField(
        agreement=agreement_to_proto(field.agreement),
        respondent=_value(field.respondent),
        wearer=_value(field.wearer),
    )


def _value(value: ReviewedValue) -> match_review_pb2.ReviewedValue:
    return match_review_pb2.ReviewedValue(value=value.value, stated=value.stated, withheld=value.withheld)


def _entry(entry: PairHistoryEntry) -> match_review_pb2.ReviewHistoryEntry:
    at = times.to_timestamp(entry.at_ms)
    if entry.event is not None:
        return match_review_pb2.ReviewHistoryEntry(
            at=at, kind=match_review_pb2.REVIEW_HISTORY_KIND_EVENT, event=match_event_to_proto(entry.event)
        )
    if entry.decision is not None:
        return match_review_pb2.ReviewHistoryEntry(
            at=at,
            kind=match_review_pb2.REVIEW_HISTORY_KIND_DECISION,
            decision=review_pb2.Decision.Value(f"DECISION_{entry.decision.name}"),
            decided_by=entry.decided_by,
            reason=entry.reason,
        )
    return match_review_pb2.ReviewHistoryEntry(
        at=at,
        kind=match_review_pb2.REVIEW_HISTORY_KIND_COMPARED,
        order_version=entry.order_version,
        wearer_version=entry.wearer_version,
        weight_bits=entry.evidence.weight_bits if entry.evidence else 0.0,
        changed=map(agreement_to_proto, entry.evidence.agreements if entry.evidence else ()),
    )


def _consequences(consequences: Consequences) -> match_review_pb2.ReviewConsequences:
    order_type, related = consequences.order_type, consequences.related
    until_ms = consequences.valid_until_ms
    return match_review_pb2.ReviewConsequences(
        enforced=consequences.enforced,
        rings=[geometry_pb2.Ring(radius_m=ring.radius_m, action=_DEMANDS[ring.action]) for ring in consequences.rings],
        valid_from=times.to_timestamp(consequences.valid_from_ms),
        valid_until=None if until_ms is None else times.to_timestamp(until_ms),
        order_type=registry_pb2.OrderType.Value(f"ORDER_TYPE_{order_type.name}")
        if order_type
        else registry_pb2.ORDER_TYPE_UNSPECIFIED,
        tags=related.tags,
        protected_persons=consequences.protected_persons,
        persons_without_device=related.persons_without_device,
        places=consequences.places,
        other_orders_of_wearer=related.other_orders_of_wearer,
        other_wearers_of_order=related.other_wearers_of_order,
        other_open_reviews=related.other_open_reviews,
    )
