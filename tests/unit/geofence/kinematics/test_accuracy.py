"""Accuracy by scatter: what a device's own fixes say about the accuracy that it states."""

from __future__ import annotations

import math
import random
from statistics import median

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.geofence.domain.demands import AlertKind
from services.geofence.domain.geometry import ecef_mm
from services.geofence.domain.kinematics import accuracy
from services.geofence.domain.kinematics.accuracy import R68_PER_SIGMA
from services.geofence.domain.kinematics.fixes import Fix
from services.geofence.domain.kinematics.track import Track
from tests.support.geofence.stories import Story, place_e7


def track(
    seed: int, *, sigma_m: float, mps: float = 0.0, accuracy_m: float = 5, every_s: int = 15, turn: float = 0
) -> Track:
    """40 fixes with independent errors of a device that moves at one speed and turns by an angle at each fix."""
    rng, found = random.Random(seed), Track()
    north_m = 0.0
    east_m = 0.0
    heading = 0.3
    for i in range(40):
        heading += turn
        north_m += mps * every_s * math.cos(heading)
        east_m += mps * every_s * math.sin(heading)
        place = place_e7(north_m + rng.gauss(0, sigma_m), east_m + rng.gauss(0, sigma_m))
        at_ms = i * every_s * 1000
        found.add(Fix(at_ms, at_ms, f"{i}", *ecef_mm(*place), round(accuracy_m * 1000)))
    return found


@pytest.mark.parametrize("every_s", [5, 60])
@pytest.mark.parametrize("sigma_m", [5, 40, 60])
def test_the_scatter_at_rest_is_measured(sigma_m: float, every_s: int) -> None:
    shares = []
    for seed in range(60):
        observed = accuracy.observed_error_mm(track(seed, sigma_m=sigma_m, every_s=every_s))
        assert observed is not None
        shares.append(observed / (R68_PER_SIGMA * sigma_m * 1000))
    assert 0.6 < median(shares) < 1.5
    # A few fixes can look like a movement, and then no scatter is seen.
    assert sum(0.3 < share < 2 for share in shares) >= 54


@given(st.integers(0, 10_000), st.floats(0, 85), st.sampled_from([0.0, 0.1, 0.5]))
@settings(max_examples=60, deadline=None)
def test_a_movement_is_no_scatter(seed: int, mps: float, turn: float) -> None:
    observed = accuracy.observed_error_mm(track(seed, sigma_m=3, mps=mps, turn=turn))
    assert observed is not None and observed < 2 * R68_PER_SIGMA * 3_000
    assert accuracy.floor_mm(track(seed, sigma_m=3, mps=mps, turn=turn)) == 0


@pytest.mark.parametrize("mps", [0, 1.4])
def test_an_accuracy_that_the_scatter_contradicts_is_not_believed(mps: float) -> None:
    for seed in range(30):
        assert 20_000 < accuracy.floor_mm(track(seed, sigma_m=40, mps=mps, accuracy_m=1)) <= accuracy.MAX_FLOOR_MM
        assert accuracy.credible_mm(track(seed, sigma_m=40, mps=mps, accuracy_m=1)) > 20_000


def test_honest_accuracies_are_believed() -> None:
    contradicted = [accuracy.floor_mm(track(seed, sigma_m=20, accuracy_m=20 * R68_PER_SIGMA)) for seed in range(300)]
    assert not any(contradicted)


def test_single_jumps_and_too_few_fixes_are_no_scatter() -> None:
    still = track(1, sigma_m=2)
    for i in (12, 25):
        still.fixes[i] = still.fixes[i]._replace(x_mm=still.fixes[i].x_mm + 900_000)
    assert accuracy.floor_mm(still) == 0
    few = Track(track(1, sigma_m=40, accuracy_m=1).fixes[: accuracy.MIN_SCATTER_FIXES - 1])
    assert accuracy.observed_error_mm(few) is None and accuracy.floor_mm(few) == 0
    apart = track(1, sigma_m=40, accuracy_m=1, every_s=200)
    assert accuracy.observed_error_mm(apart) is None


def play(north_m: float, *, sigma_m: float, accuracy_m: float, seed: int = 5, minutes: int = 60) -> Story:
    """A tag that scatters about one place, and her phone."""
    rng, story = random.Random(seed), Story()
    story.case()
    for at_s in range(0, minutes * 60, 15):
        if at_s % 60 == 0:
            story.at(at_s, "phone", 0, accuracy_m=10)
        story.at(at_s, "tag", north_m + rng.gauss(0, sigma_m), rng.gauss(0, sigma_m), accuracy_m=accuracy_m)
    return story


def responses(story: Story) -> int:
    return len([alert for alert in story.of(AlertKind.RING_ENTERED) if alert.ring_mm == 100_000])


def test_a_device_that_is_too_sure_sends_somebody_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def at_150_m() -> list[int]:
        return [responses(play(150, sigma_m=40, accuracy_m=1, seed=seed)) for seed in range(3)]

    assert at_150_m() == [1, 1, 1]
    with monkeypatch.context() as patch:
        patch.setattr(accuracy, "MAX_FLOOR_MM", 0)
        assert sum(at_150_m()) > 6


def test_scatter_never_hides_a_presence() -> None:
    """Also the greatest floor leaves every position on the ring's line likely enough."""
    for north_m in (0, 50, 95):
        assert responses(play(north_m, sigma_m=90, accuracy_m=1, minutes=20)) == 1
