"""`tandem incidents` and `tandem trace`: the outcomes of incidents, and the trace of one as a waterfall.

Each span is placed under its parent, with a time bar to scale and the times that were due.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

import typer
import uvloop
from google.protobuf import json_format
from rich.console import Console, RenderableType
from rich.table import Column, Table
from rich.text import Text

from services.cli import usage
from services.cli.terminal import fits, fitted, for_results, styled
from services.client import mesh, outcome
from services.client.actors import REVIEWER
from services.client.calls import call
from services.client.mesh import DEFAULT_FOLDER, Clients, MeshConnection
from services.client.outcome import IncidentOutcome, moment_text
from services.common import times
from services.common.clock import wall_us
from services.common.failure import FAILED, CommandFailed, printable
from services.common.observability.expected_times import expected_times
from services.common.observability.lateness import ARRIVES, ExpectedTime, StepOutcome, TraceRow, trace_rows
from services.common.observability.spans import duration, is_escalation, last_step_us, leg_of
from tandem.dispatch.v1 import dispatch_pb2
from tandem.registry.v1 import trace_pb2

DECISION = "decision"
"""Name of the part of a trace that belongs to no leg: reports, evaluations, alerts and uses of data."""


def incidents(
    folder: usage.MeshFolder = DEFAULT_FOLDER,
    only_open: Annotated[bool, typer.Option("--open", help="Only those that haven't ended in each leg.")] = False,
    as_json: usage.AsJson = False,
) -> None:
    """List incidents with both legs side by side. A leg that doesn't answer within 5 s is left out and named: exit code 1."""
    listed, silent = uvloop.run(_read_incidents(mesh.load(folder)))
    if only_open:
        listed = [incident for incident in listed if incident.is_open]
    if as_json:
        rows = [incident.to_json() for incident in listed]
        print(json.dumps({"incidents": rows, "legs_without_answer": silent}))
    elif listed:
        console = for_results()
        for table in outcome_tables(listed):
            console.print(fitted(console, table))
    else:
        print("no open incidents" if only_open else "no incidents")
    if silent:
        raise CommandFailed(f"no answer from {', '.join(silent)}: its part is missing above; telephone its desk")


async def _read_incidents(running: MeshConnection) -> tuple[list[outcome.IncidentOutcome], list[str]]:
    async with mesh.connect(running) as clients:
        return await outcome.read_answering(clients)


class TracePart(StrEnum):
    """Part of a trace that `--part` shows: the decision, or one leg."""

    DECISION = DECISION
    PROBATION = "probation"
    POLICE = "police"
    WARNING = "warning"


def trace(
    incident_id: Annotated[
        str, typer.Argument(metavar="[INCIDENT]", help="Id of the incident; default: the newest.")
    ] = "",
    folder: usage.MeshFolder = DEFAULT_FOLDER,
    *,
    part: Annotated[
        list[TracePart] | None, typer.Option(help="Show only this part; may be given several times.")
    ] = None,
    late: Annotated[bool, typer.Option("--late", help="Show only steps that came too late, or not at all.")] = False,
    depth: Annotated[int | None, typer.Option(help="Fold the steps below this level; 0 is the root.", min=0)] = None,
    from_s: Annotated[float, typer.Option(help="Show the time from here on, seconds after the start.", min=0)] = 0.0,
    until_s: Annotated[float | None, typer.Option(help="Show the time until here, seconds after the start.")] = None,
    wide: Annotated[bool, typer.Option("--wide", help="Show ids and messages on a narrow terminal too.")] = False,
    as_json: usage.AsJson = False,
) -> None:
    """Show an incident's trace, from the deciding report to the answers of both legs, and what was late."""
    if incident_id:
        usage.required_id("INCIDENT", incident_id)
    if until_s is not None and until_s <= from_s:
        raise typer.BadParameter(
            "must be greater than --from-s (example: --from-s 5 --until-s 20)", param_hint="--until-s"
        )
    shown = uvloop.run(_read_trace(mesh.load(folder), incident_id))
    if as_json:
        print(json.dumps(trace_to_json(shown), ensure_ascii=False))
        return
    console = for_results()
    selection = Selection(
        legs=[shown_part.value for shown_part in part or ()],
        late_only=late,
        depth=depth,
        from_s=from_s,
        until_s=until_s,
        details=wide,
    )
    console.print(*trace_views(shown, console, selection), sep="\n")


