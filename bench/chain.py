"""`python -m bench.chain`: latency from a due position to its incident's offers, at the desks and in INCIDENTS, through a real mesh.

`tandem up` starts a separate mesh: nats-server that syncs every write, registry, ingest, two evaluators and the three legs, each a
process. The load mixes triggers into reports of people who stay far apart. A trigger is the first report of a wearer, 55 m from the
protected person, which enters all three rings at once. A latency ends when this process has read the leg's offer: from the leg's stream
as its desk does, and from INCIDENTS. The quiet load is triggers alone, whose offers the desks accept.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from bench import figures
from bench.figures import Figure
from bench.latency import stages
from bench.mesh import desks, history, load, machine, population, putting_off
from bench.mesh.desks import Answering, Desks
from bench.mesh.load import Plan, Shape
from bench.mesh.machine import Usage
from bench.mesh.offers import Offers, following
from bench.mesh.population import Party
from bench.mesh.putting_off import CaughtUp
from bench.mesh.running import populate, running_mesh, said_failures, say
from services.client import mesh
from services.client.actors import VENDOR
from services.client.load_generator import LoadOutcome
from services.client.mesh import Clients
from services.common.failure import FAILED
from services.common.messaging.bus import Bus
from services.common.observability import telemetry


class Name(StrEnum):
    """The loads."""

    QUIET = "quiet"
    SINGLE = "single"
    BATCHED = "batched"
    HISTORY = "history"


@dataclass(frozen=True, slots=True)
class Load:
    """One load."""

    shape: Shape
    """Reports of people far apart; a rate of 0 is a quiet mesh."""
    triggers_per_s: float
    seconds: float
    readers: int = 0
    """Clients that read history meanwhile."""
    busy_loops: int = 0
    """Cores that other programs take meanwhile, beside those of the whole run."""

    @property
    def triggers(self) -> int:
        """Number of triggers."""
        return round(self.seconds * self.triggers_per_s)


QUIET_INTERVAL_S = 3.0
"""Time between two triggers of the quiet load, seconds. The desks have accepted by then."""
QUIET_TRIGGERS = 30
HISTORY_READERS = 19
DISTURBED_LEAD_S = 8.0
"""Additional time to prepare a load while others take the cores, seconds."""
BACKGROUND_CASES = 1_000
WARM_UP_S = 3.0
TARGETS_MS: Mapping[str, Mapping[str, float]] = {
    "quiet, desks after receipt": {"both p50": 6, "both p99": 15},
    "quiet, INCIDENTS after receipt": {"both p50": 12, "both p99": 30},
    "single": {"both p50": 15, "both p99": 60},
    "batched": {"both p99": 250},
    "history": {"both p99": 1_000},
}
BUSY_TARGET_MS = 1_000.0
"""Target for p99 of both legs in `batched` where other programs take a core."""
CAUGHT_UP_TARGET_S = 60.0


def loads(seconds: float) -> dict[Name, Load]:
    """All loads, by name."""
    return {
        Name.QUIET: Load(
            Shape("quiet", reports_per_s=0, batch=1, streams=1), 1 / QUIET_INTERVAL_S, QUIET_TRIGGERS * QUIET_INTERVAL_S
        ),
        Name.SINGLE: Load(Shape("single", reports_per_s=200, batch=1, streams=8), 10, seconds),
        Name.BATCHED: Load(Shape("batched", reports_per_s=20_000, batch=100, streams=4), 10, seconds),
        Name.HISTORY: Load(
            Shape("history", reports_per_s=5_000, batch=100, streams=4),
            2,
            seconds,
            readers=HISTORY_READERS,
            busy_loops=1,
        ),
    }


@dataclass(frozen=True, slots=True)
class Measured:
    """Results of one load."""

    load: Load
    sent: LoadOutcome
    latencies_ms: Mapping[str, Mapping[str, list[float]]]
    """Latencies of all triggers by leg, by where they end and begin; `both` is the later one of the two agencies' legs."""
    lost: int
    """Number of triggers without an offer of some leg."""
    used: Usage
    history: Counter[str]
    """Calls of the clients that read history."""
    stages_ms: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Durations of the stages of bench.latency.stages, milliseconds."""


class Chain:
    """A mesh with cases, and the loads on it."""

    def __init__(
        self,
        clients: Clients,
        bus: Bus,
        offers: Offers,
        *,
        desks: Desks,
        cases: Sequence[Party],
        pids: Mapping[str, int],
        folder: Path,
        disturbed: bool,
    ) -> None:
        self._clients = clients
        self._bus = bus
        self._offers = offers
        self._desks = desks
        self._background, self._unused = cases[:BACKGROUND_CASES], iter(cases[BACKGROUND_CASES:])
        self._pids = pids
        self._folder = folder
        self._disturbed = disturbed

    async def warmed_up(self, load: Load) -> Measured:
        """Runs a load for some seconds first, and then for its whole length."""
        self._desks.answering = Answering.NOTHING if load.shape.reports_per_s else Answering.ACCEPT
        await self._run(replace(load, seconds=warm_up_s(load)), "warm-up")
        return await self._run(load, "load")

    async def _run(self, run: Load, label: str) -> Measured:
        label = f"{run.shape.name}-{label}"
        say(f"{label}: {run.shape.reports_per_s} reports/s for {run.seconds:.0f} s")
        triggered = [next(self._unused) for _ in range(run.triggers)]
        stored_before = await stages.bounds(self._bus)
        with history.readers(self._folder, run.readers) as reading, machine.busy_loops(run.busy_loops):
            # In a thread, so that the tasks that read the offers aren't delayed.
            plan = await asyncio.to_thread(self._plan, run, label, triggered)
            await asyncio.sleep(max(plan.starts_at_ms / 1000 - time.time() - 0.5, 0.0))
            before = machine.usage(self._pids)
            sent = await load.send(
                self._clients.mesh.addresses["ingest"], self._clients.identity(VENDOR), plan, streams=run.shape.streams
            )
            used = machine.usage(self._pids).since(before)
        await self._offers.until_all(plan.triggers)
        await self._desks.arrivals.until_all(plan.triggers)
        name, at_desks = run.shape.name, self._desks.arrivals
        in_incidents = self._offers.latencies_ms(sent.started, plan.triggers)
        say(
            f"  {sent.accepted} reports durable in {sent.took_s:.1f} s; of {run.triggers} triggers"
            f" {self._offers.lost(plan.triggers)} lost; both legs p99 {figures.percentile(in_incidents['both'], 99):.1f} ms"
        )
        return Measured(
            load=run,
            sent=sent,
            latencies_ms={
                name: in_incidents,
                f"{name}, at the desks": at_desks.latencies_ms(sent.started, plan.triggers),
                f"{name}, INCIDENTS after receipt": self._offers.after_receipt_ms(plan.triggers),
                f"{name}, desks after receipt": at_desks.after_receipt_ms(plan.triggers),
            },
            lost=self._offers.lost(plan.triggers),
            used=used,
            history=reading.calls,
            stages_ms=await stages.read(
                self._bus, stored_before, self._clients.clock, arrivals=at_desks, triggers=plan.triggers
            ),
        )

    def _plan(self, run: Load, label: str, triggered: Sequence[Party]) -> Plan:
        if not run.shape.reports_per_s:
            return load.prepare_quiet(label, triggered, interval_s=QUIET_INTERVAL_S, seed=1)
        return load.prepare(
            label,
            run.shape,
            run.seconds,
            background=self._background,
            triggered=triggered,
            seed=run.shape.batch,
            lead_s=DISTURBED_LEAD_S if run.readers or self._disturbed else 0.0,
        )


def warm_up_s(load: Load) -> float:
    """Length of a load's warm-up, seconds: some triggers at least."""
    return max(WARM_UP_S, 3 / load.triggers_per_s)


