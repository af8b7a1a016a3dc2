"""Weeks of the burden study: a wearer who lives near the protected person, and keeps away from her as the law demands. Pure.

**The wearer** lives 300, 500 or 900 m from her home. From Monday to Friday he works 4 to 12 km away and gets there by car, by bus
or by train, on foot to the stop or the station. One of two roads leads him home straight towards her, and he takes it more often
than the other. In the evening and at the weekend there are errands on foot and by car to shops 400 to 1,500 m from his home, one of
which is on her side of it, walks around his block, and drives on a road that passes her at 200 to 600 m. One weekend in four he is
away. At night, and whenever he isn't out, he is in his flat. He charges the tag in the evening, and one evening in four he forgets
it and is warned the next day.

**The protected person** is at home with her phone and goes out up to twice a day, on foot or by car.

**He never violates the order**: he keeps 180 m from her home, and wherever they are, they are never within 150 m of each other; she
doesn't go out where it would happen. So each dispatch is for nothing.

Everything follows from the names below. It was committed before the decision was tuned on it.
"""

from __future__ import annotations

import cmath
import hashlib
import math
import random
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from bench.burden.journeys import Diary, Doing, Pace, route
from bench.decision.placement import Play, Spot, Way, moved
from bench.decision.truth import Truth
from services.geofence.domain.entries import EquipmentKind

SEED = "burden-1"
"""Part of the seed of each random choice."""
HOMES_M = (300, 500, 900)
SEEDS = range(10)
DAYS = 7
AWAY_ONE_IN = 4
"""One weekend in so many is spent elsewhere."""
APART_M = 150.0
"""The wearer and the protected person are never nearer."""
START_MS = 1_790_000_000_000 - 1_790_000_000_000 % 86_400_000
"""Midnight before the first day."""
HER_HOME = Spot(START_MS, 375_000_000, 1_270_000_000)
_DAY_S, _H_S = 86_400.0, 3_600.0
_COMMUTES = (Pace.CAR, Pace.BUS, Pace.CAR, Pace.TRAIN)


class Event(NamedTuple):
    """An event that the tag reports."""

    at_ms: int
    kind: EquipmentKind


@dataclass(frozen=True)
class Life:
    """A week of both sides."""

    name: str
    home_m: int
    seed: int
    wearer: Way
    person: Way
    doings: tuple[Doing, ...]
    """What the wearer does; seconds after the start of the week."""
    events: tuple[Event, ...]

    def play(self, *, is_place: bool) -> Play:
        """The week for an order that protects the person with her phone, or her home, a circle of 30 m."""
        other = (self.wearer[0]._replace(lat_e7=HER_HOME.lat_e7, lon_e7=HER_HOME.lon_e7), _at(0, DAYS * _DAY_S))
        return Play(self.name, "life", self.name, self.wearer, other if is_place else self.person, is_place)

    def doing_at(self, at_ms: int) -> str:
        """What the wearer does at a moment."""
        return self.doings[bisect_right(self._from_s, (at_ms - START_MS) / 1000) - 1].what

    @cached_property
    def _from_s(self) -> list[float]:
        return [doing.from_s for doing in self.doings]


def life(home_m: int, seed: int) -> Life:
    """The week of a wearer whose home is at a distance from hers."""
    name = f"{home_m} m, {seed}"
    wearer = _Wearer(name, home_m, seed)
    wearer.live()
    way = _way(wearer.diary, wearer.turn)
    return Life(
        name=name,
        home_m=home_m,
        seed=seed,
        wearer=way,
        person=_person(name, way),
        doings=tuple(wearer.diary.doings),
        events=tuple(wearer.events),
    )


def digest(lives: Sequence[Life]) -> str:
    """SHA-256 of lives; equal only for equal lives."""
    hashed = hashlib.sha256()
    for each in lives:
        doings = [(round(doing.from_s, 3), doing.what) for doing in each.doings]
        hashed.update(repr((each.name, each.wearer, each.person, doings, each.events)).encode())
    return hashed.hexdigest()


