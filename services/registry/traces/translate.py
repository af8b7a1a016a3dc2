"""Translation of stream messages to trace facts, and of spans to protobuf. Parsers validate."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from services.common import times
from services.common.clock import MeshClock
from services.common.messaging import stored
from services.common.messaging.pull import Delivered
from services.common.observability import spans
from services.common.observability.lateness import RECEIPT_WITHIN_MS
from services.registry.traces.domain.expected import AwaitedTime
from services.registry.traces.domain.facts import AlertFact, StepFact
from services.registry.traces.domain.spans import TraceSpan
from tandem.common.v1 import alert_pb2, exercise_pb2, geometry_pb2, notice_pb2
from tandem.dispatch.v1 import contact_pb2, dispatch_pb2
from tandem.registry.v1 import expected_time_pb2, trace_pb2

_DECIDED_DIGITS_MAX = 16
"""Maximum number of digits of a time in microseconds, enough until the year 2286. No evaluator sends a longer header."""


def alert_fact(message: alert_pb2.Alert, delivered: Delivered, *, clock: MeshClock) -> AlertFact:
    """Fact about an alert, with the data of its log entry that the alert's headers carry."""
    headers = delivered.headers or {}
    entry = spans.parsed_entry(headers.get(spans.ENTRY, ""))
    decided = headers.get(spans.DECIDED_US, "")
    return AlertFact(
        alert_id=message.alert_id,
        partition=message.partition,
        sequence=message.sequence,
        ordinal=message.ordinal,
        stored=delivered.sequence,
        alert_kind=_name(alert_pb2.AlertKind, message.kind),
        demand=_name(geometry_pb2.Demand, message.demand),
        case_id=message.case_id,
        legs=tuple(sorted({_name(alert_pb2.Leg, destination.leg).lower() for destination in message.destinations})),
        ends=message.incident_ends,
        received_us=message.cause.received_wall_us if message.HasField("cause") else None,
        entry_us=entry.stored_us if entry else clock.to_wall_us(times.from_timestamp(message.decided_at)),
        decided_us=int(decided) if decided.isdecimal() and len(decided) <= _DECIDED_DIGITS_MAX else None,
        published_us=delivered.stamp_us,
        sender=entry.sender if entry else "",
        together=entry.together if entry else 1,
        exercise=_name(exercise_pb2.Exercise, message.exercise) if message.exercise else "",
        notice=_name(notice_pb2.NoticeGround, message.ministry_notice.ground)
        if message.HasField("ministry_notice")
        else "",
        checked_by=tuple(sorted({_name(alert_pb2.Leg, check.leg).lower() for check in message.checks})),
    )


def step_fact(delivered: Delivered, clock: MeshClock) -> tuple[str, StepFact] | None:
    """Incident id and fact of a step; None for a canary, which has no trace. Raises InvalidField."""
    step = stored.step(delivered.data, delivered.subject)
    assignment = step.assignment
    if assignment.exercise == exercise_pb2.CANARY:
        return None
    fact = StepFact(
        leg=_name(alert_pb2.Leg, assignment.leg).lower(),
        assignment_id=assignment.assignment_id,
        number=step.number,
        state=_name(dispatch_pb2.AssignmentState, assignment.state),
        received=assignment.HasField("received_at"),
        cause_us=assignment.cause.received_wall_us if assignment.HasField("cause") else None,
        done_us=clock.to_wall_us(times.from_timestamp(step.at)),
        published_us=delivered.stamp_us,
        stored=delivered.sequence,
        escalation_reason=_name(dispatch_pb2.EscalationReason, assignment.escalation_reason)
        if assignment.escalation_reason
        else "",
        level=_name(dispatch_pb2.EscalationLevel, assignment.choice.level) if assignment.choice.level else "",
        offer=assignment.offer_number,
        due_us=clock.to_wall_us(times.from_timestamp(assignment.due_at)) if assignment.HasField("due_at") else None,
        absent=tuple(sorted(_name(alert_pb2.Leg, leg).lower() for leg in assignment.absent_legs)),
        contact=_name(contact_pb2.ContactState, assignment.contact.state) if assignment.HasField("contact") else "",
        flag=_name(dispatch_pb2.WarningFlag, assignment.person_flag.flag) if assignment.HasField("person_flag") else "",
        task=_name(notice_pb2.Task, assignment.task) if assignment.task else "",
        receipt_due_us=_receipt_due_us(step, clock),
    )
    return assignment.incident_id, fact


def _receipt_due_us(step: dispatch_pb2.Step, clock: MeshClock) -> int | None:
    """Until when the warning leg awaits a receipt of the warning that it offers; None for any other step."""
    assignment = step.assignment
    if assignment.leg != alert_pb2.WARNING or assignment.state != dispatch_pb2.OFFERED:
        return None
    return clock.to_wall_us(times.from_timestamp(step.at) + RECEIPT_WITHIN_MS)


def _name(enum: Any, value: int) -> str:
    """Name of an enum value; the number as text if a newer proto added the value."""
    known = enum.DESCRIPTOR.values_by_number.get(value)
    return str(known.name if known else value)


def spans_to_proto(spans: Iterable[TraceSpan]) -> list[trace_pb2.Span]:
    """Spans as messages for the response."""
    return [
        trace_pb2.Span(
            trace_id=span.trace_id,
            span_id=span.span_id,
            parent_span_id=span.parent_id,
            service=span.service,
            name=span.name,
            start_us=span.start_us,
            end_us=span.end_us,
            attributes=dict(span.attributes),
            links=[trace_pb2.SpanLink(trace_id=to.trace_id, span_id=to.span_id, what=to.what) for to in span.links],
        )
        for span in spans
    ]


def expected_to_proto(expected_times: Iterable[AwaitedTime]) -> list[expected_time_pb2.ExpectedTime]:
    """Expected times as messages for the response."""
    return [
        expected_time_pb2.ExpectedTime(
            expectation=expected_time_pb2.Expectation.ValueType(expected.expectation.value),
            outcome=expected_time_pb2.ExpectationOutcome.ValueType(expected.outcome.value),
            leg=expected.leg,
            assignment_id=expected.assignment_id,
            since_us=expected.since_us,
            due_us=expected.due_us,
            met_us=expected.met_us,
            since_span_id=expected.since_span_id,
            met_span_id=expected.met_span_id,
            missed_span_ids=expected.missed_span_ids,
        )
        for expected in expected_times
    ]
