"""`python -m bench.dispatch`: latency from a due alert to its offers on INCIDENTS, by leg, on SQLite and on PostgreSQL.

The set-up is a nats-server that syncs every write, and the three legs, each a process with a separate database. There is no evaluator:
this process publishes the alerts in an open loop. A latency ends when this process has read the leg's offer from the stream. The
growth of the store is measured on the warning leg alone, which keeps no evidence.
"""

from __future__ import annotations

import asyncio
import math
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Annotated

import sqlalchemy as sa
import typer
import uvloop
from prometheus_client import CollectorRegistry
from rich.console import Console

from bench import figures
from bench.figures import Figure
from bench.mesh import machine
from services.common.clock import MeshClock
from services.common.messaging import bus as buses
from services.common.messaging import flow, pull, streams
from services.common.messaging.bus import Bus
from services.common.observability import telemetry
from services.common.storage.db import open_database
from services.dispatch.__main__ import MIGRATIONS
from services.dispatch.domain.escalation import Deadlines
from services.dispatch.domain.leg import Leg
from services.dispatch.leg import translate
from services.dispatch.leg.service import open_leg
from services.dispatch.leg.store import Store
from services.dispatch.leg.tables import StreamPosition
from services.dispatch.metrics import DispatchMetrics
from tandem.dispatch.v1 import dispatch_pb2
from tests.support.common.nats import running_server
from tests.support.common.postgres import PostgresServer, running_postgres
from tests.support.dispatch.dispatch import alert, client, publish
from tests.support.dispatch.legs import LegMesh, running_legs

ENGINES = ("sqlite", "postgres")
AGENCIES = ("probation", "police")
ALONE = 100
BURST_INCIDENTS, BURST_S = 1_000, 10.0
SIZES = (100, 1_000, 10_000, 100_000)
FILL_BATCH = 250
ARRIVED_WITHIN_S = 60.0
NO_DEADLINE_S = 3_600
STREAM_BYTES = 1 << 30
TARGET_BURST_MS, TARGET_ALONE_MS = 1_000.0, 15.0

say = Console(stderr=True, highlight=False).print


class Offers:
    """Monotonic time at which each leg's offer of each incident was read from the stream."""

    def __init__(self) -> None:
        self.at_s: dict[str, dict[str, float]] = {leg: {} for leg in flow.LEGS}

    async def follow(self, bus: Bus) -> None:
        """Reads INCIDENTS until cancelled."""
        async for messages in pull.read(bus, flow.INCIDENTS.name, 1):
            now_s = time.monotonic()
            for message in messages:
                if dispatch_pb2.Step.FromString(message.data).assignment.state == dispatch_pb2.OFFERED:
                    _, leg, incident_id = message.subject.split(".")
                    self.at_s[leg].setdefault(incident_id, now_s)

    async def until(self, legs: Iterable[str], incident_ids: Sequence[str], check_s: float) -> None:
        """Returns when these legs have offered all incidents, or after ARRIVED_WITHIN_S."""
        with suppress(TimeoutError):
            async with asyncio.timeout(ARRIVED_WITHIN_S):
                while any(incident_id not in self.at_s[leg] for leg in legs for incident_id in incident_ids):  # noqa: ASYNC110
                    await asyncio.sleep(check_s)

    def latencies_ms(self, legs: Sequence[str], due_s: Mapping[str, float]) -> dict[str, list[float]]:
        """Latencies from due to offered, by leg and of both agencies.

        A lost offer counts as infinite, because omitting it would improve the percentiles.
        """
        latencies = {
            leg: [(self.at_s[leg].get(id_, math.inf) - at) * 1000 for id_, at in due_s.items()] for leg in legs
        }
        if set(AGENCIES) <= latencies.keys():
            latencies["both"] = [max(pair) for pair in zip(*(latencies[leg] for leg in AGENCIES), strict=True)]
        return latencies


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


