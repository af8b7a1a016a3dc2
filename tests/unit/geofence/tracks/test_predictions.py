"""A prediction continues a measured movement: two positions that follow each other at once show their errors, not a speed."""

from __future__ import annotations

import pytest

from services.geofence.domain.entries import Demand, PositionSource
from services.geofence.domain.kinematics.fixes import Fix
from services.geofence.domain.kinematics.track import Piece, Track
from tests.support.geofence.stories import Story


def asked_at_home(*, moves_mps: float = 0) -> Story:
    """He is 900 m from her at second 600, at rest or on his way to her. His tag gives a position by Wi-Fi, and a second later one by
    satellites, 45 m nearer. Her phone reports 20 s after that."""
    story = Story()
    story.case()
    for at_s in range(0, 601, 60):
        story.at(at_s, "phone", 0)
        story.at(at_s + 0.5, "tag", 900 + moves_mps * (600 - at_s))
    story.at(606, "tag", 945 - moves_mps * 6, source=PositionSource.WIFI)
    story.at(607, "tag", 900 - moves_mps * 7)
    story.at(627, "phone", 0)
    return story


def sends_somebody(story: Story) -> bool:
    return any(alert.demand is Demand.RESPOND for alert in story.alerts)


def test_two_positions_within_a_second_send_nobody() -> None:
    story = asked_at_home()
    assert not sends_somebody(story) and 100 not in story.entered()


def test_a_wearer_on_the_way_is_still_assumed_to_go_on() -> None:
    """In 20 s he comes 280 m nearer at 14 m/s, and 700 m at 35 m/s."""
    assert 100 not in asked_at_home(moves_mps=14).entered()
    assert 100 in asked_at_home(moves_mps=35).entered()


def track(*moments_s: float) -> Track:
    """A device that moves at 10 m/s."""
    return Track([Fix(round(s * 1000), round(s * 1000), f"{s}", round(s * 10_000), 0, 0, 5_000) for s in moments_s])


@pytest.mark.parametrize("moments_s", [(0, 60), (0, 59, 60), (40, 50, 55, 60), (50, 50, 60)])
def test_the_velocity_is_that_since_ten_seconds_before_or_more(moments_s: tuple[float, ...]) -> None:
    expected = Piece(from_ms=60_000, to_ms=90_000, start=(600_000, 0, 0), end=(900_000, 0, 0))
    assert track(*moments_s).predicted(90_000) == expected


@pytest.mark.parametrize("moments_s", [(60,), (55, 60), (60, 60), (-121, 60)])
def test_without_such_a_position_nothing_is_predicted(moments_s: tuple[float, ...]) -> None:
    assert track(*moments_s).predicted(90_000) is None


def test_packed_fixes_give_the_same_prediction() -> None:
    packed, plain = track(*(s / 2 for s in range(200))), track(*(s / 2 for s in range(200)))
    packed.pack()
    assert packed.older is not None
    assert packed.predicted(120_000) == plain.predicted(120_000) is not None
