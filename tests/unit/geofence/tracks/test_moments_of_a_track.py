"""The assumed position of a device at a moment is where its assumed movement from that moment begins."""

from __future__ import annotations

import random

import pytest

from services.geofence.domain.kinematics import rings
from services.geofence.domain.kinematics.fixes import Fix
from services.geofence.domain.kinematics.track import UNKNOWN_AFTER_MS, Track


@pytest.mark.parametrize("seed", range(30))
def test_the_position_at_a_moment_is_the_start_of_the_movement(seed: int) -> None:
    rng = random.Random(seed)
    track, time_ms = Track(), 0
    for number in range(60):
        time_ms += rng.choice([0, 1, 15_000, 60_000, UNKNOWN_AFTER_MS, UNKNOWN_AFTER_MS + 1])
        x_mm, y_mm, z_mm = (rng.randrange(-(10**10), 10**10) for _ in range(3))
        track.add(Fix(time_ms, time_ms, f"r-{number:02}", x_mm, y_mm, z_mm, accuracy_mm=10_000))
    if seed % 2:
        track.pack()
    moments_ms = [fix.time_ms + off_ms for fix in Track(list(track.newest(60))).recent for off_ms in (-1, 0, 1, 7_001)]
    assert rings.assumed_at(track, -1) is None
    for at_ms in [*moments_ms, time_ms + UNKNOWN_AFTER_MS * 2]:
        pieces = list(track.assumed(at_ms, at_ms))
        assert rings.assumed_at(track, at_ms) == (pieces[0].start if pieces else None)


def test_a_device_without_a_fix_has_no_position() -> None:
    assert rings.assumed_at(Track(), 0) is None