async def sequentially(
    bus: Bus, offers: Offers, legs: Sequence[str], *, name: str, count: int
) -> dict[str, list[float]]:
    """Opens incidents one after the other, each once the previous one is offered; returns the latencies by leg."""
    due_s: dict[str, float] = {}
    for n in range(count):
        incident_id = f"{name}-{n}"
        due_s[incident_id] = time.monotonic()
        await publish(bus, alert(n + 1, incident=incident_id))
        await offers.until(legs, [incident_id], 0.001)
        await asyncio.sleep(0.02)
    return offers.latencies_ms(legs, due_s)


async def burst(bus: Bus, offers: Offers) -> dict[str, list[float]]:
    """Opens 1,000 incidents in 10 s, each at its time, without waiting for earlier ones; returns the latencies by leg."""
    began_s = time.monotonic()
    due_s = {f"burst-{n}": began_s + n * BURST_S / BURST_INCIDENTS for n in range(BURST_INCIDENTS)}
    async with asyncio.TaskGroup() as tasks:
        for n, (incident_id, at_s) in enumerate(due_s.items()):
            await asyncio.sleep(max(0.0, at_s - time.monotonic()))
            tasks.create_task(publish(bus, alert(n + 1, incident=incident_id)))
    await offers.until(flow.LEGS, list(due_s), 0.2)
    return offers.latencies_ms(flow.LEGS, due_s)


async def serving(mesh: LegMesh, legs: Iterable[str]) -> float:
    """Waits until all of these legs serve; returns the time, seconds."""
    began_s = time.monotonic()
    for leg in legs:
        async with client(mesh.settings[leg]):
            pass
    return time.monotonic() - began_s


async def measure_legs(folder: Path, engine: str, postgres: PostgresServer | None) -> list[Figure]:
    """Figures of single incidents and of 1,000 in 10 s, by leg."""
    all_figures: list[Figure] = []
    with running_server(folder / "nats") as nats:
        async with buses.connect(nats.url, "bench") as bus:
            await streams.create(bus, 1, MeshClock(), max_bytes=STREAM_BYTES)
            with running_legs(folder, nats, postgres, acknowledge_within_s=NO_DEADLINE_S) as mesh:
                await serving(mesh, flow.LEGS)
                async with following(bus) as offers:
                    await sequentially(bus, offers, flow.LEGS, name="warm", count=20)
                    alone = await sequentially(bus, offers, flow.LEGS, name="alone", count=ALONE)
                    pids = {leg: service.pid for leg, service in mesh.legs.items()}
                    pids |= {"nats": nats.pid, "bench": os.getpid()}
                    before = machine.usage(pids)
                    many = await burst(bus, offers)
                    used = machine.usage(pids).since(before)
    for leg, latencies_ms in alone.items():
        p50 = figures.percentile(latencies_ms, 50)
        name = f"{engine}: alone, {leg}"
        all_figures.append(figures.at_most(f"{name} p50", p50, "ms", target=TARGET_ALONE_MS))
        all_figures.append(Figure(f"{name} p99", figures.percentile(latencies_ms, 99), "ms"))
    for leg, latencies_ms in many.items():
        name = f"{engine}: 1,000 in 10 s, {leg}"
        all_figures.append(Figure(f"{name} p50", figures.percentile(latencies_ms, 50), "ms"))
        all_figures.append(
            figures.at_most(f"{name} p99", figures.percentile(latencies_ms, 99), "ms", target=TARGET_BURST_MS)
        )
        all_figures.append(Figure(f"{name} max", max(latencies_ms), "ms"))
    lost = sum(not math.isfinite(ms) for latencies_ms in many.values() for ms in latencies_ms)
    all_figures.append(figures.at_most(f"{engine}: 1,000 in 10 s, offers lost", lost, "offers", target=0))
    all_figures += [Figure(f"{engine}: cpu of {name}", s, "s") for name, s in used.by_process.items()]
    all_figures.append(Figure(f"{engine}: cpu of all else, PostgreSQL too", used.others, "s"))
    return all_figures


