"""Between messages and what follows from the records: reconciliation, reviews, the stream of matches, warnings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from services.common import fields, times
from services.common.rpc.errors import InvalidField
from services.registry.lifecycle import OrderStage, RecordWarning
from services.registry.reconcile import KINDS_OF, Agency, Difference, Finding, Listed, ListedKind
from services.registry.review import Decision, Event, Review, ReviewState
from services.registry.store_review import ReconciliationStatus, StoredEvent
from tandem.registry.v1 import reconciliation_pb2, registry_pb2, review_pb2

RECORDS_BATCH = 1000
DIGEST_BYTES = 32
REASON_MAX_CHARS = 500
_DECISIONS: Mapping[int, Decision] = {review_pb2.Decision.Value(f"DECISION_{one.name}"): one for one in Decision}
_STATES: Mapping[int, ReviewState] = {
    review_pb2.ReviewState.Value(f"REVIEW_STATE_{one.name}"): one for one in ReviewState
}


def parse_listed(msg: reconciliation_pb2.ReconcileRequest, agency: Agency) -> list[Listed]:
    """A part of an agency's list. Raises InvalidField."""
    if len(msg.records) > RECORDS_BATCH:
        raise InvalidField("records", f"must hold at most {RECORDS_BATCH}")
    return [_listed(f"records[{n}]", one, agency) for n, one in enumerate(msg.records)]


def _listed(field: str, msg: reconciliation_pb2.ListedRecord, agency: Agency) -> Listed:
    kinds = {kind.value: kind for kind in KINDS_OF[agency]}
    if msg.kind not in kinds:
        raise InvalidField(f"{field}.kind", "must be one of the caller's own records")
    if msg.source_version < 0:
        raise InvalidField(f"{field}.source_version", "must be 0 or more")
    if len(msg.digest) != DIGEST_BYTES:
        raise InvalidField(f"{field}.digest", f"must be {DIGEST_BYTES} bytes")
    record_id = fields.required_id(f"{field}.record_id", msg.record_id)
    return Listed(kinds[msg.kind], record_id, msg.source_version, msg.digest)


def listed_to_proto(one: Listed) -> reconciliation_pb2.ListedRecord:
    """A record as it stands in a list."""
    return reconciliation_pb2.ListedRecord(
        kind=_kind(one.kind), record_id=one.record_id, source_version=one.source_version, digest=one.digest
    )


def difference_to_proto(one: Difference) -> reconciliation_pb2.Difference:
    """One difference."""
    findings = {
        Finding.MISSING: reconciliation_pb2.FINDING_MISSING,
        Finding.EXTRA: reconciliation_pb2.FINDING_EXTRA,
        Finding.DIFFERENT: reconciliation_pb2.FINDING_DIFFERENT,
    }
    return reconciliation_pb2.Difference(
        finding=findings[one.finding],
        kind=_kind(one.kind),
        record_id=one.record_id,
        listed_version=one.listed_version,
        stored_version=one.stored_version,
    )


def _kind(kind: ListedKind) -> reconciliation_pb2.RecordKind.ValueType:
    return reconciliation_pb2.RecordKind.Value(f"RECORD_KIND_{kind.name}")


def standing_to_proto(one: ReconciliationStatus, overdue: bool) -> reconciliation_pb2.AgencyReconciliation:
    """How an agency stands."""
    msg = reconciliation_pb2.AgencyReconciliation(
        agency=one.agency.value, root=one.root, differences=one.differences, overdue=overdue
    )
    if one.proven_at_ms is not None:
        msg.proven_equal_at.CopyFrom(times.to_timestamp(one.proven_at_ms))
    if one.compared_at_ms is not None:
        msg.compared_at.CopyFrom(times.to_timestamp(one.compared_at_ms))
    return msg


def parse_states(msg: review_pb2.ListReviewsRequest) -> tuple[tuple[ReviewState, ...], str]:
    """States that are asked for, and the case after which the answer begins. Raises InvalidField."""
    for n, state in enumerate(msg.states):
        if state not in _STATES:
            raise InvalidField(f"states[{n}]", "is none of the known ones")
    after = fields.required_id("after_case_id", msg.after_case_id) if msg.after_case_id else ""
    return tuple(_STATES[state] for state in msg.states) or (ReviewState.OPEN,), after


def parse_decision(msg: review_pb2.DecideReviewRequest) -> tuple[str, Decision, str, bytes]:
    """Case, decision, reason and the digest of the evidence that was seen. Raises InvalidField."""
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


def review_to_proto(one: Review) -> review_pb2.Review:
    """One review, without personal data."""
    return review_pb2.Review(
        case_id=one.case_id,
        wearer_id=one.wearer_id,
        order_id=one.order_id,
        state=review_pb2.ReviewState.Value(f"REVIEW_STATE_{one.state.name}"),
        enforced=one.enforced,
        weight_bits=one.evidence.weight_bits,
        reasons=one.evidence.reasons,
        since=times.to_timestamp(one.since_ms),
        evidence=one.evidence.digest,
        decided_by=one.decided_by,
    )


def event_to_proto(one: StoredEvent) -> registry_pb2.WatchMatchesResponse:
    """One event, for those who watch."""
    return registry_pb2.WatchMatchesResponse(
        sequence=one.sequence,
        case_id=one.case_id,
        wearer_id=one.wearer_id,
        order_id=one.order_id,
        matched_at=times.to_timestamp(one.matched_at_ms),
        event=_event(one.event),
        event_at=times.to_timestamp(one.at_ms),
    )


def _event(event: Event) -> registry_pb2.MatchEvent.ValueType:
    return registry_pb2.MatchEvent.Value(f"MATCH_EVENT_{event.name}")


def warnings_to_proto(prefix: str, warned: Iterable[RecordWarning]) -> list[registry_pb2.Warning]:
    """Warnings with the paths of their fields."""
    return [registry_pb2.Warning(field=f"{prefix}.{one.field}", reason=one.reason) for one in warned]


def stage_to_proto(stage: OrderStage | None) -> registry_pb2.OrderStage.ValueType:
    """Where an order stands in its life."""
    return registry_pb2.OrderStage.Value(f"ORDER_STAGE_{stage.name if stage else 'UNSPECIFIED'}")
