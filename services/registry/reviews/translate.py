"""Translation between messages and domain for reviews and match events."""

from __future__ import annotations

from collections.abc import Mapping

from services.common import fields, times
from services.common.rpc.errors import InvalidField
from services.registry.matching.weights import FieldComparison
from services.registry.records.translate import REASON_MAX_CHARS, required_text
from services.registry.reviews.domain import Decision, Event, Review, ReviewState, SeenReview
from services.registry.reviews.store import StoredEvent
from tandem.registry.v1 import registry_pb2, review_pb2

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