class _Wearer:
    """Lives a week. His home is east of hers until the whole week is turned by `turn`."""

    def __init__(self, name: str, home_m: int, seed: int) -> None:
        self._rng = rng = random.Random(f"{SEED} {name} wearer")
        self.turn = cmath.rect(1, rng.uniform(0, 2 * math.pi))
        self._home = home = complex(home_m)
        self._grid = rng.uniform(0, math.pi / 2)
        self._commute = _COMMUTES[seed % len(_COMMUTES)]
        self._work = home + _ring(rng, 4_000, 12_000)
        self._stop = self._beyond_clear(150, 450)
        self._station = self._beyond_clear(700, 1_500)
        self._straight = home + rng.uniform(800, 1_500) + 1j * rng.uniform(-40, 40)
        """A point of the road that leads to his home straight towards hers."""
        self._shops = [
            self._beyond_clear(400, 1_500, her_side=True),
            self._beyond_clear(400, 1_500),
            self._beyond_clear(400, 1_500),
        ]
        self._away = home + _ring(rng, 20_000, 60_000)
        self._is_away = (HOMES_M.index(home_m) + seed) % AWAY_ONE_IN == 0
        self.diary = Diary(home, rng, "at home")
        self.events: list[Event] = []

    def live(self) -> None:
        """Lives all days of the week."""
        for day in range(DAYS):
            is_weekend = day % 7 >= 5
            if is_weekend and self._is_away:
                self._weekend_away(day)
            elif is_weekend:
                self._weekend(day)
            else:
                self._work_day(day)
        self.diary.stay(DAYS * _DAY_S, "at home")
        self._charge()

    def _work_day(self, day: int) -> None:
        rng, diary = self._rng, self.diary
        diary.stay(day * _DAY_S + rng.uniform(6.75, 8.5) * _H_S, "at home")
        self._to_work()
        diary.stay(day * _DAY_S + rng.uniform(17, 18.5) * _H_S, "at work")
        self._from_work()
        if rng.random() < 0.7:
            self._out(day, rng.uniform(19, 20.5), self._errand)
        if rng.random() < 0.5:
            self._out(day, rng.uniform(19.5, 21.5), self._drive_past)
        if rng.random() < 0.4:
            self._out(day, rng.uniform(20.5, 22.5), self._walk)

    def _weekend(self, day: int) -> None:
        rng = self._rng
        self._out(day, rng.uniform(9.5, 11), self._errand)
        if rng.random() < 0.5:
            self._out(day, rng.uniform(11, 12.5), self._walk)
        if rng.random() < 0.8:
            self._out(day, rng.uniform(13, 15), self._drive_past)
        self._out(day, rng.uniform(16, 18), self._errand)
        if rng.random() < 0.6:
            self._out(day, rng.uniform(19, 22), self._walk)

    def _weekend_away(self, day: int) -> None:
        rng, diary = self._rng, self.diary
        if day % 7 == 5:
            diary.stay(day * _DAY_S + rng.uniform(8, 11) * _H_S, "at home")
            self._far(self._away, "driving away")
        else:
            diary.stay(day * _DAY_S + rng.uniform(15, 20) * _H_S, "away")
            self._far(self._home, "driving home")

    def _far(self, end: complex, what: str) -> None:
        """Drives to the weekend's place or home: streets near home, a motorway between."""
        leaves = end != self._home
        junction = self._home + (self._away - self._home) / abs(self._away - self._home) * 2_500
        for point, pace in (
            ((junction, Pace.CAR), (end, Pace.MOTORWAY))
            if leaves
            else (
                (junction, Pace.MOTORWAY),
                (end, Pace.CAR),
            )
        ):
            self._go(point, pace, what)

    def _to_work(self) -> None:
        diary, rng = self.diary, self._rng
        if self._commute is Pace.CAR:
            self._go(self._work, Pace.CAR, "driving to work")
            return
        stop = self._stop if self._commute is Pace.BUS else self._station
        self._go(stop, Pace.WALK, "walking to the stop")
        diary.stay(diary.now_s + rng.uniform(120, 540), "waiting")
        self._go(self._work, self._commute, "on the " + self._commute.name.lower())

    def _from_work(self) -> None:
        rng = self._rng
        if self._commute is Pace.CAR:
            if rng.random() < 0.25:
                self._go(rng.choice(self._shops), Pace.CAR, "driving to a shop")
                self.diary.stay(self.diary.now_s + rng.uniform(480, 1_800), "in a shop")
            self._drive_home()
            return
        stop = self._stop if self._commute is Pace.BUS else self._station
        self._go(stop, self._commute, "on the " + self._commute.name.lower())
        self._go(self._home, Pace.WALK, "walking home")

    def _drive_home(self) -> None:
        """Drives home by one of two roads; one of them leads straight towards her home."""
        if self._rng.random() < 0.6:
            self._go(self._straight, Pace.CAR, "driving home")
            self.diary.go([self._home], Pace.CAR, "driving home towards her")
        else:
            self._go(self._home, Pace.CAR, "driving home")

    def _errand(self) -> None:
        rng, diary = self._rng, self.diary
        shop = rng.choice(self._shops)
        on_foot = abs(shop - self._home) < 1_000 and rng.random() < 0.7
        pace, how = (Pace.WALK, "walking") if on_foot else (Pace.CAR, "driving")
        self._go(shop, pace, f"{how} to a shop")
        diary.stay(diary.now_s + rng.uniform(480, 1_800), "in a shop")
        if on_foot:
            self._go(self._home, pace, "walking home")
        else:
            self._drive_home()

    def _walk(self) -> None:
        """Walks around the block, 0.6 to 1.6 km."""
        rng, home = self._rng, self._home
        first = self._beyond_clear(150, 400)
        second = home + (first - home) * cmath.rect(1, rng.choice((-1, 1)) * math.pi / 3)
        for point in (first, second, home):
            self._go(point if abs(point) > 200 else first, Pace.WALK, "walking around")

    def _drive_past(self) -> None:
        """Drives past her home on a road at 200 to 600 m, visits somebody, and drives back by the same road."""
        rng, diary = self._rng, self.diary
        off_m, bearing = rng.uniform(200, 600), rng.uniform(0, 2 * math.pi)
        along = cmath.rect(1, bearing)
        abeam = along * 1j * off_m
        reach_m = rng.uniform(800, 2_500)
        road = [abeam - along * reach_m, abeam + along * reach_m]
        self._go(road[0], Pace.CAR, "driving past")
        diary.go([road[1]], Pace.CAR, "driving past")
        diary.stay(diary.now_s + rng.uniform(900, 5_400), "on a visit")
        if rng.random() < 0.5:
            diary.go([road[0]], Pace.CAR, "driving past")
        self._drive_home()

    def _out(self, day: int, hour: float, what: Callable[[], None]) -> None:
        """Leaves home at an hour of the day, or ten minutes after he came back, but not at night."""
        begin_s = max(day * _DAY_S + hour * _H_S, self.diary.now_s + 600)
        if begin_s < day * _DAY_S + 22.8 * _H_S:
            self.diary.stay(begin_s, "at home")
            what()

    def _go(self, end: complex, pace: Pace, what: str) -> None:
        self.diary.go(route(self.diary.here, end, self._rng, grid=self._grid), pace, what)

    def _beyond_clear(self, from_m: float, to_m: float, *, her_side: bool = False) -> complex:
        """A point at a distance from his home, never near hers; on her side of his home if that is requested."""
        while True:
            offset = _ring(self._rng, from_m, to_m)
            if abs(self._home + offset) > 300 and not (her_side and offset.real > -0.5 * abs(offset)):
                return self._home + offset

    def _charge(self) -> None:
        rng = self._rng
        forgot = False
        for day in range(DAYS):
            if forgot:
                low_s = day * _DAY_S + rng.uniform(14, 20.5) * _H_S
                self.events.append(Event(START_MS + round(low_s * 1000), EquipmentKind.BATTERY_LOW))
            forgot = not forgot and rng.random() < 0.25
            if forgot:
                continue
            begin_s = day * _DAY_S + rng.uniform(20.75, 22) * _H_S
            ends_s = begin_s + rng.uniform(1, 2) * _H_S
            self.events.append(Event(START_MS + round(begin_s * 1000), EquipmentKind.CHARGER_CONNECTED))
            self.events.append(Event(START_MS + round(ends_s * 1000), EquipmentKind.CHARGER_REMOVED))


