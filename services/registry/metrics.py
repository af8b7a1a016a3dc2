"""Metrics of the registry. `__main__` creates them once and passes them to the objects that count."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge

from services.common.clock import wall_us
from services.registry.domain.reviews import ReviewQueue


class PutOff:
    """Record work of one stream that was put off: the number of messages that wait, and the age of the oldest."""

    def __init__(self, messages: Gauge, age_s: Gauge) -> None:
        self._messages = messages
        self._oldest_ms: int | None = None
        age_s.set_function(self._age_s)

    def note(self, messages: int, oldest_ms: int) -> None:
        """Set the number of messages that wait, and when the stream stored the oldest of them, milliseconds since 1970 UTC."""
        self._messages.set(messages)
        self._oldest_ms = oldest_ms if messages else None

    def _age_s(self) -> float:
        return 0.0 if self._oldest_ms is None else max(wall_us() / 1e6 - self._oldest_ms / 1000, 0.0)


class ReviewGauges:
    """The match reviews that wait for a person."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._open = Gauge(
            "tandem_registry_reviews_open", "Match reviews that wait for a person's decision", registry=registry
        )
        self._alarmed = Gauge(
            "tandem_registry_reviews_alarmed",
            "Match reviews that have waited for 15 minutes of the mesh or more, for which both agencies are alarmed",
            registry=registry,
        )
        self._oldest_age_s = Gauge(
            "tandem_registry_review_oldest_age_seconds",
            "How long the oldest open match review has been waiting, seconds of the mesh; 0 if none waits",
            registry=registry,
        )

    def set(self, queue: ReviewQueue, now_ms: int) -> None:
        """Set the gauges, as of a moment of mesh time."""
        self._open.set(queue.open)
        self._alarmed.set(queue.alarmed)
        since_ms = queue.oldest_since_ms
        self._oldest_age_s.set(0.0 if since_ms is None else max(now_ms - since_ms, 0) / 1000)


class RegistryMetrics:
    """All metrics of the registry, created on one collector registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.outbox_age_s = Gauge(
            "tandem_registry_outbox_age_seconds",
            "How long messages to the log have waited while none was published, seconds; 0 if none waits",
            registry=registry,
        )
        self.unproven_s = Gauge(
            "tandem_registry_unproven_seconds",
            "Mesh time since an agency's full list last equalled the stored records, or since the registry first expected a list",
            ["agency"],
            registry=registry,
        )
        self.cctv_overdue = Gauge(
            "tandem_registry_cctv_overdue",
            "Requests for CCTV whose next step is overdue, by the last step; after viewing_ended the wearer has to be told",
            ["after"],
            registry=registry,
        )
        self.disclosures_held = Gauge(
            "tandem_registry_disclosures_held",
            "Published disclosures that aren't in the ledger, since they name a person, order or incident that isn't known",
            registry=registry,
        )
        self.findings_overdue = Gauge(
            "tandem_registry_findings_overdue",
            "Findings of reviewers that are open after their last day",
            registry=registry,
        )
        self._put_off_messages = Gauge(
            "tandem_registry_put_off_messages",
            "Messages that wait for record work, by stream and work",
            ["stream", "work"],
            registry=registry,
        )
        self._put_off_age_s = Gauge(
            "tandem_registry_put_off_age_seconds",
            "Age of the oldest message that waits for record work, by stream and work, seconds; 0 if none waits",
            ["stream", "work"],
            registry=registry,
        )
        self.reviews = ReviewGauges(registry)
        self.trace_facts = Counter(
            "tandem_registry_trace_facts",
            "Facts stored for traces, by kind; an ordinary report gives none",
            ["kind"],
            registry=registry,
        )
        self.trace_failures = Counter(
            "tandem_registry_trace_failures",
            "Times that reading for traces failed and was restarted",
            registry=registry,
        )
        self.trace_unreadable = Counter(
            "tandem_registry_trace_unreadable",
            "Messages that could not be read for traces",
            ["stream"],
            registry=registry,
        )
        self.exports_put_off = Gauge(
            "tandem_registry_exports_put_off", "Incidents with new spans that wait for their export", registry=registry
        )
        self.spans_exported = Counter(
            "tandem_registry_spans_exported", "Spans that were given to the OTLP exporter", registry=registry
        )
        self.spans_lost = Counter(
            "tandem_registry_spans_lost", "Times that an update of an incident was not exported", registry=registry
        )

    def put_off(self, stream: str, work: str) -> PutOff:
        """Metrics of a reader of a stream that does record work, `ledger` or `traces`."""
        return PutOff(
            self._put_off_messages.labels(stream, work),
            self._put_off_age_s.labels(stream, work),
        )
