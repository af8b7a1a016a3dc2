"""`python -m bench.readers`: latency of both offers while other clients read the history and a program takes a core.

`tandem up` starts a separate mesh. Reports come at 5,000/s in batches and incidents at 2/s, first alone, then beside 19 clients that
read the history as fast as they are answered (ListIncidents, GetTrace, ReadEvidence, Subscribe from 0) and a busy loop. The clients
are one process and the busy loop another. A latency is from the time at which a report was due until both desks have its offer from
their streams. A client that is refused tries again after 0.1 s, whatever hint it was given.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import grpc.aio
import typer
import uvloop
from rich.console import Console

from bench import chain, figures
from bench.figures import Figure
from bench.mesh import load, machine, population
from bench.mesh.load import Plan, Shape, Trigger
from bench.mesh.machine import Usage
from services.cli.failure import FAILED, CommandFailed, of_rpc
from services.cli.simulate import load_generator
from services.cli.simulate.actors import BASIS, DESKS, VENDOR
from services.cli.stack import mesh
from services.cli.stack.mesh import Clients, MeshConnection
from services.common.messaging import flow, pull
from services.common.messaging.bus import Bus
from services.common.observability import telemetry
from tandem.common.v1 import alert_pb2, geometry_pb2
from tandem.dispatch.v1 import dispatch_pb2, evidence_pb2, evidence_pb2_grpc
from tandem.registry.v1 import disclosure_pb2, trace_pb2

SHAPE = Shape("batched", reports_per_s=5_000, batch=100, streams=4)
INCIDENTS_PER_S = 2
BACKGROUND_CASES = 500
HISTORY_PER_S = 10
"""Incidents a second while the history is made."""
READERS = 19
"""Number of clients that read the history: 5 of each kind, and 4 of the last."""
PAGE_SIZE = 1_000
"""Page size that the clients ask for. A leg may answer with a smaller page."""
SUBSCRIBED_S = 5.0
"""Time after which a client of Subscribe begins at the first step again, seconds."""
RETRY_S = 0.1
CALL_WITHIN_S = 20.0
TARGET_MS = 1_000.0
"""Target for p99 of the latency of both offers beside the readers."""
AGENCIES = ("probation", "police")
REVIEWER = "spiffe://tandem/reviewer/history-{}"

say = Console(stderr=True, highlight=False).print


class Arrivals:
    """Arrival times of the first alert and the first offers of each trigger, monotonic seconds."""

    def __init__(self) -> None:
        self.at: dict[str, dict[Trigger, float]] = {name: {} for name in ("alert", *AGENCIES)}

    async def follow_desk(self, clients: Clients, leg: str) -> None:
        """Reads the stream of a desk until cancelled."""
        request = dispatch_pb2.SubscribeRequest(new_only=True)
        async for message in clients.dispatch[leg].Subscribe(request, metadata=clients.identity(DESKS[leg])):
            assignment = message.step.assignment
            if assignment.state == dispatch_pb2.OFFERED:
                self.at[leg].setdefault((assignment.cause.device_id, assignment.cause.report_id), time.monotonic())

    async def follow_alerts(self, bus: Bus) -> None:
        """Reads ALERTS until cancelled."""
        async for messages in pull.read(bus, flow.ALERTS.name, 1):
            now = time.monotonic()
            for message in messages:
                alert = alert_pb2.Alert.FromString(message.data)
                if alert.demand == geometry_pb2.RESPOND:
                    self.at["alert"].setdefault((alert.cause.device_id, alert.cause.report_id), now)

    def lost(self, triggers: Collection[Trigger]) -> int:
        """Number of triggers that some desk wasn't offered."""
        return sum(any(trigger not in self.at[leg] for leg in AGENCIES) for trigger in triggers)

    async def until_all(self, triggers: Collection[Trigger]) -> None:
        """Returns when both desks have been offered every trigger, or after chain.ARRIVED_WITHIN_S."""
        with suppress(TimeoutError):
            async with asyncio.timeout(chain.ARRIVED_WITHIN_S):
                while self.lost(triggers):  # noqa: ASYNC110  # checks rarely, so as not to disturb the measurement
                    await asyncio.sleep(0.2)

    def latencies_ms(self, started: float, triggers: Mapping[Trigger, float]) -> dict[str, list[float]]:
        """Latencies from due to the alert, and to the later of both offers; infinite for a lost trigger."""

        def latency_ms(name: str, trigger: Trigger) -> float:
            return (self.at[name].get(trigger, math.inf) - started - triggers[trigger]) * 1000

        return {
            "alert": [latency_ms("alert", trigger) for trigger in triggers],
            "both offers": [max(latency_ms(leg, trigger) for leg in AGENCIES) for trigger in triggers],
        }


