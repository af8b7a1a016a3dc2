"""The people of a world and where they really are: the truth that devices report and judges compare with."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from random import Random
from typing import NamedTuple

METRES_PER_DEGREE = 111_195.0
HOME_RADIUS_M = 50.0
FAR_M = (3_500.0, 9_000.0)
"""Least and greatest distance of a wearer who has nothing in mind, metres."""
SPEEDS_MPS = (1.4, 6.0, 14.0)
"""Walking, cycling and driving."""
AT_HOME_M = 30.0
"""Distance from the protected home at which a wearer is there, whatever a receiver says, metres."""
HIDDEN_S = (200.0, 500.0)
"""Duration of a visit that the tag hides, seconds."""
NEARBY_M = 4_500.0
"""Greatest distance from which a wearer comes to such a visit, metres, so that it is over within 20 minutes."""
WEARERS = ("홍길동", "임꺽정", "장길산", "전우치", "이몽룡", "변학도")
PERSONS = ("성춘향", "심청이", "황진이", "장화련", "월매화", "배선녀")


@dataclass(frozen=True, slots=True)
class Waypoint:
    """Where a person is at a time; between two waypoints the person moves evenly."""

    at_s: float
    """Time since the world's start, seconds."""
    north_m: float
    east_m: float


@dataclass(slots=True)
class Journey:
    """A person's way through the whole simulation."""

    waypoints: list[Waypoint]

    def at(self, time_s: float) -> tuple[float, float]:
        """Position in metres north and east of the protected home."""
        points = self.waypoints
        if time_s <= points[0].at_s:
            return points[0].north_m, points[0].east_m
        for before, after in pairwise(points):
            if time_s <= after.at_s:
                share = (time_s - before.at_s) / max(after.at_s - before.at_s, 1e-9)
                return (
                    before.north_m + share * (after.north_m - before.north_m),
                    before.east_m + share * (after.east_m - before.east_m),
                )
        return points[-1].north_m, points[-1].east_m


@dataclass(slots=True)
class Device:
    """A tag or protective device, with its manners."""

    device_id: str
    journey: Journey
    lat_deg: float
    lon_deg: float
    """The protected home, from which journeys are measured."""
    interval_s: float
    """Usual interval between reports, seconds."""
    obeys: bool
    """Whether it changes its interval as commanded."""
    silent_s: list[tuple[float, float]] = field(default_factory=list)
    """Times in which it sends nothing and keeps nothing: it is dead."""
    offline_s: list[tuple[float, float]] = field(default_factory=list)
    """Times in which it has no network and keeps its reports."""
    clock_ahead_s: float = 0.0
    """How far its clock is ahead, seconds."""
    lies_s: list[tuple[float, float]] = field(default_factory=list)
    """Times in which it reports positions far away from where it is."""

    def is_dead(self, time_s: float) -> bool:
        """Whether the device sends nothing and keeps nothing."""
        return any(begin <= time_s < end for begin, end in self.silent_s)

    def is_offline(self, time_s: float) -> bool:
        """Whether the device keeps its reports."""
        return any(begin <= time_s < end for begin, end in self.offline_s)

    def reachable_since_s(self, time_s: float) -> float:
        """When the device last came back to life or to its network, seconds since the world's start; 0 if it never was away."""
        return max((end for _, end in (*self.silent_s, *self.offline_s) if end <= time_s), default=0.0)

    def reported_position(self, time_s: float) -> tuple[float, float]:
        """Latitude and longitude that the device reports, degrees."""
        north_m, east_m = self.journey.at(time_s)
        if any(begin <= time_s < end for begin, end in self.lies_s):
            north_m += 60_000.0
        return (
            self.lat_deg + north_m / METRES_PER_DEGREE,
            self.lon_deg + east_m / (METRES_PER_DEGREE * math.cos(math.radians(self.lat_deg))),
        )


class Resident(NamedTuple):
    """A protected person and her protective device."""

    person_id: str
    name: str
    phone: Device


@dataclass(slots=True)
class Household:
    """A wearer, the persons whom the order protects, their home and all devices."""

    number: int
    lat_deg: float
    lon_deg: float
    tag: Device
    residents: list[Resident]
    """The victim, and in some households a second person who lives with her."""
    order_ends_s: float = math.inf
    """When the agency ends the order, seconds since the world's start. Infinite while it doesn't."""

    @property
    def order_id(self) -> str:
        """Id of the order."""
        return f"order-{self.number}"

    @property
    def national_id(self) -> str:
        """Number by which the wearer and the respondent match."""
        return f"{(60 + self.number * 7 % 40) % 100:02d}{1 + self.number // 28 % 12:02d}{1 + self.number % 28:02d}-1{self.number:06d}"

    @property
    def wearer_name(self) -> str:
        """Name of the wearer. All people are fictitious."""
        return WEARERS[self.number % len(WEARERS)]

    @property
    def birth_date(self) -> str:
        """The wearer's birth date."""
        return f"{1960 + self.number * 7 % 40}-{1 + self.number // 28 % 12:02d}-{1 + self.number % 28:02d}"


