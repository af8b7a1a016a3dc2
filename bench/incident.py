"""`python -m bench.incident`: processor time of an incident, by process, through a real mesh.

`tandem up` starts a separate mesh, as for bench.chain. The protected persons' phones report every 15 s all the time. First the idle
mesh is measured. Then incidents begin at a steady rate: a wearer's first report, 55 m from the protected person, enters three rings at
once. In the first series all desks accept their assignments, open the record of the person concerned, report their units' progress and
close the assignments; in the second nobody answers. A series ends some seconds after its last incident, so that work that was put off
counts. The cost of an incident is the processor time above the idle mesh's, divided by the number of incidents.

With `--open`, incidents are accepted and left open. Once the mesh has caught up, the processor time of an idle second is measured:
while all devices report, in the first seconds of their silence, when each missed report near a ring is asked for, and after that.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
import uvloop
from rich.console import Console

from bench import figures
from bench.figures import Figure
from bench.mesh import budget, desks, devices, machine, population, putting_off, trees
from bench.mesh.budget import Interval
from bench.mesh.desks import Answering, Desks
from bench.mesh.devices import Devices
from bench.mesh.machine import Usage
from bench.mesh.population import Party
from bench.mesh.running import populate, running_mesh, said_failures, say
from services.client import mesh
from services.client.mesh import MeshConnection
from services.common.observability import telemetry

WARM_UP = 5
"""Incidents before the first measurement, which are answered."""
ENDED_WITHIN_S = 120.0
OPEN_CONCURRENCY = 200
"""Incidents that are opened at the same time for `--open`."""
ASKED_AFTER_S = 20.0
"""Time after the first measurement with silent devices until each was asked once for its position, seconds. The next request is due a
minute after the first."""
MILLISECONDS, RATE = "ms/incident", "ms/s"
"""Units: processor time of an incident, and of an idle second."""


@dataclass(frozen=True, slots=True)
class Options:
    """What to measure."""

    incidents: int
    """Incidents of each series."""
    per_s: float
    """Incidents that begin each second."""
    settle_s: float
    """Time after the last incident of a series that counts as well, and before a measurement of the idle mesh, seconds."""
    idle_s: float
    """Length of a measurement of the idle mesh, seconds."""
    answered: bool
    unanswered: bool
    open: tuple[int, ...]
    """Numbers of open incidents at which the idle mesh is measured, ascending."""

    @property
    def cases(self) -> int:
        """Number of cases that this needs."""
        return WARM_UP + self.incidents * (self.answered + self.unanswered) + max(self.open, default=0)


@dataclass(frozen=True, slots=True)
class Watch:
    """Reads the processor time of a mesh's processes."""

    pids: Mapping[str, int]

    def start(self) -> tuple[float, Usage]:
        """The start of an interval."""
        return time.monotonic(), machine.usage(self.pids)

    def since(self, start: tuple[float, Usage]) -> Interval:
        """The interval from a start until now. Warns where other programs took a tenth of the machine."""
        used = machine.usage(self.pids).since(start[1])
        if used.total and used.others > used.total / 10:
            say(f"  [bold red]disturbed:[/] other programs took {100 * used.others / used.total:.0f} % of the machine")
        return Interval(time.monotonic() - start[0], used.by_process)


async def measure(running: MeshConnection, up_pid: int, options: Options) -> list[Figure]:
    """All figures."""
    cases = population.actors(options.cases)
    watch = Watch({**running.pids, "tandem up": up_pid, "bench": os.getpid()})
    results: list[Figure] = []
    async with mesh.connect(running) as clients, running.nats.bus_as("dispatch-probation") as bus:
        say(f"registering {len(cases)} joint cases")
        took_s = await populate(clients, bus, cases)
        results.append(Figure("registering", 5 * len(cases) / took_s, "records/s"))
        async with desks.at_work(clients) as working, devices.reporting(clients, cases) as reporting:
            unused = iter(cases)

            def next_cases(count: int) -> list[Party]:
                return [next(unused) for _ in range(count)]

            working.answering = Answering.CLOSE
            await working.until_closed(await begin(reporting, next_cases(WARM_UP), per_s=5.0), ENDED_WITHIN_S)
            idle = await idle_mesh(watch, options)
            results += [Figure(f"idle: {name}", ms, RATE) for name, ms in idle.rates_ms().items()]
            series = {"answered": Answering.CLOSE} if options.answered else {}
            series |= {"unanswered": Answering.NOTHING} if options.unanswered else {}
            for name, answering in series.items():
                say(f"{name}: {options.incidents} incidents, {options.per_s:g} each second")
                working.answering = answering
                start = watch.start()
                triggers = await begin(reporting, next_cases(options.incidents), per_s=options.per_s)
                if answering is Answering.CLOSE:
                    await working.until_closed(triggers, ENDED_WITHIN_S)
                else:
                    await working.until_offered(triggers, ENDED_WITHIN_S)
                results += await settled(watch, start, idle, name=name, options=options)
            if options.open:
                results += await with_open(
                    working, reporting, watch, running=running, cases=next_cases(max(options.open)), options=options
                )
    return results


