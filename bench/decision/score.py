"""Figures of the study of the decision's quality: sums over plays, and intervals by drawing wearers anew. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bench.decision.judge import THRESHOLDS_M, Judged

DRAWS = 2_000
DRAWS_SEED = 1
MOST_RATIO = 0.25
"""False dispatches through those of the plain rule that misses as few."""
_COUNTS = ("breaches", "missed", "missed_but_near", "missed_but_recorded", "false", "responds_false")


class Interval(NamedTuple):
    """A figure, and between which bounds it lies in 95 of 100 draws of wearers."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Sums:
    """Counts over plays."""

    breaches: float
    missed: float
    missed_but_near: float
    """Of these, UNKNOWN_NEAR told a person."""
    missed_but_recorded: float
    """... or was at least in the record."""
    false: float
    responds_false: float
    plain_missed: NDArray[np.float64]
    """By threshold."""
    plain_false: NDArray[np.float64]
    plain_false_raw: NDArray[np.float64]

    @property
    def equal(self) -> int:
        """The index of the least threshold by which the plain rule misses no more; the greatest where none does."""
        return self._missing(self.missed)

    @property
    def equal_untold(self) -> int:
        """The same where only that counts as missed of which UNKNOWN_NEAR told no person either."""
        return self._missing(self.missed - self.missed_but_near)

    @property
    def equal_unrecorded(self) -> int:
        """The same where only that counts as missed of which the record has no UNKNOWN_NEAR either."""
        return self._missing(self.missed - self.missed_but_recorded)

    @property
    def missed_share(self) -> float:
        """Of breaches."""
        return self.missed / self.breaches if self.breaches else 0.0

    @property
    def false_ratio(self) -> float:
        """False dispatches through those of the plain rule at equal misses."""
        return _through(self.false, self.plain_false[self.equal])

    @property
    def false_ratio_raw(self) -> float:
        """The same of each single demand to respond and each time that the distance comes to be at most T."""
        return _through(self.responds_false, self.plain_false_raw[self.equal])

    @property
    def false_ratio_untold(self) -> float:
        """False dispatches through those of the plain rule where it misses no more than what nobody was told of."""
        return _through(self.false, self.plain_false[self.equal_untold])

    @property
    def false_ratio_unrecorded(self) -> float:
        """... than what isn't even in the record."""
        return _through(self.false, self.plain_false[self.equal_unrecorded])

    @property
    def threshold_m(self) -> float:
        """T at equal misses."""
        return float(THRESHOLDS_M[self.equal])

    def _missing(self, most: float) -> int:
        enough = self.plain_missed <= most
        return int(np.argmax(enough)) if enough[-1] else -1


class Score:
    """The plays of one interval, by wearer."""

    def __init__(self, judged: Iterable[Judged]) -> None:
        self.judged = list(judged)
        wearers = sorted({one.wearer for one in self.judged})
        own = [[one for one in self.judged if one.wearer == wearer] for wearer in wearers]
        self._single = np.array([[_sum(ones, name) for name in _COUNTS] for ones in own])
        self._plain = np.array(
            [
                [sum(getattr(one, name) for one in ones) for name in ("plain_missed", "plain_false", "plain_false_raw")]
                for ones in own
            ],
            np.float64,
        )
        draws = np.random.default_rng(DRAWS_SEED).integers(len(wearers), size=(DRAWS, len(wearers)))
        self._draws = [self._sums(np.bincount(draw, minlength=len(wearers))) for draw in draws]
        self.sums = self._sums(np.ones(len(wearers)))

    def interval(self, figure: Callable[[Sums], float]) -> Interval:
        """A figure of all, and its bounds."""
        drawn = [figure(draw) for draw in self._draws]
        low, high = np.percentile(drawn, (2.5, 97.5), method="nearest")
        return Interval(figure(self.sums), float(low), float(high))

    def total(self, name: str) -> float:
        """Sum of a count of `Judged`."""
        return _sum(self.judged, name)

    def delays_s(self) -> NDArray[np.float64]:
        """The fold's, of breaches that began while both were known."""
        return np.array([ms for one in self.judged for ms in one.delays_ms], np.float64) / 1000

    def plain_delays_s(self) -> NDArray[np.float64]:
        """The plain rule's at equal misses."""
        at = self.sums.equal
        found = np.array([by_threshold[at] for one in self.judged for by_threshold in one.plain_delays_ms]) / 1000
        return np.asarray(found[~np.isnan(found)], np.float64)

    def _sums(self, weights: NDArray[np.float64] | NDArray[np.int64]) -> Sums:
        plain = np.tensordot(weights, self._plain, 1)
        counts = dict(zip(_COUNTS, map(float, weights @ self._single), strict=True))
        return Sums(**counts, plain_missed=plain[0], plain_false=plain[1], plain_false_raw=plain[2])


def _sum(ones: Iterable[Judged], name: str) -> float:
    return float(sum(getattr(one, name) for one in ones))


def _through(count: float, plain: float) -> float:
    return count / float(plain) if plain else float("inf")
