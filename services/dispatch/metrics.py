"""Metrics of a leg and its capabilities. Labels name the leg, the receiver or the kind of channel, never an incident or a person."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from services.common.evidence.collector import CopyMoment
from services.dispatch.domain.leg import Leg
from tandem.common.v1 import exercise_pb2
from tandem.dispatch.v1 import dispatch_pb2

_NOT_REACHED_FLAGS = (dispatch_pb2.NO_RECEIPT, dispatch_pb2.NO_CONTACT)


class DispatchMetrics:
    """Metrics of the legs that run in this process. Outside tests, a process runs one leg."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._steps = Counter(
            "tandem_dispatch_steps", "Committed steps of assignments, by state", ["leg", "state"], registry=registry
        )
        self.offer_ms = Histogram(
            "tandem_dispatch_report_to_published_ms",
            "From the receipt of the deciding report until its offer is on INCIDENTS, milliseconds",
            ["leg"],
            buckets=(5, 10, 15, 20, 30, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 60_000),
            registry=registry,
        )
        self._canary_steps = Counter(
            "tandem_dispatch_canary_steps",
            "Committed steps of canaries, which no other metric counts",
            ["leg"],
            registry=registry,
        )
        self._not_reached = Counter(
            "tandem_dispatch_not_reached",
            "Warnings that may not have reached a protected person: no receipt came, or no contact was available",
            ["leg"],
            registry=registry,
        )
        self.leg_absent = Gauge(
            "tandem_dispatch_leg_absent",
            "Incidents in which another leg has shown no step although its response is demanded",
            ["leg", "absent"],
            registry=registry,
        )
        self.unreconciled = Gauge(
            "tandem_dispatch_unreconciled",
            "Alerts that this leg can't read and that may demand its response, by the last comparison with ALERTS",
            ["leg"],
            registry=registry,
        )
        self.reconciled = Counter(
            "tandem_dispatch_reconciled",
            "Missing alerts that the comparison with ALERTS found and applied",
            ["leg"],
            registry=registry,
        )
        self.alerts_behind = Gauge(
            "tandem_dispatch_alerts_behind",
            "Alerts in ALERTS that the leg hasn't stored yet",
            ["leg"],
            registry=registry,
        )
        self._overdue_s = Gauge(
            "tandem_dispatch_overdue_seconds",
            "Time since the earliest unhandled deadline passed",
            ["leg"],
            registry=registry,
        )
        self._outbox_age_s = Gauge(
            "tandem_dispatch_outbox_age_seconds",
            "Age of the oldest step that isn't on INCIDENTS yet",
            ["leg"],
            registry=registry,
        )
        self.road_times_failed = Counter(
            "tandem_dispatch_road_times_failed",
            "Travel times that the OSRM service failed to return",
            ["reason"],
            registry=registry,
        )

    def watch(
        self, leg: Leg, overdue_s: Callable[[], float], outbox_age_s: Callable[[], float], *, states: Iterable[str]
    ) -> None:
        """Registers the functions of the gauges, and creates all other series, so that alert rules see them before the first event."""
        for metric in (self._canary_steps, self._not_reached, self.reconciled, self.offer_ms):
            metric.labels(leg)
        for gauge in (self.alerts_behind, self.unreconciled):
            gauge.labels(leg)
        for state in states:
            self._steps.labels(leg, state)
        self._overdue_s.labels(leg).set_function(overdue_s)
        self._outbox_age_s.labels(leg).set_function(outbox_age_s)

    def count(self, leg: Leg, state: str, assignment: dispatch_pb2.Assignment) -> None:
        """Counts a committed step of an assignment. `state` is the name of the step in the log."""
        if assignment.exercise == exercise_pb2.CANARY:
            self._canary_steps.labels(leg).inc()
            return
        self._steps.labels(leg, state).inc()
        flagged = state == "flagged" and assignment.person_flag.flag in _NOT_REACHED_FLAGS
        if flagged and not assignment.exercise:  # a drill reaches nobody
            self._not_reached.labels(leg).inc()


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


class WebhookMetrics:
    """Counts of the deliveries to each receiver."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.tries = Counter(
            "tandem_webhook_tries",
            "Attempts to deliver a message to a receiver, by outcome",
            ["receiver", "outcome"],
            registry=registry,
        )
        self.waiting = Gauge(
            "tandem_webhook_waiting",
            "Messages that wait for a receiver, by queue: steps or reviews",
            ["receiver", "queue"],
            registry=registry,
        )


class FollowingMetrics:
    """Counters of failures, by gRPC status code."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.streams_broken = Counter(
            "tandem_dispatch_target_streams_broken",
            "Streams of positions from an evaluator that broke or couldn't be opened",
            ["code"],
            registry=registry,
        )
        self.shares_refused = Counter(
            "tandem_dispatch_target_shares_refused",
            "Positions of a target that an evaluator refused",
            ["code"],
            registry=registry,
        )
        self.pursuit_failed = Counter(
            "tandem_dispatch_pursuit_failed",
            "Commands of a pursuit that ingest didn't accept",
            ["code"],
            registry=registry,
        )


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
