"""`tandem trace` at 80 columns: what was late in words, escalations, folding, zoom and filters."""

from __future__ import annotations

import io
import json

import pytest

from services.cli.commands import incidents
from services.cli.commands.incidents import Selection, TraceView, trace_views
from services.cli.terminal import SafeConsole
from services.common.clock import MeshClock
from services.common.observability.expected_times import expected_times
from services.common.observability.lateness import ARRIVES, ExpectedTime, StepOutcome, late_spans
from tandem.common.v1 import alert_pb2
from tandem.dispatch.v1 import dispatch_pb2
from tandem.registry.v1 import expected_time_pb2, trace_pb2

S = 1_000_000
LONGEST_ID = "incident-bca416546243f95872bf"


def span(
    id_: str, parent: str, service: str, name: str, start_s: float, end_s: float, **attributes: str
) -> trace_pb2.Span:
    made = trace_pb2.Span(trace_id="t", span_id=id_, parent_span_id=parent, service=service, name=name)
    made.start_us, made.end_us = round(start_s * S), round(end_s * S)
    made.attributes.update(attributes)
    return made


def unanswered() -> trace_pb2.GetTraceResponse:
    """A drill whose offer nobody answered in time: escalated after 30 s, accepted 15 s later."""
    trace = trace_pb2.GetTraceResponse(trace_id="t")
    assignment = {"assignment_id": "a"}
    trace.spans.extend(
        [
            span("r", "", "geofence", "incident opened", 0, 1, incident_id=LONGEST_ID, exercise="DRILL"),
            span("al", "r", "geofence", "alert", 0, 1, kind="RING_ENTERED", demand="RESPOND", alert_id="alert-1"),
            span("o", "al", "dispatch-probation", "probation offered", 1, 1.1, stored="INCIDENTS#8", **assignment),
            span(
                "e", "o", "dispatch-probation", "probation escalated", 1.1, 31.1,
                escalation_reason="NOT_ACKNOWLEDGED", escalation_level="SUPERVISOR", **assignment,
            ),
            span("k", "o", "dispatch-probation", "probation accepted", 31.1, 46.1, **assignment),
            span("w", "al", "dispatch-warning", "warning offered", 1, 1.2, assignment_id="b"),
        ]
    )  # fmt: skip
    expected = trace.expected_times.add(
        expectation=expected_time_pb2.EXPECTATION_PERSON_ANSWERS,
        outcome=expected_time_pb2.EXPECTATION_OUTCOME_LATE,
        leg="probation",
        assignment_id="a",
        since_us=round(1.1 * S),
        due_us=round(31.1 * S),
        met_us=round(46.1 * S),
        since_span_id="o",
        met_span_id="k",
    )
    expected.missed_span_ids.append("e")
    return trace


def printed(selection: Selection | None = None, width: int = 80, late: bool = True) -> list[str]:
    trace = unanswered()
    if not late:
        del trace.expected_times[:]
    expected = expected_times(trace, [], MeshClock(), now_us=1_000 * S)
    screen = io.StringIO()
    console = SafeConsole(file=screen, width=width, highlight=False)
    console.print(*trace_views(TraceView(trace, expected), console, selection), sep="\n")
    return screen.getvalue().splitlines()


def test_at_80_columns_no_line_is_longer_and_each_late_step_says_so() -> None:
    lines = printed()
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("probation: answered by a person") and line.endswith("15.00 s LATE") for line in lines)
    escalated = next(n for n, line in enumerate(lines) if line.endswith("probation escalated"))
    assert lines[escalated + 1].strip() == "answered by a person: NOT WITHIN 30.00 s"
    assert lines[escalated + 2].strip() == "not acknowledged -> supervisor"
    accepted = next(n for n, line in enumerate(lines) if line.endswith("probation accepted"))
    assert lines[accepted + 1].strip() == "answered by a person: 15.00 s LATE"
    assert "!" in lines[escalated] and not any("LATE" in line for line in printed(late=False))


