"""What incidents cost: statistics of a period with their plots and file, and the burden of one order. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta

MAX_DAYS = 3_660
DEFAULT_DAYS = 30
OUTCOMES_FOR_NOTHING = (
    "ENDED_FALSE_POSITION",
    "ENDED_EQUIPMENT",
    "ENDED_AUTHORISED",
    "ENDED_NOBODY_FOUND",
    "ENDED_BEFORE_ARRIVAL",
)
"""Outcomes of dispatches for nothing."""
PLOT_WIDTH, PLOT_HEIGHT = 720, 160
CSV_COLUMNS = ("figure", "leg", "office", "measure", "from", "kind", "value", "unit")
_FORMULA = ("=", "+", "-", "@")
"""First characters by which a spreadsheet takes a cell for a formula."""


class BadPeriod(Exception):
    """A period of the form that can't be used. Its text names the field, what is wrong, and an example."""


@dataclass(frozen=True, slots=True)
class DayPeriod:
    """A period of whole days in Korea."""

    first: date
    last: date
    """Last day, which is part of the period."""

    @classmethod
    def of(cls, first: str, last: str, today: date) -> DayPeriod:
        """The period of a form. By default the 30 days until today. Raises BadPeriod."""
        until = _day("until", last) if last else today
        start = _day("from", first) if first else until - timedelta(days=DEFAULT_DAYS - 1)
        if start > until:
            raise BadPeriod(f'until: "{until}" is before from: "{start}"')
        if (until - start).days >= MAX_DAYS:
            raise BadPeriod(f"from: the period is longer than {MAX_DAYS} days")
        return cls(start, until)


