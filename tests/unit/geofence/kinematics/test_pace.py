"""An unseen wearer is assumed to go on at the own pace: the notices that follow, and the alerts that are only recorded."""

from __future__ import annotations

from typing import Any

import pytest

from services.geofence.domain.demands import AlertKind, Leg
from services.geofence.domain.entries import Demand, Rules
from tandem.common.v1 import log_pb2
from tests.support.geofence.stories import T0_MS, Story, circle

RECORD = Demand.RECORD
NOTIFY = Demand.NOTIFY
RESPOND = Demand.RESPOND
NO_PHONE = log_pb2.ProtectedTarget(person_id="p")
EDGE_M = 20 + 100 + 5
"""A place's own radius, the ring that demands a response, and the accuracy."""


def last_seen(metres: float, mps: float = 0, for_s: int = 120, accuracy_m: float = 5) -> Story:
    """A wearer who comes from farther away at one speed, last seen at second 0 at this distance from a home."""
    story = Story()
    story.case(-for_s - 1, persons=[NO_PHONE], places=[circle("home", 0, 0, radius_m=20)])
    for at_s in range(-for_s, 1, 15):
        story.at(at_s, "tag", metres - mps * at_s, accuracy_m=accuracy_m)
    return story


def near(story: Story) -> list[tuple[Demand, Any]]:
    return [(alert.demand, (alert.at_ms - T0_MS) / 1000) for alert in story.of(AlertKind.UNKNOWN_NEAR)]


def test_a_stationary_wearer_is_only_recorded_until_reachable_on_foot() -> None:
    story = last_seen(3000)
    story.tick(1430)
    assert near(story) == [(RECORD, pytest.approx((3000 - EDGE_M) / 14, abs=0.01))]
    assert not story.state.incidents and story.alerts[-1].destinations == ()
    story.tick(1440)
    assert near(story)[1:] == [(NOTIFY, pytest.approx((3000 - EDGE_M) / 2, abs=0.01))]
    notice = story.of(AlertKind.UNKNOWN_NEAR)[1]
    assert notice.destinations == ((Leg.PROBATION, "w"), (Leg.POLICE, "order-1/home"))
    story.at(1500, "tag", 3000)
    assert near(story)[2:] == [(RECORD, 1500)]


def test_a_driving_wearer_is_assumed_to_drive_on() -> None:
    story = last_seen(4000, mps=10)
    story.tick(500)
    [_, (demand, at_s)] = near(story)
    # The accuracies of both ends reduce the speed measured over 30 s to 2 min a little.
    assert demand is NOTIFY and (4000 - EDGE_M) / 10 <= at_s <= (4000 - EDGE_M) / 10 + 5


def test_the_direction_of_the_last_movement_does_not_matter() -> None:
    story = last_seen(4000, mps=-10)
    story.tick(500)
    assert [demand for demand, _ in near(story)] == [RECORD, NOTIFY]


def test_a_wearer_who_drove_a_minute_ago_has_a_car() -> None:
    story = last_seen(4000, mps=10)
    for at_s in range(15, 75, 15):
        story.at(at_s, "tag", 4000)
    story.tick(700)
    assert [demand for demand, _ in near(story)] == [RECORD, NOTIFY]
    assert near(story)[1][1] < 700


def test_nobody_goes_on_faster_than_the_bound() -> None:
    story = last_seen(4000, mps=40)
    story.tick(400)
    assert near(story) == [(NOTIFY, pytest.approx((4000 - EDGE_M) / 14, abs=0.01))]


def test_a_movement_within_the_accuracies_is_no_pace() -> None:
    story = Story()
    story.case(-200, persons=[NO_PHONE], places=[circle("home", 0, 0, radius_m=20)])
    for i, at_s in enumerate(range(-120, 1, 15)):
        story.at(at_s, "tag", 4000 + 150 * (i % 2), accuracy_m=100)
    story.tick(1000)
    assert [demand for demand, _ in near(story)] == [RECORD]


def test_a_single_known_position_makes_any_pace_likely() -> None:
    story = Story()
    story.case(0, persons=[NO_PHONE], places=[circle("home", 0, 0, radius_m=20)])
    story.at(0, "tag", 4000)
    story.tick(400)
    assert near(story) == [(NOTIFY, pytest.approx((4000 - EDGE_M) / 14, abs=0.01))]


def test_a_stationary_wearer_unseen_for_half_an_hour_is_notified() -> None:
    story = last_seen(6500)
    story.tick(1790)
    assert [demand for demand, _ in near(story)] == [RECORD]
    story.tick(1800)
    assert near(story)[1:] == [(NOTIFY, 1800)]


def test_the_half_hour_notice_comes_even_if_she_has_gone_away() -> None:
    story = Story()
    story.case(-121)
    for at_s in range(-120, 1, 15):
        story.at(at_s, "tag", 6000)
        story.at(at_s, "phone", 0)
    for at_s in range(60, 2000, 60):
        story.at(at_s, "phone", 0 if at_s < 600 else -30_000)
    assert [demand for demand, _ in near(story)] == [RECORD, NOTIFY]
    assert near(story)[1][1] == 1800


@pytest.mark.parametrize("sign", ["SHUTDOWN", "STRAP_OPEN"])
def test_after_a_sign_nobody_waits_for_a_pace(sign: str) -> None:
    story = last_seen(4000)
    story.says(10, "tag", sign)
    story.tick(400)
    assert near(story) == [(RESPOND, pytest.approx((4000 - EDGE_M) / 14, abs=0.01))]


def test_within_a_notifying_ring_the_desks_are_notified_at_once_and_a_response_follows_by_the_pace() -> None:
    story = last_seen(990)
    story.tick(600)
    assert near(story) == [(NOTIFY, 180), (RESPOND, pytest.approx((990 - EDGE_M) / 2, abs=0.01))]


def test_the_speed_on_foot_is_a_rule() -> None:
    story = last_seen(4000)
    story.enter(1, Rules(foot_mps=5))
    story.tick(800)
    assert near(story)[1:] == [(NOTIFY, pytest.approx((4000 - EDGE_M) / 5, abs=0.01))]
