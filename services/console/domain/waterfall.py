"""The trace of an incident as rows of a tree with bars. Pure; times are wall clock, microseconds since 1970 UTC."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from services.common.observability.spans import in_order


@dataclass(frozen=True, slots=True)
class Span:
    """Something that took time."""

    trace_id: str
    span_id: str
    parent_span_id: str
    service: str
    name: str
    start_us: int
    end_us: int
    attributes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the waterfall."""

    span: Span
    depth: int
    """How many spans stand above it."""
    left: float
    """Where its bar begins, 0 to 1."""
    width: float
    """How long its bar is, 0 to 1."""
    orphan: bool
    """The span that led to it isn't there."""


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
"""Which state a step of a leg led to, by what the trace calls it behind the leg's name."""
STEP_NAMES = {
    **STATES,
    "delivered": "step_delivered",
    "accepted": "step_accepted",
    "received by the desk": "received",
    "noted": "step_noted",
}
"""Which key of the texts has the words for a step, by what the trace calls it; other steps are shown by the trace's own words."""
USE = "ledger: "
"""How spans are called that say who saw personal data."""


def steps(spans: Sequence[Span], leg: str) -> list[Span]:
    """What one leg did, in the order in which it was done."""
    return sorted((span for span in spans if span.service == f"dispatch-{leg}"), key=lambda span: span.end_us)


def step_name(span: Span) -> str:
    """Key of the texts for what a leg's step did, or the trace's own words where the texts have none."""
    says = span.name.partition(" ")[2]
    return STEP_NAMES.get(says, says)


def moves(spans: Sequence[Span]) -> dict[str, list[tuple[int, str]]]:
    """By assignment: when it came into which state, in order, as far as the trace shows it to who looks."""
    found: dict[str, list[tuple[int, str]]] = {}
    for one in sorted(spans, key=lambda span: span.end_us):
        leg, _, says = one.name.partition(" ")
        if says in STATES and one.service == f"dispatch-{leg}":
            found.setdefault(one.attributes.get("assignment_id", ""), []).append((one.end_us, STATES[says]))
    return found


def case_versions(spans: Sequence[Span], trace_id: str) -> list[Span]:
    """What the incident rests on and was there before: spans of other traces, such as how an order came into force."""
    return [span for span in spans if span.trace_id != trace_id]


def uses(spans: Sequence[Span]) -> list[Span]:
    """Who saw personal data for the incident's sake."""
    return [span for span in spans if span.name.startswith(USE)]


def rows(spans: Sequence[Span], trace_id: str) -> list[Row]:
    """The incident's own trace, each span under the one that led to it, by their beginning.

    Without `uses`, which may come years later.
    """
    own = [span for span in spans if span.trace_id == trace_id and not span.name.startswith(USE)]
    if not own:
        return []
    first, last = min(one.start_us for one in own), max(one.end_us for one in own)
    length = max(1, last - first)
    known = {one.span_id for one in own}
    ordered = sorted(own, key=lambda one: (one.start_us, one.end_us))
    roots = {one.parent_span_id for one in own} - known
    return [
        Row(
            one,
            depth,
            (one.start_us - first) / length,
            (one.end_us - one.start_us) / length,
            orphan=bool(one.parent_span_id) and one.parent_span_id not in known,
        )
        for one, depth in in_order(ordered, roots)
    ]
