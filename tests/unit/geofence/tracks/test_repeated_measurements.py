"""One measurement counts once, however many reports repeat it: a copy confirms nothing, and enters and clears no ring."""

from __future__ import annotations

import pytest

from services.geofence.domain import codec
from services.geofence.domain.alerts import AnomalyKind
from services.geofence.domain.demands import AlertKind
from services.geofence.domain.entries import Demand
from tests.support.geofence.stories import T0_MS, Story, circle


def begun() -> Story:
    """A case of a place."""
    story = Story()
    story.case(persons=[], places=[circle("home", 0, 0, radius_m=20)])
    return story


def measured(story: Story, fix_s: float, north_m: float, *, copies: int = 0, accuracy_m: float = 5) -> None:
    """A position of the tag, and copies of it under other ids, each a second later."""
    for number in range(copies + 1):
        story.at(fix_s + number, "tag", north_m, fix_s=fix_s, report_id=f"{fix_s}-{number}", accuracy_m=accuracy_m)


def repeated_error() -> Story:
    """He is 5 km away. One position of his tag is wrong, at her door, and comes twice."""
    story = begun()
    for at_s in range(0, 300, 60):
        measured(story, at_s, 5_000)
    measured(story, 300, 30, copies=1)
    for at_s in range(360, 900, 60):
        measured(story, at_s, 5_000)
    return story


def repeated_departure() -> Story:
    """He stands at her door. Two positions of his tag are wrong, 400 m away, and each comes twice."""
    story = begun()
    for at_s in range(0, 300, 60):
        measured(story, at_s, 30)
    for at_s in (300, 360):
        measured(story, at_s, 400, copies=1)
    for at_s in range(420, 900, 60):
        measured(story, at_s, 30)
    return story


def vague_position() -> Story:
    """A radio cell puts him at her door, to 500 m. His tag sends this position thirty times."""
    story = begun()
    measured(story, 0, 20, copies=29, accuracy_m=500)
    return story


def responses(story: Story) -> list[float]:
    """Seconds at which somebody is sent."""
    return [(alert.decided_at_ms - T0_MS) / 1000 for alert in story.alerts if alert.demand is Demand.RESPOND]


def cleared(story: Story) -> list[int]:
    return [alert.ring_mm // 1000 for alert in story.of(AlertKind.RING_CLEARED)]


def test_a_copy_of_a_wrong_position_sends_nobody() -> None:
    story = repeated_error()
    assert not responses(story)
    possible = story.of(AlertKind.UNKNOWN_NEAR)[0]
    assert (possible.demand, possible.anomaly) == (Demand.NOTIFY, AnomalyKind.JUMP)
    assert possible.decided_at_ms == T0_MS + 300_000


def test_two_positions_that_come_twice_are_no_four_that_agree() -> None:
    story = repeated_departure()
    assert 100 in story.entered() and 100 not in cleared(story)


def test_copies_of_a_vague_position_make_it_no_sharper() -> None:
    assert not responses(vague_position())


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("ahead_s", [0, 50])
@pytest.mark.parametrize("reports", [1, 40])
def test_a_copy_is_known_among_many_reports_and_by_a_clock_that_is_ahead(
    reports: int, ahead_s: int, *, restart: bool
) -> None:
    story = begun()
    for number in range(reports):
        story.at(15 * number, "tag", 5_000 + 20 * number, fix_s=15 * number + ahead_s, report_id=f"r{number}")
    if restart:
        story.state = codec.decode(codec.encode(story.state))
    before = codec.encode(story.state)
    for number in range(reports):
        story.at(15 * reports, "tag", 5_000 + 20 * number, fix_s=15 * number + ahead_s, report_id=f"copy-{number}")
    assert story.state.tracks["tag"].count == reports
    assert codec.decode(before).tracks["tag"].all_packed() == story.state.tracks["tag"].all_packed()


def test_a_copy_shows_that_the_device_is_heard_and_not_where_it_is() -> None:
    story = begun()
    measured(story, 0, 5_000)
    for at_s in range(60, 1_900, 60):
        story.at(at_s, "tag", 5_000, fix_s=0, report_id=f"copy-{at_s}")
    assert story.state.heard_at_ms["tag"] == T0_MS + 1_860_000
    assert not story.of(AlertKind.SILENT) and story.state.cases["case-1"].unseen


def test_two_places_at_one_time_are_two_measurements() -> None:
    story = begun()
    measured(story, 0, 5_000)
    story.at(1, "tag", 5_001, fix_s=0, report_id="another")
    assert story.state.tracks["tag"].count == 2
