"""`python -m bench.silence`: alerts of the fold on real tracks, by kind, per wearer and day, with default rules.

Each day of a GeoLife track is played as a wearer's day, from its first fix to its last, under one order with the default rings. The
protected person stays at a home 2 to 20 km (`--home`) from the first fix of the track, and her phone reports every minute. The place of
the home depends only on the track's name. The recorders of that study ran only during journeys, so each day is played twice: with all
gaps as silence of the tag, and with gaps of more than half an hour filled, as if the tag kept reporting from its last position. The
remaining gaps are tunnels, buildings and the like. Alerts that demand NOTIFY or more need a person. They are listed by cause, with an
interval over wearers, because one wearer who stays near a home causes many alerts.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import math
import os
import random
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from services.geofence.domain import fold
from services.geofence.domain.alerts import Alert
from services.geofence.domain.demands import AlertKind
from services.geofence.domain.entries import Case, Demand, Entry, Positions, Ring, Target, Tick
from services.geofence.domain.kinematics.geometry import PERSON
from services.geofence.domain.rules import Rules
from services.geofence.domain.state import State

RINGS = (Ring(2_000_000, Demand.WARN), Ring(1_000_000, Demand.NOTIFY), Ring(100_000, Demand.RESPOND))
REPORT_INTERVAL_MS = 15_000
"""Interval of a tag's reports."""
PHONE_INTERVAL_MS = 60_000
"""Interval of a phone's reports, and of a tag's reports in a filled gap."""
LONG_GAP_MS = 1_800_000
DAY_MS = 86_400_000
ACCURACY_MM = 10_000
E7_PER_M = 90.0
SEED, DRAWS = 9, 10_000
"""Seed and number of bootstrap draws for the interval."""
AlertKey = tuple[str, str, str]
"""Kind, demand and cause of an alert."""
Row = tuple[int, str, int, int]
"""Time, device, latitude and longitude, 1e-7 degrees."""


def folder() -> Path:
    """Folder of the GeoLife tracks; it may not exist."""
    data = os.environ.get("TANDEM_SHARED_DATA")
    return (Path(data) if data else Path(__file__).resolve().parents[2] / "shared" / "data") / "geolife"


def days_of(path: Path) -> Iterator[list[Row]]:
    """Fixes of a person by day (UTC), at most one every 15 s."""
    day: list[Row] = []
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            at_ms = round(float(row["epoch_s"]) * 1000)
            if day and at_ms < day[-1][0] + REPORT_INTERVAL_MS:
                continue
            if day and at_ms // DAY_MS != day[-1][0] // DAY_MS:
                yield day
                day = []
            day.append((at_ms, "tag", round(float(row["lat_deg"]) * 1e7), round(float(row["lon_deg"]) * 1e7)))
    yield day


def filled(day: list[Row]) -> list[Row]:
    """A day whose long gaps are filled with the position before the gap."""
    rows = day[:1]
    for before, row in pairwise(day):
        if row[0] - before[0] > LONG_GAP_MS:
            rows += [(at_ms, *before[1:]) for at_ms in range(before[0] + PHONE_INTERVAL_MS, row[0], PHONE_INTERVAL_MS)]
        rows.append(row)
    return rows


def home_of(name: str, first: Row, range_m: tuple[float, float]) -> tuple[int, int]:
    """Position of the protected person's home, 1e-7 degrees, at a log-uniformly distributed distance."""
    rng, (from_m, to_m) = random.Random(name), range_m
    far_m, bearing = from_m * (to_m / from_m) ** rng.random(), rng.uniform(0, 2 * math.pi)
    east_e7_per_m = E7_PER_M / math.cos(math.radians(first[2] / 1e7))
    return (
        first[2] + round(far_m * math.cos(bearing) * E7_PER_M),
        first[3] + round(far_m * math.sin(bearing) * east_e7_per_m),
    )


