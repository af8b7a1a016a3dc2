"""Metrics of ingest. No label names a device or a person."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import Counter, Gauge, Histogram

from services.ingest.domain import Reason

_ACCEPTED = Counter("tandem_ingest_reports_accepted", "Reports that are durable in the log, by endpoint", ["endpoint"])
REFUSED = Counter("tandem_ingest_reports_refused", "Refused reports, by reason", ["reason"])
# Each series starts at 0: one that starts at 1 never rises, so `increase()` would hide the first refusal.
for _reason in Reason:
    REFUSED.labels(_reason.name)
ACCEPTED = {endpoint: _ACCEPTED.labels(endpoint) for endpoint in ("stream", "unary", "http")}
RECEIPTS_UNKNOWN = Counter("tandem_ingest_receipts_unknown", "Receipts that match no command of the sender's devices")
WAITING = Gauge("tandem_ingest_reports_waiting", "Reports that are admitted and not yet durable")
STREAMS = Gauge("tandem_ingest_streams_open", "Open report streams")
STREAMS_REFUSED = Counter("tandem_ingest_streams_refused", "Streams refused because their caller has too many open")
UNANSWERED = Gauge("tandem_ingest_unanswered_reports", "Reports of streams whose answers the sender has not read yet")
UNREAD = Counter("tandem_ingest_streams_unread", "Report streams ended because the sender did not read its answers")
BATCH_REPORTS = Histogram(
    "tandem_ingest_batch_reports",
    "Reports checked together: a batch, or coalesced small batches of one sender",
    buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500, 1000),
)
MESSAGE_REPORTS = Histogram(
    "tandem_ingest_message_reports",
    "Reports per message of the log",
    buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000),
)
PUBLISH_S = Histogram(
    "tandem_ingest_publish_seconds",
    "Time from publishing a message until it is durable",
    buckets=(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
_LAG_S = Gauge(
    "tandem_ingest_lag_seconds",
    "Age of the oldest report that waits to be published, by partition and lane",
    ["partition", "lane"],
)


def watch_lag(partition: int, lane: str, lag_s: Callable[[], float]) -> None:
    """Registers a function that gives the lag of a partition's lane, in s, at each scrape."""
    _LAG_S.labels(str(partition), lane).set_function(lag_s)
