"""`python -m bench.chain`: latency from a due position to its incident's offers in INCIDENTS, by leg, through a real mesh.

`tandem up` starts a separate mesh: nats-server that syncs every write, registry, ingest, two evaluators and the three legs, each a
process. The load mixes triggers into reports of people who stay far apart. A trigger is the first report of a wearer, 55 m from the
protected person, which enters all three rings at once. A latency ends when this process has read the leg's offer from the stream.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import grpc.aio
import typer
import uvloop
from rich.console import Console

from bench import figures
from bench.figures import Figure
from bench.mesh import load, machine, population
from bench.mesh.load import Plan, Shape, Trigger
from bench.mesh.machine import Usage
from bench.mesh.population import Party
from services.cli.failure import FAILED, CommandFailed, of_rpc
from services.cli.simulate.actors import VENDOR, HeadEnd
from services.cli.simulate.load_generator import LoadOutcome
from services.cli.stack import mesh
from services.cli.stack.mesh import Clients, MeshConnection
from services.common import times
from services.common.messaging import flow, pull
from services.common.messaging.bus import Bus
from services.common.observability import telemetry
from tandem.dispatch.v1 import dispatch_pb2
from tandem.ingest.v1 import ingest_pb2

SHAPES = (
    Shape("single", reports_per_s=200, batch=1, streams=8),
    Shape("batched", reports_per_s=20_000, batch=100, streams=4),
)
BACKGROUND_CASES = 1_000
TRIGGERS_PER_S = 10
WARM_UP_S = 3.0
UP_WITHIN_S = 180.0
ARRIVED_WITHIN_S = 120.0
"""Maximum time from the last answer to the offers of a trigger; then it counts as lost. Ample, so that late offers still count."""
TARGET_MS = 1000.0
"""Target for p99 of the latency from position to both legs."""
AGENCIES = ("probation", "police")
_ANNOUNCED_BATCH = 500

say = Console(stderr=True, highlight=False).print


@dataclass(frozen=True, slots=True)
class Measured:
    """Results of one load."""

    shape: Shape
    seconds: float
    sent: LoadOutcome
    latencies_ms: Mapping[str, list[float]]
    """Latencies of all triggers by leg; `both` is the later one of the two agencies' legs."""
    lost: int
    """Number of triggers without an offer of some leg."""
    used: Usage


class Offers:
    """First offers in INCIDENTS, by leg and by the report that caused them."""

    def __init__(self) -> None:
        self._seen: dict[str, dict[Trigger, float]] = {leg: {} for leg in flow.LEGS}

    async def follow(self, bus: Bus) -> None:
        """Reads INCIDENTS until cancelled."""
        async for messages in pull.read(
            bus, flow.INCIDENTS.name, 1, subjects=[flow.incident_subject(leg, ">") for leg in flow.LEGS]
        ):
            now = time.monotonic()
            for message in messages:
                assignment = dispatch_pb2.Step.FromString(message.data).assignment
                if assignment.state == dispatch_pb2.OFFERED:
                    trigger = assignment.cause.device_id, assignment.cause.report_id
                    self.offered(message.subject.split(".")[1], trigger, now)

    def offered(self, leg: str, trigger: Trigger, at: float) -> None:
        """Notes an offer at a monotonic time. Only the first offer of a leg for a report counts."""
        self._seen[leg].setdefault(trigger, at)

    async def until_all(self, triggers: Collection[Trigger]) -> None:
        """Returns when every leg has offered every trigger, or after ARRIVED_WITHIN_S."""
        with suppress(TimeoutError):
            async with asyncio.timeout(ARRIVED_WITHIN_S):
                while self.lost(triggers):  # noqa: ASYNC110  # checks rarely, so as not to disturb the measurement
                    await asyncio.sleep(0.2)

    def lost(self, triggers: Collection[Trigger]) -> int:
        """Number of triggers that lack some leg's offer."""
        return sum(any(trigger not in seen for seen in self._seen.values()) for trigger in triggers)

    def latencies_ms(self, started: float, triggers: Mapping[Trigger, float]) -> dict[str, list[float]]:
        """Latencies from due to offered, by leg; infinite for a lost trigger, because omitting it would improve the percentiles."""
        latencies = {
            leg: {
                trigger: (seen.get(trigger, math.inf) - started - due_s) * 1000 for trigger, due_s in triggers.items()
            }
            for leg, seen in self._seen.items()
        }
        both = [max(latencies[leg][trigger] for leg in AGENCIES) for trigger in triggers]
        return {leg: list(by_trigger.values()) for leg, by_trigger in latencies.items()} | {"both": both}


