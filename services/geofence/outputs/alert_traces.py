"""Header by which an alert carries the data of its log entry for the trace, so that nobody reads the entry a second time."""

from __future__ import annotations

from services.common.messaging.delivered import Delivered
from services.common.observability import trace_ids
from services.common.observability.trace_ids import EntryTrace
from services.geofence.domain.alerts import Alert
from tandem.common.v1 import log_pb2


class AlertTraces:
    """Headers ENTRY of the alerts of one log entry."""

    def __init__(self, entry: Delivered) -> None:
        batch = log_pb2.LogEntry.FromString(entry.data).positions  # the fold has read these bytes, so they parse
        self._reports = list(zip(batch.device_id, batch.report_id, strict=False))
        self._stored_us = entry.stamp_us
        self._senders = (entry.headers or {}).get(trace_ids.SENDERS, "")

    def header_for(self, alert: Alert) -> str:
        """Value of the header ENTRY of an alert."""
        cause = (alert.cause.device_id, alert.cause.report_id) if alert.cause else None
        index = self._reports.index(cause) if cause in self._reports else 0
        sender = trace_ids.sender_of(self._senders, index)
        return trace_ids.entry_header(EntryTrace(self._stored_us, max(len(self._reports), 1), sender))
