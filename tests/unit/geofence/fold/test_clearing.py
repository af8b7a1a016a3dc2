"""Clear a ring that demands a response only after agreeing positions: departures, non-departures and receiver errors of a while."""

from __future__ import annotations

import pytest

from services.geofence.domain.alerts import Alert
from services.geofence.domain.demands import AlertKind
from tandem.common.v1 import log_pb2
from tests.support.geofence.stories import T0_MS, Story, circle


def cleared(story: Story) -> list[tuple[int, float]]:
    """Radius in metres and second of each clearing's decision."""
    return [(alert.ring_mm // 1000, _s(alert)) for alert in story.of(AlertKind.RING_CLEARED)]


def _s(alert: Alert) -> float:
    return (alert.decided_at_ms - T0_MS) / 1000


def test_a_response_ring_clears_only_after_four_agreeing_positions_of_each_side() -> None:
    """He reports every 15 s and has been away for minutes. Her phone reports each minute and must give four positions."""
    story = Story()
    story.case()
    for at_s in range(0, 421, 15):
        if at_s % 60 == 0:
            story.at(at_s, "phone", 0)
        story.at(at_s + 1, "tag", 60 if at_s < 120 else 500)
    # He left between 106 and 121 s. Her positions of 120, 180, 240 and 300 s confirm it, and his since then.
    assert cleared(story) == [(100, 300)]


def test_a_ring_round_a_place_needs_only_the_wearers_positions_to_clear() -> None:
    story = Story(clear_after_s=10)
    story.case(persons=[], places=[circle("school", 0, 0, radius_m=30)])
    story.at(0, "tag", 60)
    for at_s in (15, 30, 45, 60):
        assert not cleared(story)
        story.at(at_s, "tag", 500)
    assert cleared(story) == [(100, 60)]


@pytest.mark.parametrize("wrong", [2, 3])
def test_a_receiver_error_of_a_minute_is_no_departure_and_no_second_arrival(wrong: int) -> None:
    story = Story(clear_after_s=10)
    story.case(persons=[], places=[circle("school", 0, 0, radius_m=30)])
    for number in range(12):
        story.at(20 * number, "tag", 300 if 5 <= number < 5 + wrong else 60)
    assert story.entered() == [2000, 1000, 100]
    assert not cleared(story)


def test_a_rarely_reporting_side_clears_by_the_positions_of_ten_minutes() -> None:
    """His position is unknown for minutes between reports, so there are never four positions in ten minutes."""
    story = Story()
    story.case(persons=[], places=[circle("school", 0, 0, radius_m=30)])
    story.at(0, "tag", 60)
    for at_s in (500, 1000):
        story.at(at_s, "tag", 500)
        assert not cleared(story)
    story.at(1070, "tag", 500)
    assert cleared(story) == [(100, 1070)]


def test_a_position_inside_within_ten_minutes_delays_the_clearing() -> None:
    story = Story()
    story.case(persons=[], places=[circle("school", 0, 0, radius_m=30)])
    for at_s, north_m in ((0, 60), (500, 60), (1000, 500), (1070, 500)):
        story.at(at_s, "tag", north_m)
    assert not cleared(story)
    story.at(1140, "tag", 500)
    assert cleared(story) == [(100, 1140)]


def test_no_wider_ring_is_cleared_before_a_narrower_one() -> None:
    """He is driven off, and her phone reports slowly: all rings are left together and cleared from the narrowest on."""
    story = Story()
    story.case()
    for at_s in range(0, 481, 15):
        if at_s % 60 == 0:
            story.at(at_s, "phone", 0)
        story.at(at_s + 1, "tag", 60 if at_s < 120 else min(60 + 20 * (at_s - 120), 5000))
        radii = [radius for radius, _ in cleared(story)]
        assert radii == [100, 1000, 2000][: len(radii)]
    assert [radius for radius, _ in cleared(story)] == [100, 1000, 2000]
    assert story.alerts[-1].incident_ends


def test_a_ring_that_sends_nobody_is_cleared_after_its_minute() -> None:
    story = Story()
    story.case()
    for at_s in range(0, 421, 60):
        story.at(at_s, "phone", 0)
        story.at(at_s + 1, "tag", 1900 if at_s < 60 else 2500)
    # Both positions are known for sure until hers of 120 s, a minute after he left; no fourth position is needed.
    assert cleared(story) == [(2000, 121)]


def _silent_phone() -> Story:
    """Her phone is locked after two minutes, her pager reports on. He comes to her door, leaves, and comes back after an hour."""
    story = Story()
    story.case(persons=[log_pb2.ProtectedTarget(person_id="p", device_ids=["pager", "phone"])])
    for at_s in range(0, 7201, 15):
        story.at(at_s, "pager", 0)
        if at_s <= 120:
            story.at(at_s + 0.5, "phone", 0)
        coming_m, leaving_m = max(60, 3000 - 10 * at_s), min(5000, 60 + 10 * (at_s - 600))
        story.at(at_s + 1, "tag", coming_m if at_s < 600 else max(60, leaving_m - max(0, 10 * (at_s - 5400))))
    return story


def test_a_device_of_hers_that_fell_silent_holds_no_ring_open_while_another_reports() -> None:
    story = _silent_phone()
    assert [radius for radius, _ in cleared(story)] == [100, 1000, 2000]
    assert story.entered() == [2000, 1000, 100] * 2
