"""Translates handovers between messages and domain objects. Parsing validates, and names the field of an error."""

from __future__ import annotations

from collections.abc import Sequence

from services.common import fields, times
from services.common.rpc.errors import InvalidField
from services.dispatch.handover.domain import HandoverAcknowledged, HandoverWritten, ShiftHandover
from tandem.dispatch.v1 import handover_pb2

NOTES_MAX_CHARS = 4_000
REMARK_MAX_CHARS = 500
MAX_NAMED = 200
"""Maximum number of reviews, and of devices, in a handover."""


def written(
    request: handover_pb2.WriteHandoverRequest, by: str, at_ms: int, *, open_incident_ids: tuple[str, ...] = ()
) -> HandoverWritten:
    """Parses a handover. Raises InvalidField."""
    if not request.notes.strip():
        raise InvalidField("notes", 'is missing: state what the next shift has to know (example: "No special events")')
    return HandoverWritten(
        handover_id=fields.required_id("handover_id", request.handover_id),
        notes=_text("notes", request.notes, NOTES_MAX_CHARS),
        open_incident_ids=open_incident_ids,
        review_case_ids=_ids("review_case_ids", request.review_case_ids),
        device_ids=_ids("device_ids", request.device_ids),
        by=by,
        at_ms=at_ms,
        reviews_incomplete=request.reviews_incomplete,
        devices_incomplete=request.devices_incomplete,
    )


def acknowledged(request: handover_pb2.AcknowledgeHandoverRequest, by: str, at_ms: int) -> HandoverAcknowledged:
    """Parses an acknowledgement. Raises InvalidField."""
    return HandoverAcknowledged(
        handover_id=fields.required_id("handover_id", request.handover_id),
        remark=_text("remark", request.remark, REMARK_MAX_CHARS),
        by=by,
        at_ms=at_ms,
    )


def message(handover: ShiftHandover) -> handover_pb2.Handover:
    """The message of a handover."""
    stored = handover.written
    shown = handover_pb2.Handover(
        handover_id=stored.handover_id,
        notes=stored.notes,
        open_incident_ids=stored.open_incident_ids,
        review_case_ids=stored.review_case_ids,
        device_ids=stored.device_ids,
        written_by=stored.by,
        written_at=times.to_timestamp(stored.at_ms),
        reviews_incomplete=stored.reviews_incomplete,
        devices_incomplete=stored.devices_incomplete,
    )
    if handover.acknowledged is not None:
        shown.acknowledged_by = handover.acknowledged.by
        shown.acknowledged_at.CopyFrom(times.to_timestamp(handover.acknowledged.at_ms))
        shown.remark = handover.acknowledged.remark
    return shown


def _text(field: str, text: str, max_chars: int) -> str:
    """Checks free text: lines of printable characters. Raises InvalidField."""
    stripped = text.replace("\r\n", "\n").strip()
    if len(stripped) > max_chars:
        raise InvalidField(field, f"must be at most {max_chars} characters, and has {len(stripped)}")
    if not all(line.isprintable() for line in stripped.replace("\t", " ").split("\n")):
        raise InvalidField(field, "must hold printable characters only")
    return stripped


def _ids(field: str, given: Sequence[str]) -> tuple[str, ...]:
    fields.at_most(field, given, MAX_NAMED)
    return tuple(dict.fromkeys(fields.required_id(f"{field}[{n}]", id_) for n, id_ in enumerate(given)))