# ── the mesh ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def running_mesh(folder: Path) -> Iterator[tuple[MeshConnection, int]]:
    """A separate, healthy mesh, and the process id of its `tandem up`."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TANDEM_")}
    command = (sys.executable, "-m", "services.cli", "up", "--dir", str(folder), "--base-port", "0")
    with (folder.parent / "up.out").open("w+") as output:
        up = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
        try:
            deadline = time.monotonic() + UP_WITHIN_S
            while True:
                with suppress(CommandFailed):
                    running = mesh.load(folder)
                    break
                if up.poll() is not None or time.monotonic() > deadline:
                    output.seek(0)
                    raise CommandFailed(f"the mesh didn't start:\n{output.read()}")
                time.sleep(0.1)
            yield running, up.pid
        finally:
            up.send_signal(signal.SIGTERM)
            up.wait()


@asynccontextmanager
async def following(bus: Bus) -> AsyncIterator[Offers]:
    """Offers that a background task collects."""
    offers = Offers()
    task = asyncio.create_task(offers.follow(bus))
    try:
        yield offers
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def populate(clients: Clients, bus: Bus, cases: list[Party]) -> float:
    """Registers the cases and reports each protected person's position once; returns the time of registering, seconds.

    It waits until the log has all cases.
    """
    took_s = await population.register(clients, cases)
    fix_time = times.to_timestamp(clients.clock.now_ms())
    async with HeadEnd(clients) as head_end:
        for first in range(0, len(cases), _ANNOUNCED_BATCH):
            # The head-end resends reports of devices that ingest doesn't know yet.
            refused = await head_end.carry(
                [
                    ingest_pb2.Position(
                        device_id=case.device_id,
                        report_id="first",
                        fix_time=fix_time,
                        lat_deg=case.home[0],
                        lon_deg=case.home[1],
                        accuracy_m=10.0,
                    )
                    for case in cases[first : first + _ANNOUNCED_BATCH]
                ]
            )
            if refused:
                raise CommandFailed(f"{len(refused)} reports refused: {refused[0].field} {refused[0].reason}")
    subject = flow.log_subject(0, "case")
    async with asyncio.timeout(UP_WITHIN_S):
        while True:
            state = (await bus.api(f"STREAM.INFO.{flow.log_stream(0)}", {"subjects_filter": subject}))["state"]
            if state.get("subjects", {}).get(subject, 0) >= len(cases):
                return took_s
            await asyncio.sleep(0.2)


# ── measuring ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def run_load(
    clients: Clients, offers: Offers, plan: Plan, *, shape: Shape, seconds: float, pids: Mapping[str, int]
) -> Measured:
    """Sends a load, waits for its offers, and returns the results."""
    before = machine.usage(pids)
    sent = await load.send(clients.mesh.addresses["ingest"], clients.identity(VENDOR), plan, streams=shape.streams)
    used = machine.usage(pids).since(before)
    await offers.until_all(plan.triggers)
    return Measured(
        shape=shape,
        seconds=seconds,
        sent=sent,
        latencies_ms=offers.latencies_ms(sent.started, plan.triggers),
        lost=offers.lost(plan.triggers),
        used=used,
    )


async def measure(running: MeshConnection, up_pid: int, seconds: float) -> tuple[float, list[Measured]]:
    """Time of registering the cases, seconds, and the results of each load."""
    per_load, warm = round(seconds * TRIGGERS_PER_S), round(WARM_UP_S * TRIGGERS_PER_S)
    cases = population.actors(BACKGROUND_CASES + len(SHAPES) * (per_load + warm))
    background, unused = cases[:BACKGROUND_CASES], iter(cases[BACKGROUND_CASES:])
    results = []
    async with (
        mesh.connect(running) as clients,
        running.nats.bus_as("dispatch-probation") as bus,
        following(bus) as offers,
    ):
        say(f"registering {len(cases)} joint cases")
        took_s = await populate(clients, bus, cases)
        say(f"  took {took_s:.1f} s, {5 * len(cases) / took_s:.0f} records/s")
        for shape in SHAPES:
            for name, length_s, count in (("warm-up", WARM_UP_S, warm), ("load", seconds, per_load)):
                say(f"{shape.name}: {name} of {shape.reports_per_s} reports/s for {length_s:.0f} s")
                triggered = [next(unused) for _ in range(count)]
                label = f"{shape.name}-{name}"
                # In a thread, so that the task that reads the offers isn't delayed.
                plan = await asyncio.to_thread(
                    load.prepare, label, shape, length_s, background=background, triggered=triggered, seed=shape.batch
                )
                pids = {**running.pids, "tandem up": up_pid, "bench": os.getpid()}
                measured = await run_load(clients, offers, plan, shape=shape, seconds=length_s, pids=pids)
                say(
                    f"  {measured.sent.accepted} reports durable in {measured.sent.took_s:.1f} s; of {count} triggers"
                    f" {measured.lost} lost; both legs p99 {figures.percentile(measured.latencies_ms['both'], 99):.1f} ms"
                )
                if name == "load":
                    results.append(measured)
    return took_s, results


def figures_of(measured: Measured) -> list[Figure]:
    """Figures of one load, with their targets."""
    name, sent = measured.shape.name, measured.sent
    all_figures = []
    for leg, latencies_ms in measured.latencies_ms.items():
        for percent in (50, 99, 100):
            label = f"{name}: {leg} {'max' if percent == 100 else f'p{percent}'}"
            value = figures.percentile(latencies_ms, percent)
            promised = percent == 99 and leg != "warning"
            all_figures.append(
                figures.at_most(label, value, "ms", target=TARGET_MS) if promised else Figure(label, value, "ms")
            )
    triggers = round(measured.seconds * TRIGGERS_PER_S)
    offered_per_s = measured.shape.reports_per_s
    answered_ms = [1000 * s for s in sent.answered_after_s]
    all_figures += [
        Figure(f"{name}: triggers", triggers, "reports"),
        figures.at_most(f"{name}: triggers lost", measured.lost, "reports", target=0),
        figures.at_most(
            f"{name}: reports not durable", offered_per_s * measured.seconds - sent.accepted, "reports", target=0
        ),
        Figure(f"{name}: reports offered", offered_per_s, "reports/s"),
        Figure(f"{name}: reports durable", sent.accepted / max(sent.took_s, measured.seconds), "reports/s"),
        Figure(f"{name}: answer p50", figures.percentile(answered_ms, 50), "ms"),
        Figure(f"{name}: answer p99", figures.percentile(answered_ms, 99), "ms"),
        Figure(f"{name}: requests sent late", sent.late, "requests"),
        Figure(f"{name}: latest request", sent.latest_s * 1000, "ms"),
        *(Figure(f"{name}: cpu of {process}", s, "s") for process, s in measured.used.by_process.items()),
    ]
    if measured.used.total:
        all_figures.append(Figure(f"{name}: cpu of all else", measured.used.others, "s"))
        all_figures.append(Figure(f"{name}: machine idle", 100 * measured.used.idle / measured.used.total, "%"))
    return all_figures


def main(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    seconds: Annotated[float, typer.Option(help="Length of each of the two loads.", min=1, max=600)] = 30,
) -> None:
    """Measure from position to both legs, at 200 reports/s one by one and at 20,000/s in batches of 100."""
    telemetry.configure("bench")
    # SIGTERM acts like Ctrl-C: it stops the mesh and removes its folder.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        with tempfile.TemporaryDirectory(prefix="tandem-bench-") as temporary:
            folder = Path(temporary) / "mesh"
            with running_mesh(folder) as (running, up_pid):
                about, versions = machine.describe(folder), machine.versions()
                fsync_ms = machine.fsync_ms(folder / "nats")
                took_s, results = uvloop.run(measure(running, up_pid, seconds))
    except CommandFailed as failed:
        say(failed.message)
        raise typer.Exit(failed.exit_code) from None
    except grpc.aio.AioRpcError as error:
        say(of_rpc(error).message)
        raise typer.Exit(FAILED) from None
    all_figures = [Figure("fsync of 4 KiB, median", fsync_ms, "ms"), Figure("registering the cases", took_s, "s")]
    all_figures += [figure for result in results for figure in figures_of(result)]
    if as_json:
        print(json.dumps(figures.to_json(about, versions, all_figures)))
    else:
        out = Console(highlight=False, soft_wrap=True)
        out.print(", ".join(f"{name} {value}" for name, value in {**about, **versions}.items()))
        out.print(figures.table(all_figures))
    for result in results:
        for refusal, count in result.sent.refused.most_common(3):
            say(f"[bold red]REFUSED in {result.shape.name}:[/] {count} times {refusal}")
        if result.lost:
            say(f"[bold red]LOST in {result.shape.name}: {result.lost} triggers have no offer of some leg[/]")
    if any(result.lost or result.sent.refused for result in results):
        raise typer.Exit(FAILED)


if __name__ == "__main__":
    typer.run(main)
