"""`python -m bench.geofence`: rate of the fold, rates and latencies of a whole chain with one and two evaluators, rates of peers.

Exit code 1 where a report was lost or rejected, else 0, even where a target isn't met; the figures show missed targets.
"""

from __future__ import annotations

import argparse
import itertools
import signal
import statistics
import sys
import tempfile
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from pathlib import Path

import uvloop

from bench import figures
from bench import fold as folding
from bench.figures import Figure
from bench.ingestion import postgis, saturated, valkey
from bench.ingestion.reports import BATCH, Reports
from bench.ingestion.saturated import Saturated, Tally
from bench.mesh import evaluating_peers, machine, whole_chain
from bench.mesh.crowd import WALK, Crowd
from bench.mesh.load import Shape
from bench.mesh.machine import Usage
from bench.mesh.whole_chain import Due
from services.common.failure import FAILED, CommandFailed
from services.common.observability import telemetry

PARTS = ("fold", "growth", "one", "two", "postgis", "asking-postgis", "valkey")
FOLD_TARGET, CHAIN_TARGETS = 150_000.0, {1: 100_000.0, 2: 40_000.0}
RATIO_TARGETS = {"postgis": 1.4, "asking-postgis": 1.4, "valkey": 4.0}
IDLE_TARGET = 70.0
SINGLE = Shape(name="200/s one by one", reports_per_s=200, batch=1, streams=8)
FULL = Shape(name="50,000/s in batches of 100", reports_per_s=50_000, batch=BATCH, streams=4)
COUNTRY = Shape(name="2,667/s in batches of 100", reports_per_s=2_667, batch=BATCH, streams=4)
TRIGGERS_PER_S = {SINGLE: 10.0, FULL: 10.0, COUNTRY: 1.0}
"""Triggers per second. A country has fewer alerts: 20,000 wearers at 0.91 a day each are 0.2 a second."""
FIRST: dict[int, tuple[Shape, ...]] = {1: (), 2: (COUNTRY,)}
"""Loads that run before all others. Nobody answers offers, so the many incidents of another load would escalate meanwhile."""
LOADS = {1: (FULL,), 2: (SINGLE,)}
TARGETS_MS = {SINGLE: (3.0, 6.0), FULL: (4.0, 10.0)}
"""Targets for p50 and p99 of the latency from due to both legs, ms."""
GROWTH = (
    *(("wearers", Crowd(count), 1) for count in (1_000, 10_000, 100_000)),
    *(("orders a wearer", Crowd(2_000, orders), 1) for orders in (1, 5, 20)),
    *(("partitions", Crowd(10_000), partitions) for partitions in (1, 3, 8)),
)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def fold() -> Iterator[Figure]:
    """Figures of the fold alone."""
    rate = folding.measure(Crowd(20_000), 1, turns=2 * folding.SILENCE_TURNS)
    median = statistics.median(rate.turns)
    _say(f"fold: {rate.reports_per_s:,.0f} reports/s, median turn {median:,.0f}")
    yield figures.at_least("fold: reports a core", rate.reports_per_s, "reports/s", target=FOLD_TARGET)
    yield Figure("fold: reports a core, median turn", median, "reports/s")


def growth() -> Iterator[Figure]:
    """Cost of a report with growing crowds. One process folds the partitions one after another."""
    first: dict[str, float] = {}
    for unit, crowd, partitions in GROWTH:
        number = {"wearers": crowd.wearers, "orders a wearer": crowd.orders, "partitions": partitions}[unit]
        rate = folding.measure(crowd, partitions, turns=folding.SILENCE_TURNS)
        _say(f"{number:,} {unit}: {rate.reports_per_s:,.0f} reports/s")
        cost_us = 1e6 / rate.reports_per_s
        yield Figure(f"fold, {number:,} {unit}: a report", cost_us, "us of CPU")
        yield Figure(f"fold, {number:,} {unit}: over the fewest {unit}", cost_us / first.setdefault(unit, cost_us), "x")


