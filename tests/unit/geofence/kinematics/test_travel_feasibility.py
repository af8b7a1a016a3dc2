"""Travel feasibility: how far a vehicle gets, the sum of many short steps, and when a position counts again after a false claim."""

from __future__ import annotations

import math

import pytest

from services.geofence.domain.kinematics import travel_feasibility
from services.geofence.domain.kinematics.fixes import Fix
from services.geofence.domain.kinematics.travel_feasibility import Way

ACCURACY_MM = 5_000


def fix(at_s: float, east_m: float, north_m: float = 0.0, accuracy_mm: int = ACCURACY_MM) -> Fix:
    time_ms = round(at_s * 1000)
    return Fix(time_ms, time_ms, f"r{at_s}", round(east_m * 1000), round(north_m * 1000), 0, accuracy_mm)


def stationary_fixes(until_s: int, every_s: int = 15) -> list[Fix]:
    return [fix(at_s, 0) for at_s in range(0, until_s + 1, every_s)]


def way(fixes: list[Fix]) -> Way:
    return travel_feasibility.follow(travel_feasibility.begin(fixes[0]), fixes[1:])


@pytest.mark.parametrize(
    ("took_s", "mps", "metres"),
    [
        (0, 50, 0),
        (15, 0, 312.5 + 125),  # 12.5 s up to 50 m/s, and on
        (15, 50, 750 + 67.5),  # as a train would from there
        (15, 85, 1275),
        (300, 0, 14_688),  # by road; a train has gone 19.5 km, less the distance lost while starting
        (7200, 0, 900_000),  # by air
    ],
)
def test_how_far_the_fastest_vehicle_gets(took_s: float, mps: float, metres: float) -> None:
    found = travel_feasibility.reachable_mm(round(took_s * 1000), mps) / 1000
    assert math.isclose(found, metres, rel_tol=0.4 if took_s == 300 else 1e-9)


@pytest.mark.parametrize(
    ("to_m", "after_s", "accuracy_mm", "believed"),
    [
        (1400, 15, 5_000, False),
        (600, 15, 5_000, True),  # explained by a sports car and a receiver between houses
        (20_000, 15, 10_000_000, False),  # no accuracy explains more than 1 km
        (1400, 60, 5_000, True),
        (12_000, 300, 5_000, True),
        (450_000, 4200, 5_000, False),
        (450_000, 5500, 5_000, True),  # an airliner
    ],
)
def test_the_distance_that_a_standing_device_can_cover(
    to_m: float, after_s: float, accuracy_mm: int, believed: bool
) -> None:
    fixes = [*stationary_fixes(300), fix(300 + after_s, to_m, accuracy_mm=accuracy_mm)]
    assert way(fixes).is_believed is believed


@pytest.mark.parametrize("every_s", [1, 5, 15, 30])
def test_many_short_steps_beyond_a_vehicle_are_not_believed(every_s: int) -> None:
    """From standing to 84 m/s at once: a train could make each step, but not all of them together."""
    fixes = stationary_fixes(300, every_s)
    fixes += [fix(300 + s, 84 * s) for s in range(every_s, 241, every_s)]
    fixes += [fix(540 + s, 84 * 240) for s in range(every_s, 1801, every_s)]
    assert not way(fixes).is_believed


@pytest.mark.parametrize("every_s", [1, 15, 60])
def test_a_car_that_pulls_away_is_believed_throughout(every_s: int) -> None:
    found = way(stationary_fixes(300, every_s))
    for s in range(every_s, 1200, every_s):
        gaining_s = min(s, 11)
        found = travel_feasibility.follow(found, [fix(300 + s, 1.5 * gaining_s**2 + 33 * (s - gaining_s))])
        assert found.is_believed


def test_a_device_first_seen_in_a_train_is_believed_throughout() -> None:
    fixes = [fix(s, 83 * s) for s in range(0, 1200, 15)]
    assert all(way(fixes[:count]).is_believed for count in range(1, len(fixes)))


def test_repeating_a_false_claim_proves_nothing() -> None:
    fixes = [*stationary_fixes(300), *(fix(at_s, 1400) for at_s in range(315, 7201, 15))]
    assert not way(fixes).is_believed


def test_a_return_after_a_false_claim_is_believed_at_once() -> None:
    fixes = [*stationary_fixes(300), *(fix(at_s, 20_000) for at_s in range(315, 600, 15)), fix(600, 30)]
    found = way(fixes)
    assert found.is_believed and found.regained_ms == 600_000


def test_a_way_after_a_false_claim_is_believed_once_as_long_as_the_claim_was_false() -> None:
    """The claim of 1.4 km, 15 s after standing, was false by some 700 m. A car gets from there to 2.2 km in two minutes."""
    fixes = [*stationary_fixes(300), *(fix(at_s, 1400) for at_s in range(315, 361, 15))]
    moves = [fix(360 + s, 1400 + 10 * s) for s in range(15, 121, 15)]
    believed = [way([*fixes, *moves[:count]]).is_believed for count in range(len(moves) + 1)]
    assert believed == sorted(believed) and believed.index(True) == 5  # 750 m


def test_a_wild_position_after_a_gap_does_not_discredit_the_next_ones() -> None:
    fixes = [*stationary_fixes(300), fix(540, 1350), *(fix(at_s, 200) for at_s in range(555, 700, 15))]
    assert way(fixes).is_believed


def test_four_agreeing_positions_are_not_wild() -> None:
    fixes = [
        *stationary_fixes(300),
        *(fix(at_s, 3000) for at_s in range(540, 586, 15)),
        *(fix(at_s, 0) for at_s in (600, 615)),
    ]
    assert not way(fixes).is_believed
    assert way([*fixes[:-3], *fixes[-2:]]).is_believed


def test_a_way_from_before_an_error_suffices_for_ten_minutes_at_most() -> None:
    for minutes, enough in ((1, True), (9, True), (12, False)):
        until_s = 600 + 60 * minutes
        fixes = [fix(at_s, 3000) for at_s in range(0, 600, 15)]
        fixes += [fix(at_s, 0) for at_s in range(600, until_s, 15)]
        fixes += [fix(at_s, 3000) for at_s in range(until_s, until_s + 120, 15)]
        found = travel_feasibility.ways(fixes, (until_s - 15) * 1000 + 1)
        assert any(candidate.is_believed for candidate in found) is enough


def test_an_earlier_false_claim_is_no_place_to_return_to() -> None:
    """Three positions far off, then back, then far off for good: the earlier false claim makes the later one no truer."""
    fixes = [
        *stationary_fixes(300),
        *(fix(at_s, 20_000) for at_s in (315, 330, 345)),
        *(fix(at_s, 0) for at_s in range(360, 480, 15)),
    ]
    fixes += [fix(at_s, 20_000) for at_s in range(480, 2400, 15)]
    assert not any(candidate.is_believed for candidate in travel_feasibility.ways(fixes, 465_001))
