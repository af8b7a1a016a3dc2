"""Plot of the decision-quality study, as SVG: missed breaches and dispatches for nothing of each rule."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator

from bench.decision.judged import THRESHOLDS_M
from bench.decision.score import Score

NAMED_M = (50, 100, 150, 200, 300)
_COLOURS = ("#1f5fa8", "#c2571a", "#2c7a3f", "#7a3f9d", "#555555")


def draw(scores: Mapping[str, Score], path: Path) -> None:
    """Writes the plot of the scores, which are keyed by arm."""
    # Equal figures give equal bytes, so that a change of the file in the repository means a change of the figures.
    mpl.rcParams.update({"svg.hashsalt": "tandem", "svg.fonttype": "none"})
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for colour, (arm, score) in zip(cycle(_COLOURS), scores.items(), strict=False):
        sums = score.sums
        missed, false = 100 * sums.plain_missed / sums.breaches, sums.plain_nothing / sums.breaches
        axes.plot(missed, false, color=colour, lw=1.5, label=f"plain threshold, {arm}")
        for named_m in NAMED_M:
            i = list(THRESHOLDS_M).index(named_m)
            axes.plot(missed[i], false[i], "o", color=colour, ms=3)
            axes.annotate(
                f"{named_m} m", (missed[i], false[i]), (4, 4), textcoords="offset points", color=colour, size=8
            )
        misses = score.interval(lambda sums: 100 * sums.missed_share)
        wrong = score.interval(lambda sums: sums.all_nothing / sums.breaches)
        axes.errorbar(
            misses.value,
            wrong.value,
            xerr=[[misses.value - misses.low], [misses.high - misses.value]],
            yerr=[[wrong.value - wrong.low], [wrong.high - wrong.value]],
            fmt="D",
            color=colour,
            capsize=3,
            label=f"Tandem, {arm} (95 % interval)",
        )
    axes.set_xscale("symlog", linthresh=0.2)
    axes.set_xlim(left=-0.03)
    axes.set_yscale("symlog", linthresh=0.1)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(FixedLocator([0, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50]))
    axes.yaxis.set_major_locator(FixedLocator([0, 0.05, 0.1, 0.2, 0.5, 1]))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
    axes.set_xlabel("missed breaches, %")
    axes.set_ylabel("dispatches for nothing for each breach")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})
