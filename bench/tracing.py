"""`python -m bench.tracing`: what tracing costs ingest.

Two ingest processes over one nats-server that syncs every write: one takes the contexts of its senders and writes them beside the
reports, the other has tracing turned off. Both get the same load, in which each stream comes in a context of its own, in turns that
follow one another: a pair is on, off, off, on, or the other way round, so that what gets slower or faster all the while weighs on
both alike. Exit code 1 where the median of the ratios of throughput differs from 1 by more than 3 %, to either side, or rests on
fewer than 15 pairs. Beside it stands what ingest needs of a processor for a report, which hangs less on the disk and on whoever else
works on the machine.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import uvloop
from rich.console import Console

from bench import door, figures, machine, saturated
from bench.door import Door
from bench.figures import Figure
from bench.reports import BATCH, Reports
from bench.saturated import Tally
from services.cli.failure import FAILED
from services.common import rpc, telemetry, trace_ids

SHAPES = {"batched": (BATCH, 8, 8), "single": (1, 32, 32)}
"""Reports in a batch, streams, batches of a stream under way; as in bench.ingest."""
CHANGES_AT_MOST = 3.0
"""By how much tracing may change throughput, per cent."""
PAIRS_LEAST = 15
"""A median of fewer proves nothing."""
WIDTH = 150


@dataclass(frozen=True, slots=True)
class Turn:
    """What one turn gave."""

    reports_per_s: float
    cpu_us: float
    """Of ingest, for a report: it varies less than the rate, which hangs on the disk as well."""


def together(halves: Sequence[Turn]) -> Turn:
    """What turns of the same length gave together."""
    reports = sum(one.reports_per_s for one in halves)
    return Turn(reports / len(halves), sum(one.cpu_us * one.reports_per_s for one in halves) / reports)


async def _turn(one: Door, shape: str, batches: Reports, seconds: float) -> Turn:
    _, streams, window = SHAPES[shape]
    tally = Tally()
    async with rpc.channel(one.address) as channel:
        work = [
            saturated.stream(channel, (*one.identity, _context(number)), batches, window, tally)
            for number in range(streams)
        ]
        found = await saturated.measure(tally, work, seconds, {**one.pids, "bench": os.getpid()})
    return Turn(found.reports_per_s, 1e6 * found.used.by_process["ingest"] / (found.reports_per_s * found.seconds))


def _context(number: int) -> tuple[str, str]:
    return trace_ids.TRACEPARENT, trace_ids.traceparent(f"stream-{number}")


async def measure(
    folder: Path, shapes: Sequence[str], pairs: int, seconds: float
) -> dict[str, list[tuple[Turn, Turn]]]:
    """By shape: turns with tracing and without, in pairs."""
    found: dict[str, list[tuple[Turn, Turn]]] = {shape: [] for shape in shapes}
    numbers = itertools.count(1)
    for name in ("on", "off"):
        (folder / name).mkdir()
    async with (
        door.running_nats(folder) as (nats, bus),
        door.running(folder / "on", nats, bus) as on,
        door.running(folder / "off", nats, bus, tracing=False) as off,
    ):
        for shape in shapes:
            batches = Reports(SHAPES[shape][0], numbers)
            for one in (on, off):
                await _turn(one, shape, batches, seconds / 2)  # the first of all is slow, whichever it is
            for number in range(pairs):
                first, second = (on, off) if number % 2 == 0 else (off, on)
                turns: dict[str, list[Turn]] = {on.address: [], off.address: []}
                for one in (first, second, second, first):
                    turns[one.address].append(await _turn(one, shape, batches, seconds / 2))
                with_it, without = together(turns[on.address]), together(turns[off.address])
                found[shape].append((with_it, without))
                print(
                    f"{number + 1}/{pairs} {shape}: on / off {with_it.reports_per_s / without.reports_per_s:.3f}, "
                    f"CPU {with_it.cpu_us / without.cpu_us:.3f}",
                    file=sys.stderr,
                )
    return found


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
            figures.at_most(f"{shape}: ... differs from 100 % by", abs(on_off - 100), "%", CHANGES_AT_MOST),
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
    parser.add_argument("--pairs", type=int, default=20, help="pairs of turns of each shape")
    parser.add_argument(
        "--seconds", type=float, default=3, help="how long each of the two works in a pair, in two halves"
    )
    arguments = parser.parse_args()
    telemetry.configure("bench")
    with tempfile.TemporaryDirectory(prefix="tandem-bench-") as temporary:
        folder = Path(temporary)
        about, fsync_ms = machine.describe(folder), machine.fsync_ms(folder)
        found = uvloop.run(measure(folder, arguments.only, arguments.pairs, arguments.seconds))
    all_figures = [Figure("fsync of 4 KiB, median", fsync_ms, "ms"), *of(found)]
    if arguments.json:
        print(json.dumps(figures.to_json(about, machine.versions(), all_figures)))
    else:
        out = Console(highlight=False, soft_wrap=True, width=WIDTH)
        out.print(", ".join(f"{name} {value}" for name, value in {**about, **machine.versions()}.items()))
        out.print(figures.table(all_figures))
    return FAILED if any(one.met is False for one in all_figures) else 0


if __name__ == "__main__":
    sys.exit(main())