def _day(field: str, text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise BadPeriod(f'{field}: "{text[:20]}" is not a day (example: 2026-07-06)') from None


@dataclass(frozen=True, slots=True)
class TimesRow:
    """Response times of a leg or an office."""

    leg: str
    office_id: str
    """Empty for the leg as a whole."""
    measure: str
    """RECEIPT, ACCEPTANCE or ARRIVAL."""
    offered: int
    reached: int
    median_s: float | None
    p90_s: float | None
    due_s: float | None
    in_time: int
    due: int

    @property
    def share(self) -> float | None:
        """Share that was in time, 0 to 1; None if nothing was due."""
        return self.in_time / self.due if self.due else None


@dataclass(frozen=True, slots=True)
class IntervalRow:
    """Acceptance of the leg's offers in an interval."""

    starts_at: datetime
    offered: int
    in_time: int
    median_s: float | None


@dataclass(frozen=True, slots=True)
class OutcomeRow:
    """Number of dispatches with an outcome."""

    leg: str
    outcome: str
    kind: str
    """Kind of the alert; empty in another leg's dispatches."""
    count: int


@dataclass(frozen=True, slots=True)
class SpreadOfBurden:
    """How the burden is spread over people."""

    kind: str
    people: int
    median: int
    p90: int
    most: int
    for_nothing: int


@dataclass(frozen=True, slots=True)
class BurdenOfPerson:
    """Burden of one person, by id."""

    subject_id: str
    incidents: int
    visits: int
    for_nothing: int
    messages: int


@dataclass(frozen=True, slots=True)
class PeriodStatistics:
    """All statistics of a period."""

    incidents: int
    behind: int
    times: Sequence[TimesRow]
    intervals: Sequence[IntervalRow]
    outcomes: Sequence[OutcomeRow]
    spreads: Sequence[SpreadOfBurden]

    @property
    def dispatches(self) -> int:
        """Number of dispatches that are over."""
        return sum(row.count for row in self.outcomes if row.outcome != "UNDER_WAY")

    @property
    def for_nothing(self) -> list[OutcomeRow]:
        """Dispatches for nothing, the most frequent first."""
        rows = [row for row in self.outcomes if row.outcome in OUTCOMES_FOR_NOTHING]
        return sorted(rows, key=lambda row: (-row.count, row.leg, row.outcome, row.kind))

    @property
    def share_for_nothing(self) -> float | None:
        """Share of dispatches for nothing among those that are over, 0 to 1; None if none is over."""
        return sum(row.count for row in self.for_nothing) / self.dispatches if self.dispatches else None


@dataclass(frozen=True, slots=True)
class PlotColumn:
    """A bar of the plot over time, in the units of the SVG."""

    x: float
    y: float
    width: float
    height: float
    row: IntervalRow


def columns(intervals: Sequence[IntervalRow]) -> list[PlotColumn]:
    """Bars of the median acceptance time. The highest fills the plot; an interval without an acceptance has none."""
    highest = max((row.median_s for row in intervals if row.median_s), default=0.0)
    step = PLOT_WIDTH / max(1, len(intervals))
    made = []
    for number, row in enumerate(intervals):
        if row.median_s is None:
            continue
        height = max(1.0, (PLOT_HEIGHT - 10) * row.median_s / highest) if highest else 1.0
        made.append(
            PlotColumn(
                x=round(number * step, 1),
                y=round(PLOT_HEIGHT - height, 1),
                width=round(step * 0.8, 1),
                height=height,
                row=row,
            )
        )
    return made


def bar_length(value: float | None, rows: Sequence[TimesRow]) -> float:
    """Length of a bar of a measure, 0 to 100, where 100 is the greatest p90 among the rows of the same measure."""
    greatest = max((row.p90_s for row in rows if row.p90_s), default=0.0)
    return 0.0 if not value or not greatest else round(100 * value / greatest, 1)


def csv_rows(found: PeriodStatistics) -> Iterator[tuple[str, ...]]:
    """Rows of the file, one figure a row, with CSV_COLUMNS."""
    yield _row("incidents", value=found.incidents)
    for times in found.times:
        about = {"leg": times.leg, "office": times.office_id, "measure": times.measure}
        yield _row("offered", **about, value=times.offered)
        yield _row("reached", **about, value=times.reached)
        yield _row("median", **about, value=times.median_s, unit="s")
        yield _row("p90", **about, value=times.p90_s, unit="s")
        yield _row("share in time", **about, value=times.share)
    for interval in found.intervals:
        begin = interval.starts_at.isoformat()
        yield _row("offered in interval", begin=begin, value=interval.offered)
        yield _row("accepted in time in interval", begin=begin, value=interval.in_time)
        yield _row("median acceptance in interval", begin=begin, value=interval.median_s, unit="s")
    for outcome in found.outcomes:
        yield _row(outcome.outcome, leg=outcome.leg, kind=outcome.kind, value=outcome.count)
    for spread in found.spreads:
        for name, value in (
            ("people", spread.people),
            ("median incidents of a person", spread.median),
            ("p90 incidents of a person", spread.p90),
            ("maximum incidents of a person", spread.most),
            ("visits for nothing", spread.for_nothing),
        ):
            yield _row(name, kind=spread.kind, value=value)


def _row(
    figure: str,
    *,
    value: float | None,
    leg: str = "",
    office: str = "",
    measure: str = "",
    begin: str = "",
    kind: str = "",
    unit: str = "",
) -> tuple[str, ...]:
    shown = "" if value is None else f"{round(value, 4):.10g}"
    return (figure, leg, cell(office), measure, begin, kind, shown, unit)


def cell(text: str) -> str:
    """A text as a cell that no spreadsheet takes for a formula."""
    return f"'{text}" if text.startswith(_FORMULA) else text


CAUSES_FOR_NOTHING = frozenset({"FALSE_POSITION", "EQUIPMENT", "AUTHORISED", "NOBODY_FOUND"})
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
    """Number of times that a unit was sent; None for another leg's task."""
    by_radio: int | None
    """Of these, those that the desk sent by radio."""
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
    by_radio: int
    """Of `dispatches`, those that the desk sent by radio."""
    arrivals: int
    for_nothing: int
    """Number of tasks that were closed with a cause in FOR_NOTHING after a unit was sent."""


def burden_lines(incidents: Iterable[OrderIncidentCard]) -> list[BurdenLine]:
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
        by_radio=sum(task.by_radio or 0 for task in tasks),
        arrivals=sum(task.arrivals or 0 for task in tasks),
        for_nothing=sum(bool(task.dispatches) and task.close_cause in CAUSES_FOR_NOTHING for task in tasks),
    )


def dispatches_per_day(lines_: Iterable[BurdenLine], from_ms: int, now_ms: int) -> float:
    """Dispatches a day since a moment, at least over one day."""
    days = max(1.0, (now_ms - from_ms) / 86_400_000)
    return sum(line.dispatches for line in lines_) / days
