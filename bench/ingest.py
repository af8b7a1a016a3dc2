"""`python -m bench.ingest`: how many reports ingest makes durable, how soon, and what it does when that is too many.

nats-server (which syncs every write), one ingest process and this process, which makes the load, on the same cores; beside it, in the
same run, what would be taken instead. Parts that are repeated take turns, so that a slow minute of the machine hits all alike.
Exit code 1 where an acknowledged report isn't in the log or a report was refused, and 0 otherwise, also where a target isn't met:
that is in the figures.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import sys
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path

import grpc.aio
import uvloop
from rich.console import Console

from bench import figures
from bench.figures import Figure
from bench.ingestion import burst, endpoint, reports, saturated, slow_store
from bench.ingestion import figures as ingest_figures
from bench.ingestion import peers as ingest_peers
from bench.ingestion.endpoint import Door
from bench.ingestion.figures import Results
from bench.ingestion.peers import Turn
from bench.ingestion.reports import BATCH, Reports
from bench.ingestion.saturated import Saturated, Tally
from bench.mesh import load, machine
from services.cli.failure import FAILED, CommandFailed, of_rpc
from services.common.observability import telemetry
from services.common.rpc import server

PARTS = ("batched", "single", "latency", *ingest_peers.TITLES, "burst", "memory")
BATCHED_STREAMS, BATCHED_WINDOW = 8, 8
SINGLE_STREAMS, SINGLE_WINDOW = 32, 32
WIDTH = 150
"""Of the table, so that a line is a figure also where there is no terminal."""


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _own(door: Door, batches: Reports, streams: int, window: int) -> Turn:
    async def turn(seconds: float) -> Saturated:
        tally = Tally()
        async with server.channel(door.address) as channel:
            work = [saturated.stream(channel, door.identity, batches, window, tally) for _ in range(streams)]
            return await saturated.measure(tally, work, seconds, {**door.pids, "bench": os.getpid()})

    return turn


async def _take_turns(
    parts: Collection[str],
    door: Door,
    folder: Path,
    numbers: Iterator[int],
    arguments: argparse.Namespace,
    found: Results,
) -> None:
    hundreds, singles = Reports(BATCH, numbers), Reports(1, numbers)
    turns: dict[str, Turn] = {}
    if "batched" in parts:
        turns["batched"] = _own(door, hundreds, BATCHED_STREAMS, BATCHED_WINDOW)
    if "single" in parts:
        turns["single"] = _own(door, singles, SINGLE_STREAMS, SINGLE_WINDOW)
    async with ingest_peers.running(parts, door, folder, numbers) as (peers, versions):
        found.versions |= versions
        for repeat in range(arguments.repeats):
            for name, turn in {**turns, **peers}.items():
                result = await turn(arguments.seconds)
                found.saturated[name].append(result)
                _say(f"{repeat + 1}/{arguments.repeats} {name}: {result.reports_per_s:,.0f} reports/s")
            if "latency" in parts:
                for shape in ingest_figures.LATENCIES:
                    plan = reports.plan(singles if shape.batch == 1 else hundreds, shape, arguments.seconds, repeat)
                    sent = await load.send(door.address, door.identity, plan, shape.streams)
                    found.latency[shape.name].append(sent)
                    p99_ms = 1000 * figures.percentile(sent.answered_after_s, 99)
                    _say(f"{repeat + 1}/{arguments.repeats} {shape.name}: p99 {p99_ms:.1f} ms")
    if "burst" in parts:
        found.burst = await burst.run(door, singles)


async def measure(folder: Path, arguments: argparse.Namespace) -> Results:
    """Runs the parts."""
    parts: Collection[str] = arguments.only
    found = Results()
    numbers = itertools.count(1)
    if set(parts) - {"memory"}:
        async with (
            endpoint.running_nats(folder) as (nats, bus),
            endpoint.running(folder, nats, bus) as one,
        ):
            await _take_turns(parts, one, folder, numbers, arguments, found)
    if "memory" in parts:
        # A server of its own: the log holds nothing else, so that what was acknowledged can be counted.
        async with (
            endpoint.running_nats(folder / "slow") as (nats, bus),
            slow_store.relay(int(nats.url.rpartition(":")[2])) as port,
            endpoint.running(folder / "slow", nats, bus, f"nats://127.0.0.1:{port}") as one,
        ):
            _say(f"memory: {slow_store.DUE_PER_S:,} reports/s are due, the store takes a tenth")
            found.held = await slow_store.hold(one, Reports(BATCH, numbers), arguments.memory_seconds)
    return found


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=" ".join(PARTS))
    parser.add_argument("--seconds", type=float, default=10, help="length of each turn of the parts that are repeated")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each of these parts")
    parser.add_argument("--memory-seconds", type=float, default=300, help="length of the part with the slow store")
    return parser.parse_args()


def main() -> int:
    """Prints the figures."""
    arguments = _arguments()
    telemetry.configure("bench")
    # Like Ctrl-C: what was started is stopped and the folder goes.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        with tempfile.TemporaryDirectory(prefix="tandem-bench-") as temporary:
            folder = Path(temporary)
            about, fsync_ms = machine.describe(folder), machine.fsync_ms(folder)
            results = uvloop.run(measure(folder, arguments))
    except CommandFailed as failed:
        _say(failed.message)
        return failed.exit_code
    except grpc.aio.AioRpcError as error:
        _say(of_rpc(error).message)
        return FAILED
    found = [Figure("fsync of 4 KiB, median", fsync_ms, "ms"), *ingest_figures.of(results)]
    versions = machine.versions() | results.versions
    if arguments.json:
        print(json.dumps(figures.to_json(about, versions, found)))
    else:
        out = Console(highlight=False, soft_wrap=True, width=WIDTH)
        out.print(", ".join(f"{name} {value}" for name, value in {**about, **versions}.items()))
        out.print(figures.table(found))
    wrong = [one for one in found if one.target == 0 and not one.met]
    for one in wrong:
        _say(f"WRONG: {one.name}: {one.value:.0f}")
    return FAILED if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
