"""The burden of an order: what its incidents sent, for what, and how much of it was for nothing. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

FOR_NOTHING = frozenset({"FALSE_POSITION", "EQUIPMENT", "AUTHORISED", "NOBODY_FOUND"})
"""Causes with which a desk closes a task for which nobody had to go."""


@dataclass(frozen=True, slots=True)
class TaskCard:
    """A leg's task in an incident of the order."""

    leg: str
    demand: str
    kind: str
    """Kind of the alert behind it; empty for another leg's task."""
    state: str
    notices: int
    offers: int
    dispatches: int | None
    """Number of times that a unit was ordered to go; None for another leg's task."""
    arrivals: int | None
    close_cause: str
    """Empty if it isn't closed."""


@dataclass(frozen=True, slots=True)
class OrderIncidentCard:
    """An incident of the order."""

    incident_id: str
    opened_ms: int
    ended_ms: int | None
    exercise: bool
    tasks: tuple[TaskCard, ...]


@dataclass(frozen=True, slots=True)
class BurdenLine:
    """What one kind of alert caused."""

    kind: str
    incidents: int
    notices: int
    offers: int
    dispatches: int
    arrivals: int
    for_nothing: int
    """Number of tasks that were closed with a cause in FOR_NOTHING after a unit was sent."""


def lines(incidents: Iterable[OrderIncidentCard]) -> list[BurdenLine]:
    """What each kind of alert caused in this leg, the most dispatches first. Exercises count nowhere."""
    tasks: dict[str, list[TaskCard]] = {}
    of_kind: Counter[str] = Counter()
    for incident in incidents:
        if incident.exercise:
            continue
        own = [task for task in incident.tasks if task.kind]
        of_kind.update({task.kind for task in own})
        for task in own:
            tasks.setdefault(task.kind, []).append(task)
    found = [_line(kind, of_kind[kind], tasks[kind]) for kind in tasks]
    return sorted(found, key=lambda line: (-line.dispatches, -line.offers, line.kind))


def _line(kind: str, incidents: int, tasks: Sequence[TaskCard]) -> BurdenLine:
    return BurdenLine(
        kind=kind,
        incidents=incidents,
        notices=sum(task.notices for task in tasks),
        offers=sum(task.offers for task in tasks),
        dispatches=sum(task.dispatches or 0 for task in tasks),
        arrivals=sum(task.arrivals or 0 for task in tasks),
        for_nothing=sum(bool(task.dispatches) and task.close_cause in FOR_NOTHING for task in tasks),
    )


def per_day(lines_: Iterable[BurdenLine], from_ms: int, now_ms: int) -> float:
    """Dispatches a day since a moment, at least over one day."""
    days = max(1.0, (now_ms - from_ms) / 86_400_000)
    return sum(line.dispatches for line in lines_) / days
