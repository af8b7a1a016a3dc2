"""`python -m bench.ingest`: rate and latency with which ingest makes reports durable, and its behaviour under overload.

nats-server (which syncs every write), one ingest process and this process, which generates the load, share the same cores. The same run
measures alternatives to ingest as peers. Repeated parts take turns, so that a slow minute of the machine affects all equally. Exit code
1 where an acknowledged report isn't in the log or a report was rejected, else 0, even where a target isn't met; the figures show missed
targets.
"""

from __future__ import annotations

import argparse
import itertools
import os
import signal
import sys
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path

import grpc.aio
import uvloop

from bench import figures
from bench.figures import Figure
from bench.ingestion import burst, endpoint, reports, saturated, slow_store
from bench.ingestion import figures as ingest_figures
from bench.ingestion import peers as ingest_peers
from bench.ingestion.endpoint import IngestEndpoint
from bench.ingestion.figures import Results
from bench.ingestion.peers import Turn
from bench.ingestion.reports import BATCH, Reports
from bench.ingestion.saturated import Saturated, Tally
from bench.mesh import load, machine
from services.common.failure import FAILED, CommandFailed, of_rpc
from services.common.observability import telemetry
from services.common.rpc import server

PARTS = ("batched", "single", "latency", *ingest_peers.TITLES, "burst", "memory")
BATCHED_STREAMS, BATCHED_WINDOW = 8, 8
SINGLE_STREAMS, SINGLE_WINDOW = 32, 32


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _ingest_turn(ingest: IngestEndpoint, batches: Reports, streams: int, *, window: int) -> Turn:
    async def turn(seconds: float) -> Saturated:
        tally = Tally()
        async with server.channel(ingest.address) as channel:
            work = [
                saturated.stream(channel, ingest.identity, batches, window=window, tally=tally) for _ in range(streams)
            ]
            return await saturated.measure(tally, work, seconds, pids={**ingest.pids, "bench": os.getpid()})

    return turn


async def _run_turns(
    parts: Collection[str],
    ingest: IngestEndpoint,
    folder: Path,
    *,
    numbers: Iterator[int],
    arguments: argparse.Namespace,
    results: Results,
) -> None:
    hundreds, singles = Reports(BATCH, numbers), Reports(1, numbers)
    turns: dict[str, Turn] = {}
    if "batched" in parts:
        turns["batched"] = _ingest_turn(ingest, hundreds, BATCHED_STREAMS, window=BATCHED_WINDOW)
    if "single" in parts:
        turns["single"] = _ingest_turn(ingest, singles, SINGLE_STREAMS, window=SINGLE_WINDOW)
    async with ingest_peers.running(parts, ingest, folder, numbers=numbers) as (peers, versions):
        results.versions |= versions
        for repeat in range(arguments.repeats):
            for name, turn in {**turns, **peers}.items():
                result = await turn(arguments.seconds)
                results.saturated[name].append(result)
                _say(f"{repeat + 1}/{arguments.repeats} {name}: {result.reports_per_s:,.0f} reports/s")
            if "latency" in parts:
                for shape in ingest_figures.LATENCIES:
                    plan = reports.plan(
                        singles if shape.batch == 1 else hundreds, shape, arguments.seconds, seed=repeat
                    )
                    sent = await load.send(ingest.address, ingest.identity, plan, streams=shape.streams)
                    results.latency[shape.name].append(sent)
                    p99_ms = 1000 * figures.percentile(sent.answered_after_s, 99)
                    _say(f"{repeat + 1}/{arguments.repeats} {shape.name}: p99 {p99_ms:.1f} ms")
    if "burst" in parts:
        results.burst = await burst.run(ingest, singles)


async def measure(folder: Path, arguments: argparse.Namespace) -> Results:
    """Runs the selected parts and returns their results."""
    parts: Collection[str] = arguments.only
    results = Results()
    numbers = itertools.count(1)
    if set(parts) - {"memory"}:
        async with (
            endpoint.running_nats(folder) as (nats, bus),
            endpoint.running(folder, nats, bus) as ingest,
        ):
            await _run_turns(parts, ingest, folder, numbers=numbers, arguments=arguments, results=results)
    if "memory" in parts:
        # On a separate server, whose log holds nothing else, so that the acknowledged reports can be counted.
        async with (
            endpoint.running_nats(folder / "slow") as (nats, bus),
            slow_store.relayed(nats.url_as("ingest")) as url,
            endpoint.running(folder / "slow", nats, bus, nats_url=url) as ingest,
        ):
            _say(f"memory: {slow_store.DUE_PER_S:,} reports/s are due, the store takes a tenth")
            results.overload = await slow_store.run(ingest, Reports(BATCH, numbers), arguments.memory_seconds)
    return results


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=" ".join(PARTS))
    parser.add_argument("--seconds", type=float, default=10, help="length of each turn of the repeated parts, s")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each repeated part")
    parser.add_argument("--memory-seconds", type=float, default=300, help="length of the part with the slow store, s")
    return parser.parse_args()


def main() -> int:
    """Runs the benchmark and prints the figures."""
    arguments = _arguments()
    telemetry.configure("bench")
    # SIGTERM acts like Ctrl-C: it stops the processes and removes the folder.
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
    all_figures = [Figure("fsync of 4 KiB, median", fsync_ms, "ms"), *ingest_figures.of(results)]
    versions = machine.versions() | results.versions
    figures.show(about, versions, all_figures, as_json=arguments.json)
    wrong = [figure for figure in all_figures if figure.target == 0 and not figure.met]
    for figure in wrong:
        _say(f"WRONG: {figure.name}: {figure.value:.0f}")
    return FAILED if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
