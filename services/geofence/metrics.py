"""Metrics of the geofence service. No label names a device or a person."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class GeofenceMetrics:
    """Metrics of a geofence process; `__main__` creates them once."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.report_to_alert_s = Histogram(
            "tandem_geofence_report_to_alert_seconds",
            "Time from the receipt of a report until the alert that it caused is durable",
            buckets=(0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 60),
            registry=registry,
        )
        self._log_age_s = Gauge(
            "tandem_geofence_log_age_seconds",
            "Time since the last log entry, ticks included; before the first entry, time since the start",
            ["partition"],
            registry=registry,
        )
        self._sequence = Gauge(
            "tandem_geofence_applied_sequence",
            "Sequence of the last log entry that is folded",
            ["partition"],
            registry=registry,
        )
        self._differ = Counter(
            "tandem_evaluators_differ",
            "Times that this evaluator's state differed from another evaluator's",
            ("partition",),
            registry=registry,
        )

        self._secondary_waiting = Gauge(
            "tandem_geofence_secondary_waiting",
            "Figures of entries and digests that are put off while alerts are published",
            ["partition"],
            registry=registry,
        )

    def watch(
        self,
        partition: int,
        log_age_s: Callable[[], float],
        *,
        sequence: Callable[[], float],
        secondary_waiting: Callable[[], float],
    ) -> None:
        """Registers functions that give the time since a partition's last log entry, s, the sequence of the last entry that is folded,
        and the number of waiting secondary outputs. Begins the partition's count of differences.

        The count begins at 0: a series that first appears at 1 shows no increase, so no alert would fire.
        """
        self._log_age_s.labels(str(partition)).set_function(log_age_s)
        self._sequence.labels(str(partition)).set_function(sequence)
        self._secondary_waiting.labels(str(partition)).set_function(secondary_waiting)
        self._differ.labels(str(partition))

    def differs(self, partition: int) -> None:
        """Counts a difference from another evaluator's state."""
        self._differ.labels(str(partition)).inc()