async def begin(reporting: Devices, cases: Sequence[Party], *, per_s: float) -> list[tuple[str, str]]:
    """Triggers an incident of each case, at a steady rate; returns the reports that triggered them."""
    began_s = time.monotonic()
    async with asyncio.TaskGroup() as tasks:
        triggered = []
        for n, case in enumerate(cases):
            await asyncio.sleep(max(began_s + n / per_s - time.monotonic(), 0.0))
            triggered.append(tasks.create_task(reporting.trigger(case)))
    return [task.result() for task in triggered]


async def idle_mesh(watch: Watch, options: Options) -> Interval:
    """Processor time of the mesh while nothing begins."""
    await asyncio.sleep(options.settle_s)
    start = watch.start()
    await asyncio.sleep(options.idle_s)
    return watch.since(start)


async def settled(
    watch: Watch, start: tuple[float, Usage], idle: Interval, *, name: str, options: Options
) -> list[Figure]:
    """Figures of a series, once what was put off has had its time."""
    await asyncio.sleep(options.settle_s / 2)
    last = watch.start()
    await asyncio.sleep(options.settle_s / 2)
    busy, tail = watch.since(start), watch.since(last)
    by_process = budget.per_incident_ms(busy, idle, options.incidents)
    above_ms = tail.rates_ms()[budget.TOTAL] - idle.rates_ms()[budget.TOTAL]
    say(f"  {by_process[budget.TOTAL]:.1f} {MILLISECONDS}, over {busy.seconds:.0f} s")
    return [
        *(Figure(f"{name}: {process}", ms, MILLISECONDS) for process, ms in by_process.items()),
        Figure(f"{name}: length", busy.seconds, "s"),
        Figure(f"{name}: above idle in the last {options.settle_s / 2:.0f} s", above_ms, RATE),
    ]


async def with_open(
    working: Desks,
    reporting: Devices,
    watch: Watch,
    *,
    running: MeshConnection,
    cases: Sequence[Party],
    options: Options,
) -> list[Figure]:
    """Processor time of an idle second with incidents that are accepted and open: while the devices report, while their missed reports
    are asked for, and afterwards."""
    results: list[Figure] = []
    working.answering = Answering.ACCEPT
    opened = 0
    for count in options.open:
        for first in range(opened, count, OPEN_CONCURRENCY):
            triggers = await begin(reporting, cases[first : min(first + OPEN_CONCURRENCY, count)], per_s=1000.0)
            await working.until_accepted(triggers, ENDED_WITHIN_S)
        opened = count
        # Thousands of incidents are opened as fast as the mesh can; what it put off meanwhile isn't the cost of an idle second.
        caught_up = await putting_off.watch(running, watch.pids, os.cpu_count() or 1)
        results.append(Figure(f"{count:,} open: caught up after", caught_up.after_s, "s"))
        for state, reports, wait_s in (
            ("devices report", True, 0.0),
            ("devices silent", False, 0.0),
            ("devices asked and silent", False, ASKED_AFTER_S - options.settle_s),
        ):
            reporting.reporting = reports
            await asyncio.sleep(max(wait_s, 0.0))
            idle = await idle_mesh(watch, options)
            label = f"{count:,} open, {state}"
            results += [Figure(f"{label}: {name}", ms, RATE) for name, ms in idle.rates_ms().items()]
            say(f"{label}: {idle.rates_ms()[budget.TOTAL]:.1f} {RATE}")
        reporting.reporting = True
    return results


# ── printing ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def columns(all_figures: Sequence[Figure]) -> dict[str, dict[str, float]]:
    """Figures of processor time by series and process."""
    by_series: dict[str, dict[str, float]] = {}
    for figure in all_figures:
        series, _, process = figure.name.rpartition(": ")
        if series and figure.unit in (MILLISECONDS, RATE) and not process.startswith("above idle"):
            by_series.setdefault(f"{series} ({figure.unit})", {})[process] = figure.value
    return by_series


