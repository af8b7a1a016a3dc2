"""Upgrade of a running mesh under load to a version with another fold, schema and protos, and the rollback that is then possible.

As docs/reference/kubernetes.md, "Changing the version", says: evaluators, registry, ingest, legs, field, console. Each process ends by
SIGTERM and comes back with the later version. `make upgrade-drill` runs it, and `make upgrade-drill BEFORE=COMMIT` with a real earlier
version in the place of a seeded later one.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Awaitable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from bench.mesh import load, population
from bench.mesh.load import Plan, Shape
from bench.mesh.offers import following
from bench.mesh.running import populate
from services.client import mesh as meshes
from services.client.actors import VENDOR
from services.client.mesh import Clients
from services.common.errors import OutdatedFold
from services.common.messaging import flow, pull
from services.common.messaging.bus import Bus
from services.geofence.domain import fold
from services.geofence.domain.entries import Entry, FoldVersion
from services.geofence.domain.state import State
from tests.support.common.mesh import PATIENCE_S, RunningMesh, running_mesh
from tests.support.kube.versions import NEXT_VERSION, ROOT, Versions, python

ROUND_S = 10.0
"""Length of a round of the load, seconds. Rounds follow one another until all processes are changed."""
INCIDENTS = 3
"""Incidents that begin in each round, in the first `ROUNDS` rounds."""
ROUNDS = 40
REPORTS_PER_S = 60
BACKGROUND_CASES = 100
UPGRADE = (
    ("geofence", ("geofence-1", "geofence-0")),
    ("registry", ("registry",)),
    ("ingest", ("ingest",)),
    ("dispatch", ("dispatch-probation", "dispatch-police", "dispatch-warning")),
    ("field", ("field",)),
    ("console", ("console",)),
)
"""Packages in the documented order, with their processes."""
COMMIT = os.environ.get("UPGRADE_FROM", "")
"""Commit of the earlier version; if empty, this source is the earlier one."""
COMPARE = """
import json, uvloop
from pathlib import Path
import client
from services.client import mesh
print(json.dumps(uvloop.run(client.alerts(mesh.load(Path(sys.argv[1]))))))
"""
REPORT = re.compile(rb"round\d+-\d+")


async def change(mesh: RunningMesh, versions: Versions, tree: Path, *parts: tuple[str, tuple[str, ...]]) -> None:
    """Lets these packages run a version, one process after the other, each once the one before answers."""
    for package, names in parts:
        versions.choose(tree, package)
        for name in names:
            pid = mesh.now.pids[name]
            os.kill(pid, signal.SIGTERM)
            await mesh.wait_until_returned({name: pid})
            await until_healthy(mesh, name)


async def until_healthy(mesh: RunningMesh, name: str) -> None:
    """Returns when a process takes connections."""
    # Field and the console serve no gRPC.
    host, _, port = (mesh.now.addresses.get(name) or urlsplit(mesh.now.metrics_urls[name]).netloc).rpartition(":")
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                _, writer = await asyncio.open_connection(host, int(port))
            except OSError:
                await asyncio.sleep(0.1)
                continue
            writer.close()
            return


async def compared(mesh: RunningMesh, tree: Path) -> dict[str, int | bool]:
    """Stored alerts and those of an offline fold by a version of the services."""
    shutil.copy(ROOT / "tools/kube/cluster/client.py", tree / "client.py")
    command = python(tree, COMPARE, str(mesh.folder))
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False, cwd=tree)
    assert done.returncode == 0, done.stderr
    answer: dict[str, int | bool] = json.loads(done.stdout)
    return answer


@dataclass
class Sent:
    """What the rounds of the load have sent."""

    reports: set[str] = field(default_factory=set)
    accepted: int = 0
    incidents: int = 0
    lost: int = 0
    """Incidents that some leg never offered."""


class Load:
    """Rounds of reports with incidents, of one population."""

    def __init__(self, mesh: RunningMesh) -> None:
        self._mesh = mesh
        cases = population.actors(BACKGROUND_CASES + ROUNDS * INCIDENTS)
        self.cases = cases
        self._background = cases[:BACKGROUND_CASES]
        self._left = list(cases[BACKGROUND_CASES:])
        self._rounds = 0

    async def during(self, clients: Clients, bus: Bus, changing: Awaitable[None]) -> Sent:
        """Sends rounds until the change is done, and waits for the offers of both legs."""
        sent = Sent()
        async with following(bus) as offers:
            change = asyncio.ensure_future(changing)
            while not change.done():
                self._rounds += 1
                shape = Shape(f"round{self._rounds}", reports_per_s=REPORTS_PER_S, batch=1, streams=4)
                triggered, self._left = self._left[:INCIDENTS], self._left[INCIDENTS:]
                plan: Plan = await asyncio.to_thread(
                    load.prepare,
                    shape.name,
                    shape,
                    ROUND_S,
                    background=self._background,
                    triggered=triggered,
                    seed=self._rounds,
                )
                address = self._mesh.now.addresses["ingest"]
                outcome = await load.send(address, clients.identity(VENDOR), plan, streams=shape.streams)
                assert not outcome.refused
                await offers.until_all(plan.triggers)
                sent.accepted += outcome.accepted
                sent.reports |= {f"{shape.name}-{report}" for report in range(round(ROUND_S * REPORTS_PER_S))}
                sent.incidents += len(triggered)
                sent.lost += offers.lost(plan.triggers)
            await change
        return sent


async def reports_in_log(mesh: RunningMesh, mark: str) -> set[str]:
    """Ids of the load's reports in the log, which must hold the mark of the later version."""
    async with mesh.now.nats.bus_as("explain") as bus:
        log = flow.log_stream(0)
        last = (await bus.bounds_of(log)).last
        entries = [message.data async for message in pull.between(bus, log, 1, last=last)]
    assert mark.encode() in b"".join(entries)
    return {found.decode() for entry in entries for found in REPORT.findall(entry)}


