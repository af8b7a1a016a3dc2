"""An incident's trace for a person: each span in its place, under the one that led to it, with a bar to scale."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Column, Table

from services.common import times
from services.common.observability.spans import duration, in_order
from tandem.registry.v1 import trace_pb2

WIDTH = 24
"""Of the bars, in characters."""
_TELLS = (
    "kind",
    "demand",
    "alert_id",
    "escalation_level",
    "escalation_reason",
    "record_kind",
    "purpose",
    "legal_basis",
    "who",
    "clock_behind_us",
)


def tables(trace: trace_pb2.GetTraceResponse) -> Iterator[Table]:
    """The waterfall, and the orders that it rests on."""
    mine = [span for span in trace.spans if span.trace_id == trace.trace_id]
    first_us, last_us = mine[0].start_us, max(one.end_us for one in mine)
    view = Table(
        Column("after", justify="right", no_wrap=True),
        Column("took", justify="right", no_wrap=True),
        Column("what", no_wrap=True),
        Column("by", no_wrap=True),
        Column("", no_wrap=True, width=WIDTH),
        Column("of it", overflow="fold"),
        Column("rests on", no_wrap=True),
        title_justify="left",
    )
    root = mine[0]
    exercise = root.attributes.get("exercise", "")
    of = f"{root.attributes['incident_id']}{', not in earnest: ' if exercise else ''}{exercise}"
    view.title = f"{of}, trace {trace.trace_id}\nfrom {_moment(first_us)}"
    for span, depth in in_order(mine):
        bar = _bar(span.start_us - first_us, span.end_us - first_us, last_us - first_us)
        view.add_row(
            duration(span.start_us - first_us),
            duration(span.end_us - span.start_us),
            "  " * depth + span.name,
            span.service,
            bar,
            ", ".join(span.attributes[key] for key in _TELLS if key in span.attributes),
            span.attributes.get("stored") or span.attributes.get("read", ""),
        )
    yield view
    others = [span for span in trace.spans if span.trace_id != trace.trace_id]
    if others:
        case_versions = Table(
            "order in force since", "decided by the registry", "case", "rests on", title_justify="left"
        )
        for one in others:
            case_versions.add_row(
                _moment(one.end_us), _moment(one.start_us), one.attributes["case_id"], one.attributes["stored"]
            )
        yield case_versions
    if trace.is_cut:
        cut = Table(show_header=False, box=None)
        cut.add_row("there is more than is shown")
        yield cut


def _bar(start_us: int, end_us: int, whole_us: int) -> str:
    whole_us = max(whole_us, 1)
    first = min(start_us * WIDTH // whole_us, WIDTH - 1)
    return " " * first + "█" * max((end_us - start_us) * WIDTH // whole_us, 1)


def _moment(us: int) -> str:
    return times.to_rfc3339(us // 1000)
