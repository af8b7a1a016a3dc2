"""Two people in one train: neither can have stayed behind, so they keep their distance until the train could have stopped."""

from __future__ import annotations

from itertools import pairwise

import pytest

from services.geofence.domain.demands import AlertKind
from services.geofence.domain.geometry import ecef_mm
from services.geofence.domain.kinematics import rings
from services.geofence.domain.kinematics.fixes import Fix
from services.geofence.domain.kinematics.rings import Sides
from services.geofence.domain.kinematics.track import Track
from tests.support.geofence.stories import Story, place_e7


def track(*spots: tuple[float, float]) -> Track:
    """Fixes at seconds and metres north."""
    found = Track()
    for at_s, north_m in spots:
        at_ms = round(at_s * 1000)
        found.add(Fix(at_ms, at_ms, f"{at_ms}", *ecef_mm(*place_e7(north_m)), 5000))
    return found


def ride(mps: float, ahead_m: float = 0.0, to_s: int = 61, every_s: int = 60, from_s: int = 0) -> Track:
    return track(*((at_s, ahead_m + mps * at_s) for at_s in range(from_s, to_s, every_s)))


@pytest.mark.parametrize(
    ("wearer", "device", "at_s", "expected"),
    [
        (ride(83), ride(83, 177), 90, True),
        (ride(83), ride(83, 177), 142, True),
        (ride(83), ride(83, 177), 145, False),  # the train could have stopped
        (ride(45), ride(45, 177), 100, True),
        (ride(45), ride(45, 177), 110, False),
        (ride(38), ride(38, 177), 70, False),  # a car could have stopped at once
        (ride(83), ride(-83, 177), 70, False),  # two trains pass each other
        (ride(83), ride(0), 70, False),
        (ride(83), ride(60), 70, True),
        (ride(83, to_s=1), ride(83, 177), 70, False),
        (ride(83), ride(83, to_s=400, every_s=200), 210, False),
    ],
)
def test_who_rides_along(wearer: Track, device: Track, at_s: float, expected: bool) -> None:
    assert rings.rides_along(wearer, device, round(at_s * 1000)) is expected


def test_they_keep_their_distance_from_the_last_known_moment_on() -> None:
    wearer = track(*((at_s, 83.0 * at_s) for at_s in range(0, 121, 15)))
    [pieces] = rings.assumed(Sides(wearer, ride(83, 177)), 45_000, 120_000)
    assert pieces[0].from_ms == 45_000 and pieces[-1].to_ms == 120_000
    assert all(a.to_ms == b.from_ms for a, b in pairwise(pieces))
    for piece in pieces:
        for point in (piece.start, piece.end):
            assert sum(mm * mm for mm in point) ** 0.5 == pytest.approx(177_000, abs=300)


def test_a_presence_within_one_train_still_sends_somebody() -> None:
    story = Story()
    story.case()
    for at_s in range(0, 600, 15):
        if at_s % 60 == 0:
            story.at(at_s, "phone", 83 * at_s + 177)
        # From minute 5 on he walks through the train to her.
        story.at(at_s, "tag", 83 * at_s + min(150, max(0, at_s - 300)))
    responses = [alert for alert in story.of(AlertKind.RING_ENTERED) if alert.ring_mm == 100_000]
    assert len(responses) == 2
    assert not story.of(AlertKind.CONTACT_PREDICTED)
