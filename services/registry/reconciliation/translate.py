"""Translation between messages and domain for reconciliation."""

from __future__ import annotations

from services.common import fields, times
from services.common.rpc.errors import InvalidField
from services.registry.domain import ListedKind
from services.registry.reconciliation.domain import Agency, Difference, Finding, Listed
from services.registry.reconciliation.store import ReconciliationStatus
from services.registry.records.kinds import LISTED_BY
from tandem.registry.v1 import reconciliation_pb2

RECORDS_BATCH = 1000
DIGEST_BYTES = 32


def parse_listed(msg: reconciliation_pb2.ReconcileRequest, agency: Agency) -> list[Listed]:
    """Parse a part of an agency's list. Raises InvalidField."""
    if len(msg.records) > RECORDS_BATCH:
        raise InvalidField("records", f"must hold at most {RECORDS_BATCH}")
    return [_listed(f"records[{n}]", record, agency) for n, record in enumerate(msg.records)]


def _listed(field: str, msg: reconciliation_pb2.ListedRecord, agency: Agency) -> Listed:
    kinds = {kind.value: kind for kind in LISTED_BY[agency]}
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
