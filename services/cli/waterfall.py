"""An incident's trace as a waterfall table: each span is placed under its parent, with a time bar to scale."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Column, Table

from services.common import times
from services.common.observability.spans import duration, in_order
from tandem.registry.v1 import trace_pb2

WIDTH = 24
"""Width of the bars, in characters."""
_SHOWN_ATTRIBUTES = (
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
    """The waterfall of an incident, and a table of the order versions on which the incident rests."""
    own_spans = [span for span in trace.spans if span.trace_id == trace.trace_id]
    first_us, last_us = own_spans[0].start_us, max(span.end_us for span in own_spans)
    view = Table(
        Column("after", justify="right", no_wrap=True),
        Column("took", justify="right", no_wrap=True),
        Column("what", no_wrap=True),
        Column("by", no_wrap=True),
        Column("", no_wrap=True, width=WIDTH),
        Column("details", overflow="fold"),
        Column("rests on", no_wrap=True),
        title_justify="left",
    )
    root = own_spans[0]
    exercise = root.attributes.get("exercise", "")
    incident = f"{root.attributes['incident_id']}{', exercise: ' if exercise else ''}{exercise}"
    view.title = f"{incident}, trace {trace.trace_id}\nfrom {_moment(first_us)}"
    for span, depth in in_order(own_spans):
        bar = _bar(span.start_us - first_us, span.end_us - first_us, last_us - first_us)
        view.add_row(
            duration(span.start_us - first_us),
            duration(span.end_us - span.start_us),
            "  " * depth + span.name,
            span.service,
            bar,
            ", ".join(span.attributes[key] for key in _SHOWN_ATTRIBUTES if key in span.attributes),
            span.attributes.get("stored") or span.attributes.get("read", ""),
        )
    yield view
    order_spans = [span for span in trace.spans if span.trace_id != trace.trace_id]
    if order_spans:
        case_versions = Table(
            "order in force since", "decided by the registry", "case", "rests on", title_justify="left"
        )
        for span in order_spans:
            case_versions.add_row(
                _moment(span.end_us), _moment(span.start_us), span.attributes["case_id"], span.attributes["stored"]
            )
        yield case_versions
    if trace.is_cut:
        cut = Table(show_header=False, box=None)
        cut.add_row("the trace is cut: it has more spans than are shown")
        yield cut


def _bar(start_us: int, end_us: int, whole_us: int) -> str:
    whole_us = max(whole_us, 1)
    first = min(start_us * WIDTH // whole_us, WIDTH - 1)
    return " " * first + "█" * max((end_us - start_us) * WIDTH // whole_us, 1)


def _moment(us: int) -> str:
    return times.to_rfc3339(us // 1000)
