"""Prometheus metrics of field."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter


class FieldMetrics:
    """Counters of requests, reports and push messages."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.answers = Counter(
            "tandem_field_answers", "Answers to phones, by HTTP status", ["status"], registry=registry
        )
        self.reports = Counter(
            "tandem_field_reports", "Reports of phones, by what became of them", ["outcome"], registry=registry
        )
        self.push = Counter(
            "tandem_field_push", "Web push messages, by what the push service said", ["outcome"], registry=registry
        )