@asynccontextmanager
async def following(clients: Clients, bus: Bus) -> AsyncIterator[Arrivals]:
    """Arrivals that background tasks collect."""
    arrivals = Arrivals()
    tasks = [asyncio.create_task(arrivals.follow_desk(clients, leg)) for leg in AGENCIES]
    tasks.append(asyncio.create_task(arrivals.follow_alerts(bus)))
    try:
        yield arrivals
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


# ── the readers ──────────────────────────────────────────────────────────────────────────────────────────────────────


class Reader:
    """A client that reads the history again and again."""

    def __init__(self, clients: Clients, number: int, *, ids: list[str], outcomes: Counter[str]) -> None:
        self._clients, self._number, self._outcomes = clients, number, outcomes
        self._random = random.Random(number)
        self._ids = ids
        self._kinds = (self._list, self._trace, self._evidence, self._subscribe)
        self._leg = AGENCIES[number // len(self._kinds) % 2]

    async def run(self) -> None:
        """Reads until cancelled."""
        read = self._kinds[self._number % len(self._kinds)]
        while True:
            try:
                await read()
                self._outcomes[f"{read.__name__.strip('_')} answered"] += 1
            except grpc.aio.AioRpcError as error:
                self._outcomes[f"{read.__name__.strip('_')} {error.code().name}"] += 1
                await asyncio.sleep(RETRY_S)

    @property
    def _reviewer(self) -> mesh.Metadata:
        return self._clients.identity(REVIEWER.format(self._number))

    async def _list(self) -> None:
        request = dispatch_pb2.ListIncidentsRequest(page_size=PAGE_SIZE)
        stub = self._clients.dispatch[self._leg]
        answer = await stub.ListIncidents(request, metadata=self._reviewer, timeout=CALL_WITHIN_S)
        self._ids[:] = [incident.incident_id for incident in answer.incidents] or self._ids

    async def _trace(self) -> None:
        request = trace_pb2.GetTraceRequest(incident_id=self._random.choice(self._ids))
        await self._clients.traces.GetTrace(request, metadata=self._reviewer, timeout=CALL_WITHIN_S)

    async def _evidence(self) -> None:
        incident_id = self._random.choice(self._ids)
        grounds = disclosure_pb2.Grounds(legal_basis=BASIS, purpose=disclosure_pb2.PURPOSE_AUDIT, reference=incident_id)
        request = evidence_pb2.ReadEvidenceRequest(incident_id=incident_id, grounds=grounds)
        async with mesh.channel(self._clients.mesh, f"dispatch-{self._leg}") as channel:
            stub = evidence_pb2_grpc.EvidenceServiceStub(channel)
            await stub.ReadEvidence(request, metadata=self._reviewer, timeout=CALL_WITHIN_S)

    async def _subscribe(self) -> None:
        identity = self._clients.identity(DESKS[self._leg])
        stream = self._clients.dispatch[self._leg].Subscribe(dispatch_pb2.SubscribeRequest(), metadata=identity)
        with suppress(TimeoutError):
            async with asyncio.timeout(SUBSCRIBED_S):
                async for _ in stream:
                    self._outcomes["steps"] += 1
        stream.cancel()


async def read_history(folder: Path) -> None:
    """Runs the readers until SIGTERM, then prints their outcomes as JSON."""
    stop, outcomes = asyncio.Event(), Counter[str]()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with mesh.connect(mesh.load(folder)) as clients:
        request = dispatch_pb2.ListIncidentsRequest()
        first = await clients.dispatch["police"].ListIncidents(request, metadata=clients.identity(REVIEWER.format(0)))
        ids = [incident.incident_id for incident in first.incidents]
        tasks = [
            asyncio.create_task(Reader(clients, number, ids=ids, outcomes=outcomes).run()) for number in range(READERS)
        ]
        await stop.wait()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    print(json.dumps(outcomes))


@contextmanager
def others(folder: Path) -> Iterator[tuple[dict[str, int], Counter[str]]]:
    """The readers and a busy loop: their process ids, and the readers' outcomes after the block."""
    outcomes = Counter[str]()
    readers = subprocess.Popen(
        (sys.executable, "-m", "bench.readers", "--read", str(folder)), stdout=subprocess.PIPE, text=True
    )
    loop = subprocess.Popen((sys.executable, "-c", "while True: pass"))
    try:
        yield {"readers": readers.pid, "busy loop": loop.pid}, outcomes
    finally:
        loop.kill()
        loop.wait()
        readers.send_signal(signal.SIGTERM)
        printed, _ = readers.communicate()
        outcomes.update(json.loads(printed) if printed else {})


# ── measuring ────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Measured:
    """Results of one part of the run."""

    name: str
    accepted: int
    latencies_ms: Mapping[str, list[float]]
    lost: int
    used: Usage
    outcomes: Mapping[str, int]

    def figures(self, promised: bool) -> list[Figure]:
        """Figures of this part. If `promised`, the latency of both offers has its target."""
        found = []
        for what, latencies_ms in self.latencies_ms.items():
            for percent in (50, 99):
                label = f"{self.name}: {what} p{percent}"
                value = figures.percentile(latencies_ms, percent)
                has_target = promised and what == "both offers" and percent == 99
                found.append(
                    figures.at_most(label, value, "ms", target=TARGET_MS) if has_target else Figure(label, value, "ms")
                )
        found.append(figures.at_most(f"{self.name}: incidents lost", self.lost, "incidents", target=0))
        found.append(Figure(f"{self.name}: reports durable", self.accepted, "reports"))
        found += [Figure(f"{self.name}: cpu of {process}", s, "s") for process, s in self.used.by_process.items()]
        if self.used.total:
            found.append(Figure(f"{self.name}: cpu of all else", self.used.others, "s"))
            found.append(Figure(f"{self.name}: machine idle", 100 * self.used.idle / self.used.total, "%"))
        return found + [Figure(f"{self.name}: {what}", n, "times") for what, n in sorted(self.outcomes.items())]


class Run:
    """A run on a mesh whose cases are registered."""

    def __init__(
        self, clients: Clients, arrivals: Arrivals, *, cases: list[population.Party], pids: Mapping[str, int]
    ) -> None:
        self._clients, self._arrivals, self._pids = clients, arrivals, pids
        self._background, self._unused = cases[:BACKGROUND_CASES], iter(cases[BACKGROUND_CASES:])

    async def plan(self, name: str, seconds: float, incidents_per_s: float) -> Plan:
        """Plans a load with new incidents."""
        triggered = list(itertools.islice(self._unused, round(seconds * incidents_per_s)))
        return await asyncio.to_thread(
            load.prepare, name, SHAPE, seconds, background=self._background, triggered=triggered, seed=7
        )

    async def measure(self, name: str, plan: Plan, *, more: Mapping[str, int], outcomes: Counter[str]) -> Measured:
        """Sends a load and waits for its offers."""
        pids = {**self._pids, **more}
        # The plan's start is past on a busy machine. Fixes that are some seconds old count as any other.
        plan = replace(plan, starts_at_ms=load_generator.starts_at_ms(0))
        before = machine.usage(pids)
        sent = await load.send(
            self._clients.mesh.addresses["ingest"], self._clients.identity(VENDOR), plan, streams=SHAPE.streams
        )
        used = machine.usage(pids).since(before)
        await self._arrivals.until_all(plan.triggers)
        return Measured(
            name=name,
            accepted=sent.accepted,
            latencies_ms=self._arrivals.latencies_ms(sent.started, plan.triggers),
            lost=self._arrivals.lost(plan.triggers),
            used=used,
            outcomes=outcomes,
        )


async def measure(
    running: MeshConnection, folder: Path, *, up_pid: int, seconds: float, history: int
) -> list[Measured]:
    """Makes a history, then measures the load alone and beside the readers and the busy loop."""
    incidents = round(seconds * INCIDENTS_PER_S)
    cases = population.actors(BACKGROUND_CASES + history + 2 * incidents + 1)
    async with (
        mesh.connect(running) as clients,
        running.nats.bus_as("dispatch-probation") as bus,
        following(clients, bus) as arrivals,
    ):
        say(f"registering {len(cases)} joint cases")
        await chain.populate(clients, bus, cases)
        run = Run(clients, arrivals, cases=cases, pids={**running.pids, "tandem up": up_pid, "bench": os.getpid()})
        say(f"making a history of {history} incidents")
        plan = await run.plan("history", history / HISTORY_PER_S, HISTORY_PER_S)
        await run.measure("history", plan, more={}, outcomes=Counter())
        say("the load alone")
        results = [
            await run.measure("alone", await run.plan("alone", seconds, INCIDENTS_PER_S), more={}, outcomes=Counter())
        ]
        say(f"the load beside {READERS} readers and a busy loop")
        with others(folder) as (pids, outcomes):
            plan = await run.plan("beside", seconds, INCIDENTS_PER_S)
            results.append(await run.measure("beside readers", plan, more=pids, outcomes=outcomes))
    return results


def main(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    seconds: Annotated[float, typer.Option(help="Length of each of the two loads.", min=1, max=600)] = 30,
    history: Annotated[int, typer.Option(help="Number of earlier incidents.", min=10, max=2_000)] = 300,
    read: Annotated[Path | None, typer.Option(help="Only read the history of the mesh in this folder.")] = None,
) -> None:
    """Measure both offers alone, and beside 19 clients that read the history and a busy loop."""
    telemetry.configure("bench")
    if read is not None:
        uvloop.run(read_history(read))
        return
    # SIGTERM acts like Ctrl-C: it stops the mesh and removes its folder.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        with tempfile.TemporaryDirectory(prefix="tandem-bench-") as temporary:
            folder = Path(temporary) / "mesh"
            with chain.running_mesh(folder) as (running, up_pid):
                about, versions = machine.describe(folder), machine.versions()
                fsync_ms = machine.fsync_ms(folder / "nats")
                results = uvloop.run(measure(running, folder, up_pid=up_pid, seconds=seconds, history=history))
    except CommandFailed as failed:
        say(failed.message)
        raise typer.Exit(failed.exit_code) from None
    except grpc.aio.AioRpcError as error:
        say(of_rpc(error).message)
        raise typer.Exit(FAILED) from None
    all_figures = [Figure("fsync of 4 KiB, median", fsync_ms, "ms")]
    all_figures += [figure for result in results for figure in result.figures(promised=result is results[-1])]
    if as_json:
        print(json.dumps(figures.to_json(about, versions, all_figures)))
    else:
        out = Console(highlight=False, soft_wrap=True)
        out.print(", ".join(f"{name} {value}" for name, value in {**about, **versions}.items()))
        out.print(figures.table(all_figures))
    if any(result.lost for result in results):
        raise typer.Exit(FAILED)


if __name__ == "__main__":
    typer.run(main)
