"""Figures of a country's minutes: processor time, latencies, memory and disk, and how fast they grow. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table

from bench import figures
from bench.country.traffic import DAY_S, MINUTE_S
from bench.figures import Figure
from bench.mesh import budget
from bench.mesh.machine import Usage

TARGET_IDLE, TARGET_MS = 70.0, 60.0
"""Targets of a country's load: idle share of the machine, %, and p99 of both legs, milliseconds."""
WARM_UP_MINUTES = 2
"""First minutes, which don't count towards growth: caches and connections fill then."""


@dataclass(frozen=True, slots=True)
class Minute:
    """What was measured in a minute."""

    used: Usage
    in_incidents_ms: Sequence[float]
    """Latencies of the incidents that began in it, from the trigger's due moment until both legs' offers stood in INCIDENTS."""
    at_desks_ms: Sequence[float]
    """The same until both offers had reached the desks."""
    memory_mib: Mapping[str, float]
    """Resident memory at its end, by process."""
    disk_mib: float
    """Size of the mesh's folder at its end."""
    event: str = ""
    """What else began in it."""


def idle_percent(used: Usage) -> float:
    """Idle share of the machine, %, generator included."""
    return 100 * used.idle / used.total if used.total else 0.0


def growth(values: Sequence[float]) -> float:
    """Growth each minute: the slope of the line of least squares, after the warm-up. 0 for less than two minutes."""
    counted = values[min(WARM_UP_MINUTES, max(len(values) - 2, 0)) :]
    if len(counted) < 2:
        return 0.0
    return statistics.linear_regression(range(len(counted)), counted).slope


def table(minutes: Sequence[Minute]) -> Table:
    """A printable table with a row for each minute."""
    headings = ("minute", "idle %", "incidents", "legs p50", "legs max ms", "desks p50", "desks max ms", "memory MiB")
    printed = Table(*headings, "disk MiB", "", box=None)
    for column in printed.columns[:-1]:
        column.justify = "right"
    for number, minute in enumerate(minutes, start=1):
        latencies = [
            f"{figures.percentile(ms, percent):.1f}" if ms else ""
            for ms in (minute.in_incidents_ms, minute.at_desks_ms)
            for percent in (50, 100)
        ]
        printed.add_row(
            str(number),
            f"{idle_percent(minute.used):.1f}",
            str(len(minute.in_incidents_ms)),
            *latencies,
            f"{_total(minute.memory_mib):,.0f}",
            f"{minute.disk_mib:,.0f}",
            minute.event,
        )
    return printed


def figures_of(name: str, minutes: Sequence[Minute], lost: int) -> list[Figure]:
    """Figures of all minutes of a mesh."""
    in_incidents_ms = [ms for minute in minutes for ms in minute.in_incidents_ms]
    at_desks_ms = [ms for minute in minutes for ms in minute.at_desks_ms]
    quiet = [idle_percent(minute.used) for minute in minutes if not minute.event]
    last = minutes[-1]
    processes = [process for process in last.memory_mib if process not in budget.OUTSIDE]
    seconds = MINUTE_S * len(minutes)
    return [
        figures.at_least(f"{name}: machine idle, median minute", statistics.median(quiet), "%", target=TARGET_IDLE),
        Figure(f"{name}: incidents", len(in_incidents_ms), "incidents"),
        figures.at_most(f"{name}: incidents lost", lost, "incidents", target=0),
        Figure(f"{name}: both legs in INCIDENTS p50", figures.percentile(in_incidents_ms, 50), "ms"),
        figures.at_most(
            f"{name}: both legs in INCIDENTS p99", figures.percentile(in_incidents_ms, 99), "ms", target=TARGET_MS
        ),
        Figure(f"{name}: both legs at the desks p50", figures.percentile(at_desks_ms, 50), "ms"),
        Figure(f"{name}: both legs at the desks p99", figures.percentile(at_desks_ms, 99), "ms"),
        *(
            Figure(f"{name}: processor time of {process}", 1000 * s / seconds, "ms/s")
            for process, s in _processor_s(minutes).items()
        ),
        *(Figure(f"{name}: memory of {process}", last.memory_mib[process], "MiB") for process in processes),
        *(
            Figure(
                f"{name}: growth of {process}", growth([minute.memory_mib[process] for minute in minutes]), "MiB/min"
            )
            for process in processes
        ),
        Figure(f"{name}: disk", last.disk_mib, "MiB"),
        Figure(f"{name}: growth of the disk", growth([minute.disk_mib for minute in minutes]), "MiB/min"),
        Figure(
            f"{name}: growth of the disk in a day",
            growth([minute.disk_mib for minute in minutes]) * DAY_S / MINUTE_S / 1024,
            "GiB/day",
        ),
    ]


def _processor_s(minutes: Sequence[Minute]) -> dict[str, float]:
    names = minutes[0].used.by_process
    return {name: sum(minute.used.by_process.get(name, 0.0) for minute in minutes) for name in names}


def _total(by_process: Mapping[str, float]) -> float:
    return sum(mib for process, mib in by_process.items() if process not in budget.OUTSIDE)
