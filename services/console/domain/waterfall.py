"""Trace of an incident as a waterfall: rows of a tree with bars. Pure; times are wall clock, microseconds since 1970 UTC."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from services.common.observability.lateness import ExpectedTime, late_spans
from services.common.observability.spans import in_order, last_step_us


@dataclass(frozen=True, slots=True)
class TraceSpan:
    """Span of a trace."""

    trace_id: str
    span_id: str
    parent_span_id: str
    service: str
    name: str
    start_us: int
    end_us: int
    attributes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TypicalTime:
    """Median time of a step in like incidents, from the start of the incident, microseconds."""

    median_us: int
    incidents: int
    """Number of like incidents that have such a step."""


@dataclass(frozen=True, slots=True)
class DueMark:
    """Place of an expected time on the waterfall."""

    at: float
    """0 to 1, as for bars."""
    expected: ExpectedTime


@dataclass(frozen=True, slots=True)
class Row:
    """Row of the waterfall."""

    span: TraceSpan
    depth: int
    """Number of the span's ancestors."""
    left: float
    """Start of the bar, 0 to 1."""
    width: float
    """Length of the bar, 0 to 1."""
    orphan: bool
    """Whether the parent span is missing."""
    parent_span_id: str = ""
    """Id of the row's parent among the rows; empty for a root."""
    children: int = 0
    """Number of rows directly below this one."""
    late: ExpectedTime | None = None
    """The expected time that the span shows as missed or too late; None if it shows none."""
    marks: tuple[DueMark, ...] = ()
    """When steps that begin or end with this span were due."""
    is_escalation: bool = False
    typical: TypicalTime | None = None
    """Median time of like incidents; None where the incident has an earlier span of this name, or no like incident has one."""

    @property
    def leg(self) -> str:
        """Name of the span's leg; empty for a service that is no leg."""
        return leg_of(self.span)


ESCALATED = "escalated"
"""Name of an escalation, after the leg's name."""
STATES = {
    "told": "NOTIFIED",
    "offered": "OFFERED",
    "escalated": "ESCALATED",
    "accepted": "ACKNOWLEDGED",
    "delivered": "ACKNOWLEDGED",
    "stood down": "STOOD_DOWN",
    "dispatched": "DISPATCHED",
    "on the way": "EN_ROUTE",
    "on scene": "ON_SCENE",
    "has the wearer": "APPREHENDED",
    "closed": "CLOSED",
    "nobody available": "NOBODY_AVAILABLE",
    "rejected": "REJECTED",
}
"""State after a leg's step. The key is the rest of the span's name after the leg's name."""
STEP_NAMES = {
    **STATES,
    "delivered": "step_delivered",
    "accepted": "step_accepted",
    "received by the desk": "received",
    "noted": "step_noted",
}
"""Key of the texts for a leg's step. The key here is the rest of the span's name after the leg's name.

Pages show any other step by that rest."""
_END = 0.999
"""Place of a bar that begins after the last step, 0 to 1."""
USE = "ledger: "
"""Prefix of the names of spans that record a disclosure of personal data."""


def steps(spans: Sequence[TraceSpan], leg: str) -> list[TraceSpan]:
    """Returns the steps of one leg, in the order of their ends."""
    return sorted((span for span in spans if span.service == f"dispatch-{leg}"), key=lambda span: span.end_us)


def step_name(span: TraceSpan) -> str:
    """Returns the key of the texts for a leg's step, or the step's name in the trace if the texts have no such key."""
    step = span.name.partition(" ")[2]
    return STEP_NAMES.get(step, step)


def moves(spans: Sequence[TraceSpan]) -> dict[str, list[tuple[int, str]]]:
    """Returns the states of each assignment with their times, in order, as far as the trace shows them to the user."""
    states: dict[str, list[tuple[int, str]]] = {}
    for span in sorted(spans, key=lambda span: span.end_us):
        leg, _, step = span.name.partition(" ")
        if step in STATES and span.service == f"dispatch-{leg}":
            states.setdefault(span.attributes.get("assignment_id", ""), []).append((span.end_us, STATES[step]))
    return states


def case_versions(spans: Sequence[TraceSpan], trace_id: str) -> list[TraceSpan]:
    """Returns the spans of other traces on which the incident depends, such as the entry of an order into force."""
    return [span for span in spans if span.trace_id != trace_id]


def uses(spans: Sequence[TraceSpan]) -> list[TraceSpan]:
    """Returns the disclosures of personal data in the incident."""
    return [span for span in spans if span.name.startswith(USE)]


def leg_of(span: TraceSpan) -> str:
    """Returns the name of the leg that a span is of; empty for a span of another service."""
    return span.service.removeprefix("dispatch-") if span.service.startswith("dispatch-") else ""


def rows(
    spans: Sequence[TraceSpan],
    trace_id: str,
    expected_times: Sequence[ExpectedTime] = (),
    *,
    typical: Mapping[str, TypicalTime] | None = None,
) -> list[Row]:
    """Returns the rows of the incident's own trace, each span below its parent, by start time.

    `uses` are left out, as they may come years later. `typical` has the median times by the name of a span.
    """
    own = [span for span in spans if span.trace_id == trace_id and not span.name.startswith(USE)]
    if not own:
        return []
    first, last = min(span.start_us for span in own), last_step_us(own)
    length = max(1, last - first)
    known = {span.span_id for span in own}
    ordered = sorted(own, key=lambda span: (span.start_us, span.end_us))
    roots = {span.parent_span_id for span in own} - known
    children = Counter(span.parent_span_id for span in own)
    late, marked = late_spans(expected_times), _marked(expected_times)
    earliest = {span.name: span.span_id for span in sorted(own, key=lambda span: span.end_us, reverse=True)}
    return [
        Row(
            span=span,
            depth=depth,
            left=min((span.start_us - first) / length, _END),
            width=(min(span.end_us, last) - span.start_us) / length if span.start_us < last else 0.0,
            orphan=bool(span.parent_span_id) and span.parent_span_id not in known,
            parent_span_id=span.parent_span_id if span.parent_span_id in known else "",
            children=children[span.span_id],
            late=late.get(span.span_id),
            is_escalation=leg_of(span) != "" and span.name.partition(" ")[2] == ESCALATED,
            marks=tuple(
                DueMark((expected.due_us - first) / length, expected)
                for expected in marked.get(span.span_id, ())
                if first <= expected.due_us <= last
            ),
            typical=(typical or {}).get(span.name) if earliest[span.name] == span.span_id else None,
        )
        for span, depth in in_order(ordered, roots)
    ]


def _marked(expected_times: Sequence[ExpectedTime]) -> dict[str, list[ExpectedTime]]:
    """The expected times by the ids of the spans that they begin or end with."""
    marked: dict[str, list[ExpectedTime]] = {}
    for expected in expected_times:
        for span_id in dict.fromkeys((expected.since_span_id, *expected.missed_span_ids, expected.met_span_id)):
            if span_id:
                marked.setdefault(span_id, []).append(expected)
    return marked
