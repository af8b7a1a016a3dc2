"""Metrics of the warnings. Labels name the kind of channel, never a person."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram


class WarningMetrics:
    """Counts and delays of the attempts to send warnings."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.tries = Counter(
            "tandem_warning_tries",
            "Attempts to hand a warning over, by way and outcome",
            ["way", "outcome"],
            registry=registry,
        )
        self.handed_over_s = Histogram(
            "tandem_warning_handed_over_seconds",
            "Time from when a warning is due until a way accepts it, mesh time",
            ["way"],
            registry=registry,
        )
