"""Translation of records about the wearing of tags between messages and domain. Errors as in records/translate.py."""

from __future__ import annotations

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from services.common import fields, times
from services.registry.records.translate import REASON_MAX_CHARS, required_text
from services.registry.wearing.domain import TagRecordKind
from services.registry.wearing.service import NewRecord
from services.registry.wearing.store import ReasonedRecord
from tandem.registry.v1 import tag_record_pb2

_KINDS = {
    TagRecordKind.REFUSAL: tag_record_pb2.TAG_RECORD_KIND_REFUSAL,
    TagRecordKind.GOOD_CAUSE: tag_record_pb2.TAG_RECORD_KIND_GOOD_CAUSE,
    TagRecordKind.REMOVAL: tag_record_pb2.TAG_RECORD_KIND_REMOVAL,
}


def parse_refusal(msg: tag_record_pb2.RecordRefusalRequest) -> NewRecord:
    """Parse a refusal. Raises InvalidField."""
    return NewRecord(
        record_id=fields.required_id("record_id", msg.record_id),
        kind=TagRecordKind.REFUSAL,
        reason=required_text("reason", msg.reason, REASON_MAX_CHARS),
        from_ms=_moment("refused_at", msg, msg.refused_at),
        wearer_id=fields.required_id("wearer_id", msg.wearer_id),
        order_id=fields.required_id("order_id", msg.order_id),
    )


def parse_good_cause(msg: tag_record_pb2.RecordGoodCauseRequest) -> NewRecord:
    """Parse good cause. Raises InvalidField."""
    return NewRecord(
        record_id=fields.required_id("record_id", msg.record_id),
        kind=TagRecordKind.GOOD_CAUSE,
        reason=required_text("reason", msg.reason, REASON_MAX_CHARS),
        from_ms=_moment("from", msg, getattr(msg, "from")),
        until_ms=_moment("until", msg, msg.until),
        wearer_id=fields.required_id("wearer_id", msg.wearer_id),
        order_id=fields.required_id("order_id", msg.order_id),
    )


def parse_removal(msg: tag_record_pb2.AllowRemovalRequest) -> NewRecord:
    """Parse an authorised removal. Raises InvalidField."""
    return NewRecord(
        record_id=fields.required_id("record_id", msg.record_id),
        kind=TagRecordKind.REMOVAL,
        reason=required_text("reason", msg.reason, REASON_MAX_CHARS),
        from_ms=_moment("from", msg, getattr(msg, "from")) if msg.HasField("from") else None,
        until_ms=_moment("until", msg, msg.until),
        device_id=fields.required_id("device_id", msg.device_id),
        allowed_by=fields.required_id("allowed_by", msg.allowed_by),
        afterwards=msg.afterwards,
    )


def _moment(field: str, msg: Message, value: Timestamp) -> int:
    return fields.moment(field, value, msg.HasField(field))


def record_to_proto(reasoned: ReasonedRecord, *, with_reason: bool) -> tag_record_pb2.TagRecord:
    """A record about a tag as a message."""
    record, reason = reasoned
    message = tag_record_pb2.TagRecord(
        record_id=record.record_id,
        kind=_KINDS[record.kind],
        wearer_id=record.wearer_id,
        order_id=record.order_id,
        device_id=record.device_id,
        until=_optional(record.until_ms),
        allowed_by=record.allowed_by,
        afterwards=record.afterwards,
        reason=reason if with_reason else "",
        recorded_by=record.recorded_by,
        recorded_at=times.to_timestamp(record.recorded_ms),
        ended_at=_optional(record.ended_ms),
        ended_by=record.ended_by,
    )
    # `from` is a keyword of Python, so the field has no attribute syntax.
    getattr(message, "from").CopyFrom(times.to_timestamp(record.from_ms))
    return message


def _optional(ms: int | None) -> Timestamp | None:
    return None if ms is None else times.to_timestamp(ms)
