"""Figures of the decision-quality study: sums over plays, and bootstrap intervals over wearers. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bench.decision.judge import THRESHOLDS_M, Judged

DRAWS = 2_000
DRAWS_SEED = 1
MAX_RATIO = 0.25
"""Maximum ratio of the fold's false dispatches to those of the plain rule with equally few misses."""
_COUNTS = ("breaches", "missed", "missed_but_near", "missed_but_recorded", "false", "responds_false")


class Interval(NamedTuple):
    """A figure and its 95 % bootstrap interval over wearers."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Sums:
    """Sums of the counts over plays."""

    breaches: float
    missed: float
    missed_but_near: float
    """Missed breaches for which an UNKNOWN_NEAR alert notified a person."""
    missed_but_recorded: float
    """Missed breaches for which an UNKNOWN_NEAR alert was at least in the record."""
    false: float
    responds_false: float
    plain_missed: NDArray[np.float64]
    """Missed breaches of the plain rule by threshold, like the next two."""
    plain_false: NDArray[np.float64]
    plain_false_raw: NDArray[np.float64]

    @property
    def equal(self) -> int:
        """Index of the smallest threshold with which the plain rule misses no more than the fold; else of the largest."""
        return self._threshold_missing(self.missed)

    @property
    def equal_unnotified(self) -> int:
        """`equal`, where a breach counts as missed only if no UNKNOWN_NEAR alert notified a person either."""
        return self._threshold_missing(self.missed - self.missed_but_near)

    @property
    def equal_unrecorded(self) -> int:
        """`equal`, where a breach counts as missed only if the record has no UNKNOWN_NEAR alert either."""
        return self._threshold_missing(self.missed - self.missed_but_recorded)

    @property
    def missed_share(self) -> float:
        """Share of the breaches that were missed."""
        return self.missed / self.breaches if self.breaches else 0.0

    @property
    def false_ratio(self) -> float:
        """Ratio of false dispatches to those of the plain rule at equal misses."""
        return _ratio(self.false, self.plain_false[self.equal])

    @property
    def false_ratio_raw(self) -> float:
        """Ratio of false single demands to respond to the plain rule's ungrouped threshold crossings, at equal misses."""
        return _ratio(self.responds_false, self.plain_false_raw[self.equal])

    @property
    def false_ratio_unnotified(self) -> float:
        """Ratio of false dispatches to those of the plain rule at the threshold `equal_unnotified`."""
        return _ratio(self.false, self.plain_false[self.equal_unnotified])

    @property
    def false_ratio_unrecorded(self) -> float:
        """Ratio of false dispatches to those of the plain rule at the threshold `equal_unrecorded`."""
        return _ratio(self.false, self.plain_false[self.equal_unrecorded])

    @property
    def threshold_m(self) -> float:
        """Threshold of the plain rule at equal misses, m."""
        return float(THRESHOLDS_M[self.equal])

    def _threshold_missing(self, max_missed: float) -> int:
        enough = self.plain_missed <= max_missed
        return int(np.argmax(enough)) if enough[-1] else -1


class Score:
    """Judged plays of one report interval, grouped by wearer."""

    def __init__(self, judged: Iterable[Judged]) -> None:
        self.judged = list(judged)
        wearers = sorted({play.wearer for play in self.judged})
        own = [[play for play in self.judged if play.wearer == wearer] for wearer in wearers]
        self._single = np.array([[_sum(plays, name) for name in _COUNTS] for plays in own])
        self._plain = np.array(
            [
                [
                    sum(getattr(play, name) for play in plays)
                    for name in ("plain_missed", "plain_false", "plain_false_raw")
                ]
                for plays in own
            ],
            np.float64,
        )
        draws = np.random.default_rng(DRAWS_SEED).integers(len(wearers), size=(DRAWS, len(wearers)))
        self._draws = [self._sums(np.bincount(draw, minlength=len(wearers))) for draw in draws]
        self.sums = self._sums(np.ones(len(wearers)))

    def interval(self, figure: Callable[[Sums], float]) -> Interval:
        """A figure of all wearers and its bootstrap interval."""
        sampled = [figure(draw) for draw in self._draws]
        low, high = np.percentile(sampled, (2.5, 97.5), method="nearest")
        return Interval(figure(self.sums), float(low), float(high))

    def total(self, name: str) -> float:
        """Sum of a count of `Judged` over all plays."""
        return _sum(self.judged, name)

    def delays_s(self) -> NDArray[np.float64]:
        """Delays of the fold, for breaches that began while both sides were known, seconds."""
        return np.array([ms for play in self.judged for ms in play.delays_ms], np.float64) / 1000

    def plain_delays_s(self) -> NDArray[np.float64]:
        """Delays of the plain rule at equal misses, seconds."""
        at = self.sums.equal
        delays_s = np.array([by_threshold[at] for play in self.judged for by_threshold in play.plain_delays_ms]) / 1000
        return np.asarray(delays_s[~np.isnan(delays_s)], np.float64)

    def _sums(self, weights: NDArray[np.float64] | NDArray[np.int64]) -> Sums:
        plain = np.tensordot(weights, self._plain, 1)
        counts = dict(zip(_COUNTS, map(float, weights @ self._single), strict=True))
        return Sums(**counts, plain_missed=plain[0], plain_false=plain[1], plain_false_raw=plain[2])


def _sum(plays: Iterable[Judged], name: str) -> float:
    return float(sum(getattr(play, name) for play in plays))


def _ratio(count: float, plain: float) -> float:
    return count / float(plain) if plain else float("inf")
