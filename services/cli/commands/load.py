"""`tandem load`: load a running mesh with reports of synthetic devices at a fixed rate, and measure latency."""

from __future__ import annotations

import asyncio
import json
import math
import random
from dataclasses import dataclass
from typing import Annotated, Any

import typer
import uvloop
from rich.table import Table
from rich.text import Text

from services.cli import terminal, usage
from services.cli.terminal import SafeConsole
from services.client import load_generator, mesh
from services.client.actors import NPA_RECORDS, VENDOR, VENDOR_ID, HeadEnd
from services.client.calls import call
from services.client.load_generator import DueRequest, LoadOutcome
from services.client.mesh import DEFAULT_FOLDER, Clients, MeshConnection
from services.common import times
from services.common.clock import MeshClock
from services.common.failure import FAILED, MISUSED, CommandFailed
from services.common.percentiles import percentile
from services.ingest.domain import MAX_BATCH
from tandem.ingest.v1 import ingest_pb2
from tandem.registry.v1 import registry_pb2

SYNTHETIC = "synthetic-device"
"""Prefix of the registered devices' ids, such as synthetic-device-1. Each device belongs to a protected person without an order."""
CONCURRENCY = 8
"""Number of devices that are registered concurrently."""
ANNOUNCED_BATCH = 500
MAX_REPORTS = 5_000_000
"""Maximum number of reports: all are prepared in memory, 100 bytes each."""
PERCENTS = (50, 90, 99, 99.9, 100)
STEP_DEG = 1e-5
"""Movement between two reports of a device, degrees: 1 m."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Shape of a load."""

    prefix: str
    """Prefix of the device ids PREFIX-1, PREFIX-2, ..."""
    devices: int
    """Number of devices, which report in turn."""
    reports_per_s: float
    seconds: float
    batch: int
    """Number of reports per request."""
    streams: int
    """Number of gRPC streams over which the requests are spread."""
    backfill_hours: float
    """Age of the oldest backfilled position, hours; 0 for current positions."""

    @property
    def requests(self) -> int:
        """Number of requests."""
        return max(1, round(self.seconds * self.reports_per_s / self.batch))

    def device_id(self, n: int) -> str:
        """Id of the device of report `n`."""
        return f"{self.prefix}-{n % self.devices + 1}"


def load(
    devices: Annotated[int, typer.Option(help="Number of devices, which report in turn.", min=1, max=1_000_000)],
    rate: Annotated[float, typer.Option(help="Reports per second of all devices.", min=0.01, max=1_000_000)],
    seconds: Annotated[float, typer.Option(help="Duration, seconds.", min=0.1, max=86_400)] = 30,
    *,
    batch: Annotated[int, typer.Option(help="Reports per request.", min=1, max=MAX_BATCH)] = 100,
    streams: Annotated[int, typer.Option(help="Number of gRPC streams.", min=1, max=256)] = 4,
    backfill_hours: Annotated[
        float,
        typer.Option(help="Send positions up to this old, as backfill; 0 for current positions.", min=0, max=168),
    ] = 0,
    registered: Annotated[
        str | None, typer.Option(metavar="PREFIX", help="Use the registered devices PREFIX-1, PREFIX-2, ...")
    ] = None,
    folder: usage.MeshFolder = DEFAULT_FOLDER,
    as_json: usage.AsJson = False,
) -> None:
    """Load a running mesh with reports of synthetic devices, and measure the latency of each from its due time.

    The load doesn't slow down if the mesh does. Exit code 1 if reports were refused or lost.
    """
    shape = Shape(
        prefix=registered or SYNTHETIC,
        devices=devices,
        reports_per_s=rate,
        seconds=seconds,
        batch=batch,
        streams=streams,
        backfill_hours=backfill_hours,
    )
    usage.required_id("--registered", shape.device_id(devices - 1))
    if shape.requests * batch > MAX_REPORTS:
        raise CommandFailed(f"--rate times --seconds: at most {MAX_REPORTS:,} reports", MISUSED)
    sent = uvloop.run(_run(mesh.load(folder), shape, register=registered is None))
    figures = to_json(shape, sent)
    if as_json:
        print(json.dumps(figures))
    else:
        SafeConsole(highlight=False, soft_wrap=True).print(_table(figures))
    raise typer.Exit(FAILED if sent.refused or sent.unanswered else 0)


async def _run(running: MeshConnection, shape: Shape, *, register: bool) -> LoadOutcome:
    async with mesh.connect(running) as clients:
        if register:
            await _register(clients, shape)
        # Prepare in a thread, so that the event loop keeps the connections alive.
        starts_at_ms = load_generator.starts_at_ms(shape.requests * shape.batch)
        with SafeConsole(stderr=True).status("preparing") as status:
            requests = await asyncio.to_thread(prepare, shape, clients.clock, starts_at_ms)
            status.update(f"sending for {shape.seconds:g} s")
            opening, identity = mesh.channel(clients.mesh, "ingest"), clients.identity(VENDOR)
            return await load_generator.send(opening, identity, starts_at_ms, requests=requests, streams=shape.streams)


