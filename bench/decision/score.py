"""Figures of the decision-quality study: sums over plays, and bootstrap intervals over wearers. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bench.decision.judged import THRESHOLDS_M, Judged

RESAMPLES = 2_000
RESAMPLES_SEED = 1
MAX_RATIO = 0.25
"""Maximum ratio of the fold's dispatches for nothing to those of the plain rule with equally few misses."""
_DAY_H = 24
_COUNTS = (
    "breaches",
    "missed",
    "missed_by_report",
    "missed_but_near",
    "late",
    "late_by_start",
    "late_by_report",
    "all_nothing",
    "single_nothing",
)
_PLAIN = ("plain_missed", "plain_nothing", "plain_single_nothing")


class Interval(NamedTuple):
    """A figure and its 95 % bootstrap interval over wearers."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Sums:
    """Sums of the counts of `Judged` over plays."""

    breaches: float
    missed: float
    missed_by_report: float
    missed_but_near: float
    late: float
    late_by_start: float
    late_by_report: float
    all_nothing: float
    single_nothing: float
    plain_missed: NDArray[np.float64]
    """Missed breaches of the plain rule by threshold, like the next two."""
    plain_nothing: NDArray[np.float64]
    plain_single_nothing: NDArray[np.float64]

    @property
    def equal(self) -> int:
        """Index of the smallest threshold with which the plain rule misses no more than the fold; else of the largest."""
        return self._threshold_missing(self.missed)

    @property
    def equal_unnotified(self) -> int:
        """`equal`, where a breach counts as missed only if no UNKNOWN_NEAR alert notified a person either."""
        return self._threshold_missing(self.missed - self.missed_but_near)

    @property
    def missed_share(self) -> float:
        """Share of the breaches that were missed."""
        return self.missed / self.breaches if self.breaches else 0.0

    @property
    def plain_ratio(self) -> float:
        """Ratio of dispatches for nothing to those of the plain rule at equal misses."""
        return ratio(self.all_nothing, self.plain_nothing[self.equal])

    @property
    def plain_ratio_single(self) -> float:
        """Ratio of single demands to respond for nothing to the plain rule's ungrouped threshold crossings, at equal misses."""
        return ratio(self.single_nothing, self.plain_single_nothing[self.equal])

    @property
    def plain_ratio_unnotified(self) -> float:
        """Ratio of dispatches for nothing to those of the plain rule at the threshold `equal_unnotified`."""
        return ratio(self.all_nothing, self.plain_nothing[self.equal_unnotified])

    @property
    def threshold_m(self) -> float:
        """Threshold of the plain rule at equal misses, m."""
        return float(THRESHOLDS_M[self.equal])

    def _threshold_missing(self, max_missed: float) -> int:
        enough = self.plain_missed <= max_missed
        return int(np.argmax(enough)) if enough[-1] else -1


class Score:
    """Judgements of one arm in one regime of gaps, by wearer. All scores of the same wearers draw the same resamples of them."""

    def __init__(self, judged: Iterable[Judged]) -> None:
        self.judged = list(judged)
        self.wearers = sorted({play.wearer for play in self.judged})
        own = [[play for play in self.judged if play.wearer == wearer] for wearer in self.wearers]
        self._single = np.array([[_sum(plays, name) for name in _COUNTS] for plays in own])
        self._plain = np.array(
            [[sum(getattr(play, name) for play in plays) for name in _PLAIN] for plays in own], np.float64
        )
        count = len(self.wearers)
        resamples = np.random.default_rng(RESAMPLES_SEED).integers(count, size=(RESAMPLES, count))
        self._resamples = [self._sums(np.bincount(resample, minlength=count)) for resample in resamples]
        self.sums = self._sums(np.ones(count))

    def interval(self, figure: Callable[[Sums], float]) -> Interval:
        """A figure of all wearers and its bootstrap interval."""
        return _interval(figure(self.sums), [figure(sums) for sums in self._resamples])

    def compared(self, base: Score, figure: Callable[[Sums, Sums], float]) -> Interval:
        """A figure of this score and a base, and its paired bootstrap interval. Raises ValueError if their wearers differ."""
        if base.wearers != self.wearers:
            raise ValueError("only scores of the same wearers can be compared in pairs")
        pairs = zip(self._resamples, base._resamples, strict=True)
        return _interval(figure(self.sums, base.sums), [figure(own, other) for own, other in pairs])

    def total(self, name: str) -> float:
        """Sum of a count of `Judged` over all plays."""
        return _sum(self.judged, name)

    def nothing(self, kind: str) -> int:
        """Number of dispatches for nothing whose first demand is of a kind."""
        return sum(play.nothing[kind] for play in self.judged)

    def per_day(self, name: str, is_far: bool) -> float:
        """A count of `Judged` per day of the tag, in the plays far away or in all others."""
        plays = [play for play in self.judged if play.is_far is is_far]
        return _DAY_H * ratio(_sum(plays, name), _sum(plays, "hours"))

    def delays_s(self) -> NDArray[np.float64]:
        """Delays of the fold, for breaches that began while both sides were known, seconds."""
        return np.array([ms for play in self.judged for ms in play.delays_ms], np.float64) / 1000

    def _sums(self, weights: NDArray[np.float64] | NDArray[np.int64]) -> Sums:
        missed, nothing, single_nothing = np.tensordot(weights, self._plain, 1)
        counts = dict(zip(_COUNTS, map(float, weights @ self._single), strict=True))
        return Sums(**counts, plain_missed=missed, plain_nothing=nothing, plain_single_nothing=single_nothing)


def ratio(count: float, base: float) -> float:
    """Ratio of two counts; 1 for two zeros, infinite where only the base is 0."""
    if base:
        return count / float(base)
    return float("inf") if count else 1.0


def _interval(value: float, resampled: list[float]) -> Interval:
    low, high = np.percentile(resampled, (2.5, 97.5), method="nearest")
    return Interval(value, float(low), float(high))


def _sum(plays: Iterable[Judged], name: str) -> float:
    return float(sum(getattr(play, name) for play in plays))
