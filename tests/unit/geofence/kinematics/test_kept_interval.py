"""The interval that a device was seen to keep, when its position is unknown by it, and how long it has been at one place."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.geofence.domain.detectors.reachability import rest_ms
from services.geofence.domain.kinematics.fixes import Fix
from services.geofence.domain.kinematics.track import Track


def track(times_s: Iterable[float], *, metres: Iterable[float] | None = None, accuracy_m: int = 5) -> Track:
    """A track with fixes at these seconds, at these distances along a line; at one point if there are none."""
    result, times = Track(), list(times_s)
    for i, (at_s, at_m) in enumerate(zip(times, metres or [0.0] * len(times), strict=True)):
        at_ms = round(at_s * 1000)
        result.add(Fix(at_ms, at_ms, f"{i}", round(at_m * 1000), 0, 6_371_000_000, accuracy_m * 1000))
    return result


def kept_s(*times_s: float) -> float | None:
    kept_ms = track(times_s).kept_interval_ms()
    return None if kept_ms is None else kept_ms / 1000


def test_a_steady_device_keeps_its_interval() -> None:
    assert kept_s(*range(0, 600, 15)) == 15
    assert kept_s(0, 60, 120, 180) == 60
    assert kept_s(0, 600, 1200, 1800) == 600
    assert kept_s(0, 601, 1203, 1804) == 601, "reports each 10 minutes are late by seconds"


def test_too_few_fixes_of_the_last_half_hour_show_no_interval() -> None:
    assert Track().kept_interval_ms() is None
    assert kept_s(0) is None
    assert kept_s(0, 60, 120) is None
    assert kept_s(0, 900, 1800, 2700) is None
    assert kept_s(0, 60, 120, 180, 7200, 7260, 7320) is None, "fixes of two hours ago say nothing"


def test_two_lost_reports_do_not_change_the_interval() -> None:
    assert kept_s(0, 60, 120, 180, 300, 480) == 60
    assert kept_s(0, 60, 120, 300, 360, 480) == 60


def test_a_change_of_the_interval_shows_after_three_gaps() -> None:
    before = [0, 60, 120, 180, 240, 300]
    assert kept_s(*before, 470, 640) == 60
    assert kept_s(*before, 470, 640, 810) == 170
    assert kept_s(0, 170, 340, 510, 680, 710, 740) == 170
    assert kept_s(0, 170, 340, 510, 680, 710, 740, 770) == 30


def test_of_two_middle_gaps_the_shorter_one_counts() -> None:
    assert kept_s(0, 60, 120, 290, 460) == 60


def test_two_reports_of_one_moment_are_no_interval() -> None:
    doubled = Track()
    for at_s in (0, 60, 120, 180):
        for name in "ab":
            doubled.add(Fix(at_s * 1000, at_s * 1000, f"{at_s}{name}", 0, 0, 6_371_000_000, 5_000))
    assert doubled.kept_interval_ms() == 60_000


@pytest.mark.parametrize(
    ("interval_s", "unknown_s"), [(15, 180), (60, 180), (150, 180), (170, 200), (240, 270), (600, 630), (625, 630)]
)
def test_a_position_is_unknown_by_the_kept_interval(interval_s: int, unknown_s: int) -> None:
    kept = track(range(0, 6 * interval_s, interval_s))
    assert kept.unknown_after_ms() == unknown_s * 1000
    last_ms = kept.fixes[-1].time_ms
    assert kept.is_fresh(last_ms + unknown_s * 1000) and not kept.is_fresh(last_ms + unknown_s * 1000 + 1)


def test_without_a_kept_interval_a_position_is_unknown_after_three_minutes() -> None:
    assert track([0]).unknown_after_ms() == track([0, 500, 1000]).unknown_after_ms() == 180_000


@given(st.lists(st.one_of(st.integers(0, 4000), st.integers(0, 900)), min_size=1, max_size=40))
def test_only_the_times_of_the_newest_fixes_matter_and_not_their_order_of_arrival(times_s: list[int]) -> None:
    whole = track(times_s)
    distinct = sorted(set(times_s))
    assert whole.kept_interval_ms() == track(distinct[-6:]).kept_interval_ms()
    kept_ms = whole.kept_interval_ms() or 0
    assert whole.unknown_after_ms() == max(180_000, min(kept_ms, 600_000) + 30_000)


def test_rest_is_the_time_at_the_place_of_the_newest_fix() -> None:
    assert rest_ms(track([0])) == 0
    assert rest_ms(track(range(0, 601, 60))) == 600_000
    assert rest_ms(track(range(0, 601, 60), metres=[500, *[30 * (i % 2) for i in range(10)]])) == 540_000
    assert rest_ms(track(range(0, 601, 60), metres=[60 * i for i in range(11)])) == 60_000, "a walker"
    assert rest_ms(track(range(0, 601, 15), metres=[10 * 15 * i for i in range(41)])) == 0, "a driver"


def test_a_device_that_was_unseen_in_between_was_not_at_rest() -> None:
    assert rest_ms(track([0, 60, 120, 180, 600, 660])) == 60_000
    assert rest_ms(track(range(0, 2001, 400))) == 2_000_000, "a slow device that keeps its interval was seen"