def trace_to_json(shown: TraceView) -> dict[str, Any]:
    """A trace as one JSON object: the registry's answer and the arrivals that the legs expect.

    Times are microseconds of wall time since 1970 UTC, as texts, like all 64-bit numbers of the registry's answer.
    """
    return {
        **json_format.MessageToDict(shown.trace, preserving_proto_field_name=True),
        "arrivals": [_arrival_json(expected) for expected in shown.expected if expected.name == ARRIVES],
        "legs_without_answer": list(shown.silent),
    }


def _arrival_json(expected: ExpectedTime) -> dict[str, Any]:
    return {
        "leg": expected.leg,
        "assignment_id": expected.assignment_id,
        "outcome": expected.outcome.value,
        "since_us": str(expected.since_us),
        "due_us": str(expected.due_us),
        **({} if expected.met_us is None else {"met_us": str(expected.met_us)}),
    }


async def _read_trace(running: MeshConnection, incident_id: str) -> TraceView:
    async with mesh.connect(running) as clients:
        if not incident_id:
            known, _ = await outcome.read_answering(clients)
            if not known:
                raise CommandFailed("no incidents", FAILED)
            incident_id = known[-1].incident_id
        me = clients.identity(REVIEWER)
        request = trace_pb2.GetTraceRequest(incident_id=incident_id)
        answer: trace_pb2.GetTraceResponse = await call(clients.traces.GetTrace, request, me)
        assignments, silent = await _assignments(clients, incident_id)
    expected = expected_times(answer, assignments, clients.clock, now_us=wall_us())
    return TraceView(answer, expected, silent=silent)


async def _assignments(clients: Clients, incident_id: str) -> tuple[list[dispatch_pb2.Assignment], list[str]]:
    """The assignments of both agencies, and the legs that don't answer. Each leg knows the travel times of its own units alone."""
    incidents, silent = await outcome.read_incident(clients, incident_id)
    assignments = [assignment for incident in incidents for assignment in incident.assignments]
    return [assignment for assignment in assignments if assignment.HasField("arrival_due_at")], silent


def outcome_tables(
    incidents: Iterable[IncidentOutcome], shift_ms: int = 0, *, names: Mapping[str, str] | None = None
) -> Iterator[Table]:
    """A table per incident for a terminal, with one row per assignment of all legs. `names` are shown in place of ids."""
    for incident in incidents:
        view = Table("leg", "to", "state", Column("after", justify="right"), "acknowledged", title_justify="left")
        exercise = "EXERCISE: nobody has to go\n" if incident.exercise else ""
        view.title = f"{exercise}{incident.incident_id} of {', '.join(sorted(incident.order_ids))}\n" + (
            f"opened {moment_text(incident.opened_ms, shift_ms)}"
            + (f", ended {moment_text(incident.ended_ms, shift_ms)}" if incident.ended_ms is not None else "")
        )
        # A place is named after its order, which the title has named already.
        of_order = f"{next(iter(incident.order_ids))}/" if len(incident.order_ids) == 1 else "/"
        for answer in incident.answers:
            latency_ms = answer.report_to_published_ms
            shown = (names or {}).get(answer.destination) or answer.destination.removeprefix(of_order)
            view.add_row(
                answer.leg,
                shown + (f" ({answer.task})" if answer.task else ""),
                ", ".join(
                    filter(None, (answer.state, answer.person_flag, *(f"{other} is absent" for other in answer.absent)))
                ),
                "" if latency_ms is None else f"{latency_ms:.0f} ms",
                (moment_text(answer.acknowledged_ms, shift_ms) or "")[11:],
            )
        yield view