@pytest.mark.drill
@pytest.mark.timeout(3600)
async def test_a_mesh_is_upgraded_and_rolled_back_under_load(tmp_path: Path) -> None:
    versions = await asyncio.to_thread(Versions, tmp_path, [package for package, _ in UPGRADE], COMMIT)
    upgraded = [part for part in UPGRADE if versions.has(part[0])]
    refused = [(part, refusal) for part in upgraded if (refusal := versions.refusal_of(part[0]))]
    rolled_back = [part for part in reversed(upgraded) if not versions.refusal_of(part[0])]
    with running_mesh(tmp_path / "mesh", settings=versions.environment) as mesh:
        loads = Load(mesh)
        async with meshes.connect(mesh.now) as clients, mesh.now.nats.bus_as("dispatch-probation") as bus:
            await populate(clients, bus, loads.cases)
            for what, tree, parts in (
                ("upgraded", versions.later, upgraded),
                ("rolled back", versions.earlier, rolled_back),
            ):
                sent = await loads.during(clients, bus, change(mesh, versions, tree, *parts))
                missing = sent.reports - await reports_in_log(mesh, versions.mark)
                alerts = await compared(mesh, versions.later)
                print(
                    f"\n{what}: {', '.join(package for package, _ in parts)}\n"
                    f"reports: {sent.accepted} accepted of {len(sent.reports)}, {len(missing)} lost\n"
                    f"incidents: {sent.incidents}, {sent.lost} without some leg\n"
                    f"alerts: {alerts['stored']} stored, {alerts['folded']} folded offline, the same: {alerts['same']}"
                )
                assert sent.accepted == len(sent.reports) and missing == set()
                assert sent.incidents and sent.lost == 0
                assert alerts["same"] and alerts["stored"]

        # The parts that can't go back say so, and the rest of the mesh goes on with the later version of them.
        for (package, (name, *_)), refusal in refused:
            await until_refused(mesh, versions, package, name=name, refusal=refusal)
            print(f"refused to go back: {name}: {refusal}")


async def until_refused(mesh: RunningMesh, versions: Versions, package: str, *, name: str, refusal: str) -> None:
    """Starts the earlier version of a process, waits until its log says why it can't work, and starts the later one again."""
    versions.choose(versions.earlier, package)
    log_file = mesh.folder / "logs" / f"{name}.log"
    before = log_file.stat().st_size
    os.kill(mesh.now.pids[name], signal.SIGTERM)
    async with asyncio.timeout(PATIENCE_S):
        while refusal.encode() not in log_file.read_bytes()[before:]:  # noqa: ASYNC110  # there is no event
            await asyncio.sleep(0.1)
    versions.choose(versions.later, package)
    await until_healthy(mesh, name)


def test_an_older_fold_refuses_the_log_of_a_newer_one() -> None:
    state = State(0, "log")
    with pytest.raises(OutdatedFold, match=f"fold version {NEXT_VERSION}"):
        fold.step(state, Entry(1, 1_000, FoldVersion(NEXT_VERSION)))
