"""An incident's trace as a waterfall: each span is placed under its parent, with a time bar to scale and the times that were due."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from rich.console import Console, RenderableType
from rich.table import Column, Table
from rich.text import Text

from services.cli.terminal import fits, fitted, printable, styled
from services.common import times
from services.common.observability.lateness import ExpectedTime, StepOutcome, late_spans
from services.common.observability.spans import duration, in_order, last_step_us
from tandem.registry.v1 import expected_time_pb2, trace_pb2

WIDTH, NARROW = 24, 10
"""Width of the bars in the table and in the lines, in characters."""
NAME_INDENT = 42
"""Width of the columns before the name in a line, in characters."""
DECISION = "decision"
"""Name of the part of a trace that belongs to no leg: reports, evaluations, alerts and uses of data."""
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
_EXPECTED = {
    "MACHINE_RECEIVES": "received by the machine",
    "PERSON_ANSWERS": "answered by a person",
    "UNIT_DISPATCHED": "unit dispatched",
    "PERSON_WARNED": "warning delivered",
    "WARNING_RECEIVED": "receipt of the warning",
    "OTHER_LEG_ACTS": "step of the other leg",
    "UNIT_ARRIVES": "arrival on the scene",
}
_OUTCOMES = {
    StepOutcome.OPEN: "awaited",
    StepOutcome.IN_TIME: "in time",
    StepOutcome.MISSED: "DID NOT COME",
    StepOutcome.LIFTED: "not needed any more",
}


@dataclass(frozen=True, slots=True)
class TraceView:
    """A trace with what is known about its times."""

    trace: trace_pb2.GetTraceResponse
    expected: Sequence[ExpectedTime] = ()
    like: expected_time_pb2.CompareTraceResponse = field(default_factory=expected_time_pb2.CompareTraceResponse)
    silent: Sequence[str] = ()
    """Legs that don't answer, so that the arrivals of their units aren't known."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Part of a trace to show."""

    legs: Collection[str] = ()
    """Legs to show, or DECISION; all if empty."""
    late_only: bool = False
    depth: int | None = None
    """Number of levels to show below the root; the others are folded and counted. None for all."""
    from_s: float = 0.0
    until_s: float | None = None
    """Time to show, seconds after the start of the incident; None for the whole time."""
    details: bool = False
    """Show ids and messages even where that takes more lines."""


@dataclass(frozen=True, slots=True)
class _Row:
    span: trace_pb2.Span
    depth: int
    folded: int
    """Number of spans below it that aren't shown."""
    late: ExpectedTime | None
    dues: Sequence[ExpectedTime]
    """Expected times that begin or end with the span."""
    median_us: int | None


