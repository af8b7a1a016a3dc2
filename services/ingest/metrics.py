"""What ingest counts. Labels name no device and nobody."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import Counter, Gauge, Histogram

from services.ingest.domain import Reason

_ACCEPTED = Counter("tandem_ingest_reports_accepted", "Reports that are durable in the log", ["door"])
REFUSED = Counter("tandem_ingest_reports_refused", "Reports that were refused, by reason", ["reason"])
for (
    _reason
) in Reason:  # each begins at nought: a series that begins at 1 never rises, so the first refusal would be hidden
    REFUSED.labels(_reason.name)
ACCEPTED = {endpoint: _ACCEPTED.labels(endpoint) for endpoint in ("stream", "unary", "http")}
RECEIPTS_UNKNOWN = Counter("tandem_ingest_receipts_unknown", "Receipts for commands that don't wait for one")
WAITING = Gauge("tandem_ingest_reports_waiting", "Reports that are read and not yet durable")
STREAMS = Gauge("tandem_ingest_streams_open", "Open report streams")
STREAMS_REFUSED = Counter("tandem_ingest_streams_refused", "Streams refused because their caller has too many")
UNANSWERED = Gauge("tandem_ingest_unanswered_reports", "Reports of streams whose answers were not taken yet")
UNREAD = Counter("tandem_ingest_streams_unread", "Report streams that were ended because their answers were not read")
BATCH_REPORTS = Histogram(
    "tandem_ingest_batch_reports",
    "Reports that were checked together: a batch, or small ones of a sender that came in the same moment",
    buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500, 1000),
)
MESSAGE_REPORTS = Histogram(
    "tandem_ingest_message_reports",
    "Reports in a message of the log",
    buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000),
)
PUBLISH_S = Histogram(
    "tandem_ingest_publish_seconds",
    "From the publish of a message until it is durable",
    buckets=(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
_LAG_S = Gauge(
    "tandem_ingest_lag_seconds",
    "Age of the oldest report that waits to be sent to a partition, by lane",
    ["partition", "lane"],
)


def watch_lag(partition: int, lane: str, lag_s: Callable[[], float]) -> None:
    """Has the lag of a lane looked at whenever it is asked for."""
    _LAG_S.labels(str(partition), lane).set_function(lag_s)
