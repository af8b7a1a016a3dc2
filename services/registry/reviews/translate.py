"""Translation between messages and domain for reviews and match events."""

from __future__ import annotations

from collections.abc import Mapping

from services.common import fields, times
from services.common.rpc.errors import InvalidField
from services.registry.reviews.domain import Decision, Event, Review, ReviewState
from services.registry.reviews.store import StoredEvent
from tandem.registry.v1 import registry_pb2, review_pb2

REASON_MAX_CHARS = 500
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


def parse_decision(msg: review_pb2.DecideReviewRequest) -> tuple[str, Decision, str, bytes]:
    """Parse a decision: case id, decision, reason, and digest of the evidence that the person saw. Raises InvalidField."""
    case_id = fields.required_id("case_id", msg.case_id)
    if msg.decision not in _DECISIONS:
        raise InvalidField("decision", "must be CONFIRM, REJECT or UNDO")
    if not msg.reason.strip():
        raise InvalidField("reason", "is missing")
    if len(msg.reason) > REASON_MAX_CHARS:
        raise InvalidField("reason", f"must be at most {REASON_MAX_CHARS} characters")
    if not msg.evidence:
        raise InvalidField("evidence", "is missing")
    return case_id, _DECISIONS[msg.decision], msg.reason, msg.evidence


def review_to_proto(review: Review) -> review_pb2.Review:
    """A review as a message, without personal data."""
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
    )


def event_to_proto(stored_event: StoredEvent) -> registry_pb2.WatchMatchesResponse:
    """An event of the stream of matches as a message."""
    return registry_pb2.WatchMatchesResponse(
        sequence=stored_event.sequence,
        case_id=stored_event.match.case_id,
        wearer_id=stored_event.match.wearer_id,
        order_id=stored_event.match.order_id,
        matched_at=times.to_timestamp(stored_event.match.matched_at_ms),
        event=_event(stored_event.match.event),
        event_at=times.to_timestamp(stored_event.match.at_ms),
    )


def _event(event: Event) -> registry_pb2.MatchEvent.ValueType:
    return registry_pb2.MatchEvent.Value(f"MATCH_EVENT_{event.name}")
