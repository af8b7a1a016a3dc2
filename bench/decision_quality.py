"""`python -m bench.decision_quality`: missed breaches and false dispatches of the fold, compared with a plain threshold.

Real tracks are the truth (`bench.decision.placement`), and noisy reports are derived from them (`bench.decision.noise`). The fold and a
plain threshold on the two last positions decide (`bench.decision.play`), and the truth judges both (`bench.decision.judge`). The
benchmark sweeps the threshold and compares at the threshold that misses no more than the fold. Intervals are 95 % bootstrap intervals
over wearers. With one draw of the noise the ratio depends on a few misses, so `--draws` sums several draws and also prints each.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from bench.decision.judge import THRESHOLDS_M, Judged, judge
from bench.decision.placement import plays
from bench.decision.score import MAX_RATIO, Interval, Score
from bench.silence import folder

INTERVALS_MS = (15_000, 60_000)


def main() -> None:
    """Runs the study, prints the figures, and writes the plot and the faults if requested."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one-in", type=int, default=1, help="play only one of N plays, for a quick overview")
    parser.add_argument("--but-one-in", type=int, help="leave out one of N plays; the decision was tuned on one in 4")
    parser.add_argument(
        "--draws", type=int, default=1, help="number of draws of the noise; the first was fixed beforehand"
    )
    parser.add_argument("--workers", type=int, default=1, help="number of processes")
    parser.add_argument("--json", action="store_true", help="print one object")
    parser.add_argument(
        "--faults", type=Path, help="file for each miss and each false dispatch, one JSON object a line"
    )
    parser.add_argument("--plot", type=Path, help="file for the plot, as SVG (needs matplotlib)")
    arguments = parser.parse_args()
    if not (folder() / "pairs.csv").is_file():
        raise SystemExit(f"GeoLife tracks not found in {folder()}; set TANDEM_SHARED_DATA")
    selected = list(islice(plays(folder()), 0, None, arguments.one_in))
    if arguments.but_one_in:
        del selected[:: arguments.but_one_in]
    scores: dict[int, Score] = {}
    with ProcessPoolExecutor(arguments.workers) as pool:
        for every_ms in INTERVALS_MS:
            own: list[Judged] = []
            for draw in range(1, arguments.draws + 1):
                print(f"{len(selected)} plays, a report each {every_ms // 1000} s, draw {draw}", file=sys.stderr)
                own += pool.map(partial(judge, every_ms=every_ms, draw=draw), selected, chunksize=20)
            scores[every_ms] = Score(own)
    judged = [play for score in scores.values() for play in score.judged]
    if arguments.faults:
        lines = [json.dumps(asdict(fault)) for play in judged for fault in play.faults]
        arguments.faults.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    if arguments.plot:
        from bench.decision import plot  # matplotlib is only in requirements-bench.lock

        plot.draw(scores, arguments.plot)
    if arguments.json:
        print(json.dumps({f"{every_ms // 1000} s": _figures(score) for every_ms, score in scores.items()}, indent=1))
        return
    console = Console()
    console.print(_table(scores))
    console.print(_swept(scores))
    if arguments.draws > 1:
        console.print(_by_draw(judged))
    console.print(_causes(judged))