async def measure(
    folder: Path, up_pid: int, chosen: Sequence[Load], *, busy_loops: int
) -> tuple[float, list[Measured], CaughtUp]:
    """Time of registering the cases, seconds, the results of each load, and what the mesh did afterwards."""
    count = BACKGROUND_CASES + sum(run.triggers + round(warm_up_s(run) * run.triggers_per_s) for run in chosen)
    cases = population.actors(count)
    running = mesh.load(folder)
    pids = {**running.pids, "tandem up": up_pid, "bench": os.getpid()}
    async with (
        mesh.connect(running) as clients,
        running.nats.bus_as("dispatch-probation") as bus,
        following(bus) as offers,
        desks.at_work(clients) as working,
    ):
        say(f"registering {len(cases)} joint cases")
        took_s = await populate(clients, bus, cases)
        say(f"  took {took_s:.1f} s, {5 * len(cases) / took_s:.0f} records/s")
        chain = Chain(
            clients, bus, offers, desks=working, cases=cases, pids=pids, folder=folder, disturbed=busy_loops > 0
        )
        with machine.busy_loops(busy_loops):
            results = [await chain.warmed_up(run) for run in chosen]
        say(f"watching the mesh for {putting_off.WATCHED_S} s: is what was put off caught up?")
        return took_s, results, await putting_off.watch(running, pids, os.cpu_count() or 1)


def latency_figures(measured: Measured, busy_loops: int) -> Iterator[Figure]:
    """Percentiles of the latencies, with the targets of those that have one."""
    for series, by_leg in measured.latencies_ms.items():
        for leg, latencies_ms in by_leg.items():
            for percent in (50, 99, 100):
                label = f"{leg} {'max' if percent == 100 else f'p{percent}'}"
                value = figures.percentile(latencies_ms, percent)
                target = TARGETS_MS.get(series, {}).get(label)
                if busy_loops and target is not None:
                    target = BUSY_TARGET_MS if (series, label) == ("batched", "both p99") else None
                name = f"{series}: {label}"
                yield Figure(name, value, "ms") if target is None else figures.at_most(name, value, "ms", target=target)


