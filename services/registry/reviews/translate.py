"""Translation between messages and domain for reconciliation, reviews, match events and record warnings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from services.common import fields, times
from services.common.rpc.errors import InvalidField
from services.registry.reconciliation.domain import KINDS_OF, Agency, Difference, Finding, Listed, ListedKind
from services.registry.records.lifecycle import OrderStage, RecordWarning
from services.registry.reviews.domain import Decision, Event, Review, ReviewState
from services.registry.reviews.store import ReconciliationStatus, StoredEvent
from tandem.registry.v1 import reconciliation_pb2, registry_pb2, review_pb2

RECORDS_BATCH = 1000
DIGEST_BYTES = 32
REASON_MAX_CHARS = 500
_DECISIONS: Mapping[int, Decision] = {
    review_pb2.Decision.Value(f"DECISION_{decision.name}"): decision for decision in Decision
}
_STATES: Mapping[int, ReviewState] = {
    review_pb2.ReviewState.Value(f"REVIEW_STATE_{state.name}"): state for state in ReviewState
}


def parse_listed(msg: reconciliation_pb2.ReconcileRequest, agency: Agency) -> list[Listed]:
    """Parse a part of an agency's list. Raises InvalidField."""
    if len(msg.records) > RECORDS_BATCH:
        raise InvalidField("records", f"must hold at most {RECORDS_BATCH}")
    return [_listed(f"records[{n}]", record, agency) for n, record in enumerate(msg.records)]


def _listed(field: str, msg: reconciliation_pb2.ListedRecord, agency: Agency) -> Listed:
    kinds = {kind.value: kind for kind in KINDS_OF[agency]}
    if msg.kind not in kinds:
        raise InvalidField(f"{field}.kind", "must be a kind of record that belongs to the caller's agency")
    if msg.source_version < 0:
        raise InvalidField(f"{field}.source_version", "must be 0 or more")
    if len(msg.digest) != DIGEST_BYTES:
        raise InvalidField(f"{field}.digest", f"must be {DIGEST_BYTES} bytes")
    record_id = fields.required_id(f"{field}.record_id", msg.record_id)
    return Listed(kind=kinds[msg.kind], record_id=record_id, source_version=msg.source_version, digest=msg.digest)


def listed_to_proto(listed: Listed) -> reconciliation_pb2.ListedRecord:
    """A listed record as a message."""
    return reconciliation_pb2.ListedRecord(
        kind=_kind(listed.kind), record_id=listed.record_id, source_version=listed.source_version, digest=listed.digest
    )


def difference_to_proto(difference: Difference) -> reconciliation_pb2.Difference:
    """A difference between an agency's list and the stored records as a message."""
    findings = {
        Finding.MISSING: reconciliation_pb2.FINDING_MISSING,
        Finding.EXTRA: reconciliation_pb2.FINDING_EXTRA,
        Finding.DIFFERENT: reconciliation_pb2.FINDING_DIFFERENT,
    }
    return reconciliation_pb2.Difference(
        finding=findings[difference.finding],
        kind=_kind(difference.kind),
        record_id=difference.record_id,
        listed_version=difference.listed_version,
        stored_version=difference.stored_version,
    )


def _kind(kind: ListedKind) -> reconciliation_pb2.RecordKind.ValueType:
    return reconciliation_pb2.RecordKind.Value(f"RECORD_KIND_{kind.name}")


def status_to_proto(
    reconciliation_status: ReconciliationStatus, overdue: bool
) -> reconciliation_pb2.AgencyReconciliation:
    """Reconciliation status of an agency as a message."""
    msg = reconciliation_pb2.AgencyReconciliation(
        agency=reconciliation_status.agency.value,
        root=reconciliation_status.root,
        differences=reconciliation_status.differences,
        overdue=overdue,
    )
    if reconciliation_status.proven_at_ms is not None:
        msg.proven_equal_at.CopyFrom(times.to_timestamp(reconciliation_status.proven_at_ms))
    if reconciliation_status.compared_at_ms is not None:
        msg.compared_at.CopyFrom(times.to_timestamp(reconciliation_status.compared_at_ms))
    return msg


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
        case_id=stored_event.case_id,
        wearer_id=stored_event.wearer_id,
        order_id=stored_event.order_id,
        matched_at=times.to_timestamp(stored_event.matched_at_ms),
        event=_event(stored_event.event),
        event_at=times.to_timestamp(stored_event.at_ms),
    )


def _event(event: Event) -> registry_pb2.MatchEvent.ValueType:
    return registry_pb2.MatchEvent.Value(f"MATCH_EVENT_{event.name}")


def warnings_to_proto(prefix: str, warned: Iterable[RecordWarning]) -> list[registry_pb2.Warning]:
    """Record warnings as messages; `prefix` is the path of the record in the request."""
    return [registry_pb2.Warning(field=f"{prefix}.{warning.field}", reason=warning.reason) for warning in warned]


def stage_to_proto(stage: OrderStage | None) -> registry_pb2.OrderStage.ValueType:
    """Stage of an order's life cycle as an enum value."""
    return registry_pb2.OrderStage.Value(f"ORDER_STAGE_{stage.name if stage else 'UNSPECIFIED'}")