def _figures(score: Score) -> dict[str, Any]:
    """Figures of one interval by name: a number, or [value, low, high]."""
    sums, delays_s, plain_s = score.sums, score.delays_s(), score.plain_delays_s()
    counts = Counter(fault.what for play in score.judged for fault in play.faults)
    unnotified, unrecorded = counts["close"] + counts["close, recorded"], counts["close"]
    ratio = score.interval(lambda sums: sums.false_ratio)
    hundred = list(THRESHOLDS_M).index(100)
    return {
        "hours": round(score.total("hours"), 1),
        "breaches": sums.breaches,
        "missed breaches": score.interval(lambda sums: sums.missed),
        "  of which UNKNOWN_NEAR told a person": score.total("missed_but_near"),
        "  of which it was at least in the record": score.total("missed_but_recorded"),
        "  share of breaches, %": score.interval(lambda sums: 100 * sums.missed_share),
        "dispatches": score.total("dispatches"),
        "false dispatches": score.interval(lambda sums: sums.false),
        "UNKNOWN_NEAR that respond, apart": score.total("unknown_near"),
        "plain threshold at equal misses, m": score.interval(lambda sums: sums.threshold_m),
        "  its missed breaches": float(sums.plain_missed[sums.equal]),
        "  its false dispatches": score.interval(lambda sums: float(sums.plain_false[sums.equal])),
        "false dispatches through the plain ones": ratio,
        f"  at most {MAX_RATIO:g}": "met" if ratio.value <= MAX_RATIO else "MISSED",
        "  the same without grouping on either side": score.interval(lambda sums: sums.false_ratio_raw),
        "  the same, told by UNKNOWN_NEAR isn't missed": score.interval(lambda sums: sums.false_ratio_unnotified),
        "  the same, recorded by it isn't missed": score.interval(lambda sums: sums.false_ratio_unrecorded),
        "plain threshold at 100 m: missed breaches": float(sums.plain_missed[hundred]),
        "  its false dispatches, at 100 m": float(sums.plain_false[hundred]),
        "approaches below 50 m of 30 s": score.total("close"),
        "  no person told by the first report after": f"{unnotified}, {'met' if unnotified == 0 else 'MISSED'}",
        "  nor UNKNOWN_NEAR for the record": unrecorded,
        "delay, median, s": _percentile(delays_s, 50),
        "  95 %": _percentile(delays_s, 95),
        "  greatest": _percentile(delays_s, 100),
        "delay of the plain threshold, median, s": _percentile(plain_s, 50),
        "  its 95 %": _percentile(plain_s, 95),
        "alerts that demand NOTIFY or more, an hour": round(score.total("touching") / score.total("hours"), 2),
    }


def _percentile(values: np.ndarray[Any, np.dtype[np.float64]], percent: float) -> float | None:
    return round(float(np.percentile(values, percent)), 1) if len(values) else None


def _table(scores: dict[int, Score]) -> Table:
    table = Table("", *(f"a report each {every_ms // 1000} s" for every_ms in scores), box=None)
    columns = [_figures(score) for score in scores.values()]
    for name in columns[0]:
        table.add_row(name, *(_text(column[name]) for column in columns))
    return table


def _text(value: Any) -> str:
    if isinstance(value, Interval):
        return f"{value.value:.4g} [{value.low:.4g} to {value.high:.4g}]".replace("[", r"\[")
    return f"{value:g}" if isinstance(value, float) else str(value)


def _swept(scores: dict[int, Score]) -> Table:
    """Table of the results for some of the swept thresholds."""
    columns = (f"{what}, {every_ms // 1000} s" for every_ms in scores for what in ("missed", "false", "ungrouped"))
    table = Table("plain threshold, m", *columns, box=None)
    for i, threshold_m in enumerate(THRESHOLDS_M):
        if threshold_m in (50, 75, 100, 125, 150, 200, 300, 500, 1000, 2000, 3000):
            all_sums = [score.sums for score in scores.values()]
            counts = (c[i] for sums in all_sums for c in (sums.plain_missed, sums.plain_false, sums.plain_false_raw))
            table.add_row(f"{threshold_m:g}", *(f"{count:g}" for count in counts))
    return table


def _by_draw(judged: list[Judged]) -> Table:
    """Table of the results of each draw of the noise."""
    columns = "draw", "each", "breaches", "missed", "false", "plain threshold, m", "its false", "ratio", "notified late"
    table = Table(*columns, box=None)
    for every_ms, draw in sorted({(play.every_ms, play.draw) for play in judged}):
        own = [play for play in judged if (play.every_ms, play.draw) == (every_ms, draw)]
        sums = Score(own).sums
        late = sum(fault.what.startswith("close") for play in own for fault in play.faults)
        counts = sums.breaches, sums.missed, sums.false, sums.threshold_m, sums.plain_false[sums.equal]
        row = *(f"{count:g}" for count in counts), f"{sums.false_ratio:.2f}", str(late)
        table.add_row(str(draw), f"{every_ms // 1000} s", *row)
    return table


def _causes(judged: list[Judged]) -> Table:
    table = Table("what", "each", "cause", "count", box=None)
    counted = Counter((fault.what, fault.every_ms, fault.cause) for play in judged for fault in play.faults)
    for (what, every_ms, cause), count in sorted(counted.items(), key=lambda item: (item[0][:2], -item[1])):
        table.add_row(what, f"{every_ms // 1000} s", cause, str(count))
    return table


if __name__ == "__main__":
    main()
