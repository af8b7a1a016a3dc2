"""`python -m bench.statistics`: the page of statistics over 100,000 stored incidents of a year, and how fast a leg counts them.

The set-up is, on SQLite and then on PostgreSQL, a nats-server, the police leg and the console, each a process, and a browser without
scripts that asks for the page of the whole year, of the last 30 days and of the file, one request after the other. A page includes the
leg's answer and its drawing.
"""

from __future__ import annotations

import sys
import tempfile
import time
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Annotated

import asyncpg
import typer
import uvloop
from rich.console import Console

from bench import figures
from bench.figures import Figure
from bench.mesh import machine
from bench.statistics import history
from services.common.clock import MeshClock
from services.common.messaging import bus as buses
from services.common.messaging import streams
from services.common.observability import telemetry
from services.common.priority import PriorityGate
from services.dispatch.statistics.figures import FiguresCollector
from tests.support.common.nats import running_server
from tests.support.common.ports import free_port
from tests.support.common.postgres import PostgresServer, running_postgres
from tests.support.common.processes import Service
from tests.support.console.console import Visitor, visiting
from tests.support.dispatch.dispatch import SECRET, client
from tests.support.dispatch.legs import LegMesh

ENGINES = ("sqlite", "postgres")
INCIDENTS = 100_000
BATCH = 500
PAGES = 40
PAGE_P95_MS = 1_000.0
STREAM_BYTES = 1 << 30
SERVES_WITHIN_S = 120.0

say = Console(stderr=True, highlight=False).print


async def measure(
    folder: Path, engine: str, postgres: PostgresServer | None, *, incidents: int, pages: int
) -> list[Figure]:
    """Figures of a leg with so many incidents, on a database engine."""
    with running_server(folder / "nats") as nats:
        async with buses.connect(nats.url, "bench") as bus:
            await streams.create(bus, 1, MeshClock(), max_bytes=STREAM_BYTES)
        mesh = LegMesh(folder, nats, postgres)
        end_ms = time.time_ns() // 1_000_000
        began_s = time.monotonic()
        async with mesh.store("police") as store:
            for first in range(0, incidents, BATCH):
                numbers = range(first, min(first + BATCH, incidents))
                await store.transaction(partial(history.store, numbers=numbers, count=incidents, end_ms=end_ms))
            say(f"{engine}: {incidents:,} incidents stored in {time.monotonic() - began_s:.0f} s")
            began_s = time.monotonic()
            await FiguresCollector(store, PriorityGate()).catch_up()
            counted_s = time.monotonic() - began_s
            say(f"{engine}: counted in {counted_s:.0f} s")
        if postgres:
            await _vacuum(mesh.settings["police"].police_database_url.get_secret_value())
        found = [Figure(f"{engine}: incidents that a leg counts", incidents / counted_s, "incidents/s")]
        mesh.legs["police"].start()
        try:
            async with client(mesh.settings["police"]):
                found += await _pages(folder, mesh.settings["police"].port, engine=engine, pages=pages)
        finally:
            mesh.legs["police"].kill()
    return found


async def _vacuum(url: str) -> None:
    """Does at once what autovacuum does over the year in which the incidents come."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("VACUUM (ANALYZE)")
    finally:
        await connection.close()


async def _pages(folder: Path, police_port: int, *, engine: str, pages: int) -> list[Figure]:
    port = free_port()
    env = {f"TANDEM_{name}": f"ipv4:127.0.0.1:{free_port()}" for name in ("REGISTRY", "INGEST", "GEOFENCE")}
    env |= {"TANDEM_DISPATCH_POLICE": f"ipv4:127.0.0.1:{police_port}", "TANDEM_PORT": str(port)}
    env |= {"TANDEM_DISPATCH_PROBATION": f"ipv4:127.0.0.1:{free_port()}"}
    env |= {"TANDEM_DEV_SECRET": SECRET, "TANDEM_DATA_DIR": str(folder / "console")}
    console = Service("services.console", env, folder / "console.log")
    console.start()
    today = datetime.now(UTC).date() + timedelta(days=1)
    year, month = (f"from={today - timedelta(days=days)}&until={today}" for days in (366, 30))
    try:
        async with visiting(f"http://127.0.0.1:{port}") as visitor:
            await _signed_in(visitor)
            return [
                figure
                for name, path in (
                    ("page of a year", f"/statistics?{year}"),
                    ("page of 30 days", f"/statistics?{month}"),
                    ("file of a year", f"/statistics.csv?{year}"),
                )
                for figure in await _timed(visitor, f"{engine}: {name}", path, pages=pages)
            ]
    finally:
        console.kill()


async def _signed_in(visitor: Visitor) -> None:
    deadline = time.monotonic() + SERVES_WITHIN_S
    while True:
        try:
            await visitor.read("/sign-in")
            break
        except OSError:
            if time.monotonic() > deadline:
                raise
    status, text = await visitor.post("/sign-in", role="reviewer", name="bench")
    assert status == 303, text


async def _timed(visitor: Visitor, name: str, path: str, *, pages: int) -> list[Figure]:
    took_ms: list[float] = []
    for _ in range(pages):
        began_s = time.monotonic()
        status, text, _ = await visitor.get(path)
        took_ms.append((time.monotonic() - began_s) * 1000)
        assert status == 200, text
    median = Figure(f"{name}, median", figures.percentile(took_ms, 50), "ms")
    return [median, figures.at_most(f"{name}, p95", figures.percentile(took_ms, 95), "ms", target=PAGE_P95_MS)]


def main(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    incidents: Annotated[int, typer.Option(help="Number of stored incidents.", min=1)] = INCIDENTS,
    engine: Annotated[list[str], typer.Option(help="sqlite or postgres; default: both.")] = list(ENGINES),  # noqa: B006
    *,
    pages: Annotated[int, typer.Option(help="Number of requests for each page.", min=1)] = PAGES,
) -> None:
    """Measure the page of statistics over stored incidents."""
    telemetry.configure("bench", Path("/dev/null").open("w"))  # noqa: SIM115
    with tempfile.TemporaryDirectory(prefix="tandem-bench-") as temporary:
        about, versions = machine.describe(Path(temporary)), machine.versions()
        found: list[Figure] = []
        for name in engine:
            folder = Path(temporary) / name
            folder.mkdir()
            with running_postgres(fsync=True) if name == "postgres" else nullcontext() as postgres:
                found += uvloop.run(measure(folder, name, postgres, incidents=incidents, pages=pages))
    figures.show(about, versions, found, as_json=as_json)
    sys.exit(any(figure.met is False for figure in found))


if __name__ == "__main__":
    typer.run(main)