async def chain(folder: Path, replicas: int, seconds: float, *, repeats: int) -> list[Figure]:
    """Figures of a whole chain with one or two evaluators."""
    label = {1: "one evaluator", 2: "two evaluators"}[replicas]
    async with whole_chain.running(folder, replicas) as chained:
        drained = []
        dues: dict[Shape, list[Due]] = {shape: [] for shape in (*FIRST[replicas], *LOADS[replicas])}

        async def play(shape: Shape, repeat: int) -> None:
            results = dues[shape]
            results.append(await chained.due(shape, seconds, repeat, triggers_per_s=TRIGGERS_PER_S[shape]))
            p99_ms = figures.percentile(results[-1].legs_ms, 99)
            _say(f"{repeat + 1}/{repeats} {label}, {shape.name}: both legs p99 {p99_ms:.1f} ms")

        for repeat in range(repeats):
            for shape in FIRST[replicas]:
                await play(shape, repeat)
        for repeat in range(repeats):
            for shape in LOADS[replicas]:
                await play(shape, repeat)
            drained.append(await chained.drain(seconds))
            _say(f"{repeat + 1}/{repeats} {label}, saturated: {drained[-1].reports_per_s:,.0f} reports/s")
    rate = statistics.median(turn.reports_per_s for turn in drained)
    measured = [
        figures.at_least(f"{label}: reports to both legs", rate, "reports/s", target=CHAIN_TARGETS[replicas]),
        Figure(f"{label}: behind ingest at the end", statistics.median(turn.behind_s for turn in drained), "s"),
        *_cpu(label, [turn.used for turn in drained]),
    ]
    for shape, turns in dues.items():
        measured += _latencies(f"{label}, {shape.name}", shape, turns)
    return measured


def _latencies(label: str, shape: Shape, turns: Sequence[Due]) -> Iterator[Figure]:
    legs = [ms for turn in turns for ms in turn.legs_ms]
    alerts = [ms for turn in turns for ms in turn.alert_ms]
    for number, percent in enumerate((50, 99)):
        yield Figure(f"{label}: to the alert p{percent}", figures.percentile(alerts, percent), "ms")
        name, value = f"{label}: to both legs p{percent}", figures.percentile(legs, percent)
        targets = TARGETS_MS.get(shape)
        yield figures.at_most(name, value, "ms", target=targets[number]) if targets else Figure(name, value, "ms")
    yield figures.at_most(f"{label}: triggers lost", sum(turn.lost for turn in turns), "reports", target=0)
    refused = sum(sum(turn.sent.refused.values()) for turn in turns)
    yield figures.at_most(f"{label}: reports refused", refused, "reports", target=0)
    total_s, idle_s = sum(turn.used.total for turn in turns), sum(turn.used.idle for turn in turns)
    if total_s:
        idle = 100 * idle_s / total_s
        name = f"{label}: machine idle"
        yield figures.at_least(name, idle, "%", target=IDLE_TARGET) if shape is COUNTRY else Figure(name, idle, "%")
        others_s = sum(turn.used.others for turn in turns)
        yield Figure(f"{label}: cpu of all else", 200 * others_s / total_s, "% of a core")


def _cpu(label: str, used: Sequence[Usage]) -> Iterator[Figure]:
    total_s = sum(usage.total for usage in used)
    if not total_s:
        return
    cores = machine.describe(Path("/"))["cores"]
    for process in used[0].by_process:
        seconds = sum(usage.by_process.get(process, 0.0) for usage in used)
        yield Figure(f"{label}: cpu of {process}", 100 * int(cores) * seconds / total_s, "% of a core")
    others_s = sum(usage.others for usage in used)
    yield Figure(
        f"{label}: cpu of all else, and of children that write checkpoints",
        100 * int(cores) * others_s / total_s,
        "% of a core",
    )


