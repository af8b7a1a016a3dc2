"""The trace of an incident as rows of a tree with bars. Pure; times are wall clock, microseconds since 1970 UTC."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


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


USE = "ledger: "
"""How spans are called that say who saw personal data."""


def steps(spans: Sequence[Span], leg: str) -> list[Span]:
    """What one leg did, in the order in which it was done."""
    return sorted((one for one in spans if one.service == f"dispatch-{leg}"), key=lambda one: one.end_us)


def premises(spans: Sequence[Span], trace_id: str) -> list[Span]:
    """What the incident rests on and was there before: spans of other traces, such as how an order came into force."""
    return [one for one in spans if one.trace_id != trace_id]


def uses(spans: Sequence[Span]) -> list[Span]:
    """Who saw personal data for the incident's sake."""
    return [one for one in spans if one.name.startswith(USE)]


def rows(spans: Sequence[Span], trace_id: str) -> list[Row]:
    """The incident's own trace, each span under the one that led to it, by their beginning.

    Without `uses`, which may come years later.
    """
    own = [one for one in spans if one.trace_id == trace_id and not one.name.startswith(USE)]
    if not own:
        return []
    first, last = min(one.start_us for one in own), max(one.end_us for one in own)
    length = max(1, last - first)
    known = {one.span_id for one in own}
    children: dict[str, list[Span]] = {}
    for one in sorted(own, key=lambda one: (one.start_us, one.end_us)):
        parent = one.parent_span_id if one.parent_span_id in known else ""
        children.setdefault(parent, []).append(one)
    found: list[Row] = []
    seen: set[str] = set()
    waiting = [(one, 0) for one in reversed(children.get("", []))]
    while waiting:
        one, depth = waiting.pop()
        if one.span_id in seen:
            continue
        seen.add(one.span_id)
        orphan = bool(one.parent_span_id) and one.parent_span_id not in known
        left, width = (one.start_us - first) / length, (one.end_us - one.start_us) / length
        found.append(Row(one, depth, left, width, orphan))
        waiting.extend((child, depth + 1) for child in reversed(children.get(one.span_id, [])))
    return found
