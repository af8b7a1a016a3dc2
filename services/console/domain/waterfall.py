"""Trace of an incident as a waterfall: rows of a tree with bars. Pure; times are wall clock, microseconds since 1970 UTC."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from services.common.observability.spans import in_order


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

    @property
    def name_keys(self) -> tuple[str, ...]:
        """Keys of the texts that name the span: its name, or a leg and the leg's step."""
        leg, _, _ = self.name.partition(" ")
        return (leg, step_name(self)) if self.service == f"dispatch-{leg}" else (self.name,)


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


def rows(spans: Sequence[TraceSpan], trace_id: str) -> list[Row]:
    """Returns the rows of the incident's own trace, each span below its parent, by start time.

    `uses` are left out, as they may come years later.
    """
    own = [span for span in spans if span.trace_id == trace_id and not span.name.startswith(USE)]
    if not own:
        return []
    first, last = min(span.start_us for span in own), max(span.end_us for span in own)
    length = max(1, last - first)
    known = {span.span_id for span in own}
    ordered = sorted(own, key=lambda span: (span.start_us, span.end_us))
    roots = {span.parent_span_id for span in own} - known
    return [
        Row(
            span=span,
            depth=depth,
            left=(span.start_us - first) / length,
            width=(span.end_us - span.start_us) / length,
            orphan=bool(span.parent_span_id) and span.parent_span_id not in known,
        )
        for span, depth in in_order(ordered, roots)
    ]
