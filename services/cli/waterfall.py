"""An incident's trace as a waterfall: each span is placed under its parent, with a time bar to scale."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from rich.console import Console, RenderableType
from rich.table import Column, Table
from rich.text import Text

from services.cli.terminal import fits, fitted, printable, styled
from services.common import times
from services.common.observability.spans import duration, in_order
from tandem.registry.v1 import trace_pb2

WIDTH, NARROW = 24, 10
"""Width of the bars in the table and in the lines, in characters."""
DETAILS_INDENT = 24
"""Indent of the details below a line, in characters."""
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


def views(trace: trace_pb2.GetTraceResponse, console: Console) -> Iterator[RenderableType]:
    """The waterfall of an incident, and a table of the order versions on which the incident rests.

    On a console that is too narrow for the table of the waterfall, each span is a line, with its details below it.
    """
    own_spans = [span for span in trace.spans if span.trace_id == trace.trace_id]
    root = own_spans[0]
    exercise = root.attributes.get("exercise", "")
    yield f"{root.attributes['incident_id']}{', exercise: ' if exercise else ''}{exercise}"
    yield f"trace {trace.trace_id}, from {_moment(root.start_us)}"
    table = _table(own_spans)
    if fits(console, table):
        yield table
    else:
        yield from _lines(own_spans, console.width)
    order_spans = [span for span in trace.spans if span.trace_id != trace.trace_id]
    if order_spans:
        case_versions = Table("order in force since", "decided by the registry", "case", "rests on")
        for span in order_spans:
            case_versions.add_row(
                _moment(span.end_us), _moment(span.start_us), span.attributes["case_id"], span.attributes["stored"]
            )
        yield fitted(console, case_versions)
    if trace.is_cut:
        yield "the trace is cut: it has more spans than are shown"


def _table(spans: Sequence[trace_pb2.Span]) -> Table:
    view = Table(
        Column("after", justify="right", no_wrap=True),
        Column("took", justify="right", no_wrap=True),
        Column("what", no_wrap=True),
        Column("by", no_wrap=True),
        Column("", no_wrap=True, width=WIDTH),
        "details",
        Column("rests on", no_wrap=True),
    )
    first_us, last_us = spans[0].start_us, max(span.end_us for span in spans)
    for span, depth in in_order(spans):
        bar = _bar(span.start_us - first_us, span.end_us - first_us, last_us - first_us, width=WIDTH)
        view.add_row(
            duration(span.start_us - first_us),
            duration(span.end_us - span.start_us),
            "  " * depth + span.name,
            span.service,
            bar,
            ", ".join(_details(span)),
            _rests_on(span),
        )
    return view


def _lines(spans: Sequence[trace_pb2.Span], width: int) -> Iterator[Text]:
    """A line for each span, and its details below it, broken between words only."""
    first_us, last_us = spans[0].start_us, max(span.end_us for span in spans)
    yield styled((f"{'after':>9} {'took':>9}  {'':{NARROW}} what", "bold"))
    for span, depth in in_order(spans):
        bar = _bar(span.start_us - first_us, span.end_us - first_us, last_us - first_us, width=NARROW)
        after, took = duration(span.start_us - first_us), duration(span.end_us - span.start_us)
        yield styled(f"{after:>9} {took:>9}  {bar:{NARROW}} {'  ' * depth}", (span.name, "bold"))
        indent = " " * (DETAILS_INDENT + 2 * depth)
        # Only values are broken, never an id: a value that is too long for the line is a line by itself.
        rests_on = [f"rests on {_rests_on(span)}"] if _rests_on(span) else []
        text = ", ".join([f"by {span.service}", *_details(span), *rests_on])
        for line in textwrap.wrap(
            printable(text),
            max(width, 2 * DETAILS_INDENT),
            initial_indent=indent,
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
        ):
            yield styled((line, "dim"))


def _details(span: trace_pb2.Span) -> list[str]:
    return [span.attributes[key] for key in _SHOWN_ATTRIBUTES if key in span.attributes]


def _rests_on(span: trace_pb2.Span) -> str:
    return span.attributes.get("stored") or span.attributes.get("read", "")


def _bar(start_us: int, end_us: int, whole_us: int, *, width: int) -> str:
    whole_us = max(whole_us, 1)
    first = min(start_us * width // whole_us, width - 1)
    return " " * first + "█" * max((end_us - start_us) * width // whole_us, 1)


def _moment(us: int) -> str:
    return times.to_rfc3339(us // 1000)
