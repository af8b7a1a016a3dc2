"""Receivers that have just started report their previous location. Which all-clears that excuses, and which it doesn't."""

from __future__ import annotations

import pytest

from services.geofence.domain import codec
from services.geofence.domain.demands import AlertKind
from services.geofence.domain.entries import Demand
from tests.support.geofence.stories import Story, circle

FAR_M = 60_000


def is_cleared(story: Story) -> bool:
    """Whether the ring that demands a response is cleared. It must have been entered, and the desks notified if it isn't cleared."""
    assert 100 in story.entered()
    suspected = [alert.demand for alert in story.of(AlertKind.SPOOFING_SUSPECTED)]
    cleared = 100_000 in [alert.ring_mm for alert in story.of(AlertKind.RING_CLEARED)]
    assert suspected == ([] if cleared else [Demand.NOTIFY])
    return cleared


def seldom_reporting_tag() -> Story:
    """He drives to her home with a tag that reports four times in 442 s, is there at the fourth, and then reports from far away."""
    story = Story()
    story.case(persons=[], places=[circle("home", 0, 0, radius_m=50)])
    for at_s, north_m in ((0, 3_500), (150, 3_500), (300, 1_700), (442, 30)):
        story.at(at_s, "tag", north_m)
    for at_s in range(482, 3_600, 30):
        story.at(at_s, "tag", FAR_M)
    return story


def order_at_her_door(*, worn_since_s: int = 0, restart: bool = False) -> Story:
    """He stands at her door when the order is recorded. A minute later his tag reports from far away."""
    story = Story()
    for at_s in range(worn_since_s, 3_601, 60):
        story.at(at_s, "tag", 60)
    if restart:
        story.state = codec.decode(codec.encode(story.state))
    story.case(3_630, persons=[], places=[circle("home", 0, 0, radius_m=30)])
    story.at(3_660, "tag", 60)
    for at_s in range(3_720, 7_200, 60):
        story.at(at_s, "tag", FAR_M)
    return story


def new_phone_near_him(count: int, every_s: int) -> Story:
    """She switches a new phone on. It first reports `count` times where it was last, in his street, and from then on where she is."""
    story = Story()
    story.case()
    reports = {600 + number * every_s: 0 for number in range(count)}
    begins_s = max(reports) + every_s
    reports |= dict.fromkeys(range(begins_s, begins_s + 1_800, max(15, every_s)), FAR_M)
    for at_s in range(begins_s + 1_800):
        if at_s % 15 == 0:
            story.at(at_s, "tag", 30)
        if at_s in reports:
            story.at(at_s, "phone", reports[at_s])
    return story


def test_a_tag_that_reported_four_times_in_seven_minutes_has_started() -> None:
    assert not is_cleared(seldom_reporting_tag())


def test_a_tag_worn_for_an_hour_has_started_when_the_order_comes() -> None:
    assert not is_cleared(order_at_her_door())


def test_a_tag_first_switched_on_before_the_order_has_just_started() -> None:
    assert is_cleared(order_at_her_door(worn_since_s=3_540))


def test_a_restart_before_the_order_changes_nothing() -> None:
    assert order_at_her_door(restart=True).outputs == order_at_her_door().outputs


@pytest.mark.parametrize(
    ("count", "every_s", "cleared"),
    [
        (5, 1, True),
        (60, 1, True),
        (61, 1, False),  # a minute
        (4, 15, True),
        (5, 15, False),  # a minute
        (3, 60, True),
        (4, 60, False),  # 3 minutes
        (2, 179, True),
        (2, 180, False),  # 3 minutes
    ],
)
def test_how_long_a_new_phone_may_report_its_previous_location(count: int, every_s: int, cleared: bool) -> None:
    assert is_cleared(new_phone_near_him(count, every_s)) is cleared
