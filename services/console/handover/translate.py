"""Translates handovers from a leg's messages into the cards of the page."""

from __future__ import annotations

from services.common import times
from services.console.handover.domain import HandoverCard
from services.console.translate import moment
from tandem.dispatch.v1 import handover_pb2


def card(message: handover_pb2.Handover) -> HandoverCard:
    """Translates a handover."""
    return HandoverCard(
        handover_id=message.handover_id,
        notes=message.notes,
        incident_ids=tuple(message.open_incident_ids),
        case_ids=tuple(message.review_case_ids),
        device_ids=tuple(message.device_ids),
        reviews_incomplete=message.reviews_incomplete,
        devices_incomplete=message.devices_incomplete,
        written_by=message.written_by,
        written_ms=times.from_timestamp(message.written_at),
        acknowledged_by=message.acknowledged_by,
        acknowledged_ms=moment(message, "acknowledged_at"),
        remark=message.remark,
    )
