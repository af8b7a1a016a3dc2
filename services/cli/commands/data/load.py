"""`tandem load`: made-up devices report to a running mesh at a fixed rate, and it is measured what comes of it."""

from __future__ import annotations

import asyncio
import json
import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
import uvloop
from rich.table import Table
from rich.text import Text

from services.cli import progress
from services.cli.calls import call
from services.cli.failure import FAILED, MISUSED, CommandFailed
from services.cli.simulate import load_generator
from services.cli.simulate.actors import NPA_RECORDS, VENDOR, VENDOR_ID, HeadEnd
from services.cli.simulate.load_generator import DueRequest, LoadOutcome
from services.cli.stack import mesh
from services.cli.stack.mesh import DEFAULT_FOLDER, Clients, MeshConnection
from services.cli.terminal import SafeConsole
from services.common import fields, times
from services.common.clock import MeshClock
from services.common.percentiles import percentile
from services.common.rpc.errors import InvalidField
from services.ingest.domain import MAX_BATCH
from tandem.ingest.v1 import ingest_pb2
from tandem.registry.v1 import registry_pb2

SYNTHETIC = "synthetic-device"
"""Devices that it registers are synthetic-device-1 and so on, each of a protected person without an order."""
AT_ONCE = 8
"""Devices that are registered at the same time."""
ANNOUNCED_BATCH = 500
MAX_REPORTS = 5_000_000
"""They are prepared beforehand, in memory: 100 bytes each."""
PERCENTS = (50, 90, 99, 99.9, 100)
STEP_DEG = 1e-5
"""From report to report, degrees: 1 m."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How reports come."""

    prefix: str
    """Devices are PREFIX-1 and so on ..."""
    devices: int
    """... up to this number, and report in turn."""
    reports_per_s: float
    seconds: float
    batch: int
    """Reports in each request."""
    streams: int
    """Streams over which the requests are spread."""
    backfill_hours: float
    """What devices kept for so long; 0 for positions of now."""

    @property
    def requests(self) -> int:
        """How many there are."""
        return max(1, round(self.seconds * self.reports_per_s / self.batch))

    def device_id(self, n: int) -> str:
        """Device of report `n`."""
        return f"{self.prefix}-{n % self.devices + 1}"


