"""A withheld all-clear holds for hours, also after the tracks of both sides have dropped the positions of the last near moment."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from services.geofence.domain import codec
from services.geofence.domain.demands import AlertKind
from services.geofence.domain.detectors.withheld_clearing import LAST_NEAR, WAYS, WITHHELD
from services.geofence.domain.entries import Demand
from tests.support.geofence.stories import Story, circle

HOUR_S = 3_600
PLACES: dict[str, Any] = {"persons": [], "places": [circle("home", 0, 0, radius_m=30)]}


class Report(NamedTuple):
    at_s: int
    device_id: str
    north_m: float


def together(tag_s: int, phone_s: int, *, until_s: int, far_m: float = 20_000, who: str = "tag") -> Iterator[Report]:
    """They are 50 m apart for some minutes. Then one device says that it is far away, and goes on saying so."""
    jumps_s = max(600, 5 * max(tag_s, phone_s))
    here_m = {"phone": 0.0, "tag": 50.0}
    for at_s in range(until_s):
        for device_id, every_s, offset_s in (("phone", phone_s, 0), ("tag", tag_s, 1)):
            if at_s % every_s == offset_s:
                is_false = device_id == who and at_s >= jumps_s
                yield Report(at_s, device_id, far_m if is_false else here_m[device_id])


def begun(**changes: Any) -> Story:
    story = Story()
    story.case(**changes)
    return story


def deliver(story: Story, reports: Iterator[Report] | list[Report], *, restart_every: int = 0) -> Story:
    for number, (at_s, device_id, north_m) in enumerate(reports):
        if restart_every and number % restart_every == 0:
            story.state = codec.decode(codec.encode(story.state))
        story.at(at_s, device_id, north_m)
    return story


def cleared(story: Story) -> list[int]:
    return [alert.ring_mm // 1000 for alert in story.of(AlertKind.RING_CLEARED)]


def assert_withheld(story: Story) -> None:
    assert not cleared(story)
    suspected = story.of(AlertKind.SPOOFING_SUSPECTED)
    assert [alert.demand for alert in suspected] == [Demand.NOTIFY]
    assert None not in WITHHELD.of(story.state.cases["case-1"]).values()


@pytest.mark.parametrize("who", ["tag", "phone"])
@pytest.mark.parametrize(
    ("tag_s", "phone_s", "hours"),
    [
        (60, 60, 6),
        (60, 150, 6),
        (150, 60, 6),
        (150, 150, 6),
        (15, 15, 3),
        (15, 150, 3),
        (150, 15, 3),
        *(
            pytest.param(*pair, 4, marks=pytest.mark.soak)
            for pair in ((5, 5), (5, 15), (15, 5), (5, 30), (30, 5), (5, 60), (60, 5), (5, 150), (150, 5), (30, 60))
        ),
    ],
)
def test_a_withheld_clearing_about_a_person_holds(tag_s: int, phone_s: int, hours: int, who: str) -> None:
    story = deliver(begun(), together(tag_s, phone_s, until_s=hours * HOUR_S, who=who))
    assert_withheld(story)
    tracks = story.state.tracks.values()
    assert all(track.first_ms > min(LAST_NEAR.of(story.state.cases["case-1"]).values()) for track in tracks)
    assert {key.device_id for key in WAYS.of(story.state.cases["case-1"])} == {"tag", "phone"}


@pytest.mark.parametrize("jumps_s", range(600, 1_320, 120))
@pytest.mark.parametrize("changes", [PLACES, {}], ids=["place", "person"])
def test_the_speed_before_a_jump_stays_known(jumps_s: int, changes: dict[str, Any]) -> None:
    """From standing no vehicle makes 4.5 km in a minute. A train makes it, if nothing says that he was standing."""
    story = begun(**changes)
    for at_s in range(0, 4 * HOUR_S, 60):
        if not changes:
            story.at(at_s, "phone", 0)
        story.at(at_s + 1, "tag", 50 if at_s < jumps_s else 4_500)
    assert_withheld(story)


def test_a_restart_at_any_time_changes_nothing() -> None:
    reports = list(together(60, 150, until_s=4 * HOUR_S))
    whole = deliver(begun(), reports)
    for every in (1, 40):
        restarted = deliver(begun(), reports, restart_every=every)
        assert restarted.outputs == whole.outputs
        assert codec.encode(restarted.state) == codec.encode(whole.state)


def test_an_evaluator_that_starts_late_from_a_checkpoint_gives_the_same_bytes() -> None:
    reports = list(together(60, 60, until_s=4 * HOUR_S))
    story, checkpoints = begun(), []
    for number, report in enumerate(reports):
        if number % 60 == 0:
            checkpoints.append((number, len(story.outputs), codec.encode(story.state)))
        deliver(story, [report])
    assert len(checkpoints) > 6
    for number, outputs, checkpoint in checkpoints:
        late = begun()
        late.state, late.outputs = codec.decode(checkpoint), []
        deliver(late, reports[number:])
        assert late.outputs == story.outputs[outputs:]
        assert codec.encode(late.state) == codec.encode(story.state)


def test_he_comes_back_and_walks_away_after_hours() -> None:
    story = deliver(begun(), together(60, 60, until_s=4 * HOUR_S))
    for at_s in range(4 * HOUR_S, 4 * HOUR_S + 600, 60):
        story.at(at_s, "phone", 0)
        story.at(at_s + 1, "tag", 50)
    assert [alert.demand for alert in story.of(AlertKind.RING_ENTERED)][-1] is Demand.RESPOND
    for at_s in range(4 * HOUR_S + 600, 5 * HOUR_S, 60):
        story.at(at_s, "phone", 0)
        story.at(at_s + 1, "tag", 50 + 1.4 * (at_s - 4 * HOUR_S - 600))
    assert cleared(story) == [100, 1000, 2000]
    case_state = story.state.cases["case-1"]
    assert not LAST_NEAR.of(case_state) and not WAYS.of(case_state)


def silent_for_hours(order: tuple[str, str]) -> Story:
    """Both devices fall silent for hours after a leap, so the hourly sweep drops their positions. `order`: who reported first."""
    story = begun()
    for device_id in order:
        story.at(0, device_id, {"phone": 0, "tag": 50}[device_id])
    for at_s in range(15, 1_200, 15):
        for device_id in ("phone", "tag"):
            story.at(at_s, device_id, 0 if device_id == "phone" else 50 if at_s < 600 else 20_000)
    for at_s in range(1_260, 5 * HOUR_S, 60):
        story.tick(at_s)
    for at_s in range(5 * HOUR_S, 5 * HOUR_S + 900, 15):
        story.at(at_s, "phone", 0)
        story.at(at_s, "tag", 20_000)
    return story


def test_the_order_of_first_reports_does_not_decide_which_ways_are_kept() -> None:
    stories = [silent_for_hours(order) for order in (("tag", "phone"), ("phone", "tag"))]
    ways, other_ways = (WAYS.of(story.state.cases["case-1"]) for story in stories)
    assert ways == other_ways
    assert {key.device_id for key in ways if key.pair} == {"tag", "phone"}
    for story in stories:
        assert 100 not in cleared(story)


def test_a_device_that_had_just_started_is_excused_after_hours_too() -> None:
    """Her new phone first reports its previous location, in his street. His tag was 20 km away all the time."""
    story = begun()
    for at_s in range(0, 4 * HOUR_S, 60):
        story.at(at_s, "tag", 20_000)
        if at_s in (600, 660):
            story.at(at_s + 1, "phone", 20_000)
        elif at_s > 660:
            story.at(at_s + 1, "phone", 0)
    assert cleared(story) == [100, 1000, 2000] and not story.of(AlertKind.SPOOFING_SUSPECTED)
