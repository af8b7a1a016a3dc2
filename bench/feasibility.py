"""`python -m bench.feasibility`: does the past of a wearer say what an order will cause? Predicted against observed, on real tracks.

Each person of GeoLife is a wearer. The protected place is `--home` metres from where the person stays most in the first half of the
days, in a direction that depends only on the file's name; the order has the default rings. `tandem feasibility` folds the first half
of the days and predicts dispatches, notices and pushes a week. The second half says what the same order would have caused. Recorders
of that study ran only during journeys, so gaps of more than half an hour are filled with the position before, each minute. A gap of
more than a day is a break, as in the command. Errors are printed; there is no threshold.
"""

from __future__ import annotations

import argparse
import itertools
import math
import random
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bench.geolife import PHONE_INTERVAL_MS, Row, days_of, filled, folder
from services.court.feasibility.history import BREAK_MS, DAY_MS, History, HistoryEntry, coverage_of, stays_of, visits_of
from services.court.feasibility.study import expect, response_radius_mm
from services.geofence.domain.entries import Case, Demand, Positions, Ring, Target
from services.geofence.domain.geometry import PERSON, Disc, Vector, ecef_mm, lat_lon_deg

RINGS = (Ring(2_000_000, Demand.WARN), Ring(1_000_000, Demand.NOTIFY), Ring(100_000, Demand.RESPOND))
PLACE_RADIUS_MM = 30_000
ACCURACY_MM = 10_000
MIN_DAYS = 4
"""Least number of days of a person with positions: two in each half."""
M_PER_DEG = 111_195.0


class Week(NamedTuple):
    """Numbers a week."""

    dispatches: float
    notices: float
    pushes: float


class Compared(NamedTuple):
    """One person: predicted by the first half of the days, observed in the second half."""

    name: str
    days: tuple[float, float]
    """Covered days of both halves."""
    predicted: Week
    observed: Week


def unbroken(days: list[list[Row]]) -> Iterator[list[Row]]:
    """The positions of several days, split at the breaks of the history."""
    stretch: list[Row] = []
    for row in itertools.chain.from_iterable(days):
        if stretch and row[0] - stretch[-1][0] > BREAK_MS:
            yield stretch
            stretch = []
        stretch.append(row)
    yield stretch


def history_of(days: list[list[Row]]) -> History:
    """The days as a tag reports them: at most one position a minute."""
    entries: list[HistoryEntry] = []
    for stretch in unbroken(days):
        for at_ms, device_id, lat_e7, lon_e7 in filled(stretch):
            if entries and at_ms < entries[-1].stamp_ms + PHONE_INTERVAL_MS:
                continue
            position = Positions(
                device_ids=[device_id],
                report_ids=[str(at_ms)],
                fix_times_ms=[at_ms],
                lat_e7=[lat_e7],
                lon_e7=[lon_e7],
                accuracy_mm=[ACCURACY_MM],
                received_wall_us=0,
            )
            entries.append(HistoryEntry(at_ms, position))
    return History(tuple(entries), ("tag",))


def case_near(name: str, home: Vector, distance_m: float) -> Case:
    """An order that protects a place at a distance from a home, in a direction drawn from the name."""
    lat_deg, lon_deg = lat_lon_deg(home)
    bearing = random.Random(name).uniform(0, 2 * math.pi)
    lat_deg += distance_m * math.cos(bearing) / M_PER_DEG
    lon_deg += distance_m * math.sin(bearing) / (M_PER_DEG * math.cos(math.radians(lat_deg)))
    centre = ecef_mm(round(lat_deg * 1e7), round(lon_deg * 1e7))
    return Case(
        case_id="case",
        version=1,
        order_id="order",
        wearer_id=name,
        tag_device_ids=("tag",),
        targets=(
            Target("her", is_person=True, device_ids=(), shape=PERSON),
            Target("home", is_person=False, device_ids=(), shape=Disc(centre, PLACE_RADIUS_MM)),
        ),
        rings=RINGS,
        valid_from_ms=0,
        valid_until_ms=1,
    )


def week_of(case: Case, history: History) -> tuple[Week, float]:
    """What the order causes on the days of a history, a week, and the number of days."""
    coverage, radius_mm = coverage_of(history.tag_fixes()), response_radius_mm(case)
    counted = expect(case, history, coverage, visits=visits_of(case, history.tracks(), radius_mm))
    numbers = counted.dispatches.total(), counted.notices.total(), counted.pushes
    return Week(*(counted.a_week(number) for number in numbers)), counted.days


def compare(path: Path, distance_m: float, max_days: int) -> Compared | None:
    """Predicted and observed numbers of a person; None if the person has too few days."""
    days = list(days_of(path))[:max_days]
    if len(days) < MIN_DAYS:
        return None
    first, second = history_of(days[: len(days) // 2]), history_of(days[len(days) // 2 :])
    fixes = first.tag_fixes()
    if min(coverage_of(half.tag_fixes()).days for half in (first, second)) * DAY_MS < DAY_MS:
        return None
    habits = stays_of(fixes)
    case = case_near(path.name, habits[0].middle if habits else fixes[0].point, distance_m)
    (predicted, first_days), (observed, second_days) = week_of(case, first), week_of(case, second)
    return Compared(path.name.split(".")[0], (first_days, second_days), predicted, observed)


def report(compared: list[Compared], distance_m: float) -> Iterator[str]:
    """Lines of the table, and the errors."""
    yield f"home {distance_m:.0f} m from the most frequent stay; predicted > observed a week"
    yield f"{'person':8}{'days':>14}{'dispatches':>18}{'notices':>18}{'pushes':>18}"
    for person in compared:
        days = f"{person.days[0]:.1f} + {person.days[1]:.1f}"
        pairs = "".join(
            f"{f'{before:.1f} > {after:.1f}':>18}"
            for before, after in zip(person.predicted, person.observed, strict=True)
        )
        yield f"{person.name:8}{days:>14}{pairs}"
    for field in Week._fields:
        errors = [getattr(person.observed, field) - getattr(person.predicted, field) for person in compared]
        observed = [getattr(person.observed, field) for person in compared]
        yield (
            f"{field}: mean observed {statistics.mean(observed):.2f}, mean error {statistics.mean(errors):+.2f}, "
            f"mean absolute error {statistics.mean(map(abs, errors)):.2f}, median {statistics.median(map(abs, errors)):.2f} a week"
        )


def main() -> None:
    """Runs the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--home", type=float, nargs="*", default=[500.0], help="metres from the most frequent stay (500)"
    )
    parser.add_argument("--days", type=int, default=28, help="most days of a person (28)")
    options = parser.parse_args()
    paths = sorted(folder().glob("*.csv.gz"))
    if not paths:
        parser.error(f"{folder()}: holds no *.csv.gz (TANDEM_SHARED_DATA names the folder that holds geolife)")
    for distance_m in options.home:
        compared = [found for path in paths if (found := compare(path, distance_m, options.days))]
        print(*report(compared, distance_m), sep="\n", flush=True)


if __name__ == "__main__":
    main()