class Town:
    """All households of a world."""

    def __init__(self, random: Random, *, households: int, duration_s: float) -> None:
        self.households = [_household(random, number, duration_s) for number in range(households)]
        self.devices = {
            device.device_id: device
            for household in self.households
            for device in (household.tag, *(resident.phone for resident in household.residents))
        }


def _household(random: Random, number: int, duration_s: float) -> Household:
    lat_deg, lon_deg = 36.0 + 0.3 * (number % 6), 127.0 + 0.3 * (number // 6)
    her_way = [Waypoint(0.0, 0.0, 0.0)]
    if random.random() < 0.3:
        leaves_s = random.uniform(0.2, 0.8) * duration_s
        away_m = random.uniform(200.0, 3_000.0)
        her_way += [
            Waypoint(leaves_s, 0.0, 0.0),
            Waypoint(leaves_s + away_m / 1.4, 0.0, away_m),
            Waypoint(leaves_s + away_m / 1.4 + 900, 0.0, away_m),
            Waypoint(leaves_s + 2 * away_m / 1.4 + 900, 0.0, 0.0),
        ]
    his_way, hidden_s = _his_way(random, duration_s)
    tag = _device(random, f"tag-{number}", Journey(his_way), lat_deg=lat_deg, lon_deg=lon_deg)
    if hidden_s:
        _hide(random, tag, hidden_s)
    residents: list[Resident] = []
    for letter, way in (("", her_way), ("b", [Waypoint(0.0, 0.0, 0.0)]))[: 1 + (random.random() < 0.4)]:
        phone = _device(random, f"phone-{number}{letter}", Journey(way), lat_deg=lat_deg, lon_deg=lon_deg)
        name = PERSONS[(number + len(residents)) % len(PERSONS)]
        residents.append(Resident(f"person-{number}{letter}", name, phone))
    return Household(number, lat_deg, lon_deg, tag=tag, residents=residents)


def _hide(random: Random, tag: Device, visit_s: tuple[float, float]) -> None:
    """Makes a tag hide a visit: it has no network until he is gone, or it reports from 60 km away soon after he has come."""
    begin_s, end_s = visit_s
    tag.clock_ahead_s, tag.silent_s = 0.0, []
    if random.random() < 0.5:
        tag.offline_s = [(begin_s - random.uniform(20.0, 120.0), end_s + random.uniform(30.0, 240.0))]
        tag.lies_s = []
    else:
        tag.lies_s = [(begin_s + random.uniform(60.0, 150.0), end_s - random.uniform(0.0, 40.0))]
        tag.offline_s = []


def _his_way(random: Random, duration_s: float) -> tuple[list[Waypoint], tuple[float, float] | None]:
    """He is far away, comes near from time to time, stays there for some minutes and leaves. Returns his way, and begin and end of a
    visit that his tag hides, seconds; None if it hides none."""
    time_s = 0.0
    far_m = random.uniform(*FAR_M)
    angle = random.uniform(0, math.tau)
    hides, hidden_s = random.random() < 0.4, None
    if hides:
        far_m = random.uniform(FAR_M[0], NEARBY_M)
    points = [Waypoint(0.0, far_m * math.cos(angle), far_m * math.sin(angle))]

    def go(distance_m: float, speed_mps: float) -> None:
        nonlocal time_s
        north_m, east_m = distance_m * math.cos(angle), distance_m * math.sin(angle)
        way_m = math.hypot(north_m - points[-1].north_m, east_m - points[-1].east_m)
        time_s += way_m / speed_mps
        points.append(Waypoint(time_s, north_m, east_m))

    def stay(seconds: float) -> None:
        nonlocal time_s
        time_s += seconds
        points.append(Waypoint(time_s, points[-1].north_m, points[-1].east_m))

    stay(random.uniform(60, 120 if hides else 400))
    while time_s < duration_s:
        if hides and hidden_s is None:
            go(AT_HOME_M, 14.0)
            begin_s = time_s
            stay(random.uniform(*HIDDEN_S))
            hidden_s = (begin_s, time_s)
        elif random.random() < 0.7:
            go(random.choice((30.0, 60.0, 150.0, 500.0, 900.0, 1_500.0)), random.choice(SPEEDS_MPS))
            stay(random.uniform(30, 600))
        angle += random.uniform(-1.0, 1.0)
        go(random.uniform(*FAR_M), random.choice(SPEEDS_MPS))
        stay(random.uniform(60, 900))
    return points, hidden_s


def _device(random: Random, device_id: str, journey: Journey, *, lat_deg: float, lon_deg: float) -> Device:
    device = Device(
        device_id,
        journey,
        lat_deg=lat_deg,
        lon_deg=lon_deg,
        interval_s=random.choice((30.0, 60.0, 60.0, 120.0)),
        obeys=random.random() < 0.7,
    )
    end_s = journey.waypoints[-1].at_s
    for times, chance, length_s in (
        (device.silent_s, 0.15, (120.0, 900.0)),
        (device.offline_s, 0.25, (60.0, 600.0)),
        (device.lies_s, 0.1, (30.0, 300.0)),
    ):
        if random.random() < chance:
            begin_s = random.uniform(0, end_s)
            times.append((begin_s, begin_s + random.uniform(*length_s)))
    if random.random() < 0.1:
        device.clock_ahead_s = random.choice((-90.0, -20.0, 30.0, 100.0, 300.0))
    return device
