"""`python -m bench.tracing`: cost of tracing in ingest.

Two ingest processes run over one nats-server that syncs every write. One accepts its senders' trace contexts and writes them with the
reports; the other has tracing turned off. Both get the same load, with a separate trace context for each stream, and take turns of half
a second, so that other work and drift of the machine affect both equally. A process is faster right after its own turn; the Thue-Morse
order of the turns balances this. Two equal processes differ by several per cent, so each pair uses new processes, and every second
pair starts the one without tracing first. Exit code 1 where the median ratio of throughput differs from 1 by more than 3 %, or is based
on fewer than 15 pairs. The benchmark also prints ingest's CPU time per report, which depends less on the disk and on other processes.

With `--alike`, tracing is off in both processes, so the result is the error of the measurement.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import math
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import grpc.aio
import uvloop

from bench import figures
from bench.figures import Figure
from bench.ingestion import endpoint, saturated
from bench.ingestion.endpoint import IngestEndpoint
from bench.ingestion.reports import BATCH, Reports
from bench.ingestion.saturated import WARM_UP_S, Tally
from bench.mesh import machine
from services.client.load_generator import METHOD
from services.common.failure import FAILED
from services.common.messaging.bus import Bus
from services.common.observability import spans, telemetry
from services.common.rpc import server
from tandem.ingest.v1 import ingest_pb2
from tests.support.common.nats import TestServer

SHAPES = {"batched": (BATCH, 8, 8), "single": (1, 32, 32)}
"""Reports in a batch, streams, and batches in flight on a stream; as in bench.ingest."""
MAX_CHANGE_PERCENT = 3.0
"""Maximum change of throughput by tracing, per cent."""
MIN_PAIRS = 15
"""Minimum number of pairs for a meaningful median."""
TURN_S = 0.5
ORDER = (0, 1, 1, 0, 1, 0, 0, 1)
"""Order of the turns: 0 is the process that begins, 1 the other (Thue-Morse sequence)."""


@dataclass(frozen=True, slots=True)
class Turn:
    """Result of one turn."""

    reports_per_s: float
    cpu_us: float
    """CPU time of ingest per report. It varies less than the rate, which also depends on the disk."""


def together(turns: Sequence[Turn]) -> Turn:
    """Combined result of turns of the same length."""
    reports = sum(turn.reports_per_s for turn in turns)
    return Turn(reports / len(turns), sum(turn.cpu_us * turn.reports_per_s for turn in turns) / reports)


class _Sender:
    """Open streams into one ingest process, each with a separate trace context; they work only during their turns."""

    def __init__(self, ingest: IngestEndpoint, channel: grpc.aio.Channel, shape: str, *, batches: Reports) -> None:
        _, streams, self._window = SHAPES[shape]
        self._pids, self._batches = ingest.pids, batches
        method: Any = channel.stream_stream(METHOD, None, ingest_pb2.ReportResponse.FromString)
        self._calls = [method(metadata=(*ingest.identity, _context(number))) for number in range(streams)]

    async def turn(self, seconds: float) -> Turn:
        """Sends on all streams for `seconds` and waits for all answers. Raises CommandFailed where a report is rejected."""
        began_s = time.monotonic()
        before = machine.usage(self._pids)
        tally = Tally()
        await asyncio.gather(*(self._work(call, began_s + seconds, tally) for call in self._calls))
        took_s, used = time.monotonic() - began_s, machine.usage(self._pids).since(before)
        return Turn(tally.reports / took_s, 1e6 * used.by_process["ingest"] / tally.reports)

    async def _work(self, call: Any, until_s: float, tally: Tally) -> None:
        for _ in range(self._window):
            await call.write(self._batches.next())
        in_flight = self._window
        while in_flight:
            answer = await call.read()
            saturated.count(answer, tally)
            in_flight -= answer.batches
            while in_flight < self._window and time.monotonic() < until_s:
                await call.write(self._batches.next())
                in_flight += 1


def _context(number: int) -> tuple[str, str]:
    return spans.TRACEPARENT, spans.traceparent(f"stream-{number}")


async def measure(
    folder: Path, shapes: Sequence[str], pairs: int, *, seconds: float, alike: bool
) -> dict[str, list[tuple[Turn, Turn]]]:
    """Pairs of turns (with tracing, without tracing) by shape."""
    results: dict[str, list[tuple[Turn, Turn]]] = {shape: [] for shape in shapes}
    numbers = itertools.count(1)
    async with endpoint.running_nats(folder) as (nats, bus):
        for number in range(pairs):
            async with _both(folder / str(number), nats, bus, alike=alike, swapped=number % 2 == 1) as channels:
                for shape in shapes:
                    batches = Reports(SHAPES[shape][0], numbers)
                    on, off = (_Sender(*channel, shape, batches=batches) for channel in channels)
                    order = (on, off) if number % 4 < 2 else (off, on)
                    for sender in order:
                        await sender.turn(WARM_UP_S)
                    with_it, without = await _pair(on, off, order, seconds=seconds)
                    results[shape].append((with_it, without))
                    print(
                        f"{number + 1}/{pairs} {shape}: on / off {with_it.reports_per_s / without.reports_per_s:.3f}, "
                        f"CPU {with_it.cpu_us / without.cpu_us:.3f}",
                        file=sys.stderr,
                    )
    return results


@asynccontextmanager
async def _both(
    folder: Path, nats: TestServer, bus: Bus, *, alike: bool, swapped: bool
) -> AsyncIterator[Sequence[tuple[IngestEndpoint, grpc.aio.Channel]]]:
    """Starts an ingest with tracing and one without, each with a channel. `swapped` starts the one without tracing first."""
    async with AsyncExitStack() as stack:
        started = {}
        for name in ("off", "on") if swapped else ("on", "off"):
            (folder / name).mkdir(parents=True)
            traces = name == "on" and not alike
            ingest = await stack.enter_async_context(endpoint.running(folder / name, nats, bus, tracing=traces))
            started[name] = ingest, await stack.enter_async_context(server.channel(ingest.address))
        yield started["on"], started["off"]


async def _pair(on: _Sender, off: _Sender, order: Sequence[_Sender], *, seconds: float) -> tuple[Turn, Turn]:
    """Combined turns with and without tracing; the first process of `order` begins."""
    turns: dict[_Sender, list[Turn]] = {on: [], off: []}
    for _ in range(max(1, round(2 * seconds / (TURN_S * len(ORDER))))):
        for index in ORDER:
            turns[order[index]].append(await order[index].turn(TURN_S))
    return together(turns[on]), together(turns[off])


def interval(ratios: Sequence[float]) -> tuple[float, float]:
    """Distribution-free 95 % confidence interval of the median, from the binomial distribution.

    With fewer than six ratios it is unbounded.
    """
    ordered, count = sorted(ratios), len(ratios)
    below, cut = 0.0, 0
    while (below := below + math.comb(count, cut) / 2**count) <= 0.025:
        cut += 1
    if cut == 0:
        return -math.inf, math.inf
    return ordered[cut - 1], ordered[count - cut]


def of(results: dict[str, list[tuple[Turn, Turn]]]) -> list[Figure]:
    """Figures of all shapes."""
    out = []
    for shape, pairs in results.items():
        rates = [on.reports_per_s / off.reports_per_s for on, off in pairs]
        cpu = [on.cpu_us / off.cpu_us for on, off in pairs]
        low, high = interval(rates)
        cpu_low, cpu_high = interval(cpu)
        on_off = 100 * median(rates)
        out += [
            Figure(f"{shape}: with tracing", median(on.reports_per_s for on, _ in pairs), "reports/s"),
            Figure(f"{shape}: without", median(off.reports_per_s for _, off in pairs), "reports/s"),
            figures.at_least(f"{shape}: pairs", len(pairs), "", target=MIN_PAIRS),
            Figure(f"{shape}: on / off, median", on_off, "%"),
            figures.at_most(f"{shape}: ... differs from 100 % by", abs(on_off - 100), "%", target=MAX_CHANGE_PERCENT),
            Figure(f"{shape}: ... 95 % interval, from", 100 * low, "%"),
            Figure(f"{shape}: ... to", 100 * high, "%"),
            Figure(f"{shape}: CPU of ingest a report, without", median(off.cpu_us for _, off in pairs), "us"),
            Figure(f"{shape}: ... on / off, median", 100 * median(cpu), "%"),
            Figure(f"{shape}: ... 95 % interval, from", 100 * cpu_low, "%"),
            Figure(f"{shape}: ... to", 100 * cpu_high, "%"),
        ]
    return out


def main() -> int:
    """Runs the benchmark and prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--only", nargs="+", choices=list(SHAPES), default=list(SHAPES), metavar="SHAPE")
    parser.add_argument("--pairs", type=int, default=40, help="pairs of turns of each shape")
    parser.add_argument("--seconds", type=float, default=2, help="working time of each process in a pair, s")
    parser.add_argument("--alike", action="store_true", help="turn tracing off in both, to measure the error")
    arguments = parser.parse_args()
    telemetry.configure("bench")
    with tempfile.TemporaryDirectory(prefix="tandem-bench-") as temporary:
        folder = Path(temporary)
        about, fsync_ms = machine.describe(folder), machine.fsync_ms(folder)
        results = uvloop.run(
            measure(folder, arguments.only, arguments.pairs, seconds=arguments.seconds, alike=arguments.alike)
        )
    all_figures = [Figure("fsync of 4 KiB, median", fsync_ms, "ms"), *of(results)]
    figures.show(about, machine.versions(), all_figures, as_json=arguments.json)
    return FAILED if any(figure.met is False for figure in all_figures) else 0


if __name__ == "__main__":
    sys.exit(main())