def play(tag: list[Row], home: tuple[int, int]) -> Counter[AlertKey]:
    """Number of alerts of one day by kind, demand and cause."""
    from_ms, until_ms = tag[0][0], tag[-1][0] + 1
    person = Target(target_id="p", is_person=True, device_ids=("phone",), shape=PERSON)
    case = Case(
        case_id="case",
        version=1,
        order_id="order",
        wearer_id="w",
        tag_device_ids=("tag",),
        targets=(person,),
        rings=RINGS,
        valid_from_ms=from_ms,
        valid_until_ms=until_ms,
    )
    state = State(0)
    counts: Counter[AlertKey] = Counter()

    def step(stamp_ms: int, body: Case | Positions | Tick) -> None:
        for alert in fold.step(state, Entry(state.sequence + 1, stamp_ms, body)):
            if isinstance(alert, Alert) and alert.at_ms < until_ms:
                counts[alert.kind.value, alert.demand.name, cause_of(alert, state, person)] += 1

    def enter(stamp_ms: int, body: Case | Positions | Tick) -> None:
        while (due_ms := fold.next_due_ms(state)) is not None and due_ms < stamp_ms:
            step(due_ms, Tick())
        step(stamp_ms, body)

    phone = [(at_ms, "phone", *home) for at_ms in range(from_ms, until_ms, PHONE_INTERVAL_MS)]
    enter(from_ms, case)
    for at_ms, device, lat_e7, lon_e7 in sorted([*tag, *phone]):
        enter(
            at_ms,
            Positions(
                device_ids=[device],
                report_ids=[str(at_ms)],
                fix_times_ms=[at_ms],
                lat_e7=[lat_e7],
                lon_e7=[lon_e7],
                accuracy_mm=[ACCURACY_MM],
                received_wall_us=0,
            ),
        )
    return counts


def cause_of(alert: Alert, state: State, person: Target) -> str:
    """Cause of an alert that needs a person; empty for other alerts."""
    last = state.last_fix(("tag",))
    if alert.demand < Demand.NOTIFY or last is None:
        return ""
    if alert.kind is not AlertKind.UNKNOWN_NEAR:
        return f"within {alert.ring_mm // 1000} m" if alert.ring_mm else "for half an hour"
    if alert.demand is Demand.RESPOND:
        return "vanished near by"
    unseen_ms = alert.at_ms - last.time_ms
    if unseen_ms >= Rules().silent_notify_after_ms:
        return "for half an hour"
    apart = state.apart_mm(last, person)
    gap_mm = (apart[0] if apart else 0.0) - RINGS[-1].radius_mm - 2 * ACCURACY_MM
    # She may have moved towards him as fast since her last report.
    return (
        "could be there on foot" if gap_mm <= Rules().foot_mps * (unseen_ms + PHONE_INTERVAL_MS) else "had been faster"
    )


def interval(touching: list[int], days: list[int]) -> tuple[float, float]:
    """95 % bootstrap interval of the rate over wearers."""
    rng, rates = random.Random(SEED), []
    for _ in range(DRAWS):
        sample = [rng.randrange(len(days)) for _ in days]
        rates.append(sum(touching[i] for i in sample) / sum(days[i] for i in sample))
    rates.sort()
    return rates[DRAWS // 40], rates[-DRAWS // 40]


def main() -> None:
    """Runs the study and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tracks", type=int, default=1000, help="maximum number of tracks")
    parser.add_argument(
        "--home", type=float, nargs=2, default=(2000, 20_000), help="minimum and maximum distance of the home, m"
    )
    arguments = parser.parse_args()
    paths = sorted(folder().glob("[0-9]*.csv.gz"))[: arguments.tracks]
    if not paths:
        raise SystemExit(f"GeoLife tracks not found in {folder()}; set TANDEM_SHARED_DATA")
    for title, prepare in (("gaps as they are", list), ("long gaps filled", filled)):
        counts: Counter[AlertKey] = Counter()
        touching, days = [], []
        for path in paths:
            home: tuple[int, int] | None = None
            mine: Counter[AlertKey] = Counter()
            days.append(0)
            for day in days_of(path):
                home = home or home_of(path.name, day[0], arguments.home)
                mine += play(prepare(day), home)
                days[-1] += 1
            touching.append(sum(count for (_, demand, _), count in mine.items() if Demand[demand] >= Demand.NOTIFY))
            counts += mine
        total, wearer_days = sum(touching), sum(days)
        low, high = interval(touching, days)
        print(f"{title}: {len(paths)} wearers, {wearer_days} wearer-days")
        for (kind, demand, cause), count in sorted(counts.items()):
            print(f"  {kind:20} {demand:8} {cause:24} {count:6} {count / wearer_days:8.3f} a wearer and day")
        print(
            f"  {'needs a person':54} {total:6} {total / wearer_days:8.3f} a wearer and day ({low:.2f} to {high:.2f})"
        )
        print("  by wearer: " + ", ".join(f"{n}/{of}" for n, of in zip(touching, days, strict=True)))


if __name__ == "__main__":
    main()
