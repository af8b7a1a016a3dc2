"""Metrics of evidence retention."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge

from services.dispatch.evidence.files import CopyMoment


class EvidenceMetrics:
    """Metrics of the copies of evidence."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.kept = Counter(
            "tandem_evidence_kept", "Copies of evidence of incidents, by moment", ["moment"], registry=registry
        )
        for moment in CopyMoment:
            self.kept.labels(moment)
        self.failed = Counter(
            "tandem_evidence_failed", "Failed attempts to copy the evidence of an incident", registry=registry
        )
        self.put_off = Gauge(
            "tandem_evidence_put_off",
            "Copies of evidence that wait for a common pass, renewals of open incidents included",
            registry=registry,
        )
        self.put_off_age_s = Gauge(
            "tandem_evidence_put_off_age_seconds",
            "Longest time that the copy of an incident that is over has been put off, seconds; 0 if none is",
            registry=registry,
        )
