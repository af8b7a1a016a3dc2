"""Tables of the decision-quality study: the figures of each arm, the arms compared in pairs, each draw, and the causes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from typing import Any

import numpy as np
from rich.table import Table

from bench.decision.arms import BASE, CONSTANT
from bench.decision.judged import THRESHOLDS_M, Judged
from bench.decision.noise import Gaps
from bench.decision.score import MAX_RATIO, Interval, Score, Sums, ratio
from services.geofence.domain.demands import AlertKind

MAX_NOTHING = {
    (Gaps.SHORT.name, "60 s"): 0.5,
    (Gaps.SHORT.name, "15 s"): 0.8,
    (Gaps.LONG.name, "60 s"): 0.75,
}
"""Maximum ratio of the dispatches for nothing of a tag that is asked to those of a constant interval, by regime of gaps."""
MAX_REPORTS = {False: 2_000, True: 700}
"""Maximum number of reports a day of a tag that is asked, by whether the plays are far away."""
MISSED_MORE = "missed breaches, difference"
LATE_MORE = "notified late below 50 m, difference"
NOTHING_RATIO = "all dispatches for nothing, ratio"
SWEPT_M = (50, 75, 100, 125, 150, 200, 300, 500, 1000, 2000, 3000)


Scores = dict[str, dict[str, Score]]
"""Scores by regime of gaps and arm."""


def scores(judged: Iterable[Judged]) -> Scores:
    """Scores of all arms: those with short gaps first, and the arms in the order in which they were played."""
    judged = list(judged)
    arms = list(dict.fromkeys(group.arm for group in judged))
    regimes = [gaps.name for gaps in Gaps if any(group.gaps == gaps.name for group in judged)]
    by_regime = {gaps: [group for group in judged if group.gaps == gaps] for gaps in regimes}
    return {
        gaps: {arm: Score(own) for arm in arms if (own := [group for group in groups if group.arm == arm])}
        for gaps, groups in by_regime.items()
    }


def as_json(scores: Scores) -> dict[str, Any]:
    """All figures and comparisons by regime of gaps and arm: a number, a text, or [value, low, high]."""
    return {
        gaps: {
            arm: {
                "figures": figures(score),
                "compared": {base: compared(score, arms[base]) for base in bases(arms, arm)},
                "targets": targets(gaps, arms, arm),
            }
            for arm, score in arms.items()
        }
        for gaps, arms in scores.items()
    }


def tables(scores: Scores, judged: list[Judged]) -> Iterator[Table]:
    """All tables, one after another."""
    for gaps, arms in scores.items():
        low_ms, high_ms = Gaps[gaps].value
        title = f"gaps of {low_ms // 1000} to {high_ms // 1000} s"
        yield _columns(title, {arm: figures(score) for arm, score in arms.items()})
        if any(bases(arms, arm) for arm in arms):
            yield _pairs(title, arms)
        if asked := {arm: met for arm in arms if (met := targets(gaps, arms, arm))}:
            yield _columns(f"targets, {title}", asked)
        yield _swept(title, arms)
    yield _by_draw(judged)
    yield _causes(judged)


def bases(arms: dict[str, Score], arm: str) -> list[str]:
    """Arms with which an arm is compared: the constant intervals of each run, and for a constant interval only those of 60 s."""
    constant = [base for base in arms if _family(base) in CONSTANT and base != arm]
    return [base for base in constant if _family(arm) not in CONSTANT or _family(base) == BASE]


def figures(score: Score) -> dict[str, Any]:
    """Figures of one arm by name: a number, a text, or [value, low, high]."""
    sums, delays_s = score.sums, score.delays_s()
    plain = score.interval(lambda sums: sums.plain_ratio)
    hundred = list(THRESHOLDS_M).index(100)
    return {
        "hours": round(score.total("hours"), 1),
        "breaches": sums.breaches,
        "missed breaches: no demand by 60 s after the end": score.interval(lambda sums: sums.missed),
        "  share of breaches, %": score.interval(lambda sums: 100 * sums.missed_share),
        "  of which UNKNOWN_NEAR notified a person": sums.missed_but_near,
        "  of which it was at least in the record": score.total("missed_but_recorded"),
        "  by the first report after the end": score.interval(lambda sums: sums.missed_by_report),
        "approaches below 50 m of 30 s": score.total("close"),
        "notified late: by 60 s after the end": score.interval(lambda sums: sums.late),
        "  by 90 s after the start": score.interval(lambda sums: sums.late_by_start),
        "  by the first report after 30 s": score.interval(lambda sums: sums.late_by_report),
        "dispatches": score.total("dispatches"),
        "all dispatches for nothing": score.interval(lambda sums: sums.all_nothing),
        **{f"  begun by {kind}": score.nothing(kind) for kind in _kinds(score)},
        "plain threshold at equal misses, m": score.interval(lambda sums: sums.threshold_m),
        "  its missed breaches": float(sums.plain_missed[sums.equal]),
        "  its dispatches for nothing": score.interval(lambda sums: float(sums.plain_nothing[sums.equal])),
        "for nothing through the plain ones": plain,
        f"  at most {MAX_RATIO:g}": _met(plain.value <= MAX_RATIO),
        "  the same without grouping on either side": score.interval(lambda sums: sums.plain_ratio_single),
        "  the same, notified by UNKNOWN_NEAR isn't missed": score.interval(lambda sums: sums.plain_ratio_unnotified),
        "plain threshold at 100 m: missed breaches": float(sums.plain_missed[hundred]),
        "  its dispatches for nothing, at 100 m": float(sums.plain_nothing[hundred]),
        "delay, median, s": _percentile(delays_s, 50),
        "  95 %": _percentile(delays_s, 95),
        "  greatest": _percentile(delays_s, 100),
        "alerts that demand NOTIFY or more, an hour": round(score.total("touching") / score.total("hours"), 2),
        **{
            f"{what} a day, {where}": round(score.per_day(name, is_far), 1)
            for what, name in (
                ("tag reports", "sent"),
                ("intervals requested", "commands"),
                ("positions requested", "locates"),
            )
            for where, is_far in (("near", False), ("far away", True))
        },
        "share of the positions that were reported": round(ratio(score.total("located"), score.total("locates")), 2),
        "processor time, s": round(score.total("cpu_s"), 1),
    }


def compared(score: Score, base: Score) -> dict[str, Interval]:
    """Figures of one arm less those of the base, or divided by them, with paired intervals."""
    return {
        MISSED_MORE: _difference(score, base, lambda sums: sums.missed),
        "  by the first report after": _difference(score, base, lambda sums: sums.missed_by_report),
        LATE_MORE: _difference(score, base, lambda sums: sums.late),
        "  by 90 s after the start": _difference(score, base, lambda sums: sums.late_by_start),
        "  by the first report after 30 s": _difference(score, base, lambda sums: sums.late_by_report),
        NOTHING_RATIO: score.compared(base, lambda own, other: ratio(own.all_nothing, other.all_nothing)),
    }


def targets(gaps: str, arms: dict[str, Score], arm: str) -> dict[str, str]:
    """Whether an arm that is asked meets each target; empty for a constant interval."""
    met: dict[str, str] = {}
    if _family(arm) in CONSTANT:
        return met
    for base in bases(arms, arm):
        figures = compared(arms[arm], arms[base])
        if max_ratio := MAX_NOTHING.get((gaps, _family(base))):
            met[f"for nothing at most {max_ratio:g} of {base}"] = _met(figures[NOTHING_RATIO].value <= max_ratio)
        if _family(base) == BASE:
            met[f"missed, interval to {base} not above 0"] = _met(figures[MISSED_MORE].low <= 0)
            met[f"notified late, interval to {base} not above 0"] = _met(figures[LATE_MORE].low <= 0)
    for is_far, max_reports in MAX_REPORTS.items():
        where = "far away" if is_far else "near"
        met[f"tag reports a day {where} at most {max_reports}"] = _met(arms[arm].per_day("sent", is_far) <= max_reports)
    return met


def _met(is_met: bool) -> str:
    return "met" if is_met else "MISSED"


def _family(arm: str) -> str:
    """Name of an arm without that of the file that it was read from."""
    return arm.split(" (")[0]


def _difference(score: Score, base: Score, figure: Callable[[Sums], float]) -> Interval:
    return score.compared(base, lambda own, other: figure(own) - figure(other))


def _kinds(score: Score) -> list[str]:
    kinds = {kind for group in score.judged for kind in group.nothing}
    usual = [AlertKind.RING_ENTERED.value, AlertKind.CONTACT_PREDICTED.value, AlertKind.UNKNOWN_NEAR.value]
    return [*usual, *sorted(kinds.difference(usual))]


def _percentile(values: np.ndarray[Any, np.dtype[np.float64]], percent: float) -> float | None:
    return round(float(np.percentile(values, percent)), 1) if len(values) else None


def _columns(title: str, columns: dict[str, dict[str, Any]]) -> Table:
    """Table with one column for each set of figures."""
    table = Table(title, *columns, box=None)
    for name in dict.fromkeys(name for column in columns.values() for name in column):
        table.add_row(name, *(_text(column.get(name, "")) for column in columns.values()))
    return table


def _text(value: Any) -> str:
    if isinstance(value, Interval):
        return f"{value.value:.4g} [{value.low:.4g} to {value.high:.4g}]".replace("[", r"\[")
    return f"{value:g}" if isinstance(value, float) else str(value)


def _pairs(title: str, arms: dict[str, Score]) -> Table:
    """Table of the comparisons, one pair of arms a row."""
    pairs = {f"{arm} to {base}": compared(arms[arm], arms[base]) for arm in arms for base in bases(arms, arm)}
    table = Table(f"in pairs, {title}", *next(iter(pairs.values()), {}), box=None)
    for pair, figures in pairs.items():
        table.add_row(pair, *map(_text, figures.values()))
    return table


def _swept(title: str, arms: dict[str, Score]) -> Table:
    """Table of the results for some of the swept thresholds."""
    table = Table(f"plain threshold, m: missed / for nothing / ungrouped; {title}", *arms, box=None)
    for i, threshold_m in enumerate(THRESHOLDS_M):
        if threshold_m in SWEPT_M:
            counts = [
                (sums.plain_missed[i], sums.plain_nothing[i], sums.plain_single_nothing[i])
                for sums in (score.sums for score in arms.values())
            ]
            table.add_row(f"{threshold_m:g}", *(" / ".join(f"{count:g}" for count in cell) for cell in counts))
    return table


def _by_draw(judged: list[Judged]) -> Table:
    """Table of the results of each draw of the noise."""
    names = "breaches", "missed", "late", "all_nothing", "sent"
    table = Table(
        "gaps", "arm", "draw", "breaches", "missed", "notified late", "all for nothing", "tag reports", box=None
    )
    in_order = sorted(judged, key=lambda group: (group.gaps, group.arm, group.draw))
    for key, groups in groupby(in_order, key=lambda group: (group.gaps, group.arm, group.draw)):
        own = list(groups)
        table.add_row(*map(str, key), *(f"{sum(getattr(group, name) for group in own):g}" for name in names))
    return table


def _causes(judged: list[Judged]) -> Table:
    table = Table("what", "gaps", "arm", "cause", "count", box=None)
    counted = Counter((f.what, f.gaps, f.arm, f.cause) for group in judged for f in group.faults)
    for (what, gaps, arm, cause), count in sorted(counted.items(), key=lambda item: (item[0][:3], -item[1])):
        table.add_row(what, gaps, arm, cause, str(count))
    return table
