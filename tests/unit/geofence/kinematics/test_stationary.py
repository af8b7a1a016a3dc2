"""A stationary phone is at the mean of its positions."""

from __future__ import annotations

import math
import random

import pytest

from services.geofence.domain.demands import AlertKind
from services.geofence.domain.geometry import ecef_mm
from services.geofence.domain.kinematics import accuracy
from services.geofence.domain.kinematics.fixes import Fix
from services.geofence.domain.kinematics.track import Track
from tests.support.geofence.stories import T0_MS, Story, place_e7

HOME = ecef_mm(*place_e7(0))


def track_of(*spots: tuple[float, float, float]) -> Track:
    """A track with fixes by second, metres north and accuracy in metres."""
    made = Track()
    for at_s, north_m, accuracy_m in spots:
        at_ms = round(at_s * 1000)
        made.add(Fix(at_ms, at_ms, f"{at_ms}", *ecef_mm(*place_e7(north_m)), round(accuracy_m * 1000)))
    return made


def off_m(fix: Fix) -> float:
    """Distance from home, metres."""
    return math.dist(fix.point, HOME) / 1000


def test_agreeing_positions_are_averaged_by_their_weights() -> None:
    first, second = accuracy.averaged(track_of((0, 0, 20), (60, 20, 10))).fixes
    assert off_m(first) == 0 and first.accuracy_mm == 20_000
    assert off_m(second) == pytest.approx(16, abs=0.02), "four times the weight"
    assert second.accuracy_mm == pytest.approx(10_000 / math.sqrt(1.25), abs=1)
    assert (second.time_ms, second.report_id) == (60_000, "60000")


def test_the_mean_of_noise_is_nearer_but_never_twice_as_exact_as_the_best_fix() -> None:
    drawn = random.Random(1)
    spots = [(60.0 * i, drawn.gauss(0, 15), 23.0) for i in range(60)]
    raw, found = track_of(*spots).fixes, accuracy.averaged(track_of(*spots)).fixes
    assert sum(map(off_m, found)) < 0.6 * sum(map(off_m, raw))
    assert min(fix.accuracy_mm for fix in found) == 11_500


@pytest.mark.parametrize(
    ("at_s", "north_m"), [(120, 70), (301, 0)], ids=["walks away", "arrives after 3 minutes or more"]
)
def test_a_disagreeing_position_begins_a_new_mean(at_s: float, north_m: float) -> None:
    track = track_of((0, 0, 20), (60, 0, 20), (at_s, north_m, 20))
    assert accuracy.averaged(track).fixes[-1] == track.fixes[-1]


@pytest.mark.parametrize(("jitters", "entered"), [(8, [2000, 1000]), (0, [2000, 1000, 100])])
def test_one_stray_position_of_a_phone_at_home_enters_no_ring(jitters: int, entered: list[int]) -> None:
    """The same last position sends somebody if no other position shows her elsewhere."""
    story = Story()
    story.case()
    for minute in range(jitters):
        story.at(60 * minute, "phone", 0, accuracy_m=20)
        story.at(60 * minute + 5, "tag", 130, accuracy_m=5)
    if not jitters:
        story.at(475, "tag", 130, accuracy_m=5)
    story.at(480, "phone", 25, accuracy_m=20)
    assert story.entered() == entered


def test_her_position_is_the_next_fix_once_she_leaves_home() -> None:
    story = Story()
    story.case()
    for minute in range(8):
        story.at(60 * minute, "phone", 0, accuracy_m=20)
        story.at(60 * minute + 5, "tag", 160, accuracy_m=5)
    story.at(480, "phone", 90, accuracy_m=20)
    [entered] = [alert for alert in story.of(AlertKind.RING_ENTERED) if alert.ring_mm == 100_000]
    assert entered.cause is not None and entered.cause.report_id == f"{T0_MS + 480_000}"