@dataclass(frozen=True, slots=True)
class _Scale:
    """Time that the bars cover, wall clock, microseconds since 1970 UTC."""

    start_us: int
    """Start of the incident."""
    from_us: int
    until_us: int

    def bar(self, row: _Row, width: int) -> str:
        """The bar of a span, with `|` where a step was due, and `!` where that step didn't come in time."""
        whole_us = max(self.until_us - self.from_us, 1)

        def at(us: int) -> int:
            return min(max(us - self.from_us, 0) * width // whole_us, width - 1)

        cells = [" "] * width
        for n in range(at(row.span.start_us), at(max(row.span.start_us, row.span.end_us - 1)) + 1):
            cells[n] = "█"
        for expected in row.dues:
            if self.from_us <= expected.due_us <= self.until_us:
                cells[at(expected.due_us)] = "!" if expected.is_late else "|"
        return "".join(cells)

    def after(self, us: int) -> str:
        """A time as a duration after the start of the incident."""
        return duration(us - self.start_us)


def views(shown: TraceView, console: Console, selection: Selection | None = None) -> Iterator[RenderableType]:
    """The expected times of an incident, its waterfall, and a table of the order versions on which the incident rests.

    On a console that is too narrow for the table of the waterfall, each span is a line.
    """
    selection = selection or Selection()
    trace = shown.trace
    own_spans = [span for span in trace.spans if span.trace_id == trace.trace_id]
    root = own_spans[0]
    exercise = root.attributes.get("exercise", "")
    yield f"{root.attributes['incident_id']}{', exercise: ' if exercise else ''}{exercise}"
    yield f"trace {trace.trace_id}, from {_moment(root.start_us)}"
    yield from _expected(shown.expected, selection)
    for leg in shown.silent:
        yield f"the {leg} leg doesn't answer: when its units should have arrived isn't shown"
    scale = _scale(own_spans, selection)
    rows = list(_rows(shown, own_spans, selection, scale=scale))
    if not rows:
        yield "no step of the trace is in this selection"
    elif fits(console, table := _table(rows, scale)):
        yield table
    else:
        yield from _lines(rows, scale, width=console.width, details=selection.details)
    if shown.like.incidents:
        yield f"median: of the newest {shown.like.incidents} incidents with the same kind of alert"
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


def _expected(expected_times: Sequence[ExpectedTime], selection: Selection) -> Iterator[Text]:
    """A line for each expected time: the step, its time limit, when it came, and the result in words."""
    shown = [
        expected
        for expected in expected_times
        if (not selection.legs or expected.leg in selection.legs) and (expected.is_late or not selection.late_only)
    ]
    if not shown:
        return
    yield styled((f"{'expected':<37} {'within':>9} {'came after':>10}  result", "bold"))
    for expected in shown:
        name = f"{expected.leg}: {_EXPECTED.get(expected.name, expected.name)}"
        came = "-" if expected.met_us is None else duration(expected.met_us - expected.since_us)
        line = f"{name:<37} {duration(expected.due_us - expected.since_us):>9} {came:>10}  "
        style = "bold red" if expected.is_late else "green" if expected.outcome is StepOutcome.IN_TIME else "dim"
        yield styled(line, (_result(expected), style))


def _result(expected: ExpectedTime) -> str:
    return f"{duration(expected.late_us)} LATE" if expected.outcome is StepOutcome.LATE else _OUTCOMES[expected.outcome]


def _scale(spans: Sequence[trace_pb2.Span], selection: Selection) -> _Scale:
    start_us, last_us = spans[0].start_us, last_step_us(spans)
    until_us = last_us if selection.until_s is None else start_us + round(selection.until_s * 1e6)
    return _Scale(start_us, start_us + round(selection.from_s * 1e6), until_us)


def _rows(shown: TraceView, spans: Sequence[trace_pb2.Span], selection: Selection, *, scale: _Scale) -> Iterator[_Row]:
    late, medians = late_spans(shown.expected), {time.name: time.median_us for time in shown.like.times}
    dues: dict[str, list[ExpectedTime]] = {}
    for expected in shown.expected:
        for span_id in dict.fromkeys((expected.since_span_id, *expected.missed_span_ids, expected.met_span_id)):
            dues.setdefault(span_id, []).append(expected)
    earliest = {span.name: span.span_id for span in sorted(spans, key=lambda span: span.end_us, reverse=True)}
    ordered = in_order(spans)
    for n, (span, depth) in enumerate(ordered):
        if not _is_selected(span, depth, selection, scale=scale, late=late):
            continue
        yield _Row(
            span=span,
            depth=depth,
            folded=_below(ordered, n) if depth == selection.depth else 0,
            late=late.get(span.span_id),
            dues=dues.get(span.span_id, ()),
            median_us=medians.get(span.name) if earliest[span.name] == span.span_id else None,
        )


def _is_selected(
    span: trace_pb2.Span, depth: int, selection: Selection, *, scale: _Scale, late: Mapping[str, ExpectedTime]
) -> bool:
    leg = span.service.removeprefix("dispatch-") if span.service.startswith("dispatch-") else DECISION
    if selection.legs and leg not in selection.legs:
        return False
    if selection.late_only and span.span_id not in late:
        return False
    if selection.depth is not None and depth > selection.depth:
        return False
    if selection.until_s is not None and span.start_us > scale.until_us:
        return False
    return span.end_us >= scale.from_us


def _below(ordered: Sequence[tuple[trace_pb2.Span, int]], n: int) -> int:
    """Number of spans below the n-th."""
    depth, count = ordered[n][1], 0
    for _, below in ordered[n + 1 :]:
        if below <= depth:
            break
        count += 1
    return count


def _table(rows: Sequence[_Row], scale: _Scale) -> Table:
    view = Table(
        Column("after", justify="right", no_wrap=True),
        Column("took", justify="right", no_wrap=True),
        Column("median", justify="right", no_wrap=True),
        Column("what", no_wrap=True),
        Column("by", no_wrap=True),
        Column("", no_wrap=True, width=WIDTH),
        "details",
        Column("rests on", no_wrap=True),
    )
    for row in rows:
        span = row.span
        view.add_row(
            scale.after(span.start_us),
            duration(span.end_us - span.start_us),
            _median(row),
            Text.assemble("  " * row.depth, _name(row), _late(row)),
            span.service,
            scale.bar(row, WIDTH),
            ", ".join(_details(span)),
            _rests_on(span),
        )
    return view


def _lines(rows: Sequence[_Row], scale: _Scale, *, width: int, details: bool) -> Iterator[Text]:
    """A line for each span; below it what was late, why it was escalated, and if asked for its details, broken between words only."""
    yield styled((f"{'after':>9} {'took':>9} {'median':>9} {'':{NARROW}}  what", "bold"))
    for row in rows:
        span = row.span
        columns = f"{scale.after(span.start_us):>9} {duration(span.end_us - span.start_us):>9} {_median(row):>9}"
        yield Text.assemble(f"{columns} {scale.bar(row, NARROW)}  {' ' * row.depth}", _name(row), end="")
        if words := _late(row).plain.strip():
            yield from _wrapped(words, row, width, style="bold red")
        if details:
            # Only values are broken, never an id: a value that is too long for the line is a line by itself.
            rests_on = [f"rests on {_rests_on(span)}"] if _rests_on(span) else []
            yield from _wrapped(", ".join([f"by {span.service}", *_details(span), *rests_on]), row, width, style="dim")
        elif _is_escalation(span):
            reason = span.attributes.get("escalation_reason", "").lower().replace("_", " ")
            level = span.attributes.get("escalation_level", "").lower().replace("_", " ")
            if words := " -> ".join(part for part in (reason, level) if part):
                yield from _wrapped(words, row, width, style="dim")


def _wrapped(text: str, row: _Row, width: int, *, style: str) -> Iterator[Text]:
    indent = " " * min(NAME_INDENT + row.depth, width // 2)
    for line in textwrap.wrap(
        printable(text),
        max(width, len(indent) + 24),
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    ):
        yield styled((line, style))


def _name(row: _Row) -> Text:
    """The name of a span, with the kind of an alert, and the number of spans that are folded below it."""
    kind = f" {row.span.attributes['kind']}" if "kind" in row.span.attributes else ""
    folded = f" (+{row.folded} below)" if row.folded else ""
    style = "bold red" if _is_escalation(row.span) or row.late else "bold"
    return styled((row.span.name, style), kind, (folded, "dim"))


def _late(row: _Row) -> Text:
    expected = row.late
    if expected is None:
        return Text("")
    name = _EXPECTED.get(expected.name, expected.name)
    if expected.met_us is None:
        return styled("  ", (f"{name}: NOT WITHIN {duration(expected.due_us - expected.since_us)}", "bold red"))
    return styled("  ", (f"{name}: {duration(expected.late_us)} LATE", "bold red"))


def _is_escalation(span: trace_pb2.Span) -> bool:
    return span.service.startswith("dispatch-") and span.name.endswith(" escalated")


def _median(row: _Row) -> str:
    return "" if row.median_us is None else duration(row.median_us)


def _details(span: trace_pb2.Span) -> list[str]:
    return [span.attributes[key] for key in _SHOWN_ATTRIBUTES if key in span.attributes]


def _rests_on(span: trace_pb2.Span) -> str:
    return span.attributes.get("stored") or span.attributes.get("read", "")


def _moment(us: int) -> str:
    return times.to_rfc3339(us // 1000)
