"""Metrics of a leg. Labels name the leg, never an incident or a person."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import Counter, Gauge, Histogram

from tandem.common.v1 import exercise_pb2
from tandem.dispatch.v1 import dispatch_pb2

_STEPS = Counter("tandem_dispatch_steps", "Committed steps of assignments, by state", ["leg", "state"])
OFFER_MS = Histogram(
    "tandem_dispatch_report_to_published_ms",
    "From the receipt of the deciding report until its offer is on INCIDENTS, milliseconds",
    ["leg"],
    buckets=(5, 10, 15, 20, 30, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 60_000),
)
_CANARY_STEPS = Counter(
    "tandem_dispatch_canary_steps", "Committed steps of canaries, which no other metric counts", ["leg"]
)
_NOT_REACHED = Counter(
    "tandem_dispatch_not_reached",
    "Warnings that may not have reached a protected person: no receipt came, or no contact was available",
    ["leg"],
)
_NOT_REACHED_FLAGS = (dispatch_pb2.NO_RECEIPT, dispatch_pb2.NO_CONTACT)
LEG_ABSENT = Gauge(
    "tandem_dispatch_leg_absent",
    "Incidents in which another leg has shown no step although its response is demanded",
    ["leg", "absent"],
)
UNRECONCILED = Gauge(
    "tandem_dispatch_unreconciled",
    "Alerts that this leg can't read and that may demand its response, by the last comparison with ALERTS",
    ["leg"],
)
RECONCILED = Counter(
    "tandem_dispatch_reconciled", "Missing alerts that the comparison with ALERTS found and applied", ["leg"]
)
ALERTS_BEHIND = Gauge("tandem_dispatch_alerts_behind", "Alerts in ALERTS that the leg hasn't consumed yet", ["leg"])
_OVERDUE_S = Gauge("tandem_dispatch_overdue_seconds", "Time since the earliest unhandled deadline passed", ["leg"])
_OUTBOX_AGE_S = Gauge(
    "tandem_dispatch_outbox_age_seconds", "Age of the oldest step that isn't on INCIDENTS yet", ["leg"]
)


def watch(
    leg: str, overdue_s: Callable[[], float], outbox_age_s: Callable[[], float], *, states: Iterable[str] = ()
) -> None:
    """Registers the gauges' functions and starts all counters at 0, so that the first event of a kind shows as a rise."""
    for counter in (_CANARY_STEPS, _NOT_REACHED, RECONCILED, OFFER_MS):
        counter.labels(leg)
    for state in states:
        _STEPS.labels(leg, state)
    _OVERDUE_S.labels(leg).set_function(overdue_s)
    _OUTBOX_AGE_S.labels(leg).set_function(outbox_age_s)


def count(leg: str, state: str, assignment: dispatch_pb2.Assignment) -> None:
    """Counts a committed step of an assignment; `state` is the step's name in the log."""
    if assignment.exercise == exercise_pb2.CANARY:
        _CANARY_STEPS.labels(leg).inc()
        return
    _STEPS.labels(leg, state).inc()
    flagged = state == "flagged" and assignment.person_flag.flag in _NOT_REACHED_FLAGS
    if flagged and not assignment.exercise:  # a drill reaches nobody
        _NOT_REACHED.labels(leg).inc()
