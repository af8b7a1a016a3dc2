"""Ways of a device, as late fixes come in between the earlier ones."""

from __future__ import annotations

import random

import pytest

from services.geofence.domain.kinematics.fixes import Fix
from services.geofence.domain.kinematics.track import Track

INTERVAL_MS = 15_000
FIXES = 120


def _fix(number: int, rng: random.Random) -> Fix:
    time_ms = number * INTERVAL_MS
    x_mm, y_mm, z_mm = (rng.randrange(10**9) for _ in range(3))
    return Fix(time_ms, time_ms, f"r-{number}", x_mm, y_mm, z_mm, accuracy_mm=10_000)


@pytest.mark.parametrize("seed", range(20))
def test_the_bound_of_a_way_is_no_shorter_than_the_way(seed: int) -> None:
    rng = random.Random(seed)
    live, late = Track(), list(range(1, FIXES, 2))
    for number in range(0, FIXES, 2):
        live.add(_fix(number, rng))
        live.pack()
    if seed % 2:
        rng.shuffle(late)
    bound_mm = []
    for number in late:
        live.add(_fix(number, rng))
        if rng.random() < 0.1:
            live.pack()
        from_ms = (number - rng.randrange(4)) * INTERVAL_MS
        bound_mm.append(live.longest_way_mm(from_ms))
        assert bound_mm[-1] >= live.path_since_mm(from_ms)
    assert len(bound_mm) == FIXES // 2


def test_the_bound_of_a_way_is_the_way_where_no_fix_came_late() -> None:
    rng = random.Random(1)
    track = Track()
    for number in range(FIXES):
        track.add(_fix(number, rng))
        assert track.longest_way_mm(0) == pytest.approx(track.path_since_mm(0), abs=2)


@pytest.mark.parametrize("seed", range(10))
def test_the_time_of_an_earlier_fix_is_the_same_in_a_packed_track(seed: int) -> None:
    rng = random.Random(seed)
    fixes = [_fix(number // 2 * 2, rng) for number in range(40)]  # some have the same time
    fixes = sorted({(fix.time_ms, fix.report_id): fix for fix in fixes}.values())
    track = Track(list(fixes))
    times_ms = [fix.time_ms for fix in fixes]
    if seed:
        track.pack()
    for moment_ms in range(-INTERVAL_MS, 42 * INTERVAL_MS, INTERVAL_MS // 2):
        for count in range(1, 5):
            earlier = [time_ms for time_ms in times_ms if time_ms <= moment_ms]
            assert track.earlier_ms(moment_ms, count) == times_ms[max(0, len(earlier) - count)]
