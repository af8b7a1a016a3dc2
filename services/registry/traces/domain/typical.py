"""Comparison of an incident's trace with like incidents: the median time of each step. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from services.common.percentiles import percentile
from services.registry.traces.domain.facts import AlertFact
from services.registry.traces.domain.spans import TraceSpan

_DEMANDS = ("RECORD", "WARN", "NOTIFY", "RESPOND")
"""Demands in the order of their gravity."""


class IncidentKind(NamedTuple):
    """What like incidents have in common: the alert that decided the gravest response, and the kind of exercise."""

    kind: str
    demand: str
    exercise: str


class MedianTime(NamedTuple):
    """Median time of a step, and the number of incidents that have such a step."""

    median_us: int
    incidents: int


@dataclass(frozen=True, slots=True)
class LikeIncidents:
    """Incidents that are like another one."""

    incident_kind: IncidentKind
    incidents: int
    """Number of incidents."""
    times: dict[str, MedianTime]
    """Median time of the first step of each name, from the start of the incident, microseconds of wall time."""

    @property
    def kind(self) -> str:
        """Kind of the deciding alert."""
        return self.incident_kind.kind

    @property
    def demand(self) -> str:
        """Demand of the deciding alert."""
        return self.incident_kind.demand

    @property
    def exercise(self) -> str:
        """Kind of exercise; empty for live incidents."""
        return self.incident_kind.exercise


def incident_kind(alerts: Iterable[AlertFact]) -> IncidentKind:
    """The kind of an incident with at least one alert, by its first alert of the gravest demand."""
    decided = sorted(alerts, key=lambda alert: alert.log_position)
    gravest = max(decided, key=lambda alert: _DEMANDS.index(alert.demand) if alert.demand in _DEMANDS else -1)
    return IncidentKind(gravest.alert_kind, gravest.demand, gravest.exercise)


def first_times(spans: Sequence[TraceSpan]) -> dict[str, int]:
    """Time of the first step of each name, from the start of the trace to the end of the step, microseconds. The root is first."""
    times: dict[str, int] = {}
    for span in sorted(spans[1:], key=lambda span: span.end_us):
        if span.trace_id == spans[0].trace_id and span.service.startswith("dispatch-"):
            times.setdefault(span.name, span.end_us - spans[0].start_us)
    return times


def compared(shared_kind: IncidentKind, incidents: Sequence[dict[str, int]]) -> LikeIncidents:
    """Medians of the `first_times` of like incidents."""
    by_name: dict[str, list[int]] = {}
    for times in incidents:
        for name, after_us in times.items():
            by_name.setdefault(name, []).append(after_us)
    medians = {name: MedianTime(int(percentile(values, 50)), len(values)) for name, values in by_name.items()}
    return LikeIncidents(shared_kind, len(incidents), medians)