def test_folding_filter_and_zoom_show_a_part_and_say_what_is_folded() -> None:
    def names(selection: Selection) -> list[str]:
        known = (
            "incident opened",
            "alert",
            "probation offered",
            "probation escalated",
            "probation accepted",
            "warning offered",
        )
        return [name for line in printed(selection)[2:] for name in known if f" {name}" in line]

    assert names(Selection(depth=1)) == ["incident opened", "alert"]
    assert any("(+4 below)" in line for line in printed(Selection(depth=1)))
    assert names(Selection(legs=["warning"])) == ["warning offered"]
    assert names(Selection(late_only=True)) == ["probation escalated", "probation accepted"]
    assert names(Selection(from_s=32)) == ["probation accepted"]
    assert names(Selection(until_s=0.5)) == ["incident opened", "alert"]
    assert "no step of the trace is in this selection" in printed(Selection(from_s=500))


@pytest.mark.parametrize("width", [60, 80, 300])
def test_details_are_shown_on_request_and_no_id_is_broken(width: int) -> None:
    text = "\n".join(printed(Selection(details=True), width=width))
    assert "INCIDENTS#8" in text and "RING_ENTERED" in text and LONGEST_ID in text


def arriving(state: dispatch_pb2.AssignmentState.ValueType = dispatch_pb2.ACKNOWLEDGED) -> dispatch_pb2.Assignment:
    """An assignment that was accepted after 2 s, with its unit expected after 100 s."""
    assignment = dispatch_pb2.Assignment(assignment_id="a", leg=alert_pb2.POLICE, state=state)
    assignment.acknowledged_at.FromMilliseconds(2_000)
    assignment.arrival_due_at.FromMilliseconds(100_000)
    return assignment


def arrival(*spans: trace_pb2.Span, now_s: int = 50) -> ExpectedTime:
    trace = trace_pb2.GetTraceResponse(trace_id="t", spans=spans)
    (expected,) = expected_times(trace, [arriving()], MeshClock(), now_us=now_s * S)
    assert expected.name == ARRIVES and expected.due_us == 100 * S
    return expected


def step(id_: str, name: str, at_s: float) -> trace_pb2.Span:
    return span(id_, "", "dispatch-police", f"police {name}", at_s, at_s, assignment_id="a")


def test_an_arrival_is_expected_by_the_legs_own_estimate_and_late_after_it() -> None:
    accepted = step("k", "accepted", 2)
    assert arrival(accepted).outcome is StepOutcome.OPEN
    assert arrival(accepted, now_s=101).outcome is StepOutcome.MISSED, "nobody has arrived, and nobody stood down"
    assert arrival(accepted, step("s", "on scene", 90)).outcome is StepOutcome.IN_TIME
    late = arrival(accepted, step("s", "on scene", 130))
    assert (late.outcome, late.late_us, late_spans([late])["s"]) == (StepOutcome.LATE, 30 * S, late)
    assert arrival(accepted, step("d", "stood down", 60)).outcome is StepOutcome.LIFTED
    missed = arrival(accepted, step("d", "stood down", 160))
    assert missed.outcome is StepOutcome.MISSED and set(late_spans([missed])) == {"d"}
    unaccepted = arriving()
    unaccepted.ClearField("acknowledged_at")
    assert expected_times(trace_pb2.GetTraceResponse(), [unaccepted], MeshClock(), now_us=0) == []


def test_the_json_of_a_trace_has_the_arrivals() -> None:
    spans = [step("k", "accepted", 2), step("s", "on scene", 130)]
    trace_ = trace_pb2.GetTraceResponse(trace_id="t", spans=spans)
    expected = expected_times(trace_, [arriving()], MeshClock(), now_us=200 * S)
    shown = json.loads(json.dumps(incidents.trace_to_json(TraceView(trace_, expected, silent=["probation"]))))
    assert [span_["name"] for span_ in shown["spans"]] == ["police accepted", "police on scene"]
    (arrived,) = shown["arrivals"]
    assert (arrived["leg"], arrived["outcome"]) == ("police", "LATE")
    assert (int(arrived["since_us"]), int(arrived["due_us"]), int(arrived["met_us"])) == (2 * S, 100 * S, 130 * S)
    assert shown["legs_without_answer"] == ["probation"]
    unmet = incidents.trace_to_json(TraceView(trace_, [arrival(spans[0])]))["arrivals"][0]
    assert unmet["outcome"] == "OPEN" and "met_us" not in unmet
