"""Noise of the indoor study: that of the burden study, and four times a day the tag has no satellites indoors for 10 to 60 minutes.

A loss begins at a random moment of a stay at home or at work, and ends with the stay at the latest. All losses follow from the seed and
the life, so all arms meet the same. Nothing is known of the tag meanwhile but what home units and beacons say.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import NamedTuple

from bench.burden.lives import DAYS, START_MS, Life
from bench.burden.world import LifeWorld, WeekReceiver
from bench.decision.noise import TAG, Period
from bench.decision.placement import Spot, Way

SEED = "indoors-1"
LOSSES_A_DAY = 4
LASTS_MS = (600_000, 3_600_000)
HOME, WORK = "at home", "at work"
_DAY_MS = 86_400_000


class BuildingStay(NamedTuple):
    """A stay of the wearer in a building."""

    where: str
    """HOME or WORK."""
    period: Period


class IndoorReceiver(WeekReceiver):
    """A tag for a week that loses the satellites in buildings."""

    def __init__(self, name: str, way: Way, losses: Iterable[Period]) -> None:
        super().__init__(name, TAG, way)
        self._gaps = [*merged([*self._gaps, *losses])]

    def place_at(self, at_ms: int) -> Spot:
        """Where the wearer truly is at a moment."""
        return self._true(at_ms)


class IndoorWorld(LifeWorld):
    """Both sides of a week, with the stays of the wearer in buildings, and the losses there."""

    def __init__(self, life: Life, *, has_losses: bool = True) -> None:
        super().__init__(life)
        self.stays = [*_stays(life)]
        self.losses = [*_losses(life, self.stays)] if has_losses else []
        self.tag = self.receiver = IndoorReceiver(life.name, life.wearer, self.losses)


def merged(periods: Iterable[Period]) -> Iterator[Period]:
    """Periods in order of time; those that overlap become one."""
    last: Period | None = None
    for period in sorted(periods):
        if last is not None and period.start_ms <= last.end_ms:
            last = Period(last.start_ms, max(last.end_ms, period.end_ms))
            continue
        if last is not None:
            yield last
        last = period
    if last is not None:
        yield last


def _stays(life: Life) -> Iterator[BuildingStay]:
    until_s = DAYS * 86_400.0
    froms_s = [*((doing.from_s, doing.what) for doing in life.doings), (until_s, "")]
    for (from_s, what), (to_s, _) in pairwise(froms_s):
        if what in (HOME, WORK) and to_s > from_s:
            yield BuildingStay(what, Period(START_MS + round(from_s * 1000), START_MS + round(to_s * 1000)))


def _losses(life: Life, stays: list[BuildingStay]) -> Iterator[Period]:
    rng = random.Random(f"{SEED} {life.name} losses")
    for day in range(DAYS):
        for _ in range(LOSSES_A_DAY):
            at_ms, lasts_ms = START_MS + day * _DAY_MS + rng.randrange(_DAY_MS), rng.randint(*LASTS_MS)
            stay = next((stay for stay in stays if stay.period.start_ms <= at_ms < stay.period.end_ms), None)
            if stay is not None:  # else he is out at that moment, and has reception
                yield Period(at_ms, min(at_ms + lasts_ms, stay.period.end_ms))
