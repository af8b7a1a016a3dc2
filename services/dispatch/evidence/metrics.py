"""Metrics of evidence retention."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter


class EvidenceMetrics:
    """Counters of the copies of evidence."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.kept = Counter(
            "tandem_evidence_kept", "Copies of evidence of incidents, by moment", ["moment"], registry=registry
        )
        self.failed = Counter(
            "tandem_evidence_failed", "Failed attempts to copy the evidence of an incident", registry=registry
        )
