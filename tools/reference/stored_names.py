"""Reference of the names that are stored: streams and subjects, buckets, kinds of events in the legs' chains, tables of databases."""

from __future__ import annotations

from services.common.messaging import flow
from services.dispatch.domain.events import EVENTS
from tools.reference.markdown import code, codes, page, table
from tools.reference.sources import called, calls, service_of, text_of


def _duration(seconds: int) -> str:
    if not seconds:
        return "for ever"
    return f"{seconds // flow.DAY_S} d" if seconds >= flow.DAY_S else f"{seconds // 60} min"


def _size(count: int) -> str:
    return f"{count / flow.GIB:g} GiB" if count >= flow.GIB else f"{count / (1 << 20):g} MiB"


def _tables() -> list[tuple[str, str, str]]:
    """Service, name and module of each database table, but for those whose names are computed."""
    found = []
    for path, call in calls():
        name = text_of(call.args[0]) if call.args else None
        if called(call) in ("Table", "_table") and name and path.parts[1] not in ("cli", "console") and " " not in name:
            found.append((service_of(path), code(name), code(str(path))))
    return sorted(found)


def render() -> str:
    """The page."""
    streams = [
        (code(stream.name), codes(stream.subjects), _duration(stream.max_age_s), _size(stream.max_bytes),
         "drops its oldest" if stream.discards_oldest else "refuses new messages")
        for stream in flow.STREAMS
    ]  # fmt: skip
    flows = [
        (
            code(row.subject),
            row.message_type,
            row.stream,
            ", ".join(row.publishers),
            ", ".join(row.readers) or "nobody",
            row.durable,
        )
        for row in (*flow.FLOWS, flow.ROUTES)
    ]
    events = [
        (
            code(kind.stored_name),
            code(f"assignment_{kind.log_name}") if kind.log_name else "by its new state",
            "yes" if kind.alarms else "",
        )
        for kind in EVENTS.values()
    ]
    return page(
        "Stored names",
        "What streams, databases and evidence bundles are named after. None of it may be renamed without a migration: old data bear "
        "the old names.",
        "## Streams\n",
        table(("stream", "subjects", "kept", "at most", "when full"), streams),
        "## Subjects\n",
        "Users of the NATS server; a user may do nothing that stands in no row.\n",
        table(("subject", "message", "stream", "published by", "read by", "durable"), flows),
        "## Events of a leg's chain\n",
        "A leg stores and hashes each event under its name.\n",
        table(("stored name", "log event", "alarm"), events),
        "## Tables\n",
        table(("service", "table", "defined in"), _tables()),
    )
