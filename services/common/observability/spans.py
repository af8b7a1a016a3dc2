"""Traces: deterministic ids of traces and spans, the headers that carry them, and spans for display. Pure.

Ids are hashes of the span's cause. So every process can derive a span's id by itself, and each span's parent exists.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol, TypeVar

# ── ids, and the headers that carry them ──────────────────────────────────────────────────────────────────────────────

TRACEPARENT = "traceparent"
"""Name of the W3C trace context in HTTP headers, call metadata and message headers: https://www.w3.org/TR/trace-context/."""
DECIDED_US = "Tandem-Decided-Us"
"""Header of an alert with the wall time at which its evaluator decided it, microseconds since 1970 UTC."""
ENTRY = "Tandem-Entry"
"""Header of an alert about the log entry that caused it, see `entry_header`."""
SENDERS = "Tandem-Senders"
"""Header of a log entry with the trace contexts of its senders, see `senders_header`."""
MAX_SENDERS = 32
"""Maximum number of contexts in the header SENDERS. An entry with more senders has no such header."""

_ENTRY_FORM = re.compile(r"([0-9]{1,16}) ([0-9]{1,9}) (\S+)")
_FORM = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_NO_CONTEXT = "-"


def trace_id_of(incident_id: str) -> str:
    """Trace id of an incident or of another record with an id, 32 hex digits."""
    return hashlib.blake2b(incident_id.encode(), digest_size=16, person=b"trace").hexdigest()


def span_id_of(incident_id: str, *what: str | int) -> str:
    """Span id of a part of an incident's trace, 16 hex digits. `what` names the part; without it, this is the root span's id."""
    digest = hashlib.blake2b(digest_size=8, person=b"span")
    for part in (incident_id, *what):
        text = str(part).encode()
        digest.update(len(text).to_bytes(4, "big") + text)
    return digest.hexdigest()


def traceparent(incident_id: str, *what: str | int) -> str:
    """W3C trace context header of a span. The sampled flag is set, because every trace is kept."""
    return f"00-{trace_id_of(incident_id)}-{span_id_of(incident_id, *what)}-01"


def parsed(header: str) -> tuple[str, str] | None:
    """Parses a W3C trace context header into trace id and span id. None if it isn't a valid header of version 00."""
    return (header[3:35], header[36:52]) if _FORM.fullmatch(header) else None


def senders_header(sent: Sequence[tuple[int, str]]) -> str:
    """Value of the header SENDERS: `<reports>:<traceparent>,...` in the order of the reports, with `-` for reports without a context.

    `sent` has the number of reports and the context of each sender. The value is empty if no sender has a context, or if there are
    more than MAX_SENDERS.
    """
    parts: list[str] = []
    count, context = 0, ""
    for reports, sender_context in sent:
        if sender_context == context:
            count += reports
            continue
        if count:
            parts.append(f"{count}:{context or _NO_CONTEXT}")
        count, context = reports, sender_context
    if not parts and not context:
        return ""
    parts.append(f"{count}:{context or _NO_CONTEXT}")
    return "" if len(parts) > MAX_SENDERS else ",".join(parts)


def sender_of(header: str, place: int) -> str:
    """Trace context of a log entry's report, by its index from 0. Empty if the report has none, or if the header is malformed."""
    for part in header.split(","):
        count, _, context = part.partition(":")
        if not count.isdecimal():
            return ""
        place -= int(count)
        if place < 0:
            return context if parsed(context) else ""
    return ""


class EntryTrace(NamedTuple):
    """The parts of a log entry that the trace of its alert shows."""

    stored_us: int
    """When the entry was durable, wall time, microseconds since 1970 UTC."""
    together: int
    """Number of reports in the entry, at least 1."""
    sender: str
    """Trace context of the sender of the report that caused the alert. Empty if it gave none."""


def entry_header(entry: EntryTrace) -> str:
    """Value of the header ENTRY: `<stored_us> <together> <traceparent>`, with `-` for a sender without a context."""
    return f"{entry.stored_us} {entry.together} {entry.sender or _NO_CONTEXT}"


def parsed_entry(header: str) -> EntryTrace | None:
    """Parses the header ENTRY. None if it is missing or malformed."""
    if not (found := _ENTRY_FORM.fullmatch(header)):
        return None
    stored_us, together, sender = found.groups()
    return EntryTrace(int(stored_us), max(int(together), 1), sender if parsed(sender) else "")


# ── spans for display ─────────────────────────────────────────────────────────────────────────────────────────────────


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
