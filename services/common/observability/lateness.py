"""Expected times of an incident's steps, and the rows of its trace with the times that were due and the steps that were late. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Generic, TypeVar

from services.common.observability.spans import NamedSpan, in_order

RECEIPT_WITHIN_MS = 30_000
"""Time after which the police are notified of a warning without a receipt, milliseconds of mesh time."""


Span = TypeVar("Span", bound=NamedSpan)

ARRIVES = "UNIT_ARRIVES"
"""Name of the expectation that a unit arrives. The other names are those of tandem.registry.v1.Expectation without their prefix."""


class StepOutcome(StrEnum):
    """What became of an expected step: names of tandem.registry.v1.ExpectationOutcome without their prefix."""

    OPEN = "OPEN"
    IN_TIME = "IN_TIME"
    LATE = "LATE"
    MISSED = "MISSED"
    LIFTED = "LIFTED"


@dataclass(frozen=True, slots=True)
class ExpectedTime:
    """When a step was expected and when it came. Times are wall time, microseconds since 1970 UTC."""

    name: str
    """Name of the expectation, such as PERSON_ANSWERS."""
    outcome: StepOutcome
    leg: str
    assignment_id: str
    since_us: int
    due_us: int
    met_us: int | None = None
    since_span_id: str = ""
    met_span_id: str = ""
    missed_span_ids: tuple[str, ...] = ()

    @property
    def is_late(self) -> bool:
        """Whether the step came too late, or didn't come."""
        return self.outcome in (StepOutcome.LATE, StepOutcome.MISSED)

    @property
    def late_us(self) -> int:
        """By how much the step came too late; 0 if it came in time, or not at all."""
        return max(0, self.met_us - self.due_us) if self.met_us is not None else 0


def late_spans(expected_times: Iterable[ExpectedTime]) -> Mapping[str, ExpectedTime]:
    """The late steps by the id of each span that shows one: the escalation or flag that states it, and the step that came too late."""
    late: dict[str, ExpectedTime] = {}
    for expected in expected_times:
        for span_id in expected.missed_span_ids:
            late.setdefault(span_id, replace(expected, met_us=None))
        if expected.outcome is StepOutcome.LATE and expected.met_span_id:
            late[expected.met_span_id] = expected
    return late


@dataclass(frozen=True, slots=True)
class TraceRow(Generic[Span]):
    """A span of a trace at its place below its parent, with what is known about its times."""

    span: Span
    depth: int
    """Number of the span's ancestors."""
    late: ExpectedTime | None
    """The expected time that the span shows as missed or too late; None if it shows none."""
    dues: Sequence[ExpectedTime]
    """Expected times that begin or end with the span."""


def trace_rows(
    spans: Sequence[Span], expected_times: Sequence[ExpectedTime], roots: Collection[str] = ("",)
) -> list[TraceRow[Span]]:
    """Rows of a trace, each span below its parent. Siblings keep their order; `roots` are the parents of spans of depth 0."""
    late = late_spans(expected_times)
    dues: dict[str, list[ExpectedTime]] = {}
    for expected in expected_times:
        for span_id in dict.fromkeys((expected.since_span_id, *expected.missed_span_ids, expected.met_span_id)):
            dues.setdefault(span_id, []).append(expected)
    return [
        TraceRow(span=span, depth=depth, late=late.get(span.span_id), dues=dues.get(span.span_id, ()))
        for span, depth in in_order(spans, roots)
    ]
