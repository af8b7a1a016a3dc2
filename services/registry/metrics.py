"""Metrics of the registry. `__main__` creates them once and passes them to the objects that count."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge


class RegistryMetrics:
    """All metrics of the registry, created on one collector registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.outbox_age_s = Gauge(
            "tandem_registry_outbox_age_seconds",
            "How long messages to the log have been waiting, seconds; 0 if none is waiting",
            registry=registry,
        )
        self.unproven_s = Gauge(
            "tandem_registry_unproven_seconds",
            "Mesh time since an agency's full list last equalled the stored records, or since the registry first expected a list",
            ["agency"],
            registry=registry,
        )
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
        self.spans_exported = Counter(
            "tandem_registry_spans_exported", "Spans that were given to the OTLP exporter", registry=registry
        )
        self.spans_lost = Counter(
            "tandem_registry_spans_lost", "Times that an update of an incident was not exported", registry=registry
        )
