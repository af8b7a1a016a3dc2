"""Expected times of an incident's steps for display: those of its trace, and the arrivals that each leg expects. Pure.

A trace says when its steps were due. Only the leg itself knows when its unit is expected at the destination, as the travel time would
tell the other agency how far away the protected person is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from services.common import times
from services.common.clock import MeshClock
from tandem.common.v1 import alert_pb2
from tandem.dispatch.v1 import dispatch_pb2
from tandem.registry.v1 import expected_time_pb2, trace_pb2

ARRIVES = "UNIT_ARRIVES"
"""Name of the expectation that a unit arrives. The other names are those of tandem.registry.v1.Expectation without their prefix."""
RECEIPT = "WARNING_RECEIVED"
_ON_SCENE = ("on scene", "has the wearer")
_OVER = ("stood down", "closed")


class Outcome(StrEnum):
    """What became of an expected step: names of tandem.registry.v1.ExpectationOutcome without their prefix."""

    OPEN = "OPEN"
    IN_TIME = "IN_TIME"
    LATE = "LATE"
    MISSED = "MISSED"
    LIFTED = "LIFTED"


@dataclass(frozen=True, slots=True)
class ExpectedTime:
    """When a step was expected and when it came. Times are wall time, microseconds since 1970 UTC."""

    name: str
    """Name of the expectation, such as PERSON_ANSWERS."""
    outcome: Outcome
    leg: str
    assignment_id: str
    since_us: int
    due_us: int
    met_us: int | None = None
    since_span_id: str = ""
    met_span_id: str = ""
    missed_span_ids: tuple[str, ...] = ()

    @property
    def is_late(self) -> bool:
        """Whether the step came too late, or didn't come."""
        return self.outcome in (Outcome.LATE, Outcome.MISSED)

    @property
    def late_us(self) -> int:
        """By how much the step came too late; 0 if it came in time, or not at all."""
        return max(0, self.met_us - self.due_us) if self.met_us is not None else 0


def expected_times(
    trace: trace_pb2.GetTraceResponse,
    assignments: Iterable[dispatch_pb2.Assignment],
    clock: MeshClock,
    *,
    now_us: int,
) -> list[ExpectedTime]:
    """The expected times of a trace and of the arrivals of `assignments`, in the order in which they were due.

    A step that is still awaited after its time, `now_us` being the present wall time, is missed.
    """
    found = [_of_message(message) for message in trace.expected_times]
    for assignment in assignments:
        if arrival := _arrival(assignment, trace.spans, clock):
            found.append(arrival)
    return sorted((_as_of(expected, now_us) for expected in found), key=lambda expected: expected.due_us)


def late_spans(expected_times: Iterable[ExpectedTime]) -> Mapping[str, ExpectedTime]:
    """The late steps by the id of each span that shows one: the escalation or flag that states it, and the step that came too late."""
    late: dict[str, ExpectedTime] = {}
    for expected in expected_times:
        for span_id in expected.missed_span_ids:
            late.setdefault(span_id, replace(expected, met_us=None))
        if expected.outcome is Outcome.LATE and expected.met_span_id:
            late[expected.met_span_id] = expected
    return late


def _of_message(message: expected_time_pb2.ExpectedTime) -> ExpectedTime:
    outcome = expected_time_pb2.ExpectationOutcome.Name(message.outcome).removeprefix("EXPECTATION_OUTCOME_")
    return ExpectedTime(
        name=expected_time_pb2.Expectation.Name(message.expectation).removeprefix("EXPECTATION_"),
        outcome=Outcome(outcome) if outcome in set(Outcome) else Outcome.OPEN,
        leg=message.leg,
        assignment_id=message.assignment_id,
        since_us=message.since_us,
        due_us=message.due_us,
        met_us=message.met_us if message.HasField("met_us") else None,
        since_span_id=message.since_span_id,
        met_span_id=message.met_span_id,
        missed_span_ids=tuple(message.missed_span_ids),
    )


def _arrival(
    assignment: dispatch_pb2.Assignment, spans: Sequence[trace_pb2.Span], clock: MeshClock
) -> ExpectedTime | None:
    """When the unit of an assignment was expected; None if no unit accepted it, or nobody knows its travel time."""
    if not assignment.HasField("arrival_due_at") or not assignment.HasField("acknowledged_at"):
        return None
    leg = alert_pb2.Leg.Name(assignment.leg).lower()
    accepted_us = clock.to_wall_us(times.from_timestamp(assignment.acknowledged_at))
    due_us = clock.to_wall_us(times.from_timestamp(assignment.arrival_due_at))
    own = [span for span in spans if span.attributes.get("assignment_id") == assignment.assignment_id]
    own = sorted((span for span in own if span.end_us >= accepted_us), key=lambda span: span.end_us)
    accepted = next((span for span in own if span.end_us == accepted_us), None)
    there = next((span for span in own if span.name.partition(" ")[2] in _ON_SCENE), None)
    over = next((span for span in own if span.name.partition(" ")[2] in _OVER), None)
    if there:
        outcome = Outcome.IN_TIME if there.end_us <= due_us else Outcome.LATE
    elif over:
        outcome = Outcome.LIFTED if over.end_us <= due_us else Outcome.MISSED
    else:
        outcome = Outcome.OPEN
    return ExpectedTime(
        name=ARRIVES,
        outcome=outcome,
        leg=leg,
        assignment_id=assignment.assignment_id,
        since_us=accepted_us,
        due_us=due_us,
        met_us=there.end_us if there else None,
        since_span_id=accepted.span_id if accepted else "",
        met_span_id=there.span_id if there else "",
        missed_span_ids=(over.span_id,) if outcome is Outcome.MISSED and over else (),
    )


def _as_of(expected: ExpectedTime, now_us: int) -> ExpectedTime:
    # The time of a receipt isn't published, so nothing is known of one until the leg flags that it is missing.
    if expected.outcome is Outcome.OPEN and expected.name != RECEIPT and now_us > expected.due_us:
        return replace(expected, outcome=Outcome.MISSED)
    return expected
