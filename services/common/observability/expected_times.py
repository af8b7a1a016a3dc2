"""Reads the expected times of an incident's steps: those of its trace, and the arrivals that each leg expects.

A trace says when its steps were due. Only the leg itself knows when its unit is expected at the destination, as the travel time would
tell the other agency how far away the protected person is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from services.common import times
from services.common.clock import MeshClock
from services.common.observability.lateness import ARRIVES, ExpectedTime, StepOutcome
from tandem.common.v1 import alert_pb2
from tandem.dispatch.v1 import dispatch_pb2
from tandem.registry.v1 import expected_time_pb2, trace_pb2

_ON_SCENE = ("on scene", "has the wearer")
_OVER = ("stood down", "closed")


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


def _of_message(message: expected_time_pb2.ExpectedTime) -> ExpectedTime:
    outcome = expected_time_pb2.ExpectationOutcome.Name(message.outcome).removeprefix("EXPECTATION_OUTCOME_")
    return ExpectedTime(
        name=expected_time_pb2.Expectation.Name(message.expectation).removeprefix("EXPECTATION_"),
        outcome=StepOutcome(outcome) if outcome in set(StepOutcome) else StepOutcome.OPEN,
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
        outcome = StepOutcome.IN_TIME if there.end_us <= due_us else StepOutcome.LATE
    elif over:
        outcome = StepOutcome.LIFTED if over.end_us <= due_us else StepOutcome.MISSED
    else:
        outcome = StepOutcome.OPEN
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
        missed_span_ids=(over.span_id,) if outcome is StepOutcome.MISSED and over else (),
    )


def _as_of(expected: ExpectedTime, now_us: int) -> ExpectedTime:
    if expected.outcome is StepOutcome.OPEN and now_us > expected.due_us:
        return replace(expected, outcome=StepOutcome.MISSED)
    return expected
