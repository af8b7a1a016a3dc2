"""Noise of the burden study: that of the decision-quality study, with gaps as devices of real people have them.

Each day a device has two gaps of 3 to 8 minutes and six of 1 to 3 minutes, in which nothing is reported and no command arrives.
Errors, jumps, delays, holds of the network and duplicates are those of `bench.decision.noise`. All noise is a function of time, so
all arms meet the same.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from bench.burden.lives import DAYS, START_MS, Life
from bench.decision.noise import PHONE, PHONE_INTERVAL_MS, TAG, Gaps, Period, Receiver, Report
from bench.decision.placement import Way

GAPS_A_DAY = ((2, (180_000, 480_000)), (6, (60_000, 180_000)))
"""Number of gaps a day, and the range of their durations, ms."""
_DAY_MS = 86_400_000
_GAP_SHOWS_MS = 600_000
_JUMP_SHOWS_MS = 300_000


class WeekReceiver(Receiver):
    """A device for a week."""

    def __init__(self, name: str, device: str, way: Way) -> None:
        super().__init__(name, device, way, draw=1, gaps=Gaps.LONG)
        self._gaps = [*_gaps(random.Random(f"{name} {device} gaps of a week"))]

    def trouble(self, at_ms: int) -> str | None:
        """Noise that a decision at a moment can follow from: a gap in the last 10 minutes, a jump in the last 5."""
        if any(gap.start_ms < at_ms < gap.end_ms + _GAP_SHOWS_MS for gap in self._gaps):
            return "gap"
        if any(jump.start_ms < at_ms < jump.end_ms + _JUMP_SHOWS_MS for jump in self._jumps):
            return "jump"
        return None


class LifeWorld:
    """Both sides of a week with their noise, for all arms."""

    def __init__(self, life: Life) -> None:
        self.life = life
        self.tag = WeekReceiver(life.name, TAG, life.wearer)
        self.phone = WeekReceiver(life.name, PHONE, life.person)
        self.phone_reports: list[Report] = self.phone.constant(PHONE_INTERVAL_MS)


def _gaps(rng: random.Random) -> Iterator[Period]:
    """Gaps of the week in order of time, none of which begins before the one before has ended."""
    drawn: list[Period] = []
    for day in range(DAYS):
        for count, lasts_ms in GAPS_A_DAY:
            for _ in range(count):
                start_ms = START_MS + day * _DAY_MS + rng.randrange(_DAY_MS)
                drawn.append(Period(start_ms, start_ms + rng.randint(*lasts_ms)))
    end_ms = START_MS
    for period in sorted(drawn):
        if period.start_ms > end_ms:
            yield period
            end_ms = period.end_ms
