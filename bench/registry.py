"""`python -m bench.registry [--json] [--at 1000 10000 100000] [--bulk 100000]`: time until a new order or tag is matched and in the
log, and the rate of records put in bulk.

The registry runs as a process on PostgreSQL with fsync and is called over gRPC. The time runs from the call until the case can be read
from the log. Before that, the database is filled with `--at` random orders, and a fifth as many wearers with tags. Each size is
measured twice: without other load, and while the police repeatedly send their full list for comparison. With `--bulk` only the bulk
load of so many orders is measured, on SQLite and on PostgreSQL. Exit code 1 where a target isn't met at the largest size.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.linkage import bulk
from bench.mesh.population import People
from services.common.messaging import flow, pull
from services.common.rpc import server
from services.registry.domain.reconciliation import Listed
from services.registry.reconciliation import listed_to_proto
from tandem.common.v1 import log_pb2
from tandem.registry.v1 import reconciliation_pb2
from tests.support.common.postgres import running_postgres
from tests.support.registry import records
from tests.support.registry.registry import NPA, SECRET, Client, RegistryMesh, running_registry

SIZES = (1_000, 10_000, 100_000)
SAMPLES = 200
WARM_UP = 20
"""Number of uncounted first samples, because the registry has just started and scans its keys once."""
TARGET_P99_S = 1.0
KEY = bytes(range(32))
LISTED_BATCH = 1_000
IN_LOG_WITHIN_S = 30.0


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured time with its target."""

    name: str
    orders: int
    """Number of orders in the database; the number of wearers is a fifth of it."""
    p50_s: float
    p99_s: float
    target_p99_s: float | None = None
    met: bool | None = None


# ── measuring ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def snapshots(client: Client) -> AsyncIterator[log_pb2.CaseSnapshot]:
    """Cases of the log from its beginning, as they arrive."""
    async for messages in pull.read(client.bus, flow.log_stream(0), 1):
        for message in messages:
            if message.subject == flow.log_subject(0, "case"):
                yield log_pb2.LogEntry.FromString(message.data).case


async def reconcile_repeatedly(client: Client, listed: Sequence[Listed]) -> None:
    """Sends the police's full list for comparison repeatedly, until cancelled."""
    parts = [
        reconciliation_pb2.ReconcileRequest(records=map(listed_to_proto, listed[n : n + LISTED_BATCH]))
        for n in range(0, len(listed), LISTED_BATCH)
    ]
    while True:
        began_s = time.perf_counter()
        async for answer in client.stub.Reconcile(iter(parts), metadata=server.bearer(NPA, SECRET)):
            if answer.HasField("summary"):
                took_s = time.perf_counter() - began_s
                print(f"{answer.summary.listed} listed records compared in {took_s:.1f} s", file=sys.stderr)


async def measure(client: Client, people: People, size: int, *, meanwhile: str = "") -> list[Figure]:
    """Times until new orders are matched with wearers, and until new tags of wearers are matched with respondents."""
    times: dict[str, list[float]] = {"order": [], "tag": []}
    arriving = snapshots(client)
    for n in range(-WARM_UP, SAMPLES):
        key, person = f"{size}-{len(meanwhile)}-{n}", people.next()
        wearer = records.wearer(f"new-w-{key}", person["national_id"])
        order = records.order(f"new-o-{key}", (), person["national_id"])
        wearer.name = order.respondent.name = person["name"]
        wearer.birth_date = order.respondent.birth_date = person["birth_date"].isoformat()
        wearer.phone = order.respondent.phone = person["phone"]
        tag = records.tag(f"new-t-{key}", wearer.wearer_id)
        # Either the wearer with the tag is registered and the order is new, or the order is registered and the tag is new.
        kind, before, new = ("order", (wearer, tag), order) if n % 2 else ("tag", (order, wearer), tag)
        await client.put(*before)
        if kind == "tag":
            await _arrived(arriving, order.order_id, "")
        began_s = time.perf_counter()
        await client.put(new)
        await _arrived(arriving, order.order_id, tag.device_id)
        if n >= 0:
            times[kind].append(time.perf_counter() - began_s)
    largest = size == max(SIZES)
    return [
        Figure(
            name=f"new {kind}: put until in the log{meanwhile}",
            orders=size,
            p50_s=round(sorted(durations_s)[len(durations_s) // 2], 4),
            p99_s=round(sorted(durations_s)[int(len(durations_s) * 0.99)], 4),
            target_p99_s=TARGET_P99_S if largest else None,
            met=sorted(durations_s)[int(len(durations_s) * 0.99)] < TARGET_P99_S if largest else None,
        )
        for kind, durations_s in times.items()
    ]


async def _arrived(arriving: AsyncIterator[log_pb2.CaseSnapshot], order_id: str, device_id: str) -> None:
    async with asyncio.timeout(IN_LOG_WITHIN_S):
        async for case in arriving:
            if case.order_id == order_id and (not device_id or device_id in case.tag_device_ids):
                return
    raise AssertionError("the log ended")


async def at_size(mesh: RegistryMesh, people: People, size: int, *, listed: Sequence[Listed]) -> list[Figure]:
    """Figures with `size` orders in the database."""
    async with mesh.connected() as client:
        figures = await measure(client, people, size)
        reconciling = asyncio.create_task(reconcile_repeatedly(client, listed))
        try:
            return figures + await measure(client, people, size, meanwhile=", lists compared")
        finally:
            reconciling.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reconciling


def run(sizes: Sequence[int]) -> list[Figure]:
    """Fills the database to each size in turn and measures there."""
    figures: list[Figure] = []
    people = People()
    with running_postgres(fsync=True) as postgres:
        url, listed = postgres.new_database(), list[Listed]()
        loaded = 0
        for size in sizes:
            # A separate log for each size, so that it holds no cases of the previous size.
            with (
                tempfile.TemporaryDirectory() as folder,
                running_registry(Path(folder), 1, url, env={"TANDEM_REGISTRY_KEY": KEY.hex()}) as mesh,
            ):
                loading = asyncio.run(bulk.load(mesh, bulk.records(people, range(loaded, size))))
                print(f"{size} orders loaded: {loading.text()}", file=sys.stderr)
                listed += loading.listed
                loaded = size
                size_figures = asyncio.run(at_size(mesh, people, size, listed=listed))
            for figure in size_figures:
                print(_line(figure), file=sys.stderr)
            figures += size_figures
    return figures


def _line(figure: Figure) -> str:
    verdict = (
        "" if figure.met is None else f"  target p99 < {figure.target_p99_s:g} s: {'met' if figure.met else 'MISSED'}"
    )
    return f"{figure.orders:>7} orders  {figure.name:<50} p50 {figure.p50_s:.3f} s  p99 {figure.p99_s:.3f} s{verdict}"


def main() -> int:
    """Runs the benchmark and prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument(
        "--at", type=int, nargs="+", default=SIZES, metavar="ORDERS", help="numbers of orders to measure at"
    )
    parser.add_argument("--bulk", type=int, metavar="ORDERS", help="only load so many orders, on SQLite and PostgreSQL")
    arguments = parser.parse_args()
    if arguments.bulk:
        return 0 if bulk.run(arguments.bulk) else 1
    figures = run(sorted(arguments.at))
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, PostgreSQL with fsync"
    if arguments.json:
        print(json.dumps({"machine": machine, "figures": [asdict(figure) for figure in figures]}, indent=2))
    else:
        print(machine)
        for figure in figures:
            print(_line(figure))
    return 0 if all(figure.met is not False for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
