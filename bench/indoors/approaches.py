"""Approaches of the indoor study: a wearer rests at home without satellites and walks to her door with a tag that sees none.

His home is 300, 500 or 900 m from hers. He has been at home for two hours. The satellites are lost 10 to 50 minutes before he
leaves, or as he leaves, and stay lost: he covers the tag. He walks at 1.4 m/s and stays at her door for 15 minutes. A response is in
time if it is demanded before he is within 100 m of her. The order protects her home.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from bench.burden.lives import HER_HOME, HOMES_M, START_MS
from bench.decision.arms import ARMS
from bench.decision.closed_loop import ClosedLoop
from bench.decision.noise import PHONE_INTERVAL_MS, TAG, Gaps, Period, Receiver
from bench.decision.placement import PLACE_RADIUS_M, Play, moved
from bench.decision.play import case_of
from bench.indoors.week import ARRIVES_MS, EVERY_MS, presence, unit
from bench.indoors.world import HOME, SEED, merged
from services.geofence.domain import fold
from services.geofence.domain.alerts import Alert
from services.geofence.domain.entries import Body, Case, Demand, PresenceReport, Presences, UnitPlaceKind
from services.geofence.domain.kinematics.geometry import ecef_mm

WALK_MPS = 1.4
AT_HOME_MS = 7_200_000
AT_DOOR_MS = 900_000
LOST_BEFORE_MS = (600_000, 3_000_000)
RING_M = 100


class ApproachArm(NamedTuple):
    """What is known of the wearer at home, and of his leaving."""

    name: str
    lost_early: bool = True
    """Whether the satellites are lost long before he leaves, not as he leaves."""
    kind: UnitPlaceKind | None = None
    says_left: bool = False
    """Whether the unit says that he left; otherwise it just says nothing more."""
    is_carried: bool = False
    """Whether he carries the beacon along, so that his tag hears it all the while."""


APPROACH_ARMS = (
    ApproachArm("no unit, reception until he leaves", lost_early=False),
    ApproachArm("no unit"),
    ApproachArm("home unit says that he left", kind=UnitPlaceKind.HOME_UNIT, says_left=True),
    ApproachArm("home unit falls silent", kind=UnitPlaceKind.HOME_UNIT),
    ApproachArm("beacon stays at home", kind=UnitPlaceKind.BLUETOOTH_BEACON),
    ApproachArm("beacon is carried along", kind=UnitPlaceKind.BLUETOOTH_BEACON, is_carried=True),
)


class Approach(NamedTuple):
    """One approach with one arm."""

    home_m: int
    arm: str
    respond_after_s: float | None
    """From leaving home to the demand for a response, s; negative before he leaves; None if none came."""
    arrives_after_s: float
    """From leaving home until he is within 100 m of her, s."""

    @property
    def is_in_time(self) -> bool:
        """Whether a response was demanded before he arrived."""
        return self.respond_after_s is not None and self.respond_after_s <= self.arrives_after_s


def approaches(seeds: int) -> Iterator[Approach]:
    """All approaches: for each distance and seed one with each arm."""
    for home_m in HOMES_M:
        for seed in range(seeds):
            for arm in APPROACH_ARMS:
                yield _Approaching(home_m, seed, arm).run()


class _CoveredReceiver(Receiver):
    """A tag without satellites in one period, besides the usual gaps."""

    def __init__(self, play: Play, lost: Period) -> None:
        super().__init__(play.name, TAG, play.way, draw=1, gaps=Gaps.SHORT)
        self._gaps = [*merged([*self._gaps, lost])]


class _Approaching(ClosedLoop):
    def __init__(self, home_m: int, seed: int, arm: ApproachArm) -> None:
        rng = random.Random(f"{SEED} approach {home_m} {seed}")
        bearing, lost_ms = rng.uniform(0, 2 * math.pi), rng.randint(*LOST_BEFORE_MS)
        self._home_m, self._arm = home_m, arm
        self._left_ms = START_MS + AT_HOME_MS
        home = moved(HER_HOME, home_m * math.cos(bearing), home_m * math.sin(bearing))._replace(at_ms=START_MS)
        arrived_ms = self._left_ms + round(home_m / WALK_MPS * 1000)
        way = (
            home,
            home._replace(at_ms=self._left_ms),
            HER_HOME._replace(at_ms=arrived_ms),
            HER_HOME._replace(at_ms=arrived_ms + AT_DOOR_MS),
        )
        other = (HER_HOME._replace(at_ms=START_MS), HER_HOME._replace(at_ms=way[-1].at_ms))
        name = f"approach {home_m} {seed}"
        self._play = Play(name, "life", name, way, other, is_place=True)
        lost_from_ms = self._left_ms - (lost_ms if arm.lost_early else 0)
        receiver = _CoveredReceiver(self._play, Period(lost_from_ms, way[-1].at_ms))
        super().__init__(receiver, ARMS["asked"], (), log_id=name, until_ms=way[-1].at_ms, step=fold.step)
        self._centre = ecef_mm(home.lat_e7, home.lon_e7)
        self._presences = [*self._all_presences(way[-1].at_ms)][::-1]
        self._respond_ms: int | None = None

    def run(self) -> Approach:
        case: Case = case_of(self._play)
        if self._arm.kind:
            case = replace(case, units=(unit(HOME, self._arm.kind, self._centre),))
        self.play(case, START_MS)
        within_m = self._home_m - RING_M - PLACE_RADIUS_M
        respond_s = None if self._respond_ms is None else (self._respond_ms - self._left_ms) / 1000
        return Approach(self._home_m, self._arm.name, respond_s, within_m / WALK_MPS)

    def _all_presences(self, until_ms: int) -> Iterator[PresenceReport]:
        if self._arm.kind is None:
            return
        heard_until_ms = until_ms if self._arm.is_carried else self._left_ms
        for at_ms in range(START_MS, heard_until_ms, EVERY_MS):
            yield presence(HOME, at_ms, START_MS)
        if self._arm.says_left:
            yield presence(HOME, self._left_ms + PHONE_INTERVAL_MS // 2, START_MS, left=True)

    def _note_alert(self, alert: Alert, stamp_ms: int) -> None:
        if alert.demand is Demand.RESPOND and self._respond_ms is None:
            self._respond_ms = stamp_ms

    def _next_happening_ms(self) -> int | None:
        return self._presences[-1].seen_ms + ARRIVES_MS if self._presences else None

    def _happening(self) -> Body:
        return Presences((self._presences.pop(),), 0)