WIDTH, NARROW = 24, 10
"""Width of the bars in the table and in the lines, in characters."""
NAME_INDENT = 32
"""Width of the columns before the name in a line, in characters."""
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


def trace_views(shown: TraceView, console: Console, selection: Selection | None = None) -> Iterator[RenderableType]:
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
    elif fits(console, table := _trace_table(rows, scale)):
        yield table
    else:
        yield from _trace_lines(rows, scale, width=console.width, details=selection.details)
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
    ordered = trace_rows(spans, shown.expected)
    for n, row in enumerate(ordered):
        if _is_selected(row, selection, scale=scale):
            yield _Row(
                span=row.span,
                depth=row.depth,
                folded=_below(ordered, n) if row.depth == selection.depth else 0,
                late=row.late,
                dues=row.dues,
            )


def _is_selected(row: TraceRow[trace_pb2.Span], selection: Selection, *, scale: _Scale) -> bool:
    if selection.legs and (leg_of(row.span) or DECISION) not in selection.legs:
        return False
    if selection.late_only and row.late is None:
        return False
    if selection.depth is not None and row.depth > selection.depth:
        return False
    if selection.until_s is not None and row.span.start_us > scale.until_us:
        return False
    return row.span.end_us >= scale.from_us


def _below(ordered: Sequence[TraceRow[trace_pb2.Span]], n: int) -> int:
    """Number of spans below the n-th."""
    count = 0
    for below in ordered[n + 1 :]:
        if below.depth <= ordered[n].depth:
            break
        count += 1
    return count


def _trace_table(rows: Sequence[_Row], scale: _Scale) -> Table:
    view = Table(
        Column("after", justify="right", no_wrap=True),
        Column("took", justify="right", no_wrap=True),
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
            Text.assemble("  " * row.depth, _name(row), _late(row)),
            span.service,
            scale.bar(row, WIDTH),
            ", ".join(_details(span)),
            _rests_on(span),
        )
    return view


def _trace_lines(rows: Sequence[_Row], scale: _Scale, *, width: int, details: bool) -> Iterator[Text]:
    """A line for each span; below it what was late, why it was escalated, and if asked for its details, broken between words only."""
    yield styled((f"{'after':>9} {'took':>9} {'':{NARROW}}  what", "bold"))
    for row in rows:
        span = row.span
        columns = f"{scale.after(span.start_us):>9} {duration(span.end_us - span.start_us):>9}"
        yield Text.assemble(f"{columns} {scale.bar(row, NARROW)}  {' ' * row.depth}", _name(row), end="")
        if words := _late(row).plain.strip():
            yield from _wrapped(words, row, width, style="bold red")
        if details:
            # Only values are broken, never an id: a value that is too long for the line is a line by itself.
            rests_on = [f"rests on {_rests_on(span)}"] if _rests_on(span) else []
            yield from _wrapped(", ".join([f"by {span.service}", *_details(span), *rests_on]), row, width, style="dim")
        elif is_escalation(span):
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
    style = "bold red" if is_escalation(row.span) or row.late else "bold"
    return styled((row.span.name, style), kind, (folded, "dim"))


def _late(row: _Row) -> Text:
    expected = row.late
    if expected is None:
        return Text("")
    name = _EXPECTED.get(expected.name, expected.name)
    if expected.met_us is None:
        return styled("  ", (f"{name}: NOT WITHIN {duration(expected.due_us - expected.since_us)}", "bold red"))
    return styled("  ", (f"{name}: {duration(expected.late_us)} LATE", "bold red"))


def _details(span: trace_pb2.Span) -> list[str]:
    return [span.attributes[key] for key in _SHOWN_ATTRIBUTES if key in span.attributes]


def _rests_on(span: trace_pb2.Span) -> str:
    return span.attributes.get("stored") or span.attributes.get("read", "")


def _moment(us: int) -> str:
    return times.to_rfc3339(us // 1000)