def stage_figures(measured: Measured) -> Iterator[Figure]:
    """Percentiles of the stages of an offer's way."""
    for stage, durations_ms in measured.stages_ms.items():
        for percent in (50, 99):
            value = figures.percentile(durations_ms, percent)
            yield Figure(f"{measured.load.shape.name}, stage {stage}: p{percent}", value, "ms")


def caught_up_figures(caught_up: CaughtUp) -> list[Figure]:
    """What the mesh did after the last load."""
    return [
        figures.at_most("put off: caught up after", caught_up.after_s, "s", target=CAUGHT_UP_TARGET_S),
        Figure("put off: level then", caught_up.level_ms, "ms/s"),
        Figure("put off: blocks waiting when the load ended", caught_up.waiting, "blocks"),
        Figure("put off: none waiting after", caught_up.waiting_until_s, "s"),
    ]


def figures_of(measured: Measured, busy_loops: int) -> list[Figure]:
    """Figures of one load, with their targets."""
    run = measured.load
    sent = measured.sent
    name = measured.load.shape.name
    all_figures = [*latency_figures(measured, busy_loops), *stage_figures(measured)]
    due = run.shape.reports_per_s * run.seconds or run.triggers
    answered_ms = [1000 * s for s in sent.answered_after_s]
    all_figures += [
        Figure(f"{name}: triggers", run.triggers, "reports"),
        figures.at_most(f"{name}: triggers lost", measured.lost, "reports", target=0),
        figures.at_most(f"{name}: reports not durable", due - sent.accepted, "reports", target=0),
        Figure(f"{name}: reports offered", run.shape.reports_per_s, "reports/s"),
        Figure(f"{name}: reports durable", sent.accepted / max(sent.took_s, run.seconds), "reports/s"),
        Figure(f"{name}: answer p50", figures.percentile(answered_ms, 50), "ms"),
        Figure(f"{name}: answer p99", figures.percentile(answered_ms, 99), "ms"),
        Figure(f"{name}: requests sent late", sent.late, "requests"),
        Figure(f"{name}: latest request", sent.latest_s * 1000, "ms"),
        *(Figure(f"{name}: calls to {call}", count, "calls") for call, count in sorted(measured.history.items())),
        *(Figure(f"{name}: cpu of {process}", s, "s") for process, s in measured.used.by_process.items()),
    ]
    if measured.used.total:
        all_figures.append(Figure(f"{name}: cpu of all else", measured.used.others, "s"))
        all_figures.append(Figure(f"{name}: machine idle", 100 * measured.used.idle / measured.used.total, "%"))
    return all_figures


def main(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    seconds: Annotated[float, typer.Option(help="Length of each load but the quiet one.", min=1, max=600)] = 30,
    only: Annotated[list[Name], typer.Option(help="Only these loads.")] = [Name.QUIET, Name.SINGLE, Name.BATCHED],  # noqa: B006
    *,
    busy_loops: Annotated[int, typer.Option(help="Cores that other programs take during all loads.", min=0)] = 0,
) -> None:
    """Measure from position to both legs: in a quiet mesh, at 200 reports/s one by one, and at 20,000/s in batches of 100.

    The load `history` is 5,000 reports/s while 19 clients read the mesh's history and another program takes a core.
    """
    telemetry.configure("bench")
    # SIGTERM acts like Ctrl-C: it stops the mesh and removes its folder.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    with said_failures(), tempfile.TemporaryDirectory(prefix="tandem-bench-") as temporary:
        folder = Path(temporary) / "mesh"
        with running_mesh(folder) as (_, up_pid):
            about, versions = machine.describe(folder), machine.versions()
            fsync_ms, calibration_ms = machine.fsync_ms(folder / "nats"), machine.calibration_ms()
            chosen = [run for name, run in loads(seconds).items() if name in only]
            took_s, results, caught_up = uvloop.run(measure(folder, up_pid, chosen, busy_loops=busy_loops))
    all_figures = [
        Figure("fsync of 4 KiB, median", fsync_ms, "ms"),
        Figure("calibration loop", calibration_ms, "ms"),
        Figure("registering the cases", took_s, "s"),
        *(figure for result in results for figure in figures_of(result, busy_loops)),
        *caught_up_figures(caught_up),
    ]
    figures.show(about, versions, all_figures, as_json=as_json)
    for result in results:
        for refusal, count in result.sent.refused.most_common(3):
            say(f"[bold red]REFUSED in {result.load.shape.name}:[/] {count} times {refusal}")
        if result.lost:
            say(f"[bold red]LOST in {result.load.shape.name}: {result.lost} triggers have no offer of some leg[/]")
    if any(result.lost or result.sent.refused for result in results):
        raise typer.Exit(FAILED)


if __name__ == "__main__":
    typer.run(main)
