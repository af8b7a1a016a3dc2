"""Requests of the decision to the tags, read from a running mesh."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from google.protobuf.message import DecodeError

from services.common import times
from services.common.messaging import flow, pull
from services.common.messaging.bus import Bus
from tandem.common.v1 import sensing_pb2


async def read(
    bus: Bus, device_ids: Collection[str], *, from_ms: int, until_ms: int
) -> list[sensing_pb2.SensingRequest]:
    """Requests to these devices that were decided from `from_ms` to `until_ms` (mesh time), in the order of the log."""
    requests = []
    bounds = await bus.bounds_of(flow.SENSING.name)
    async for message in pull.between(bus, flow.SENSING.name, bounds.first, last=bounds.last):
        try:
            request = sensing_pb2.SensingRequest.FromString(message.data)
        except DecodeError:
            continue  # ingest sets it aside with a reason
        if request.device_id in device_ids and from_ms <= request.decided_at_ms <= until_ms:
            requests.append(request)
    return sorted(requests, key=lambda request: (request.sequence, request.ordinal))


def to_json(request: sensing_pb2.SensingRequest, shift_ms: int) -> dict[str, Any]:
    """The JSON object of a request, in the form of a back-test's output line, with all times moved back by `shift_ms`."""
    if request.HasField("remind_wearer"):
        return {
            "request_id": request.request_id,
            "kind": "CONTACT_REQUEST",
            "device_id": request.device_id,
            "decided_at": times.to_rfc3339(request.decided_at_ms - shift_ms),
            "until": times.to_rfc3339(request.until_ms - shift_ms),
        }
    is_interval = request.WhichOneof("need") == "report_every"
    return {
        "request_id": request.request_id,
        "kind": "SENSING_REQUEST",
        "device_id": request.device_id,
        "interval_s": request.report_every.interval_s if is_interval else None,
        "decided_at": times.to_rfc3339(request.decided_at_ms - shift_ms),
        "until": times.to_rfc3339(request.until_ms - shift_ms),
    }
