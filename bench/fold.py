"""`python -m bench.fold`: how many reports a second one core folds, with all that the decision looks at.

A country: wearers, each with an order that protects a person who moves, with a phone, and her school, a polygon, by three rings. Each
device reports each 15 s in batches of 100, with an accuracy of 5 to 50 m; walkers and drivers turn at random. One wearer in a hundred
goes about near the zone, so that episodes open, close, and are looked at with each report. Batches are made before the clock starts;
reading them out of messages isn't part of the figure.
"""

from __future__ import annotations

import argparse
import gc
import math
import random
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

from bench import machine
from services.geofence.domain import fold
from services.geofence.domain.alerts import Alert
from services.geofence.domain.entries import Case, Demand, Entry, Positions, Ring, Target
from services.geofence.domain.geometry import PERSON, Polygon
from services.geofence.domain.state import State

BATCH = 100
EVERY_MS = 15_000
"""Between two reports of a device."""
START_MS = 1_780_000_000_000
SEED = 7
NEAR_OF = 100
"""One wearer of so many goes about near the zone."""
FAR_E7, NEAR_E7 = 1_000_000, 50_000
"""From home to the wearer's beginning, far off and near: 11 km and 0.5 km of latitude."""
E7_PER_M = 90
RINGS = (Ring(2_000_000, Demand.WARN), Ring(1_000_000, Demand.NOTIFY), Ring(100_000, Demand.RESPOND))


class Walker:
    """A device that goes at one speed and turns now and then."""

    def __init__(self, device_id: str, lat_e7: int, lon_e7: int, drawn: random.Random) -> None:
        self.device_id = device_id
        self.lat_e7, self.lon_e7 = lat_e7, lon_e7
        self.step_e7 = drawn.choice((0.5, 1.4, 1.4, 12.0)) * E7_PER_M * EVERY_MS / 1000
        self.bearing = drawn.uniform(0, 2 * math.pi)
        self.accuracy_mm = drawn.randrange(5_000, 50_000)

    def go_on(self, drawn: random.Random) -> None:
        """Moves until the next report."""
        self.bearing += drawn.gauss(0, 0.6)
        self.lat_e7 += round(self.step_e7 * math.cos(self.bearing))
        self.lon_e7 += round(self.step_e7 * math.sin(self.bearing))


def country(wearers: int, drawn: random.Random) -> tuple[list[Case], list[Walker]]:
    """Cases, and all devices in them, in the order in which they report."""
    cases, walkers = [], []
    for n in range(wearers):
        lat_e7, lon_e7 = 345_000_000 + n % 80 * 400_000, 1_265_000_000 + n // 80 * 400_000
        corners = [(lat_e7 + dy, lon_e7 + dx) for dy, dx in ((0, 9000), (12_000, 9000), (12_000, 21_000), (0, 21_000))]
        person = Target(f"person-{n}", True, (f"phone-{n}",), PERSON)
        school = Target(f"school-{n}", False, (), Polygon.of(corners))
        cases.append(
            Case(
                f"case-{n}",
                1,
                f"order-{n}",
                f"wearer-{n}",
                (f"tag-{n}",),
                (person, school),
                RINGS,
                START_MS - 1,
                START_MS + 864 * 10**7,
            )
        )
        away_e7 = FAR_E7 if n % NEAR_OF else NEAR_E7
        walkers.append(Walker(f"tag-{n}", lat_e7 + away_e7, lon_e7, drawn))
        walkers.append(Walker(f"phone-{n}", lat_e7, lon_e7, drawn))
    drawn.shuffle(walkers)
    return cases, walkers


def batches(walkers: list[Walker], turn: int, drawn: random.Random) -> Iterator[tuple[int, Positions]]:
    """Stamps and batches of one report of each device."""
    for low in range(0, len(walkers), BATCH):
        some = walkers[low : low + BATCH]
        stamp_ms = START_MS + turn * EVERY_MS + low * EVERY_MS // len(walkers)
        for one in some:
            one.go_on(drawn)
        yield (
            stamp_ms,
            Positions(
                [one.device_id for one in some],
                [f"{turn}-{one.device_id}" for one in some],
                [stamp_ms - drawn.randrange(200, 900) for _ in some],
                [one.lat_e7 for one in some],
                [one.lon_e7 for one in some],
                [one.accuracy_mm for one in some],
                stamp_ms * 1000,
            ),
        )


def measure(wearers: int, rounds: int) -> tuple[list[float], int]:
    """Reports a second in each round after the first two, and how many alerts there were."""
    drawn = random.Random(SEED)
    cases, walkers = country(wearers, drawn)
    state, alerts, rates = State(0), 0, []
    for case in cases:
        fold.step(state, Entry(state.sequence + 1, START_MS, case))
    gc.collect()
    gc.freeze()
    for turn in range(rounds):
        plan = list(batches(walkers, turn, drawn))
        began_s = time.process_time()
        for stamp_ms, body in plan:
            out = fold.step(state, Entry(state.sequence + 1, stamp_ms, body))
            alerts += sum(isinstance(one, Alert) for one in out)
        rates.append(len(walkers) / (time.process_time() - began_s))
    return rates[2:], alerts


def main() -> None:
    """Prints the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wearers", type=int, default=20_000)
    parser.add_argument(
        "--rounds", type=int, default=26, help="reports of each device, 15 s apart: silence is looked at each 3 min"
    )
    arguments = parser.parse_args()
    rates, alerts = measure(arguments.wearers, arguments.rounds)
    print(f"{arguments.wearers} wearers, as many persons who move and schools; {machine.describe(Path())['cpu']}")
    print(
        f"fold rate: median {statistics.median(rates):,.0f}/s, least {min(rates):,.0f}, greatest {max(rates):,.0f} "
        f"reports a second of one core in {len(rates)} rounds; {alerts} alerts"
    )


if __name__ == "__main__":
    main()
