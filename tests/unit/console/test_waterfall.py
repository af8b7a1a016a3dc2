"""Rows of the waterfall on the review page: what was late, when it was due, escalations, and their scale."""

from __future__ import annotations

from services.common.observability.lateness import ExpectedTime, StepOutcome
from services.console.domain.waterfall import TraceSpan, rows

LATE = ExpectedTime(
    name="PERSON_ANSWERS",
    outcome=StepOutcome.LATE,
    leg="police",
    assignment_id="a",
    since_us=10,
    due_us=40,
    met_us=70,
    since_span_id="offer",
    met_span_id="accept",
    missed_span_ids=("escalation",),
)


def span(id_: str, name: str, start_us: int, end_us: int, parent: str = "root", **attributes: str) -> TraceSpan:
    service = f"dispatch-{name.split()[0]}" if name.split()[0] in ("police", "warning") else "geofence"
    return TraceSpan("t", id_, parent, service, name, start_us, end_us, attributes)


SPANS = [
    span("root", "incident opened", 0, 5, ""),
    span("alert", "alert", 0, 5, kind="RING_ENTERED"),
    span("offer", "police offered", 5, 10, "alert"),
    span("escalation", "police escalated", 10, 45, "offer"),
    span("accept", "police accepted", 45, 70, "offer"),
    span("second", "police offered", 70, 100, "alert"),
]


def test_a_late_step_its_escalation_and_its_offer_show_when_it_was_due() -> None:
    shown = {row.span.span_id: row for row in rows(SPANS, "t", [LATE])}
    assert {id_ for id_, row in shown.items() if row.late} == {"escalation", "accept"}
    late = shown["accept"].late
    assert late is not None and late.late_us == 30
    missed = shown["escalation"].late
    assert missed is not None and missed.met_us is None, "at the escalation it hadn't come yet"
    assert {id_ for id_, row in shown.items() if row.marks} == {"offer", "escalation", "accept"}
    assert [mark.at for mark in shown["offer"].marks] == [0.4]
    assert {id_ for id_, row in shown.items() if row.is_escalation} == {"escalation"}
    assert (shown["offer"].children, shown["offer"].parent_span_id, shown["root"].leg) == (2, "alert", "")


def test_an_account_that_is_amended_hours_later_does_not_stretch_the_scale() -> None:
    amended = span("amended", "alert", 3_600_000, 3_600_001, kind="ACCOUNT_AMENDED")
    known = {row.span.span_id: row for row in rows(SPANS, "t")}
    shown = {row.span.span_id: row for row in rows([*SPANS, amended], "t")}
    assert {id_: (row.left, row.width) for id_, row in shown.items() if id_ != "amended"} == {
        id_: (row.left, row.width) for id_, row in known.items()
    }
    assert 0.99 < shown["amended"].left <= 1 and shown["amended"].width == 0
    (alone,) = rows([span("only", "incident opened", 0, 5, "")], "t")
    assert (alone.left, alone.width) == (0.0, 1.0)