async def _register(clients: Clients, shape: Shape) -> None:
    """Puts the devices and sends one report of each. Returns when ingest knows all devices."""
    remaining = iter(range(shape.devices))
    with terminal.progress_bar() as shown:
        putting = shown.add_task("registering", total=shape.devices)

        async def work() -> None:
            for n in remaining:
                await _put(clients, shape.device_id(n), f"synthetic-person-{n + 1}")
                shown.advance(putting)

        async with asyncio.TaskGroup() as workers:
            for _ in range(CONCURRENCY):
                workers.create_task(work())
        announcing = shown.add_task("announcing", total=shape.devices)
        now_ms = clients.clock.now_ms()
        async with HeadEnd(clients) as head_end:
            for first in range(0, shape.devices, ANNOUNCED_BATCH):
                some = range(first, min(first + ANNOUNCED_BATCH, shape.devices))
                # The head-end retries reports of devices that ingest doesn't know yet.
                refused = await head_end.carry(
                    [_position(shape, n, f"load-{now_ms}-first", fix_time_ms=now_ms) for n in some]
                )
                if refused:
                    raise CommandFailed(f"{len(refused)} devices refused: {refused[0].field}: {refused[0].reason}")
                shown.advance(announcing, len(some))


async def _put(clients: Clients, device_id: str, person_id: str) -> None:
    """Puts a device and its person. Existing records stay unchanged."""
    registry, npa = clients.registry, clients.identity(NPA_RECORDS)
    person = registry_pb2.ProtectedPerson(person_id=person_id, name="-", source_version=1)
    device = registry_pb2.Device(device_id=device_id, person_id=person_id, source_version=1, vendor_id=VENDOR_ID)
    await call(registry.PutProtectedPerson, registry_pb2.PutProtectedPersonRequest(protected_person=person), npa)
    await call(registry.PutDevice, registry_pb2.PutDeviceRequest(device=device), npa)


def prepare(shape: Shape, clock: MeshClock, starts_at_ms: int) -> list[DueRequest]:
    """Prepares all requests of a load. `starts_at_ms` is wall time, milliseconds since 1970 UTC."""
    dues_s = load_generator.moments_s(random.Random(shape.batch), shape.requests, shape.seconds)  # noqa: S311  # no secret
    total = shape.requests * shape.batch
    kept_ms = shape.backfill_hours * 3_600_000
    requests = []
    for i, due_s in enumerate(dues_s):
        now_ms = clock.to_mesh_ms(starts_at_ms + int(due_s * 1000))
        positions = []
        for n in range(i * shape.batch, (i + 1) * shape.batch):
            # Backfilled positions come in order, from the oldest to the current one.
            fix_time_ms = now_ms - round(kept_ms * (1 - (n + 1) / total))
            positions.append(_position(shape, n, f"load-{starts_at_ms}-{n}", fix_time_ms=fix_time_ms))
        message = ingest_pb2.ReportRequest(batch=i, positions=positions, backfill=shape.backfill_hours > 0)
        requests.append(DueRequest(due_s, shape.batch, message.SerializeToString()))
    return requests


def _position(shape: Shape, n: int, report_id: str, *, fix_time_ms: int) -> ingest_pb2.Position:
    turn, which = divmod(n, shape.devices)
    return ingest_pb2.Position(
        device_id=shape.device_id(n),
        report_id=report_id,
        fix_time=times.to_timestamp(fix_time_ms),
        lat_deg=34.5 + which % 400 * 0.01 + turn % 10 * STEP_DEG,
        lon_deg=126.5 + which // 400 % 250 * 0.01,
        accuracy_m=10.0,
    )


# ── results ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def to_json(shape: Shape, sent: LoadOutcome) -> dict[str, Any]:
    """The JSON object that --json prints. Infinite latencies become null, as JSON has no infinity."""
    ordered_ms = sorted(1000 * s for s in sent.answered_after_s)
    latency_ms = {f"p{percent:g}" if percent < 100 else "max": percentile(ordered_ms, percent) for percent in PERCENTS}
    return {
        "devices": shape.devices,
        "reports_per_s": shape.reports_per_s,
        "batch": shape.batch,
        "streams": shape.streams,
        "reports": shape.requests * shape.batch,
        "accepted": sent.accepted,
        "refused": dict(sent.refused.most_common()),
        "lost": sent.unanswered,
        "acknowledged_per_s": round(sent.accepted / max(sent.took_s, shape.seconds), 1),
        "latency_ms": {name: round(ms, 3) if math.isfinite(ms) else None for name, ms in latency_ms.items()},
        "requests": shape.requests,
        "requests_sent_late": sent.late,
        "latest_request_ms": round(1000 * sent.latest_s, 3),
        "streams_broken": sent.broken,
    }


def _table(figures: dict[str, Any]) -> Table:
    table = Table("figure", "value", "unit", box=None)
    table.columns[1].justify = "right"
    table.add_row("reports offered", f"{figures['reports']:,}", "reports")
    table.add_row("accepted", f"{figures['accepted']:,}", "reports")
    for reason, count in figures["refused"].items():
        table.add_row(Text(f"refused: {reason}", "red"), f"{count:,}", "reports")
    table.add_row("lost", f"{figures['lost']:,}", "reports")
    table.add_row("acknowledged", f"{figures['acknowledged_per_s']:,}", "reports/s")
    for name, ms in figures["latency_ms"].items():
        table.add_row(f"from due to answer, {name}", "" if ms is None else f"{ms:,.1f}", "ms")
    table.add_row("requests", f"{figures['requests']:,}", "requests")
    table.add_row("sent more than 5 ms late", f"{figures['requests_sent_late']:,}", "requests")
    table.add_row("maximum delay of a request", f"{figures['latest_request_ms']:,.1f}", "ms")
    table.add_row("streams that broke", f"{figures['streams_broken']:,}", "streams")
    return table
