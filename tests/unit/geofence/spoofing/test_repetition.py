"""Copied and pinned positions are found, and honest receivers on the same street aren't suspected."""

from __future__ import annotations

import random
from collections.abc import Sequence

from services.geofence.domain.geometry import Vector
from services.geofence.domain.kinematics import plausibility
from services.geofence.domain.kinematics.fixes import Fix

WALKS = 20_000
ERROR_MM = 3000
"""A good receiver's error along each axis, mm."""


def fixes(points: Sequence[tuple[float, float]]) -> list[Fix]:
    """Fixes 15 s apart, at points in metres."""
    return [
        Fix(15_000 * number, 15_000 * number, str(number), round(1000 * x), round(1000 * y), 0, 5000)
        for number, (x, y) in enumerate(points)
    ]


def points_of(track: Sequence[Fix]) -> list[Vector]:
    return [fix[3:6] for fix in track]


def walk(rng: random.Random, count: int, error_mm: float = ERROR_MM) -> list[Fix]:
    """A walk along the same street at 1.2 to 1.6 m/s."""
    step_m = 15 * rng.uniform(1.2, 1.6)
    start_m = rng.uniform(0, 20)
    sigma_m = error_mm / 1000
    return fixes(
        [(start_m + step_m * i + rng.gauss(0, sigma_m), rng.gauss(0, sigma_m)) for i in range(count)],
    )


def test_a_way_is_found_forwards_backwards_and_in_part() -> None:
    way = walk(random.Random(1), 40)
    earlier = points_of(way)
    assert plausibility.last_copied(way[5:13], earlier) is way[12]
    assert plausibility.last_copied(fixes([(x / 1000, y / 1000) for x, y, _ in earlier[::-1][:8]]), earlier)
    assert plausibility.last_copied(way[::3][:6], earlier) is way[15]
    assert plausibility.last_copied(way[5:8], earlier) is None


def test_positions_between_and_after_a_copy_do_not_hide_it() -> None:
    rng = random.Random(2)
    way = walk(rng, 20)
    other = walk(rng, 20)
    mixed = [fix if number % 3 else other[number] for number, fix in enumerate(way[:12])]
    assert plausibility.last_copied(mixed, points_of(way)) is mixed[11]
    later = [fix._replace(y_mm=fix.y_mm + 90_000) for fix in way[12:18]]
    assert plausibility.last_copied(way[:12] + later, points_of(way)) is way[11]


def test_a_device_that_stands_where_it_stood_copies_nothing() -> None:
    rng = random.Random(3)
    there = [(rng.gauss(0, 1), rng.gauss(0, 1)) for _ in range(80)]
    assert plausibility.last_copied(fixes(there[40:]), points_of(fixes(there[:40]))) is None
    assert plausibility.last_copied(fixes(there[:40]), points_of(fixes(there[:40]))) is None


def test_honest_walks_on_one_street_copy_nothing() -> None:
    rng = random.Random(4)
    found = 0
    for _ in range(WALKS):
        found += plausibility.last_copied(walk(rng, 9), points_of(walk(rng, 40))) is not None
    assert found == 0


def test_a_point_from_the_first_position_on_is_pinned() -> None:
    rng = random.Random(5)
    before = walk(rng, 40)
    assert plausibility.is_pinned(fixes([(300, 0)] * 4), before)
    assert plausibility.is_pinned(fixes([(300, 0), (301, 0)] * 20), before)
    assert not plausibility.is_pinned(fixes([(300, 0)] * 3), before)
    assert not plausibility.is_pinned(walk(rng, 4), before)
    assert not plausibility.is_pinned(walk(rng, 4) + fixes([(300, 0)] * 10), before)


def test_a_receiver_that_pins_its_positions_is_not_suspected_for_it() -> None:
    rng = random.Random(6)
    habit = walk(rng, 30) + fixes([(500, 0)] * 10)
    assert not plausibility.is_pinned(fixes([(300, 0)] * 10), habit)
    assert not plausibility.is_pinned(fixes([(300, 0)] * 10), walk(rng, plausibility.MIN_HABITS - 1))