def compare(before: Path, tree: Path, pairs: int, *, arguments: Sequence[str]) -> None:
    """Runs the versions in two worktrees in turn, and prints both with their ratios."""
    runs: dict[str, list[dict[str, float]]] = {"before": [], "after": []}
    units: dict[str, str] = {}
    for order in trees.in_pairs(pairs):
        for version in order:
            say(f"[bold]{version}[/]")
            printed = trees.run(before if version == "before" else tree, "bench.incident", arguments)
            runs[version].append(trees.values(printed))
            units |= {figure["name"]: figure["unit"] for figure in printed["figures"]}
    out = Console(highlight=False, width=140)
    for unit in dict.fromkeys(units.values()):
        selected = {
            version: [{name: value for name, value in run.items() if units[name] == unit} for run in versions]
            for version, versions in runs.items()
        }
        out.print(budget.comparison(budget.compare(selected["before"], selected["after"], unit)))


def main(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    incidents: Annotated[int, typer.Option(help="Incidents of each series.", min=1)] = 60,
    per_s: Annotated[float, typer.Option(help="Incidents that begin each second.", min=0.1)] = 4.0,
    *,
    settle: Annotated[float, typer.Option(help="Seconds after a series that count as well.", min=2)] = 10.0,
    idle: Annotated[float, typer.Option(help="Seconds for which the idle mesh is measured.", min=2)] = 15.0,
    answered: Annotated[bool, typer.Option(help="Measure incidents that desks answer and close.")] = True,
    unanswered: Annotated[bool, typer.Option(help="Measure incidents that nobody answers.")] = True,
    open_: Annotated[list[int], typer.Option("--open", help="Also the idle mesh with so many open incidents.")] = [],  # noqa: B006
    before: Annotated[Path | None, typer.Option(help="Worktree of another version, measured in turn.")] = None,
    tree: Annotated[Path, typer.Option(help="Worktree of the version to measure.")] = trees.HERE,
    pairs: Annotated[int, typer.Option(help="Pairs of runs with --before.", min=1)] = 3,
) -> None:
    """Measure the processor time of an incident by process, and of an idle second with open incidents."""
    telemetry.configure("bench")
    # SIGTERM acts like Ctrl-C: it stops the mesh and removes its folder.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    options = Options(
        incidents=incidents,
        per_s=per_s,
        settle_s=settle,
        idle_s=idle,
        answered=answered,
        unanswered=unanswered,
        open=tuple(sorted(open_)),
    )
    with said_failures():
        if before is not None:
            compare(before.resolve(), tree.resolve(), pairs, arguments=_arguments(options))
            return
        if tree.resolve() != trees.HERE:
            show(trees.run(tree.resolve(), "bench.incident", _arguments(options)), as_json=as_json)
            return
        with tempfile.TemporaryDirectory(prefix="tandem-bench-") as temporary:
            folder = Path(temporary) / "mesh"
            with running_mesh(folder) as (running, up_pid):
                about, versions = machine.describe(folder), machine.versions()
                fsync_ms, calibration_ms = machine.fsync_ms(folder / "nats"), machine.calibration_ms()
                all_figures = uvloop.run(measure(running, up_pid, options))
    all_figures = [
        Figure("fsync of 4 KiB, median", fsync_ms, "ms"),
        Figure("calibration loop", calibration_ms, "ms"),
        Figure("calibration loop, at the end", machine.calibration_ms(), "ms"),
        *all_figures,
    ]
    show(figures.to_json(about, versions, all_figures), as_json=as_json)


def show(measured: Mapping[str, Any], *, as_json: bool) -> None:
    """Prints the figures of a run: processor time by process, and the others in a list."""
    if as_json:
        print(json.dumps(measured))
        return
    out = Console(highlight=False, width=140)
    out.print(", ".join(f"{name} {value}" for name, value in {**measured["machine"], **measured["versions"]}.items()))
    all_figures = [Figure(**figure) for figure in measured["figures"]]
    out.print(budget.table(columns(all_figures)))
    shown = [figure for figure in all_figures if figure.unit not in (MILLISECONDS, RATE) or "above idle" in figure.name]
    out.print(figures.table(shown))


def _arguments(options: Options) -> list[str]:
    return [
        f"--incidents={options.incidents}",
        f"--per-s={options.per_s}",
        f"--settle={options.settle_s}",
        f"--idle={options.idle_s}",
        "--answered" if options.answered else "--no-answered",
        "--unanswered" if options.unanswered else "--no-unanswered",
        *(f"--open={count}" for count in options.open),
    ]


if __name__ == "__main__":
    typer.run(main)
