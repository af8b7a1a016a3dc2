"""Metrics of ingest. No label names a device or a person."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from services.ingest.domain import Endpoint, Reason

_REPORT_BUCKETS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


class IngestMetrics:
    """Metrics of an ingest process; `__main__` creates them once."""

    def __init__(self, registry: CollectorRegistry) -> None:
        accepted = Counter(
            "tandem_ingest_reports_accepted",
            "Reports that are durable in the log, by endpoint",
            ["endpoint"],
            registry=registry,
        )
        self.accepted = {endpoint: accepted.labels(endpoint.value) for endpoint in Endpoint}
        self.refused = Counter(
            "tandem_ingest_reports_refused", "Refused reports, by reason", ["reason"], registry=registry
        )
        # Each series starts at 0: Prometheus sees no rise in a series that starts at 1, so `increase()` would hide the first refusal.
        for reason in Reason:
            self.refused.labels(reason.name)
        self.receipts_unknown = Counter(
            "tandem_ingest_receipts_unknown",
            "Receipts that match no command of the sender's devices",
            registry=registry,
        )
        self.devices = Gauge(
            "tandem_ingest_devices",
            "Registered devices that report; the same in every process",
            registry=registry,
        )
        self.disobeying = Gauge(
            "tandem_ingest_devices_disobeying",
            "Devices whose reports are further apart than asked, or that refused the interval; the same in every process",
            registry=registry,
        )
        self.http_answers = Counter(
            "tandem_ingest_http_answers", "Answers to phones, by status", ["status"], registry=registry
        )
        self.waiting = Gauge(
            "tandem_ingest_reports_waiting", "Reports that are admitted and not yet durable", registry=registry
        )
        self.streams = Gauge("tandem_ingest_streams_open", "Open report streams", registry=registry)
        self.streams_refused = Counter(
            "tandem_ingest_streams_refused",
            "Streams refused because their caller has too many open",
            registry=registry,
        )
        self.unanswered = Gauge(
            "tandem_ingest_unanswered_reports",
            "Reports of streams whose answers the sender has not read yet",
            registry=registry,
        )
        self.batch_reports = Histogram(
            "tandem_ingest_batch_reports",
            "Reports checked together: a batch, or coalesced small batches of one sender",
            buckets=_REPORT_BUCKETS,
            registry=registry,
        )
        self.message_reports = Histogram(
            "tandem_ingest_message_reports",
            "Reports per message of the log",
            buckets=(*_REPORT_BUCKETS, 2000),
            registry=registry,
        )
        self.publish_s = Histogram(
            "tandem_ingest_publish_seconds",
            "Time from publishing a message until it is durable",
            buckets=(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
            registry=registry,
        )
        self._lag_s = Gauge(
            "tandem_ingest_lag_seconds",
            "Age of the oldest report that waits to be published, by partition and lane",
            ["partition", "lane"],
            registry=registry,
        )

    def watch_lag(self, partition: int, lane: str, lag_s: Callable[[], float]) -> None:
        """Registers a function that gives the lag of a partition's lane, seconds. Each scrape calls the function."""
        self._lag_s.labels(str(partition), lane).set_function(lag_s)
