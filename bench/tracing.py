"""`python -m bench.tracing`: what tracing costs ingest.

Two ingest processes over one nats-server that syncs every write: one takes the contexts of its senders and writes them beside the
reports, the other has tracing turned off. Both get the same load, in which each stream comes in a context of its own, in turns that
follow one another; which of the two begins changes from pair to pair. Exit code 1 where the 95 % interval of the median ratio shows
that more than 3 % is lost.
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
LOST_AT_MOST = 0.03
WIDTH = 150


async def _turn(one: Door, shape: str, batches: Reports, seconds: float) -> float:
    """Reports a second."""
    _, streams, window = SHAPES[shape]
    tally = Tally()
    async with rpc.channel(one.address) as channel:
        work = [
            saturated.stream(channel, (*one.identity, _context(number)), batches, window, tally)
            for number in range(streams)
        ]
        return (await saturated.measure(tally, work, seconds, {**one.pids, "bench": os.getpid()})).reports_per_s


def _context(number: int) -> tuple[str, str]:
    return trace_ids.TRACEPARENT, trace_ids.traceparent(f"stream-{number}")


async def measure(
    folder: Path, shapes: Sequence[str], pairs: int, seconds: float
) -> dict[str, list[tuple[float, float]]]:
    """By shape: reports a second with tracing and without, in pairs."""
    found: dict[str, list[tuple[float, float]]] = {shape: [] for shape in shapes}
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
            for number in range(pairs):
                order = (on, off) if number % 2 == 0 else (off, on)
                rates = {one.address: await _turn(one, shape, batches, seconds) for one in order}
                found[shape].append((rates[on.address], rates[off.address]))
                ratio = rates[on.address] / rates[off.address]
                print(f"{number + 1}/{pairs} {shape}: on / off {ratio:.3f}", file=sys.stderr)
    return found


def interval(ratios: Sequence[float]) -> tuple[float, float]:
    """Between which two of them their median lies with 95 %, whatever their distribution: from the binomial distribution."""
    ordered, count = sorted(ratios), len(ratios)
    below, cut = 0.0, 0
    while (below := below + math.comb(count, cut) / 2**count) <= 0.025:
        cut += 1
    if cut == 0:
        raise ValueError(f"{count} pairs are too few for an interval of 95 %")
    return ordered[cut - 1], ordered[count - cut]


def of(found: dict[str, list[tuple[float, float]]]) -> list[Figure]:
    """The figures of all shapes."""
    out = []
    for shape, pairs in found.items():
        ratios = [on / off for on, off in pairs]
        low, high = interval(ratios)
        out += [
            Figure(f"{shape}: with tracing", median(on for on, _ in pairs), "reports/s"),
            Figure(f"{shape}: without", median(off for _, off in pairs), "reports/s"),
            Figure(f"{shape}: on / off, median of {len(pairs)} pairs, %", 100 * median(ratios), "%"),
            Figure(f"{shape}: ... 95 % interval, from", 100 * low, "%"),
            # Lost is what even the better end of the interval doesn't bring back.
            figures.at_least(f"{shape}: ... to", 100 * high, "%", 100 * (1 - LOST_AT_MOST)),
        ]
    return out


def main() -> int:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--only", nargs="+", choices=list(SHAPES), default=list(SHAPES), metavar="SHAPE")
    parser.add_argument("--pairs", type=int, default=20, help="pairs of turns of each shape, 6 at least")
    parser.add_argument("--seconds", type=float, default=3, help="length of a turn")
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
