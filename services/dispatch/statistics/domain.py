"""Figures of an assignment, folded from its steps, and percentiles of counted times. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import assert_never

from services.dispatch.domain.assignment import AssignmentState
from services.dispatch.domain.enums import CloseCause, Task
from services.dispatch.domain.leg import Leg


class Measure(IntEnum):
    """Measure of a response time; numbers of tandem.dispatch.v1.ResponseMeasure."""

    RECEIPT = 1
    ACCEPTANCE = 2
    ARRIVAL = 3


class DispatchOutcome(IntEnum):
    """How a dispatch ended; numbers of tandem.dispatch.v1.DispatchOutcome. NOT_SENT is no dispatch and is never sent to a caller."""

    NOT_SENT = 0
    UNDER_WAY = 1
    BREACH_CONFIRMED = 2
    UNCLASSIFIED = 3
    FALSE_POSITION = 4
    EQUIPMENT = 5
    AUTHORISED = 6
    NOBODY_FOUND = 7
    BEFORE_ARRIVAL = 8


FOR_NOTHING = (
    DispatchOutcome.FALSE_POSITION,
    DispatchOutcome.EQUIPMENT,
    DispatchOutcome.AUTHORISED,
    DispatchOutcome.NOBODY_FOUND,
    DispatchOutcome.BEFORE_ARRIVAL,
)
"""Outcomes of dispatches for nothing."""
ACCEPT_WITHIN_MS = 30_000
"""Time in which a person must accept an offer, and her device must confirm a warning, milliseconds."""
_OUTCOMES = {
    CloseCause.BREACH_CONFIRMED: DispatchOutcome.BREACH_CONFIRMED,
    CloseCause.FALSE_POSITION: DispatchOutcome.FALSE_POSITION,
    CloseCause.EQUIPMENT: DispatchOutcome.EQUIPMENT,
    CloseCause.AUTHORISED: DispatchOutcome.AUTHORISED,
    CloseCause.NOBODY_FOUND: DispatchOutcome.NOBODY_FOUND,
}
_ARRIVED = (AssignmentState.ON_SCENE, AssignmentState.APPREHENDED)


def due_ms(leg: Leg, measure: Measure) -> int | None:
    """Time within which a measure is due, milliseconds from the first offer. None for ARRIVAL, where the travel time decides."""
    match measure:
        case Measure.RECEIPT:
            return 10_000 if leg.policy.warns_persons else 5_000
        case Measure.ACCEPTANCE:
            return ACCEPT_WITHIN_MS
        case Measure.ARRIVAL:
            return None
        case _:
            assert_never(measure)


@dataclass(frozen=True, slots=True, kw_only=True)
class AssignmentSeen:
    """An assignment after one of its steps, as far as the figures need it. Times are mesh time, milliseconds since 1970 UTC."""

    state: AssignmentState
    at_ms: int | None
    """Time of the step; None for another leg's assignment, whose steps aren't kept."""
    offered_ms: int | None
    received_ms: int | None
    acknowledged_ms: int | None
    sent_ms: int | None
    """When somebody was sent: a unit accepted, or the desk or the agency's own system said so. A desk's acceptance sends nobody."""
    travel_ms: int | None
    """Estimated travel time of the unit; None if it isn't known."""
    office_id: str
    kind: int
    close_cause: CloseCause | None
    arrived_before: bool = False
    """Whether an earlier step, which the figures don't get, was an arrival. Only of another leg's assignment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseFigures:
    """Figures of an assignment. Times are those of the first time, mesh time, milliseconds since 1970 UTC; None if it didn't happen."""

    task: Task
    offered_ms: int | None = None
    received_ms: int | None = None
    acknowledged_ms: int | None = None
    arrived_ms: int | None = None
    arrival_due_ms: int | None = None
    """When a unit was first sent, plus the travel time that was estimated then."""
    has_arrived: bool = False
    office_id: str = ""
    """Office of the last offer."""
    kind: int = 0
    """Number of the last offer's tandem.common.v1.AlertKind."""
    outcome: DispatchOutcome = DispatchOutcome.NOT_SENT

    def after(self, seen: AssignmentSeen) -> ResponseFigures:
        """Returns the figures after a step. A repeated step changes nothing."""
        was_sent = self.outcome is not DispatchOutcome.NOT_SENT
        arrival_due_ms = self.arrival_due_ms
        if not was_sent and seen.sent_ms is not None and seen.travel_ms is not None:
            arrival_due_ms = seen.sent_ms + seen.travel_ms
        arrives = seen.state in _ARRIVED
        has_arrived = self.has_arrived or arrives or seen.arrived_before
        arrived_ms = _first(self.arrived_ms, seen.at_ms if arrives else None)
        is_sent = was_sent or (seen.sent_ms is not None and self.task is not Task.CONTACT)
        return replace(
            self,
            offered_ms=_first(self.offered_ms, seen.offered_ms),
            received_ms=_first(self.received_ms, seen.received_ms),
            acknowledged_ms=_first(self.acknowledged_ms, seen.acknowledged_ms),
            arrived_ms=arrived_ms,
            arrival_due_ms=arrival_due_ms,
            has_arrived=has_arrived,
            office_id=seen.office_id or self.office_id,
            kind=seen.kind or self.kind,
            outcome=_outcome(seen, has_arrived) if is_sent else DispatchOutcome.NOT_SENT,
        )

    def took_ms(self, measure: Measure) -> int | None:
        """Rounded time from the first offer to the end of a measure, milliseconds; None if it wasn't reached."""
        reached_ms = {
            # A desk that accepts an offer has received it, whether or not the machine confirmed that.
            Measure.RECEIPT: _first(self.received_ms, self.acknowledged_ms),
            Measure.ACCEPTANCE: self.acknowledged_ms,
            Measure.ARRIVAL: self.arrived_ms,
        }[measure]
        if self.offered_ms is None or reached_ms is None:
            return None
        return rounded_ms(max(0, reached_ms - self.offered_ms))

    @property
    def arrived_in_time(self) -> bool | None:
        """Whether the unit arrived within the estimated travel time; None if it didn't arrive or no travel time is known."""
        if self.arrival_due_ms is None or self.arrived_ms is None:
            return None
        return self.arrived_ms <= self.arrival_due_ms


