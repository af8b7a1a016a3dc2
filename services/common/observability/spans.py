"""Spans of a trace for display: each below its parent, the leg that it is of, and the end of the response. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Protocol, TypeVar


class SpanLike(Protocol):
    """A span with its id and its parent's id."""

    @property
    def span_id(self) -> str:
        """Id of the span."""

    @property
    def parent_span_id(self) -> str:
        """Id of the parent span. Empty for a root."""


class TimedSpan(Protocol):
    """A span with its service, end and details."""

    @property
    def service(self) -> str:
        """Service that the span is of."""

    @property
    def end_us(self) -> int:
        """End, microseconds."""

    @property
    def attributes(self) -> Mapping[str, str]:
        """Details."""


class NamedSpan(SpanLike, Protocol):
    """A span with its name and end."""

    @property
    def name(self) -> str:
        """Name of what happened."""

    @property
    def service(self) -> str:
        """Service that the span is of."""

    @property
    def end_us(self) -> int:
        """End, microseconds."""


S = TypeVar("S", bound=SpanLike)
ESCALATED = "escalated"
"""Name of an escalation, after the leg's name."""
_AMENDED = "ACCOUNT_AMENDED"
_LEG_SERVICE = "dispatch-"


def leg_of(span: NamedSpan) -> str:
    """Returns the name of the leg that a span is of; empty for a span of another service."""
    return span.service.removeprefix(_LEG_SERVICE) if span.service.startswith(_LEG_SERVICE) else ""


def is_escalation(span: NamedSpan) -> bool:
    """Whether a span is a leg's escalation of an assignment."""
    return leg_of(span) != "" and span.name.partition(" ")[2] == ESCALATED


def last_step_us(spans: Iterable[TimedSpan]) -> int:
    """End of an incident's response: of its last step or alert, microseconds. A later amendment of its account doesn't count.

    An account may be amended hours after the response, by reports that were buffered. Bars to that scale would show nothing.
    """
    ends = [(_is_of_response(span), span.end_us) for span in spans]
    return max((end_us for of_response, end_us in ends if of_response), default=max(end_us for _, end_us in ends))


def _is_of_response(span: TimedSpan) -> bool:
    return span.service.startswith(_LEG_SERVICE) or span.attributes.get("kind", _AMENDED) != _AMENDED


def in_order(spans: Sequence[S], roots: Collection[str] = ("",)) -> list[tuple[S, int]]:
    """Orders spans depth-first and returns each with its depth. Siblings keep their order.

    A span whose parent's id is in `roots` has depth 0. Spans that no root leads to, including cycles, are left out.
    """
    children: dict[str, list[S]] = {}
    for span in spans:
        children.setdefault("" if span.parent_span_id in roots else span.parent_span_id, []).append(span)
    ordered: list[tuple[S, int]] = []
    waiting = [(root, 0) for root in reversed(children.get("", []))]
    while waiting:
        span, depth = waiting.pop()
        ordered.append((span, depth))
        waiting += [(child, depth + 1) for child in reversed(children.pop(span.span_id, []))]
    return ordered


def duration(us: int) -> str:
    """Formats a duration in microseconds for people: 4.8 ms, 2.01 s, 3725.1 s. A minus sign is kept."""
    if abs(us) < 999_950:  # else it would read 1000.0 ms
        return f"{us / 1000:.1f} ms"
    return f"{us / 1e6:.2f} s" if abs(us) < 1_000_000_000 else f"{us / 1e6:.1f} s"
