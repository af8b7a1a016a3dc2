"""`python -m bench.tracing`: what tracing costs ingest.

Two ingest processes over one nats-server that syncs every write: one takes the contexts of its senders and writes them beside the
reports, the other has tracing turned off. Both get the same load, in which each stream comes in a context of its own, and take
turns of half a second: what a machine does meanwhile, and what gets slower or faster all the while, weighs on both alike. So does,
by the order of Thue and Morse, that a process works faster when it worked just before. Two processes of one kind differ by several
per cent, so each pair is of new ones, and of every other pair the one without is started first. Exit code 1 where the median of the
ratios of throughput differs from 1 by more than 3 %, to either side, or rests on fewer than 15 pairs. Beside it stands what ingest
needs of a processor for a report, which hangs less on the disk and on whoever else works on the machine.

`--alike` turns tracing off in both: what it prints then is the measurement's own error.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
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
from rich.console import Console

from bench import figures
from bench.figures import Figure
from bench.ingestion import endpoint, saturated
from bench.ingestion.endpoint import Door
from bench.ingestion.reports import BATCH, Reports
from bench.ingestion.saturated import WARM_UP_S, Tally
from bench.mesh import machine
from services.cli.failure import FAILED
from services.cli.simulate.load_generator import METHOD
from services.common.messaging.bus import Bus
from services.common.observability import telemetry, trace_ids
from services.common.rpc import server
from tandem.ingest.v1 import ingest_pb2
from tests.support.common.nats import TestServer

SHAPES = {"batched": (BATCH, 8, 8), "single": (1, 32, 32)}
"""Reports in a batch, streams, batches of a stream under way; as in bench.ingest."""
MAX_CHANGES = 3.0
"""By how much tracing may change throughput, per cent."""
PAIRS_LEAST = 15
"""A median of fewer proves nothing."""
TURN_S = 0.5
ORDER = (0, 1, 1, 0, 1, 0, 0, 1)
"""Whose turn it is: of the one that begins, or of the other."""
WIDTH = 150


@dataclass(frozen=True, slots=True)
class Turn:
    """What one turn gave."""

    reports_per_s: float
    cpu_us: float
    """Of ingest, for a report: it varies less than the rate, which hangs on the disk as well."""


def together(turns: Sequence[Turn]) -> Turn:
    """What turns of the same length gave together."""
    reports = sum(turn.reports_per_s for turn in turns)
    return Turn(reports / len(turns), sum(turn.cpu_us * turn.reports_per_s for turn in turns) / reports)


class _Sender:
    """Streams into one ingest that stay open, each in a context of its own, and take turns with those into another."""

    def __init__(self, door: Door, channel: grpc.aio.Channel, shape: str, batches: Reports) -> None:
        _, streams, self._window = SHAPES[shape]
        self._pids, self._batches = door.pids, batches
        method: Any = channel.stream_stream(METHOD, None, ingest_pb2.ReportResponse.FromString)
        self._calls = [method(metadata=(*door.identity, _context(number))) for number in range(streams)]

    async def turn(self, seconds: float) -> Turn:
        """All streams work so long and end with nothing under way; raises CommandFailed where a report is refused."""
        began_s, before, tally = time.monotonic(), machine.usage(self._pids), Tally()
        await asyncio.gather(*(self._work(call, began_s + seconds, tally) for call in self._calls))
        took_s, used = time.monotonic() - began_s, machine.usage(self._pids).since(before)
        return Turn(tally.reports / took_s, 1e6 * used.by_process["ingest"] / tally.reports)

    async def _work(self, call: Any, until_s: float, tally: Tally) -> None:
        for _ in range(self._window):
            await call.write(self._batches.next())
        under_way = self._window
        while under_way:
            answer = await call.read()
            saturated.count(answer, tally)
            under_way -= answer.batches
            while under_way < self._window and time.monotonic() < until_s:
                await call.write(self._batches.next())
                under_way += 1


def _context(number: int) -> tuple[str, str]:
    return trace_ids.TRACEPARENT, trace_ids.traceparent(f"stream-{number}")


async def measure(
    folder: Path, shapes: Sequence[str], pairs: int, seconds: float, alike: bool
) -> dict[str, list[tuple[Turn, Turn]]]:
    """By shape: turns with tracing and without, in pairs."""
    found: dict[str, list[tuple[Turn, Turn]]] = {shape: [] for shape in shapes}
    numbers = itertools.count(1)
    async with endpoint.running_nats(folder) as (nats, bus):
        for number in range(pairs):
            async with _both(folder / str(number), nats, bus, alike, swapped=number % 2 == 1) as channels:
                for shape in shapes:
                    batches = Reports(SHAPES[shape][0], numbers)
                    on, off = (_Sender(*channel, shape, batches) for channel in channels)
                    order = (on, off) if number % 4 < 2 else (off, on)
                    for one in order:
                        await one.turn(WARM_UP_S)
                    with_it, without = await _pair(on, off, order, seconds)
                    found[shape].append((with_it, without))
                    print(
                        f"{number + 1}/{pairs} {shape}: on / off {with_it.reports_per_s / without.reports_per_s:.3f}, "
                        f"CPU {with_it.cpu_us / without.cpu_us:.3f}",
                        file=sys.stderr,
                    )
    return found


@asynccontextmanager
async def _both(
    folder: Path, nats: TestServer, bus: Bus, alike: bool, swapped: bool
) -> AsyncIterator[Sequence[tuple[Door, grpc.aio.Channel]]]:
    """A new ingest with tracing and one without, each with a channel into it; `swapped`: the latter is started first."""
    async with AsyncExitStack() as stack:
        found = {}
        for name in ("off", "on") if swapped else ("on", "off"):
            (folder / name).mkdir(parents=True)
            traces = name == "on" and not alike
            one = await stack.enter_async_context(endpoint.running(folder / name, nats, bus, tracing=traces))
            found[name] = one, await stack.enter_async_context(server.channel(one.address))
        yield found["on"], found["off"]


async def _pair(on: _Sender, off: _Sender, order: Sequence[_Sender], seconds: float) -> tuple[Turn, Turn]:
    """With tracing and without, in turns, in this order."""
    turns: dict[_Sender, list[Turn]] = {on: [], off: []}
    for _ in range(max(1, round(2 * seconds / (TURN_S * len(ORDER))))):
        for who in ORDER:
            turns[order[who]].append(await order[who].turn(TURN_S))
    return together(turns[on]), together(turns[off])


def interval(ratios: Sequence[float]) -> tuple[float, float]:
    """Between which two of them their median lies with 95 %, whatever their distribution: from the binomial distribution.

    Fewer than six bound it on neither side.
    """
    ordered, count = sorted(ratios), len(ratios)
    below, cut = 0.0, 0
    while (below := below + math.comb(count, cut) / 2**count) <= 0.025:
        cut += 1
    if cut == 0:
        return -math.inf, math.inf
    return ordered[cut - 1], ordered[count - cut]


def of(found: dict[str, list[tuple[Turn, Turn]]]) -> list[Figure]:
    """The figures of all shapes."""
    out = []
    for shape, pairs in found.items():
        rates = [on.reports_per_s / off.reports_per_s for on, off in pairs]
        cpu = [on.cpu_us / off.cpu_us for on, off in pairs]
        low, high = interval(rates)
        cpu_low, cpu_high = interval(cpu)
        on_off = 100 * median(rates)
        out += [
            Figure(f"{shape}: with tracing", median(on.reports_per_s for on, _ in pairs), "reports/s"),
            Figure(f"{shape}: without", median(off.reports_per_s for _, off in pairs), "reports/s"),
            figures.at_least(f"{shape}: pairs", len(pairs), "", PAIRS_LEAST),
            Figure(f"{shape}: on / off, median", on_off, "%"),
            figures.at_most(f"{shape}: ... differs from 100 % by", abs(on_off - 100), "%", MAX_CHANGES),
            Figure(f"{shape}: ... 95 % interval, from", 100 * low, "%"),
            Figure(f"{shape}: ... to", 100 * high, "%"),
            Figure(f"{shape}: CPU of ingest a report, without", median(off.cpu_us for _, off in pairs), "us"),
            Figure(f"{shape}: ... on / off, median", 100 * median(cpu), "%"),
            Figure(f"{shape}: ... 95 % interval, from", 100 * cpu_low, "%"),
            Figure(f"{shape}: ... to", 100 * cpu_high, "%"),
        ]
    return out


def main() -> int:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--only", nargs="+", choices=list(SHAPES), default=list(SHAPES), metavar="SHAPE")
    parser.add_argument("--pairs", type=int, default=40, help="pairs of turns of each shape")
    parser.add_argument("--seconds", type=float, default=2, help="how long each of the two works in a pair, in turns")
    parser.add_argument("--alike", action="store_true", help="tracing off in both: the measurement's own error")
    arguments = parser.parse_args()
    telemetry.configure("bench")
    with tempfile.TemporaryDirectory(prefix="tandem-bench-") as temporary:
        folder = Path(temporary)
        about, fsync_ms = machine.describe(folder), machine.fsync_ms(folder)
        found = uvloop.run(measure(folder, arguments.only, arguments.pairs, arguments.seconds, arguments.alike))
    all_figures = [Figure("fsync of 4 KiB, median", fsync_ms, "ms"), *of(found)]
    if arguments.json:
        print(json.dumps(figures.to_json(about, machine.versions(), all_figures)))
    else:
        out = Console(highlight=False, soft_wrap=True, width=WIDTH)
        out.print(", ".join(f"{name} {value}" for name, value in {**about, **machine.versions()}.items()))
        out.print(figures.table(all_figures))
    return FAILED if any(all_figure.met is False for all_figure in all_figures) else 0


if __name__ == "__main__":
    sys.exit(main())