def load(
    devices: Annotated[int, typer.Option(help="Devices that report, in turn.", min=1, max=1_000_000)],
    rate: Annotated[float, typer.Option(help="Reports a second, of all devices together.", min=0.01, max=1_000_000)],
    seconds: Annotated[float, typer.Option(help="For how long.", min=0.1, max=86_400)] = 30,
    batch: Annotated[int, typer.Option(help="Reports in each request.", min=1, max=MAX_BATCH)] = 100,
    streams: Annotated[int, typer.Option(help="Streams that carry them.", min=1, max=256)] = 4,
    backfill_hours: Annotated[
        float,
        typer.Option(help="Send what was kept for so long, as backfill; 0 sends positions of now.", min=0, max=168),
    ] = 0,
    registered: Annotated[
        str | None, typer.Option(metavar="PREFIX", help="Register nothing: use the devices PREFIX-1, PREFIX-2, ...")
    ] = None,
    folder: Annotated[Path, typer.Option("--dir", help="Folder of the mesh.")] = DEFAULT_FOLDER,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Load a running mesh with reports of made-up devices, and measure from when each was due to its answer.

    It doesn't slow down where the mesh does. Exit code 1 where reports were refused or lost.
    """
    shape = Shape(registered or SYNTHETIC, devices, rate, seconds, batch, streams, backfill_hours)
    try:
        fields.required_id("--registered", shape.device_id(devices - 1))
    except InvalidField as error:
        raise CommandFailed(str(error), MISUSED) from None
    if shape.requests * batch > MAX_REPORTS:
        raise CommandFailed(f"--rate times --seconds: at most {MAX_REPORTS:,} reports", MISUSED)
    sent = uvloop.run(_run(mesh.load(folder), shape, register=registered is None))
    said = to_json(shape, sent)
    if as_json:
        print(json.dumps(said))
    else:
        SafeConsole(highlight=False, soft_wrap=True).print(_table(said))
    raise typer.Exit(FAILED if sent.refused or sent.unanswered else 0)


async def _run(running: MeshConnection, shape: Shape, *, register: bool) -> LoadOutcome:
    async with mesh.connect(running) as clients:
        if register:
            await _register(clients, shape)
        # In a thread, so that connections are kept alive meanwhile.
        starts_at_ms = load_generator.starts_at_ms(shape.requests * shape.batch)
        with SafeConsole(stderr=True).status("preparing") as status:
            requests = await asyncio.to_thread(prepare, shape, clients.clock, starts_at_ms)
            status.update(f"sending for {shape.seconds:g} s")
            opening, identity = mesh.channel(clients.mesh, "ingest"), clients.identity(VENDOR)
            return await load_generator.send(opening, identity, starts_at_ms, requests, shape.streams)


async def _register(clients: Clients, shape: Shape) -> None:
    """Puts the devices and reports once for each; returns when ingest knows all of them."""
    left = iter(range(shape.devices))
    with progress.bar() as shown:
        putting = shown.add_task("registering", total=shape.devices)

        async def work() -> None:
            for n in left:
                await _put(clients, shape.device_id(n), f"synthetic-person-{n + 1}")
                shown.advance(putting)

        async with asyncio.TaskGroup() as workers:
            for _ in range(AT_ONCE):
                workers.create_task(work())
        announcing = shown.add_task("announcing", total=shape.devices)
        now_ms = clients.clock.now_ms()
        async with HeadEnd(clients) as head_end:
            for first in range(0, shape.devices, ANNOUNCED_BATCH):
                some = range(first, min(first + ANNOUNCED_BATCH, shape.devices))
                # The head-end sends again what is of a device that ingest doesn't know yet.
                refused = await head_end.carry([_position(shape, n, f"load-{now_ms}-first", now_ms) for n in some])
                if refused:
                    raise CommandFailed(f"{len(refused)} devices refused: {refused[0].field}: {refused[0].reason}")
                shown.advance(announcing, len(some))


async def _put(clients: Clients, device_id: str, person_id: str) -> None:
    """What is there already is unchanged."""
    registry, npa = clients.registry, clients.identity(NPA_RECORDS)
    person = registry_pb2.ProtectedPerson(person_id=person_id, name="-", source_version=1)
    device = registry_pb2.Device(device_id=device_id, person_id=person_id, source_version=1, vendor_id=VENDOR_ID)
    await call(registry.PutProtectedPerson, registry_pb2.PutProtectedPersonRequest(protected_person=person), npa)
    await call(registry.PutDevice, registry_pb2.PutDeviceRequest(device=device), npa)


def prepare(shape: Shape, clock: MeshClock, starts_at_ms: int) -> list[DueRequest]:
    """All requests of a load that starts at a wall time, milliseconds since 1970 UTC."""
    dues_s = load_generator.moments_s(random.Random(shape.batch), shape.requests, shape.seconds)  # noqa: S311  # no secret
    total = shape.requests * shape.batch
    kept_ms = shape.backfill_hours * 3_600_000
    requests = []
    for i, due_s in enumerate(dues_s):
        now_ms = clock.to_mesh_ms(starts_at_ms + int(due_s * 1000))
        positions = []
        for n in range(i * shape.batch, (i + 1) * shape.batch):
            # What was kept comes in its order, from the oldest to what is of now.
            fix_time_ms = now_ms - round(kept_ms * (1 - (n + 1) / total))
            positions.append(_position(shape, n, f"load-{starts_at_ms}-{n}", fix_time_ms))
        message = ingest_pb2.ReportRequest(batch=i, positions=positions, backfill=shape.backfill_hours > 0)
        requests.append(DueRequest(due_s, shape.batch, message.SerializeToString()))
    return requests


def _position(shape: Shape, n: int, report_id: str, fix_time_ms: int) -> ingest_pb2.Position:
    turn, which = divmod(n, shape.devices)
    return ingest_pb2.Position(
        device_id=shape.device_id(n),
        report_id=report_id,
        fix_time=times.to_timestamp(fix_time_ms),
        lat_deg=34.5 + which % 400 * 0.01 + turn % 10 * STEP_DEG,
        lon_deg=126.5 + which // 400 % 250 * 0.01,
        accuracy_m=10.0,
    )


# ── what came of it ──────────────────────────────────────────────────────────────────────────────────────────────────


def to_json(shape: Shape, sent: LoadOutcome) -> dict[str, Any]:
    """The object that --json prints. What is infinite becomes null, since JSON has no word for it."""
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


def _table(said: dict[str, Any]) -> Table:
    table = Table("figure", "value", "unit", box=None)
    table.columns[1].justify = "right"
    table.add_row("reports offered", f"{said['reports']:,}", "reports")
    table.add_row("accepted", f"{said['accepted']:,}", "reports")
    for reason, count in said["refused"].items():
        table.add_row(Text(f"refused: {reason}", "red"), f"{count:,}", "reports")
    table.add_row("lost", f"{said['lost']:,}", "reports")
    table.add_row("acknowledged", f"{said['acknowledged_per_s']:,}", "reports/s")
    for name, ms in said["latency_ms"].items():
        table.add_row(f"from due to answer, {name}", "" if ms is None else f"{ms:,.1f}", "ms")
    table.add_row("requests", f"{said['requests']:,}", "requests")
    table.add_row("sent more than 5 ms late", f"{said['requests_sent_late']:,}", "requests")
    table.add_row("latest request", f"{said['latest_request_ms']:,.1f}", "ms")
    table.add_row("streams that broke", f"{said['streams_broken']:,}", "streams")
    return table
