"""An attacker who holds her phone, looks at her map up to 20 times in a week, and wants to know where the wearer lives. Pure.

He knows where she is, that the wearer lives 2 to 6 km from her home, and how wearers come and go: he has learnt from other weeks, with
the truth beside them, how the directions in which a wearer is first and last seen differ from the direction of the wearer's home, by
kind of day. From that he computes the probability of each cell of a grid by Bayes, one encounter after the other. His best estimate is
the cell with the least expected distance.
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bench.region.lives import HOME_M
from bench.region.watching import Sighting, encounters

VIEWS = 20
"""Number of views that he has."""
CELL_M = 250.0
BINS = 24
SMOOTHING = 1.0
"""Count that each bin has before he learns."""
Floats = NDArray[np.float64]


def chosen(sightings: Sequence[Sighting]) -> list[list[Sighting]]:
    """The views that he has, by encounter: where there are more than VIEWS, the first and the last of each encounter come first."""
    groups = encounters(sightings)
    selected: list[list[int]] = [[] for _ in groups]
    left = VIEWS
    for rank in range(max(map(len, groups), default=0)):
        for group, own in zip(groups, selected, strict=True):
            if left and rank < len(group):
                # First, last, second, last but one, and so on.
                own.append(rank // 2 if rank % 2 == 0 else len(group) - 1 - rank // 2)
                left -= 1
    return [[group[i] for i in sorted(own)] for group, own in zip(groups, selected, strict=True) if own]


class Habits:
    """What he learnt: how directions of first and last views differ from that of the home."""

    def __init__(self) -> None:
        self._counts = np.full((2, 2, BINS), SMOOTHING)

    def learn(self, home: complex, sightings: Sequence[Sighting]) -> None:
        """Learns from a week in which he knows the wearer's home."""
        for group in chosen(sightings):
            for which, sighting in enumerate((group[0], group[-1])):
                turn = cmath.phase((sighting.wearer - sighting.person) / (home - sighting.person))
                self._counts[_kind_of_day(sighting), which, _bin(turn)] += 1

    def chances(self, sighting: Sighting, which: int, cells: NDArray[np.complex128]) -> Floats:
        """How likely a first (0) or last (1) view is, if the home is at each cell, up to a factor."""
        counts = self._counts[_kind_of_day(sighting), which]
        turns = np.angle((sighting.wearer - sighting.person) / (cells - sighting.person))
        bins = ((turns + math.pi) / (2 * math.pi) * BINS).astype(np.int64) % BINS
        found: Floats = (counts / counts.sum())[bins]
        return found


class Attacker:
    """Estimates the home of each week by what he learnt."""

    def __init__(self, habits: Habits) -> None:
        side = np.arange(-HOME_M[1], HOME_M[1] + 1, CELL_M)
        north, east = np.meshgrid(side, side, indexing="ij")
        cells = (east + 1j * north).ravel()
        away = abs(cells)
        self._cells = cells[(away >= HOME_M[0]) & (away <= HOME_M[1])]
        self._habits = habits

    def error_m(self, home: complex, sightings: Sequence[Sighting]) -> float:
        """Error of his best estimate of a home."""
        weight = np.zeros(len(self._cells))
        for group in chosen(sightings):
            weight += np.log(self._habits.chances(group[0], 0, self._cells))
            if len(group) > 1:
                weight += np.log(self._habits.chances(group[-1], 1, self._cells))
        weight -= weight.max()
        probabilities: Floats = np.exp(weight)
        probabilities /= probabilities.sum()
        return abs(self._estimate(probabilities) - home)

    def _estimate(self, probabilities: Floats) -> complex:
        """The place with the least expected distance to the home: the geometric median (Weiszfeld)."""
        place = complex((self._cells * probabilities).sum())
        for _ in range(60):
            nearness = probabilities / np.maximum(abs(self._cells - place), 1.0)
            place = complex((self._cells * nearness).sum() / nearness.sum())
        return place


def _kind_of_day(sighting: Sighting) -> int:
    return int(sighting.at_s // 86_400 % 7 >= 5)


def _bin(turn: float) -> int:
    return int((turn + math.pi) / (2 * math.pi) * BINS) % BINS
