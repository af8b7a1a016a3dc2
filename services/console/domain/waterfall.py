"""An incident afterwards: its trace as a waterfall of rows with bars, and the positions that were known at each alert. Pure.

Times of spans are wall clock, microseconds since 1970 UTC. The explanation only reads a copy of the evidence: `tandem explain` and
`tandem evidence verify` check that the decision can be reproduced.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from services.common.observability.lateness import ExpectedTime, trace_rows
from services.common.observability.spans import is_escalation, last_step_us, leg_of


@dataclass(frozen=True, slots=True)
class TraceSpan:
    """Span of a trace."""

    trace_id: str
    span_id: str
    parent_span_id: str
    service: str
    name: str
    start_us: int
    end_us: int
    attributes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DueMark:
    """Place of an expected time on the waterfall."""

    at: float
    """0 to 1, as for bars."""
    expected: ExpectedTime


@dataclass(frozen=True, slots=True)
class Row:
    """Row of the waterfall."""

    span: TraceSpan
    depth: int
    """Number of the span's ancestors."""
    left: float
    """Start of the bar, 0 to 1."""
    width: float
    """Length of the bar, 0 to 1."""
    orphan: bool
    """Whether the parent span is missing."""
    parent_span_id: str = ""
    """Id of the row's parent among the rows; empty for a root."""
    children: int = 0
    """Number of rows directly below this one."""
    late: ExpectedTime | None = None
    """The expected time that the span shows as missed or too late; None if it shows none."""
    marks: tuple[DueMark, ...] = ()
    """When steps that begin or end with this span were due."""
    is_escalation: bool = False

    @property
    def leg(self) -> str:
        """Name of the span's leg; empty for a service that is no leg."""
        return leg_of(self.span)


STATES = {
    "told": "NOTIFIED",
    "offered": "OFFERED",
    "escalated": "ESCALATED",
    "accepted": "ACKNOWLEDGED",
    "delivered": "ACKNOWLEDGED",
    "stood down": "STOOD_DOWN",
    "dispatched": "DISPATCHED",
    "on the way": "EN_ROUTE",
    "on scene": "ON_SCENE",
    "has the wearer": "APPREHENDED",
    "closed": "CLOSED",
    "nobody available": "NOBODY_AVAILABLE",
    "rejected": "REJECTED",
}
"""State after a leg's step. The key is the rest of the span's name after the leg's name."""
STEP_NAMES = {
    **STATES,
    "delivered": "step_delivered",
    "received by the desk": "received",
    "noted": "step_noted",
}
"""Key of the texts for a leg's step. The key here is the rest of the span's name after the leg's name.

Pages show any other step by that rest."""
_END = 0.999
"""Place of a bar that begins after the last step, 0 to 1."""
USE = "ledger: "
"""Prefix of the names of spans that record a disclosure of personal data."""


def steps(spans: Sequence[TraceSpan], leg: str) -> list[TraceSpan]:
    """Returns the steps of one leg, in the order of their ends."""
    return sorted((span for span in spans if span.service == f"dispatch-{leg}"), key=lambda span: span.end_us)


def step_name(span: TraceSpan) -> str:
    """Returns the key of the texts for a leg's step, or the step's name in the trace if the texts have no such key."""
    step = span.name.partition(" ")[2]
    return STEP_NAMES.get(step, step)


def moves(spans: Sequence[TraceSpan]) -> dict[str, list[tuple[int, str]]]:
    """Returns the states of each assignment with their times, in order, as far as the trace shows them to the user."""
    states: dict[str, list[tuple[int, str]]] = {}
    for span in sorted(spans, key=lambda span: span.end_us):
        leg, _, step = span.name.partition(" ")
        if step in STATES and span.service == f"dispatch-{leg}":
            states.setdefault(span.attributes.get("assignment_id", ""), []).append((span.end_us, STATES[step]))
    return states


