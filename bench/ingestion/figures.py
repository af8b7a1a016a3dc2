"""The figures of bench.ingest, from what its parts gave. Pure."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from bench import figures
from bench.figures import Figure
from bench.ingestion.burst import EACH, LIVE, Burst
from bench.ingestion.endpoint import BURST_DEVICES
from bench.ingestion.reports import BATCH
from bench.ingestion.saturated import Saturated
from bench.ingestion.slow_store import DUE_PER_S, Held
from bench.mesh.load import Shape
from services.cli.simulate.load_generator import LoadOutcome

RATE_TARGETS = {"batched": 150_000.0, "single": 12_000.0}
LATENCIES = (
    Shape("200/s one by one", reports_per_s=200, batch=1, streams=8),
    Shape("50,000/s in batches of 100", reports_per_s=50_000, batch=BATCH, streams=4),
)
LATENCY_TARGETS_MS = {("200/s one by one", 50): 2.0, ("200/s one by one", 99): 5.0} | {
    ("50,000/s in batches of 100", 99): 10.0
}
RATIO_TARGETS = {"stock": 40.0, "postgis": 2.0, "asking-postgis": 2.0, "valkey": None}
"""How many times what a peer takes ingest takes in batches; None where it is only told."""
BURST_TARGET_MS = 1_000.0
SETTLED_S = 30
"""From then on memory is expected to grow no more."""
GROWTH_TARGET_MIB = 32.0


@dataclass(slots=True)
class Results:
    """What the parts that were run gave."""

    saturated: dict[str, list[Saturated]] = field(default_factory=lambda: defaultdict(list))
    """By part, one for each repeat."""
    latency: dict[str, list[LoadOutcome]] = field(default_factory=lambda: defaultdict(list))
    """By the load's name, one for each repeat."""
    burst: Burst | None = None
    held: Held | None = None
    versions: dict[str, str] = field(default_factory=dict)
    """Of the peers' servers."""


def of(results: Results) -> list[Figure]:
    """All of them."""
    found = [figure for name, turns in results.saturated.items() for figure in _rate(name, turns)]
    found += _ratios(results)
    found += [figure for shape in LATENCIES if shape.name in results.latency for figure in _latency(shape, results)]
    if results.burst:
        found += _burst(results.burst)
    if results.held:
        found += _held(results.held)
    return found


def _median(turns: Sequence[Saturated]) -> float:
    return statistics.median(turn.reports_per_s for turn in turns)


def _rate(name: str, turns: Sequence[Saturated]) -> Iterator[Figure]:
    label, value = f"{name}: reports durable", _median(turns)
    target = RATE_TARGETS.get(name)
    yield Figure(label, value, "reports/s") if target is None else figures.at_least(label, value, "reports/s", target)
    seconds = sum(turn.seconds for turn in turns)
    for process in turns[0].used.by_process:
        used_s = sum(turn.used.by_process[process] for turn in turns)
        yield Figure(f"{name}: cpu of {process}", 100 * used_s / seconds, "% of a core")
    if total_s := sum(turn.used.total for turn in turns):
        yield Figure(f"{name}: machine idle", 100 * sum(turn.used.idle for turn in turns) / total_s, "%")
        if name in RATE_TARGETS:
            others_s = sum(turn.used.others for turn in turns)
            yield Figure(f"{name}: cpu of all else", 100 * others_s / seconds, "% of a core")


def _ratios(results: Results) -> Iterator[Figure]:
    for peer, target in RATIO_TARGETS.items():
        if "batched" not in results.saturated or peer not in results.saturated:
            continue
        theirs = _median(results.saturated[peer])
        ratio = _median(results.saturated["batched"]) / theirs
        met = None if target is None else ratio >= target
        yield Figure(f"batched: over {peer}", ratio, "x", target, met, f"{peer} {theirs:.0f} reports/s")


def _latency(shape: Shape, results: Results) -> Iterator[Figure]:
    turns = results.latency[shape.name]
    answered_ms = [1000 * s for turn in turns for s in turn.answered_after_s]
    for percent in (50, 99, 100):
        label = f"{shape.name}: due to durable {'max' if percent == 100 else f'p{percent}'}"
        value, target = figures.percentile(answered_ms, percent), LATENCY_TARGETS_MS.get((shape.name, percent))
        yield Figure(label, value, "ms") if target is None else figures.at_most(label, value, "ms", target)
    offered = len(answered_ms) * shape.batch
    lacking = offered - sum(turn.accepted for turn in turns)
    yield figures.at_most(f"{shape.name}: reports refused", lacking, "reports", 0)
    yield Figure(f"{shape.name}: requests", len(answered_ms), "requests")
    yield Figure(f"{shape.name}: requests sent late", sum(turn.late for turn in turns), "requests")


def _burst(burst: Burst) -> Iterator[Figure]:
    kept = BURST_DEVICES * EACH
    yield Figure("burst: drained after", burst.drained_s, "s")
    yield Figure("burst: reports durable", burst.stored / burst.drained_s, "reports/s")
    yield figures.at_most("burst: reports not durable", kept - burst.stored, "reports", 0)
    yield Figure("burst: live reports meanwhile", LIVE.reports_per_s, "reports/s")
    for when, answered_ms in (("before it", burst.before_ms), ("meanwhile", burst.during_ms)):
        yield Figure(f"burst: live, {when}, p50", figures.percentile(answered_ms, 50), "ms")
        label, p99_ms = f"burst: live, {when}, p99", figures.percentile(answered_ms, 99)
        if answered_ms is burst.during_ms:
            yield figures.at_most(label, p99_ms, "ms", BURST_TARGET_MS)
        else:
            yield Figure(label, p99_ms, "ms")
    yield figures.at_most("burst: live reports refused", burst.live.refused.total(), "reports", 0)


def _held(held: Held) -> Iterator[Figure]:
    stored = len(held.acknowledged) * BATCH
    yield Figure("memory: reports due", DUE_PER_S, "reports/s")
    yield Figure("memory: reports durable", stored / held.took_s, "reports/s")
    if held.resident_mib:
        settled = held.resident_mib[SETTLED_S:]
        yield Figure("memory: resident at the start", held.resident_mib[0], "MiB")
        yield Figure("memory: resident at the most", max(held.resident_mib), "MiB")
        growth = max(settled) - settled[0] if settled else math.inf
        yield figures.at_most(f"memory: growth after {SETTLED_S} s", growth, "MiB", GROWTH_TARGET_MIB)
    yield Figure("memory: time that writers were pushed back", 100 * held.pushed_back, "%")
    yield Figure("memory: streams told to come again", held.sent_again, "streams")
    yield figures.at_most("memory: reports refused", len(held.refused), "reports", 0)
    yield figures.at_most("memory: acknowledged reports lost", held.lost, "reports", 0)