async def peers(parts: Collection[str], folder: Path, seconds: float, *, repeats: int) -> dict[str, float]:
    """Rates of PostGIS and Valkey by part, reports/s, where they are installed."""
    numbers = itertools.count(1)
    places = [partial(whole_chain.CROWD.place, turn=turn) for turn in range(len(WALK))]
    walkers = Reports(BATCH, numbers, places=places, devices=whole_chain.WALKING)
    rates: dict[str, float] = {}
    selected = [name for name in ("postgis", "asking-postgis") if name in parts]
    if selected and (programs := postgis.programs()):
        with postgis.running(programs) as server:
            for name in selected:
                url = server.new_database()
                await evaluating_peers.create(url, whole_chain.CROWD, name == "asking-postgis")
                turns = []
                for _ in range(repeats):
                    tally = Tally()
                    work = [evaluating_peers.evaluate(url, walkers, tally) for _ in range(postgis.CONNECTIONS)]
                    turns.append(await saturated.measure(tally, work, seconds, pids={}))
                rates[name] = _median(name, turns)
    if "valkey" in parts and (program := valkey.program()):
        with valkey.running(program, folder / "valkey") as port:
            turns = []
            for _ in range(repeats):
                tally = Tally()
                work = [evaluating_peers.evaluate_in_valkey(port, walkers, tally) for _ in range(valkey.CLIENTS)]
                turns.append(await saturated.measure(tally, work, seconds, pids={}))
        rates["valkey"] = _median("Valkey", turns)
    for part in set(parts) & set(RATIO_TARGETS) - set(rates):
        _say(f"{part} isn't installed, so its figures are left out")
    return rates


def _median(name: str, turns: Sequence[Saturated]) -> float:
    rate = statistics.median(turn.reports_per_s for turn in turns)
    _say(f"{name}: {rate:,.0f} reports/s")
    return rate


async def measure(arguments: argparse.Namespace, folder: Path) -> list[Figure]:
    """Runs the selected parts and returns their figures."""
    parts = arguments.only
    seconds = arguments.seconds
    repeats = arguments.repeats
    all_figures = [Figure("fsync of 4 KiB, median", machine.fsync_ms(folder), "ms")]
    if "fold" in parts:
        all_figures += fold()
    own = 0.0
    for replicas, part in ((1, "one"), (2, "two")):
        if part in parts:
            (folder / part).mkdir()
            chained = await chain(folder / part, replicas, seconds, repeats=repeats)
            all_figures += chained
            own = own if replicas > 1 else chained[0].value
    for name, rate in (await peers(parts, folder, seconds, repeats=repeats)).items():
        all_figures.append(Figure(f"{name}: reports stored and looked at", rate, "reports/s"))
        if own:
            ratio = figures.at_least(f"one evaluator: over {name}", own / rate, "x", target=RATIO_TARGETS[name])
            all_figures.append(
                Figure(
                    name=ratio.name,
                    value=ratio.value,
                    unit=ratio.unit,
                    target=ratio.target,
                    met=ratio.met,
                    against=name,
                )
            )
    if "growth" in parts:
        all_figures += growth()
    return all_figures


def main() -> int:
    """Runs the benchmark and prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=" ".join(PARTS))
    parser.add_argument("--seconds", type=float, default=5, help="length of each turn, s")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each part")
    arguments = parser.parse_args()
    telemetry.configure("bench")
    # SIGTERM acts like Ctrl-C: it stops the processes and removes the folder.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        with tempfile.TemporaryDirectory(prefix="tandem-bench-") as temporary:
            folder = Path(temporary)
            about = machine.describe(folder)
            all_figures = uvloop.run(measure(arguments, folder))
    except CommandFailed as failed:
        _say(failed.message)
        return failed.exit_code
    versions = machine.versions()
    figures.show(about, versions, all_figures, as_json=arguments.json)
    wrong = [figure for figure in all_figures if figure.target == 0 and not figure.met]
    for figure in wrong:
        _say(f"WRONG: {figure.name}: {figure.value:.0f}")
    return FAILED if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
