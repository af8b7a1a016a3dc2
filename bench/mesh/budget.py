"""Processor time of an incident by process, and comparisons of two versions. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table

OUTSIDE = ("bench", "tandem up")
"""Processes that aren't part of the mesh: the simulated devices and desks, and the supervisor."""
TOTAL = "total"


@dataclass(frozen=True, slots=True)
class Interval:
    """Processor time of the mesh's processes during an interval."""

    seconds: float
    by_process: Mapping[str, float]
    """Seconds of processor time, by process."""

    def rates_ms(self) -> dict[str, float]:
        """Milliseconds of processor time per second, by process, with the total of the mesh."""
        return with_total({name: 1000 * cpu_s / self.seconds for name, cpu_s in self.by_process.items()})


def per_incident_ms(busy: Interval, idle: Interval, incidents: int) -> dict[str, float]:
    """Milliseconds of processor time of one incident, by process, with the total of the mesh.

    The time that the idle mesh takes in an interval of the same length is subtracted.
    """
    idle_ms = idle.rates_ms()
    return with_total(
        {name: (1000 * cpu_s - idle_ms[name] * busy.seconds) / incidents for name, cpu_s in busy.by_process.items()}
    )


def with_total(by_process: Mapping[str, float]) -> dict[str, float]:
    """These figures with the sum over the processes of the mesh."""
    return {**by_process, TOTAL: sum(value for name, value in by_process.items() if name not in OUTSIDE)}


def table(columns: Mapping[str, Mapping[str, float]]) -> Table:
    """A printable table with a row for each process and these columns. The total comes last among the mesh's rows."""
    printed = Table("process", *columns, box=None)
    for column in printed.columns[1:]:
        column.justify = "right"
    names = list(dict.fromkeys(name for values in columns.values() for name in values))
    for name in sorted(names, key=lambda name: (name in OUTSIDE, name == TOTAL)):
        printed.add_row(name, *(f"{values[name]:,.1f}" if name in values else "" for values in columns.values()))
    return printed


# ── two versions ─────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Compared:
    """One figure of two versions, measured in interleaved pairs of runs."""

    name: str
    unit: str
    before: float
    """Median over the runs of the version before."""
    after: float
    ratio: float
    """Median of the pairs' ratios, after through before; NaN where a value before isn't positive."""


def compare(before: Sequence[Mapping[str, float]], after: Sequence[Mapping[str, float]], unit: str) -> list[Compared]:
    """Compares the figures that every run has. The n-th runs of both versions are a pair."""
    runs = [*before, *after]
    names = [name for name in before[0] if all(name in run for run in runs)]
    return [
        Compared(
            name=name,
            unit=unit,
            before=statistics.median(run[name] for run in before),
            after=statistics.median(run[name] for run in after),
            ratio=_ratio([(old[name], new[name]) for old, new in zip(before, after, strict=True)]),
        )
        for name in names
    ]


def _ratio(pairs: Sequence[tuple[float, float]]) -> float:
    if any(old <= 0 for old, _ in pairs):
        return math.nan
    return statistics.median(new / old for old, new in pairs)


def comparison(compared: Sequence[Compared]) -> Table:
    """Printable table of a comparison."""
    printed = Table("figure", "before", "after", "unit", "ratio", box=None)
    for column in (1, 2, 4):
        printed.columns[column].justify = "right"
    for row in compared:
        printed.add_row(row.name, f"{row.before:,.1f}", f"{row.after:,.1f}", row.unit, f"{row.ratio:.2f}")
    return printed