def rounded_ms(ms: int) -> int:
    """Rounds a time up: to 0.1 s below 10 s, to 1 s below 1 min, and to 10 s beyond. So many times share few values."""
    step = 100 if ms <= 10_000 else 1_000 if ms <= 60_000 else 10_000
    return -(-ms // step) * step


def percentile_of_counts(counts: Sequence[tuple[int, int]], percent: int) -> int | None:
    """Nearest-rank percentile of values that are given as (value, count); None for no values."""
    total = sum(count for _, count in counts)
    rank, passed = -(-percent * total // 100), 0
    for value, count in sorted(counts):
        passed += count
        if passed >= rank:
            return value
    return None


def in_time(counts: Iterable[tuple[int, int]], limit_ms: int) -> int:
    """Number of times at most `limit_ms`, of times that are given as (milliseconds, count)."""
    return sum(count for ms, count in counts if ms <= limit_ms)


def _first(known_ms: int | None, seen_ms: int | None) -> int | None:
    """The earlier of two times."""
    times = [ms for ms in (known_ms, seen_ms) if ms is not None]
    return min(times, default=None)


def _outcome(seen: AssignmentSeen, has_arrived: bool) -> DispatchOutcome:
    if seen.close_cause in _OUTCOMES:
        return _OUTCOMES[seen.close_cause]
    if seen.state not in (AssignmentState.STOOD_DOWN, AssignmentState.CLOSED):
        return DispatchOutcome.UNDER_WAY
    # A desk that closes as OTHER has a reason that isn't one of the others, whether or not the unit arrived.
    if seen.close_cause is None and not has_arrived:
        return DispatchOutcome.BEFORE_ARRIVAL
    return DispatchOutcome.UNCLASSIFIED
