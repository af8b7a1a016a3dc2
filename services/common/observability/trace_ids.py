"""Deterministic trace and span ids, and the headers that carry them. Pure.

Ids are hashes of the span's cause. So every process can derive a span's id by itself, and each span's parent exists.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import NamedTuple

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