def case_versions(spans: Sequence[TraceSpan], trace_id: str) -> list[TraceSpan]:
    """Returns the spans of other traces on which the incident depends, such as the entry of an order into force."""
    return [span for span in spans if span.trace_id != trace_id]


def uses(spans: Sequence[TraceSpan]) -> list[TraceSpan]:
    """Returns the disclosures of personal data in the incident."""
    return [span for span in spans if span.name.startswith(USE)]


def rows(spans: Sequence[TraceSpan], trace_id: str, expected_times: Sequence[ExpectedTime] = ()) -> list[Row]:
    """Returns the rows of the incident's own trace, each span below its parent, by start time.

    `uses` are left out, as they may come years later.
    """
    own = [span for span in spans if span.trace_id == trace_id and not span.name.startswith(USE)]
    if not own:
        return []
    first, last = min(span.start_us for span in own), last_step_us(own)
    length = max(1, last - first)
    known = {span.span_id for span in own}
    ordered = sorted(own, key=lambda span: (span.start_us, span.end_us))
    roots = {span.parent_span_id for span in own} - known
    children = Counter(span.parent_span_id for span in own)
    return [
        Row(
            span=row.span,
            depth=row.depth,
            left=min((row.span.start_us - first) / length, _END),
            width=(min(row.span.end_us, last) - row.span.start_us) / length if row.span.start_us < last else 0.0,
            orphan=bool(row.span.parent_span_id) and row.span.parent_span_id not in known,
            parent_span_id=row.span.parent_span_id if row.span.parent_span_id in known else "",
            children=children[row.span.span_id],
            late=row.late,
            is_escalation=is_escalation(row.span),
            marks=tuple(
                DueMark((expected.due_us - first) / length, expected)
                for expected in row.dues
                if first <= expected.due_us <= last
            ),
        )
        for row in trace_rows(ordered, expected_times, roots)
    ]


SHOWN = 3
LOOK_BACK_MS = 600_000


@dataclass(frozen=True, slots=True)
class TrackPoint:
    """Position that a device reported; times in milliseconds since 1970 UTC."""

    time_ms: int
    arrived_ms: int
    lat_deg: float
    lon_deg: float
    accuracy_m: float
    sequence: int
    source: str = "UNSPECIFIED"
    """Where the position comes from: GNSS, WIFI, CELL or UNSPECIFIED."""


@dataclass(frozen=True, slots=True)
class DeviceTrack:
    """Positions of one device, in the order of the log."""

    device_id: str
    subject_id: str
    of_wearer: bool
    points: tuple[TrackPoint, ...]


@dataclass(frozen=True, slots=True)
class DeviceSide:
    """Positions of one device that were known at a decision."""

    device_id: str
    of_wearer: bool
    last: tuple[TrackPoint, ...]
    """Last positions before the decision, at most SHOWN."""
    silence_ms: int | None
    """Longest time without a position in the 10 minutes before the decision, in ms; None if there was no position at all. Before the
    first position of the copy nothing counts, as the device may have had no owner then."""


def sides(tracks: Iterable[DeviceTrack], sequence: int, decided_ms: int) -> list[DeviceSide]:
    """Returns each device's positions that were in the log up to the deciding entry."""
    result = []
    for track in tracks:
        known = [point for point in track.points if point.sequence <= sequence]
        from_ms = decided_ms - LOOK_BACK_MS
        moments = [max(from_ms, point.arrived_ms) for point in known if point.arrived_ms <= decided_ms]
        silence_ms = longest_gap_ms([*moments, decided_ms]) if moments else None
        result.append(
            DeviceSide(
                device_id=track.device_id, of_wearer=track.of_wearer, last=tuple(known[-SHOWN:]), silence_ms=silence_ms
            )
        )
    return result


def longest_gap_ms(moments: Sequence[int]) -> int:
    """Returns the longest time between two successive moments, in ms; 0 for less than two moments."""
    return max((after - before for before, after in pairwise(moments)), default=0)
