"""Tables and goals of the burden study. Pure."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from rich.table import Table

from bench.burden.counts import Counts
from bench.figures import Figure, at_most
from services.dispatch.warning.domain import MessageKind

BASE, ASKED = "60 s", "asked"
GOAL_HOMES_M = (300, 900)
MAX_MOMENTS_RATIO = 0.3
MAX_PUSHES = 3.0
MAX_REPORTS = 1_600.0
_KINDS = ("UNKNOWN_NEAR", "CONTACT_PREDICTED", "RING_ENTERED")


class Group(NamedTuple):
    """Weeks that are summed: those of all seeds of one home, one protected side and one arm."""

    home_m: int
    protects: str
    arm: str


class Spread(NamedTuple):
    """A number a day: mean over weeks, and the least and greatest week."""

    mean: float
    least: float
    greatest: float

    def __str__(self) -> str:
        digits = 0 if self.mean >= 100 else 2
        return f"{self.mean:,.{digits}f} [{self.least:,.{digits}f}-{self.greatest:,.{digits}f}]"


def groups(counts: Iterable[Counts]) -> dict[Group, list[Counts]]:
    """Weeks by home, protected side and arm, in that order."""
    grouped: dict[Group, list[Counts]] = {}
    for week in counts:
        grouped.setdefault(Group(week.home_m, week.protects, week.arm), []).append(week)
    return dict(sorted(grouped.items(), key=lambda item: item[0][:2]))


def a_day(weeks: Sequence[Counts], count: Callable[[Counts], float]) -> Spread:
    """A count a day."""
    values = [count(week) / week.days for week in weeks]
    return Spread(statistics.fmean(values), min(values), max(values))


def moments(week: Counts) -> int:
    """Number of dispatch moments."""
    return len(week.moments)


def pushes(week: Counts) -> int:
    """Number of messages to her telephone."""
    return week.pushes.total()


def warnings(week: Counts) -> int:
    """Number of pushes that are no all-clear."""
    return sum(number for key, number in week.pushes.items() if not key.startswith(MessageKind.OVER.value))


def responds(week: Counts, kind: str | None = None) -> int:
    """Number of demands to respond of a kind, or of those kinds that have no column of their own."""
    kinds = Counter[str]()
    for key, number in week.responds.items():
        kinds[key.split(", ")[0]] += number
    return kinds[kind] if kind else sum(number for each, number in kinds.items() if each not in _KINDS)


def tables(grouped: dict[Group, list[Counts]]) -> Iterator[Table]:
    """Printable tables: the burden, its causes, and the pushes."""
    yield _burden(grouped)
    yield _causes(grouped)
    yield _pushes(grouped)


def goals(counts: Sequence[Counts], before: Sequence[Counts] | None) -> list[Figure]:
    """Goals for a tag that obeys by stream, beside the fold of the run `before`, or else of this run, at a report each 60 s."""
    figures: list[Figure] = []
    for home_m in GOAL_HOMES_M:
        asked = _weeks(counts, home_m, ASKED)
        base = _weeks(counts if before is None else before, home_m, BASE)
        if not asked or not base:
            continue
        now, then = a_day(asked, moments).mean, a_day(base, moments).mean
        persons = [week for week in asked if week.protects == "person"]
        against = "constant 60 s" if before is None else "constant 60 s of the run before"
        figures += [
            Figure(f"dispatch moments, {home_m} m, {against}", then, "a day"),
            at_most(f"dispatch moments, {home_m} m, asked", now, "a day", target=MAX_MOMENTS_RATIO * then),
            at_most(f"pushes to her, {home_m} m, asked", a_day(persons, pushes).mean, "a day", target=MAX_PUSHES),
            at_most(
                f"reports of the tag, {home_m} m, asked",
                a_day(asked, lambda week: week.reports).mean,
                "a day",
                target=MAX_REPORTS,
            ),
        ]
    return figures


def _weeks(counts: Iterable[Counts], home_m: int, arm: str) -> list[Counts]:
    return [week for week in counts if (week.home_m, week.arm) == (home_m, arm)]


def _burden(grouped: dict[Group, list[Counts]]) -> Table:
    columns = (
        "dispatch moments",
        *_KINDS,
        "other RESPOND",
        "NOTIFY",
        "pushes to her",
        "all-clears left out",
        "contacts of the wearer",
        "tag's reports",
    )
    table = _table(
        "Burden a day: mean over weeks [least-greatest week]", *columns, "intervals", "positions now", "CPU, s a week"
    )
    for group, weeks in grouped.items():
        kinds = [a_day(weeks, lambda week, kind=kind: responds(week, kind)) for kind in _KINDS]  # type: ignore[misc]
        spreads = [
            a_day(weeks, moments),
            *kinds,
            a_day(weeks, responds),
            a_day(weeks, lambda week: week.notices.total()),
            a_day(weeks, pushes),
            a_day(weeks, warnings),
            a_day(weeks, lambda week: week.contacts),
            a_day(weeks, lambda week: week.reports),
            a_day(weeks, lambda week: week.commands),
        ]
        locates, located = a_day(weeks, lambda week: week.locates).mean, a_day(weeks, lambda week: week.located).mean
        cpu_s = statistics.fmean(week.cpu_s for week in weeks)
        table.add_row(*map(str, (*group, *spreads)), f"{locates:.1f}, {located:.1f} obeyed", f"{cpu_s:.1f}")
    return table


def _causes(grouped: dict[Group, list[Counts]]) -> Table:
    table = _table("Dispatch moments by cause", "a day", "first demand", "wearer", "noise before")
    for group, weeks in grouped.items():
        causes = Counter((moment.kind, moment.doing, moment.noise) for week in weeks for moment in week.moments)
        for cause, number in causes.most_common():
            table.add_row(*map(str, group), f"{number / sum(week.days for week in weeks):.3f}", *cause)
    return table


def _pushes(grouped: dict[Group, list[Counts]]) -> Table:
    table = _table("Pushes to her by kind", "a day", "alert")
    for group, weeks in grouped.items():
        kinds = sum((week.pushes for week in weeks), Counter[str]())
        for kind, number in kinds.most_common():
            table.add_row(*map(str, group), f"{number / sum(week.days for week in weeks):.3f}", kind)
    return table


def _table(title: str, *columns: str) -> Table:
    return Table("home, m", "protects", "arm", *columns, box=None, title=title, title_justify="left")
