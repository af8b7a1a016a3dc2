"""Random kills and stops of all processes of a mesh for ten minutes, under 300 reports/s with an incident every 2 s.

The test prints the latency of both agencies' offers. Under all faults, each accepted report is in the log and counts once, the alerts
equal an offline fold, and each incident has an offer of every leg. The random choices follow from a seed. A shorter run:
CHAOS_SECONDS=120 pytest -m soak -s tests/faults/test_chaos.py
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import Counter
from pathlib import Path

import pytest

from bench.figures import percentile
from bench.mesh import load, population
from bench.mesh.load import Plan, Shape
from bench.mesh.offers import following
from bench.mesh.running import populate
from services.cli.commands.up import NATS
from services.client import mesh as meshes
from services.client.actors import VENDOR
from services.common.messaging import flow
from services.geofence.domain import codec
from services.local import processes
from tests.support.common.mesh import RunningMesh, is_alive, running_mesh
from tests.support.geofence.evaluator_mesh import offline, stored_alerts

SECONDS = float(os.environ.get("CHAOS_SECONDS", "600"))
SHAPE = Shape("chaos", reports_per_s=300, batch=1, streams=4)
INCIDENT_INTERVAL_S = 2.0
BACKGROUND_CASES = 300
KINDS = (NATS, *(service.name for service in processes.SERVICES), processes.CONSOLE_PROCESS.name)
FAULT_INTERVAL_S = (2.0, 7.0)
STOPPED_FOR_S = (5.0, 20.0)
STOPS = 0.15
"""Fraction of the faults that stop a process (SIGSTOP); the others kill it."""


async def disturb(mesh: RunningMesh, rng: random.Random, faults: Counter[str]) -> None:
    """Kills and stops processes of the mesh until cancelled. A stopped process continues later, unless it was replaced."""
    stopped: set[asyncio.Task[None]] = set()

    async def go_on(pid: int, seconds: float) -> None:
        try:
            await asyncio.sleep(seconds)
        finally:
            if is_alive(pid):
                os.kill(pid, signal.SIGCONT)

    try:
        while True:
            await asyncio.sleep(rng.uniform(*FAULT_INTERVAL_S))
            name = rng.choice(KINDS)
            stops = rng.random() < STOPS
            seconds = rng.uniform(*STOPPED_FOR_S)
            pid = mesh.now.pids.get(name)
            if pid is None or not is_alive(pid):
                continue
            os.kill(pid, signal.SIGSTOP if stops else signal.SIGKILL)
            faults[f"{'SIGSTOP' if stops else 'SIGKILL'} {name}"] += 1
            if stops:
                stopped.add(asyncio.create_task(go_on(pid, seconds)))
    finally:
        for task in stopped:
            task.cancel()
        await asyncio.gather(*stopped, return_exceptions=True)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", [1])
async def test_offers_come_through_kills_and_stops(tmp_path: Path, seed: int) -> None:
    incidents = round(SECONDS / INCIDENT_INTERVAL_S)
    cases = population.actors(BACKGROUND_CASES + incidents)
    background, triggered = cases[:BACKGROUND_CASES], cases[BACKGROUND_CASES:]
    faults: Counter[str] = Counter()
    with running_mesh(tmp_path / "mesh") as mesh:
        async with (
            meshes.connect(mesh.now) as clients,
            mesh.now.nats.bus_as("dispatch-probation") as bus,
            following(bus) as offers,
        ):
            await populate(clients, bus, cases)
            plan: Plan = await asyncio.to_thread(
                load.prepare, "chaos", SHAPE, SECONDS, background=background, triggered=triggered, seed=seed
            )
            disturbing = asyncio.create_task(disturb(mesh, random.Random(seed), faults))
            try:
                sent = await load.send(
                    mesh.now.addresses["ingest"], clients.identity(VENDOR), plan, streams=SHAPE.streams
                )
            finally:
                disturbing.cancel()
                await asyncio.gather(disturbing, return_exceptions=True)
            await offers.until_all(plan.triggers)
            both_ms = offers.latencies_ms(sent.started, plan.triggers)["both"]
            lost = offers.lost(plan.triggers)
        async with mesh.now.nats.bus_as("explain") as bus:
            last = (await bus.bounds_of(flow.log_stream(0))).last
            folded, states = await offline(bus, last, (last,))
            stored = await stored_alerts(bus, len(folded), last)
    reports = round(SECONDS * SHAPE.reports_per_s)
    tracks = codec.decode(states[last]).tracks.values()
    counts = Counter(fix.report_id for track in tracks for fix in track.fixes)
    missing = [n for n in range(reports) if f"chaos-{n}" not in counts]
    twice = [n for n in range(reports) if counts[f"chaos-{n}"] > 1]
    print(f"\n{SECONDS:.0f} s, seed {seed}, {sum(faults.values())} faults: {dict(sorted(faults.items()))}")
    print(f"reports: {sent.accepted} accepted of {reports}, {len(missing)} lost, {len(twice)} counted twice")
    print(
        f"alerts: {len(stored)} stored, {len(folded)} folded; incidents: {len(plan.triggers)}, {lost} without some leg"
    )
    figures = ", ".join(f"p{percent} {percentile(both_ms, percent) / 1000:.2f} s" for percent in (50, 90, 99, 100))
    print(f"both offers: {figures}")
    assert sent.accepted == reports and not sent.refused
    assert (missing, twice, lost) == ([], [], 0)
    assert stored == folded
