"""Which span is whose, and how a header says so. Pure.

Ids are hashes of what the span is of, so every process can name a span without being told, and nobody's span hangs in the air.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

TRACEPARENT = "traceparent"
"""Name of the header, of the call metadata and of the message header: https://www.w3.org/TR/trace-context/."""
DECIDED_US = "Tandem-Decided-Us"
"""Header of an alert: when its evaluator had decided it, wall clock, microseconds since 1970 UTC."""
SENDERS = "Tandem-Senders"
"""Header of an entry of the log: the contexts in which its senders sent it, see `senders_header`."""
MAX_SENDERS = 32
"""Contexts in that header; a message of more senders names none of them."""

_FORM = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_NOBODY = "-"


def trace_id_of(incident_id: str) -> str:
    """Trace of an incident, or of whatever else has an id: 32 hex digits."""
    return hashlib.blake2b(incident_id.encode(), digest_size=16, person=b"trace").hexdigest()


def span_id_of(incident_id: str, *what: str | int) -> str:
    """Span of something in that trace, 16 hex digits; with nothing more said it is the root, which all others hang from."""
    digest = hashlib.blake2b(digest_size=8, person=b"span")
    for part in (incident_id, *what):
        text = str(part).encode()
        digest.update(len(text).to_bytes(4, "big") + text)
    return digest.hexdigest()


def traceparent(incident_id: str, *what: str | int) -> str:
    """The W3C header that names this span. Its trace is always kept, so the flag for that is set."""
    return f"00-{trace_id_of(incident_id)}-{span_id_of(incident_id, *what)}-01"


def parsed(header: str) -> tuple[str, str] | None:
    """Trace and span that a header names; None where it is no W3C header of version 00."""
    return (header[3:35], header[36:52]) if _FORM.fullmatch(header) else None


def senders_header(sent: Sequence[tuple[int, str]]) -> str:
    """What an entry says of its senders: `<reports>:<traceparent>,...` in the order of the reports, `-` for those without one.

    `sent` has the number of reports of each sender, and their context. Empty where there is nothing to say.
    """
    parts: list[str] = []
    count, context = 0, ""
    for more, its in sent:
        if its == context:
            count += more
            continue
        if count:
            parts.append(f"{count}:{context or _NOBODY}")
        count, context = more, its
    if not parts and not context:
        return ""
    parts.append(f"{count}:{context or _NOBODY}")
    return "" if len(parts) > MAX_SENDERS else ",".join(parts)


def sender_of(header: str, place: int) -> str:
    """The context of the report at this place of an entry, from 0; empty where it has none, or the header can't be read."""
    for part in header.split(","):
        count, _, context = part.partition(":")
        if not count.isdecimal():
            return ""
        place -= int(count)
        if place < 0:
            return context if parsed(context) else ""
    return ""