def _person(name: str, wearer: Way) -> Way:
    """Her week: at home, with outings that never bring her within `APART_M` of the wearer."""
    rng = random.Random(f"{SEED} {name} person")
    way = [_at(0, 0)]
    for day in range(DAYS):
        for hours in ((9, 13), (14, 19))[: rng.choice((0, 1, 1, 2))]:
            for _ in range(10):
                begin_s = day * _DAY_S + rng.uniform(*hours) * _H_S
                outing = _outing(rng, begin_s)
                whole = (*way, *outing, _at(0, DAYS * _DAY_S))
                ends_ms = outing[-1].at_ms
                play = Play(name, "life", name, wearer, whole, is_place=False)
                if Truth(play).min_m(outing[0].at_ms, ends_ms) >= APART_M:
                    way += outing
                    break
    return (*way, _at(0, DAYS * _DAY_S))


def _outing(rng: random.Random, begin_s: float) -> list[Spot]:
    by_car = rng.random() < 0.5
    diary = Diary(0, rng, "at home")
    diary.stay(begin_s, "at home")
    there = _ring(rng, 1_500, 6_000) if by_car else _ring(rng, 250, 1_000)
    pace = Pace.CAR if by_car else Pace.WALK
    diary.go([there], pace, "out")
    diary.stay(diary.now_s + rng.uniform(600, 5_400), "out")
    diary.go([0], pace, "out")
    return [_at(point, at_s) for at_s, point in diary.points[1:]]


def _ring(rng: random.Random, from_m: float, to_m: float) -> complex:
    """A random offset whose length is between two distances."""
    return cmath.rect(rng.uniform(from_m, to_m), rng.uniform(0, 2 * math.pi))


def _way(diary: Diary, turn: complex) -> Way:
    spots = [_at(point * turn, at_s) for at_s, point in diary.points]
    week = [
        spot for before, spot in zip([None, *spots], spots, strict=False) if not before or spot.at_ms > before.at_ms
    ]
    return tuple(week)


def _at(point: complex, at_s: float) -> Spot:
    return moved(HER_HOME, point.imag, point.real)._replace(at_ms=START_MS + round(at_s * 1000))
