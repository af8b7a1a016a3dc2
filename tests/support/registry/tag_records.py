"""Test support: what officers record about the wearing of tags, from the items of a scenario."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from services.client.scenario import TagRecordRequest
from services.common import times
from tandem.registry.v1 import tag_record_pb2

KEYS = {
    "refusal": {"wearer", "order", "reason"},
    "good_cause": {"wearer", "order", "from_s", "until_s", "reason"},
    "removal": {"device", "from_s", "until_s", "reason", "allowed_by", "afterwards"},
}
"""Allowed keys of each kind of record."""


def request_of(
    kind: str, record_id: str, record: dict[str, Any], *, at_s: float, ms: Callable[[float], int]
) -> TagRecordRequest:
    """The request by which an officer records something at a second of the scenario. Raises ValueError for an unknown key."""
    if unknown := set(record) - KEYS[kind]:
        raise ValueError(f"{record}: unknown keys {sorted(unknown)}")
    start = times.to_timestamp(ms(record.get("from_s", at_s)))
    if kind == "refusal":
        return tag_record_pb2.RecordRefusalRequest(
            record_id=record_id,
            wearer_id=record["wearer"],
            order_id=record["order"],
            refused_at=start,
            reason=record["reason"],
        )
    until = times.to_timestamp(ms(record["until_s"]))
    request: tag_record_pb2.RecordGoodCauseRequest | tag_record_pb2.AllowRemovalRequest
    if kind == "good_cause":
        request = tag_record_pb2.RecordGoodCauseRequest(
            record_id=record_id,
            wearer_id=record["wearer"],
            order_id=record["order"],
            until=until,
            reason=record["reason"],
        )
    else:
        request = tag_record_pb2.AllowRemovalRequest(
            record_id=record_id,
            device_id=record["device"],
            until=until,
            reason=record["reason"],
            allowed_by=record["allowed_by"],
            afterwards=record.get("afterwards", False),
        )
    getattr(request, "from").CopyFrom(start)
    return request
