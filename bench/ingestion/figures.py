"""Figures of bench.ingest from the results of its parts. Pure."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from bench import figures
from bench.figures import Figure
from bench.ingestion.burst import LIVE, REPORTS_EACH, Burst
from bench.ingestion.endpoint import BURST_DEVICES
from bench.ingestion.reports import BATCH
from bench.ingestion.saturated import Saturated
from bench.ingestion.slow_store import DUE_PER_S, OverloadResult
from bench.mesh.load import Shape
from services.client.load_generator import LoadOutcome

RATE_TARGETS = {"batched": 150_000.0, "single": 12_000.0}
LATENCIES = (
    Shape("200/s one by one", reports_per_s=200, batch=1, streams=8),
    Shape("50,000/s in batches of 100", reports_per_s=50_000, batch=BATCH, streams=4),
)
LATENCY_TARGETS_MS = {("200/s one by one", 50): 2.0, ("200/s one by one", 99): 5.0} | {
    ("50,000/s in batches of 100", 99): 10.0
}
RATIO_TARGETS = {"stock": 40.0, "postgis": 2.0, "asking-postgis": 2.0, "valkey": None}
"""Minimum ratio of ingest's batched rate to a peer's rate; None where the ratio has no target."""
BURST_TARGET_MS = 1_000.0
STEADY_AFTER_S = 30
"""Time after which memory should grow no more, seconds."""
GROWTH_TARGET_MIB = 32.0


@dataclass(slots=True)
class Results:
    """Results of the parts of a run."""

    saturated: dict[str, list[Saturated]] = field(default_factory=lambda: defaultdict(list))
    """Saturated turns by part, one for each repeat."""
    latency: dict[str, list[LoadOutcome]] = field(default_factory=lambda: defaultdict(list))
    """Outcomes by the load's name, one for each repeat."""
    burst: Burst | None = None
    overload: OverloadResult | None = None
    versions: dict[str, str] = field(default_factory=dict)
    """Versions of the peers' servers."""


def of(results: Results) -> list[Figure]:
    """Figures of all results."""
    computed = [figure for name, turns in results.saturated.items() for figure in _rate(name, turns)]
    computed += _ratios(results)
    computed += [figure for shape in LATENCIES if shape.name in results.latency for figure in _latency(shape, results)]
    if results.burst:
        computed += _burst(results.burst)
    if results.overload:
        computed += _overload(results.overload)
    return computed


def _median(turns: Sequence[Saturated]) -> float:
    return statistics.median(turn.reports_per_s for turn in turns)


def _rate(name: str, turns: Sequence[Saturated]) -> Iterator[Figure]:
    label, value = f"{name}: reports durable", _median(turns)
    target = RATE_TARGETS.get(name)
    yield (
        Figure(label, value, "reports/s")
        if target is None
        else figures.at_least(label, value, "reports/s", target=target)
    )
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
        yield Figure(
            name=f"batched: over {peer}",
            value=ratio,
            unit="x",
            target=target,
            met=met,
            against=f"{peer} {theirs:.0f} reports/s",
        )


def _latency(shape: Shape, results: Results) -> Iterator[Figure]:
    turns = results.latency[shape.name]
    answered_ms = [1000 * s for turn in turns for s in turn.answered_after_s]
    for percent in (50, 99, 100):
        label = f"{shape.name}: due to durable {'max' if percent == 100 else f'p{percent}'}"
        value, target = figures.percentile(answered_ms, percent), LATENCY_TARGETS_MS.get((shape.name, percent))
        yield Figure(label, value, "ms") if target is None else figures.at_most(label, value, "ms", target=target)
    offered = len(answered_ms) * shape.batch
    lacking = offered - sum(turn.accepted for turn in turns)
    yield figures.at_most(f"{shape.name}: reports refused", lacking, "reports", target=0)
    yield Figure(f"{shape.name}: requests", len(answered_ms), "requests")
    yield Figure(f"{shape.name}: requests sent late", sum(turn.late for turn in turns), "requests")


def _burst(burst: Burst) -> Iterator[Figure]:
    kept = BURST_DEVICES * REPORTS_EACH
    yield Figure("burst: drained after", burst.drained_s, "s")
    yield Figure("burst: reports durable", burst.stored / burst.drained_s, "reports/s")
    yield figures.at_most("burst: reports not durable", kept - burst.stored, "reports", target=0)
    yield Figure("burst: live reports meanwhile", LIVE.reports_per_s, "reports/s")
    for when, answered_ms in (("before it", burst.before_ms), ("meanwhile", burst.during_ms)):
        yield Figure(f"burst: live, {when}, p50", figures.percentile(answered_ms, 50), "ms")
        label, p99_ms = f"burst: live, {when}, p99", figures.percentile(answered_ms, 99)
        if answered_ms is burst.during_ms:
            yield figures.at_most(label, p99_ms, "ms", target=BURST_TARGET_MS)
        else:
            yield Figure(label, p99_ms, "ms")
    yield figures.at_most("burst: live reports refused", burst.live.refused.total(), "reports", target=0)


def _overload(result: OverloadResult) -> Iterator[Figure]:
    stored = len(result.acknowledged) * BATCH
    yield Figure("memory: reports due", DUE_PER_S, "reports/s")
    yield Figure("memory: reports durable", stored / result.took_s, "reports/s")
    if result.resident_mib:
        steady = result.resident_mib[STEADY_AFTER_S:]
        yield Figure("memory: resident at the start", result.resident_mib[0], "MiB")
        yield Figure("memory: resident at the most", max(result.resident_mib), "MiB")
        growth = max(steady) - steady[0] if steady else math.inf
        yield figures.at_most(f"memory: growth after {STEADY_AFTER_S} s", growth, "MiB", target=GROWTH_TARGET_MIB)
    yield Figure("memory: time that writers were pushed back", 100 * result.pushed_back, "%")
    yield Figure("memory: streams told to come again", result.reopened, "streams")
    yield figures.at_most("memory: reports refused", len(result.refused), "reports", target=0)
    yield figures.at_most("memory: acknowledged reports lost", result.lost, "reports", target=0)
