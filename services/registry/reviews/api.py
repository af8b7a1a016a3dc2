"""gRPC servicer of the MatchReviewService, and translation of reviews and match events between messages and domain."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import grpc.aio

from services.common import fields, times
from services.common.errors import InvalidField
from services.common.rpc.server import caller
from services.common.running import completed
from services.registry.domain.reviews import (
    Consequences,
    Decision,
    Event,
    PairHistoryEntry,
    Review,
    ReviewedField,
    ReviewedValue,
    ReviewQueue,
    ReviewState,
    SeenReview,
)
from services.registry.matching.compare import FieldComparison
from services.registry.records.translate import ACTIONS, REASON_MAX_CHARS, required_text
from services.registry.reviews.reading import ReviewReading, ReviewWithRecords
from services.registry.reviews.service import ReviewService, StoredEvent
from tandem.common.v1 import geometry_pb2
from tandem.registry.v1 import match_review_pb2, match_review_pb2_grpc, registry_pb2, review_pb2

_DECISIONS: Mapping[int, Decision] = {
    review_pb2.Decision.Value(f"DECISION_{decision.name}"): decision for decision in Decision
}
_STATES: Mapping[int, ReviewState] = {
    review_pb2.ReviewState.Value(f"REVIEW_STATE_{state.name}"): state for state in ReviewState
}


def parse_states(msg: review_pb2.ListReviewsRequest) -> tuple[tuple[ReviewState, ...], str]:
    """Parse the requested review states and the case id after which the response starts. Raises InvalidField."""
    for n, state in enumerate(msg.states):
        if state not in _STATES:
            raise InvalidField(f"states[{n}]", "is not a known review state (example: REVIEW_STATE_OPEN)")
    after = fields.required_id("after_case_id", msg.after_case_id) if msg.after_case_id else ""
    return tuple(_STATES[state] for state in msg.states) or (ReviewState.OPEN,), after


def parse_decision(msg: review_pb2.DecideReviewRequest) -> tuple[str, Decision, str, SeenReview]:
    """Parse a decision: case id, decision, reason, and what the person saw of the review. Raises InvalidField."""
    case_id = fields.required_id("case_id", msg.case_id)
    if msg.decision not in _DECISIONS:
        raise InvalidField("decision", "must be CONFIRM, REJECT or UNDO")
    reason = required_text("reason", msg.reason, REASON_MAX_CHARS)
    if not msg.evidence:
        raise InvalidField("evidence", "is missing")
    since_ms = fields.moment("seen_since", msg.seen_since, present=True) if msg.HasField("seen_since") else None
    return case_id, _DECISIONS[msg.decision], reason, SeenReview(msg.evidence, since_ms)


def review_to_proto(review: Review) -> review_pb2.Review:
    """A review as a message, without personal data."""
    alarmed = None if review.paged_at_ms is None else times.to_timestamp(review.paged_at_ms)
    return review_pb2.Review(
        case_id=review.case_id,
        wearer_id=review.wearer_id,
        order_id=review.order_id,
        state=review_pb2.ReviewState.Value(f"REVIEW_STATE_{review.state.name}"),
        enforced=review.enforced,
        weight_bits=review.evidence.weight_bits,
        reasons=review.evidence.reasons,
        since=times.to_timestamp(review.since_ms),
        evidence=review.evidence.digest,
        decided_by=review.decided_by,
        agreements=map(agreement_to_proto, review.evidence.agreements),
        legal_basis=review.legal_basis,
        alarmed_at=alarmed,
    )


def agreement_to_proto(compared: FieldComparison) -> review_pb2.FieldAgreement:
    """How a field agrees, as a message."""
    return review_pb2.FieldAgreement(
        field=review_pb2.ComparedField.Value(f"COMPARED_FIELD_{compared.field.upper()}"),
        level=review_pb2.AgreementLevel.Value(f"AGREEMENT_LEVEL_{compared.level}"),
        weight_bits=compared.weight,
    )


def event_to_proto(stored_event: StoredEvent) -> registry_pb2.WatchMatchesResponse:
    """An event of the stream of matches as a message."""
    return registry_pb2.WatchMatchesResponse(
        sequence=stored_event.sequence,
        case_id=stored_event.match.case_id,
        wearer_id=stored_event.match.wearer_id,
        order_id=stored_event.match.order_id,
        matched_at=times.to_timestamp(stored_event.match.matched_at_ms),
        event=match_event_to_proto(stored_event.match.event),
        event_at=times.to_timestamp(stored_event.match.at_ms),
    )


def match_event_to_proto(event: Event) -> registry_pb2.MatchEvent.ValueType:
    """An event of the stream of matches as the number of its enum value."""
    return registry_pb2.MatchEvent.Value(f"MATCH_EVENT_{event.name}")


_DEMANDS = {action: demand for demand, action in ACTIONS.items()}


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


_Context = grpc.aio.ServicerContext[Any, Any]


class MatchReviewServicer(match_review_pb2_grpc.MatchReviewServiceServicer):
    """Parses requests of the MatchReviewService and builds the responses."""

    def __init__(self, reading: ReviewReading, reviews: ReviewService) -> None:
        self._reading = reading
        self._reviews = reviews

    async def ReadReview(
        self, request: match_review_pb2.ReadReviewRequest, context: _Context
    ) -> match_review_pb2.ReadReviewResponse:
        case_id = fields.required_id("case_id", request.case_id)
        read, disclosure_ids = await completed(self._reading.read(caller(), request.legal_basis, case_id))
        return read_review_to_proto(read, disclosure_ids)

    async def GetReviewQueue(
        self, request: match_review_pb2.GetReviewQueueRequest, context: _Context
    ) -> match_review_pb2.GetReviewQueueResponse:
        return queue_to_proto(await self._reviews.queue())
