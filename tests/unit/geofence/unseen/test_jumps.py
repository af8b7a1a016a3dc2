"""Jumps: a wearer near a target whose tag jumps away is responded to as one whose tag falls silent."""

from __future__ import annotations

from typing import Any

import pytest

from services.geofence.domain.alerts import Alert
from services.geofence.domain.demands import AlertKind
from services.geofence.domain.entries import Demand
from tests.support.geofence.encounters import encounter
from tests.support.geofence.stories import T0_MS, Story, circle

RECORD = Demand.RECORD
NOTIFY = Demand.NOTIFY
RESPOND = Demand.RESPOND
TOWN_M = 30_000


def walks_past(**case: Any) -> Story:
    """He walks past her home at 250 m until second 600; the ring of 1 km is entered, and nobody was sent."""
    story = Story()
    story.case(**case)
    for at_s in range(0, 601, 30):
        if at_s % 60 == 0:
            story.at(at_s, "phone", 0)
        story.at(at_s, "tag", 250, 1400 - at_s * 2)
    return story


def go_on(story: Story, from_s: int, to_s: int, east_m: float, *, mps: float = 1.5) -> None:
    """Her phone reports each minute, and his tag each half minute, from a place on."""
    for at_s in range(from_s, to_s, 30):
        if at_s % 60 == 0:
            story.at(at_s, "phone", 0)
        story.at(at_s, "tag", 250, east_m + mps * (at_s - from_s))


def unseen(story: Story) -> list[tuple[Demand, int]]:
    """Demand and second of what was emitted of the unseen wearer, without the notices of a position that may be near."""
    return [
        (a.demand, (a.at_ms - T0_MS) // 1000) for a in story.of(AlertKind.UNKNOWN_NEAR) if not a.ring_mm and is_kept(a)
    ]


def is_kept(alert: Alert) -> bool:
    return alert.demand is not RECORD or bool(alert.destinations)


def silent() -> list[tuple[Demand, int]]:
    """What the same wearer's silence from second 600 on gives."""
    story = walks_past()
    for at_s in range(660, 1801, 60):
        story.at(at_s, "phone", 0)
    return unseen(story)


def test_a_jump_gives_what_silence_gives() -> None:
    story = walks_past()
    go_on(story, 630, 1800, TOWN_M)
    assert unseen(story) == silent() == [(NOTIFY, 780), (RESPOND, 790)]


def test_a_jump_by_one_position_and_silence_give_what_silence_gives() -> None:
    story = walks_past()
    story.at(630, "tag", 250, TOWN_M)
    for at_s in range(660, 1801, 60):
        story.at(at_s, "phone", 0)
    assert unseen(story) == silent()


def test_a_jump_away_from_a_place_gives_what_silence_gives() -> None:
    story = walks_past(persons=[], places=[circle("home", 0, 0, radius_m=20)])
    go_on(story, 630, 1800, TOWN_M)
    assert unseen(story) == [(NOTIFY, 780), (RESPOND, 790)]


def test_a_jump_for_two_minutes_sends_nobody() -> None:
    story = walks_past()
    go_on(story, 630, 750, TOWN_M)
    go_on(story, 750, 1800, 200)
    assert not unseen(story)


def test_a_position_that_a_vehicle_can_have_reached_ends_it() -> None:
    story = walks_past()
    go_on(story, 630, 900, TOWN_M)
    go_on(story, 900, 1500, 200)
    assert unseen(story) == [(NOTIFY, 780), (RESPOND, 790), (RECORD, 900)]


def test_a_wearer_who_drives_off_is_seen() -> None:
    story = walks_past()
    go_on(story, 630, 1800, 700, mps=20)
    assert all(demand is RECORD for demand, _ in unseen(story))


def test_nobody_is_sent_during_an_encounter() -> None:
    story = walks_past(encounters=[encounter(until_s=1600)])
    go_on(story, 630, 1800, TOWN_M)
    assert unseen(story) == [(NOTIFY, 780), (RESPOND, 1600)]


@pytest.mark.parametrize("distance_m", [3000, 9000])
def test_a_jump_of_somebody_who_was_never_near_sends_nobody(distance_m: int) -> None:
    story = Story()
    story.case()
    go_on(story, 0, 600, distance_m)
    go_on(story, 600, 1800, TOWN_M)
    assert not any(alert.demand is RESPOND for alert in story.alerts)
