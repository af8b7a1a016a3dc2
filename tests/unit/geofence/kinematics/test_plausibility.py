"""Plausibility: which fixes of a device are believed, and invariants of the test."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.geofence.domain.geometry import ecef_mm
from services.geofence.domain.kinematics import plausibility
from services.geofence.domain.kinematics.fixes import Fix
from services.geofence.domain.kinematics.track import Track
from tests.support.geofence.stories import place_e7

BOUND_MPS = 14
Spot = tuple[float, float, float]
"""Second, metres north, accuracy in metres."""


def track_of(*spots: Spot) -> Track:
    track = Track()
    for at_s, north_m, accuracy_m in spots:
        at_ms = round(at_s * 1000)
        track.add(Fix(at_ms, at_ms, f"{at_ms}", *ecef_mm(*place_e7(north_m)), round(accuracy_m * 1000)))
    return track


def believed_s(*spots: Spot) -> list[int]:
    """Seconds of the believed fixes, once all fixes have arrived."""
    track = track_of(*spots)
    found = plausibility.believed(track, track.fixes[0].time_ms, None, bound_mps=BOUND_MPS)
    assert plausibility.is_newest_believed(track, BOUND_MPS) == (found.fixes[-1] is track.fixes[-1])
    return [fix.time_ms // 1000 for fix in found.fixes]


HOME = [(15.0 * i, 0.0, 5.0) for i in range(4)]


def test_a_device_at_an_unchanged_pace_is_believed_at_once() -> None:
    drive = [(15.0 * i, 300.0 * i, 5.0) for i in range(6)]
    assert believed_s(*drive) == [0, 15, 30, 45, 60, 75]


def test_a_jump_is_held_until_a_second_fix_agrees() -> None:
    assert believed_s(*HOME, (60, 900, 5)) == [0, 15, 30, 45]
    assert believed_s(*HOME, (60, 900, 5), (75, 910, 5)) == [0, 15, 30, 45, 60, 75]
    assert believed_s(*HOME, (60, 900, 5), (75, 0, 5)) == [0, 15, 30, 45, 75]


def test_two_jumps_that_disagree_are_both_held() -> None:
    assert believed_s(*HOME, (60, 900, 5), (75, -2000, 5)) == [0, 15, 30, 45]


def test_starting_a_car_within_the_town_limit_is_no_jump() -> None:
    assert believed_s(*HOME, (60, 200, 5)) == [0, 15, 30, 45, 60]


@pytest.mark.parametrize("known", [1, 2])
def test_a_device_with_few_known_fixes_is_believed(known: int) -> None:
    spots = [*HOME[:known], (60.0, 1500.0, 5.0)]
    assert believed_s(*spots)[-1] == 60


def test_an_impossible_movement_is_held_even_of_an_unknown_device() -> None:
    assert believed_s(HOME[0], (15, 3000, 5)) == [0]


def test_a_receiver_that_goes_to_and_fro_is_believed_at_the_second_time() -> None:
    assert believed_s(*HOME, (60, 900, 5), (75, 0, 5), (90, 930, 5))[-1] == 90


def test_a_vague_fix_consistent_with_sharp_ones_is_skipped() -> None:
    assert believed_s(*HOME, (60, 700, 800)) == [0, 15, 30, 45]


def test_a_vague_fix_that_contradicts_sharp_ones_is_a_jump() -> None:
    assert believed_s(*HOME, (60, 3000, 500)) == [0, 15, 30, 45]
    assert believed_s(*HOME, (60, 3000, 500), (75, 3100, 500))[-1] == 75


def test_vague_fixes_are_believed_alone_and_after_three_minutes() -> None:
    assert believed_s((0, 0, 500), (15, 30, 500), (30, 10, 500)) == [0, 15, 30]
    assert believed_s(*HOME, (300, 700, 800))[-1] == 300


@given(st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_at_least_one_fix_is_believed_and_all_are_of_the_track_in_order(seed: int) -> None:
    rng = random.Random(seed)
    spots = [(15.0 * i, rng.uniform(-3000, 3000), rng.choice((5, 50, 800))) for i in range(20)]
    track = track_of(*spots)
    for from_ms in (0, 150_000, 285_000):
        found = plausibility.believed(track, from_ms, None, bound_mps=BOUND_MPS).fixes
        assert found and found == sorted(found) and set(found) <= set(track.fixes)
    assert len(track.fixes) == 20


@given(st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_the_order_of_arrival_does_not_matter(seed: int) -> None:
    rng = random.Random(seed)
    spots = [(15.0 * i, rng.choice((0.0, 20.0, 1500.0)), 5.0) for i in range(12)]
    shuffled = rng.sample(spots, len(spots))
    assert plausibility.believed(track_of(*spots), 0, None, bound_mps=BOUND_MPS) == plausibility.believed(
        track_of(*shuffled), 0, None, bound_mps=BOUND_MPS
    )