async def fill(mesh: LegMesh, have: int, want: int) -> None:
    """Fills the warning leg's store with incidents that are over."""
    async with (
        open_database(mesh.settings["warning"].database, MIGRATIONS) as database,
        open_leg(
            Leg.WARNING,
            Store(database),
            MeshClock(),
            deadlines=Deadlines(NO_DEADLINE_S * 1000),
            metrics=DispatchMetrics(CollectorRegistry()),
        ) as leg,
    ):
        for first in range(have, want, FILL_BATCH):
            numbers = range(first, min(first + FILL_BATCH, want))
            alerts = [alert(2 * n + half, incident=f"old-{n}", ends=half == 2) for n in numbers for half in (1, 2)]
            parsed = [translate.alert(message.SerializeToString(), Leg.WARNING) for message in alerts]
            await leg.fold(
                [incident_alert for incident_alert in parsed if incident_alert],
                StreamPosition(flow.ALERTS.name, "filling", first),
            )
        await leg.store.transaction(
            partial(sa.Connection.execute, statement=sa.text("update steps set published = true"))
        )


async def measure_growth(folder: Path, engine: str, postgres: PostgresServer | None, *, max_size: int) -> list[Figure]:
    """Figures of the warning leg alone with a growing store."""
    all_figures: list[Figure] = []
    with running_server(folder / "nats") as nats:
        async with buses.connect(nats.url, "bench") as bus, following(bus) as offers:
            await streams.create(bus, 1, MeshClock(), max_bytes=STREAM_BYTES)
            mesh = LegMesh(folder, nats, postgres, acknowledge_within_s=NO_DEADLINE_S)
            have = 0
            for size in (size for size in SIZES if size <= max_size):
                began_s = time.monotonic()
                await fill(mesh, have, size)
                have = size
                say(f"  {engine}: {size:,} incidents in the store after {time.monotonic() - began_s:.1f} s")
                mesh.legs["warning"].start()
                try:
                    start_s = await serving(mesh, ["warning"])
                    await sequentially(bus, offers, ["warning"], name=f"warm-{size}", count=10)
                    latencies_ms = (await sequentially(bus, offers, ["warning"], name=f"at-{size}", count=ALONE))[
                        "warning"
                    ]
                finally:
                    mesh.legs["warning"].kill()
                name = f"{engine}: {size:,} incidents in the store"
                all_figures += [Figure(f"{name}, p{p}", figures.percentile(latencies_ms, p), "ms") for p in (50, 99)]
                all_figures.append(Figure(f"{name}, start until it serves", start_s, "s"))
    return all_figures


def main(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    engine: Annotated[list[str], typer.Option(help="sqlite or postgres; default: both.")] = list(ENGINES),  # noqa: B006
    growth: Annotated[int, typer.Option(help="Maximum number of incidents in the store; 0 skips the growth.")] = SIZES[
        -1
    ],
    *,
    legs: Annotated[bool, typer.Option(help="Measure all legs, with single incidents and with 1,000 in 10 s.")] = True,
) -> None:
    """Measure from alert to offers: single incidents, 1,000 in 10 s, and with a growing store."""
    telemetry.configure("bench", Path("/dev/null").open("w"))  # noqa: SIM115
    all_figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="tandem-bench-") as temporary:
        folder = Path(temporary)
        about, versions = machine.describe(folder), machine.versions()
        all_figures.append(Figure("fsync of 4 KiB, median", machine.fsync_ms(folder), "ms"))
        for name in engine:
            with running_postgres(fsync=True) if name == "postgres" else nullcontext() as postgres:
                if legs:
                    say(f"{name}: all legs")
                    (folder / name).mkdir()
                    all_figures += uvloop.run(measure_legs(folder / name, name, postgres))
                if growth:
                    say(f"{name}: growth")
                    (folder / f"{name}-growth").mkdir()
                    all_figures += uvloop.run(
                        measure_growth(folder / f"{name}-growth", name, postgres, max_size=growth)
                    )
    figures.show(about, versions, all_figures, as_json=as_json)
    sys.exit(any(figure.met is False for figure in all_figures))


if __name__ == "__main__":
    typer.run(main)
