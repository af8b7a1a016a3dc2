"""No all-clear rests on a movement that no vehicle makes: tags and phones that jump, and the end of the withholding."""

from __future__ import annotations

from typing import Any

import pytest

from services.geofence.domain import codec
from services.geofence.domain.demands import AlertKind, Leg
from services.geofence.domain.detectors.withheld_clearing import WITHHELD
from services.geofence.domain.entries import Demand
from services.geofence.domain.kinematics.track import WINDOW_MS
from tests.support.geofence.encounters import encounter
from tests.support.geofence.stories import T0_MS, Story, circle

PLACES: dict[str, Any] = {"persons": [], "places": [circle("home", 0, 0, radius_m=30)]}


def spoofed(story: Story) -> list[tuple[Demand, int, float]]:
    """Demand, ring in metres, and second of each decision."""
    found = story.of(AlertKind.SPOOFING_SUSPECTED)
    return [(alert.demand, alert.ring_mm // 1000, (alert.decided_at_ms - T0_MS) / 1000) for alert in found]


def cleared(story: Story) -> list[int]:
    return [alert.ring_mm // 1000 for alert in story.of(AlertKind.RING_CLEARED)]


def begin_nearby(until_s: int = 300, **changes: Any) -> Story:
    """He has stood 50 m from her home, or from her, for minutes."""
    story = Story()
    story.case(**changes)
    stay(story, 0, until_s, 50)
    return story


def stay(story: Story, from_s: int, until_s: int, north_m: float, phone_m: float = 0, every_s: int = 15) -> None:
    for at_s in range(from_s, until_s, every_s):
        if at_s % 60 == 0:
            story.at(at_s, "phone", phone_m)
        story.at(at_s + 1, "tag", north_m)


def test_both_desks_are_notified_once_and_the_ring_stays_entered() -> None:
    story = begin_nearby(**PLACES)
    stay(story, 300, 7200, 20_000)
    assert not cleared(story)
    [emitted] = story.of(AlertKind.SPOOFING_SUSPECTED)
    assert (emitted.demand, emitted.ring_mm, emitted.late) == (Demand.NOTIFY, 100_000, False)
    assert emitted.destinations == ((Leg.PROBATION, "w"), (Leg.POLICE, "order-1/home"))
    assert emitted.at_ms == T0_MS + 301_000 and emitted.decided_at_ms == T0_MS + 361_000
    assert emitted.incident_id and not emitted.incident_ends


@pytest.mark.parametrize("accuracy_m", [5, 400, 10_000])
def test_a_poor_accuracy_clears_no_ring(accuracy_m: float) -> None:
    story = begin_nearby(**PLACES)
    for at_s in range(300, 3600, 15):
        story.at(at_s, "tag", 20_000, accuracy_m=accuracy_m)
    assert not cleared(story)


def test_a_jump_of_her_phone_clears_nothing() -> None:
    story = begin_nearby()
    stay(story, 300, 3600, 50, phone_m=20_000)
    assert not cleared(story)
    assert [demand for demand, _, _ in spoofed(story)] == [Demand.NOTIFY]
    assert story.of(AlertKind.SPOOFING_SUSPECTED)[0].destinations == ((Leg.PROBATION, "w"), (Leg.POLICE, "p"))


def test_she_is_not_warned_of_an_implausible_distance() -> None:
    story = begin_nearby()
    stay(story, 300, 1800, 20_000)
    assert not [alert for alert in story.of(AlertKind.DISTANCE_CHANGED) if (alert.distance_mm or 0) > 10_000_000]


def test_positions_back_within_the_ring_demand_another_response_and_a_walk_away_clears() -> None:
    story = begin_nearby(**PLACES)
    stay(story, 300, 900, 20_000)
    stay(story, 900, 1200, 50)
    assert [demand.name for demand, _, _ in spoofed(story)] == ["NOTIFY", "RECORD"]
    assert story.entered() == [2000, 1000, 100, 100]
    repeated = story.of(AlertKind.RING_ENTERED)[-1]
    assert (
        repeated.demand is Demand.RESPOND and repeated.decided_at_ms == T0_MS + 916_000
    )  # when a second position agrees
    for i in range(80):
        story.at(1200 + 15 * i, "tag", 50 + 20 * i)
    assert cleared(story)[0] == 100
    assert len({alert.incident_id for alert in story.alerts if alert.incident_id}) == 1


def test_a_withheld_clearing_is_notified_once_per_ring_and_episode() -> None:
    story = begin_nearby(**PLACES)
    for i in range(4):
        stay(story, 300 + 600 * i, 600 + 600 * i, 20_000)
        stay(story, 600 + 600 * i, 900 + 600 * i, 50)
    demands = [demand for demand, _, _ in spoofed(story)]
    assert demands == [Demand.NOTIFY] + [Demand.RECORD] * 7
    assert not cleared(story)
    emitted = story.of(AlertKind.SPOOFING_SUSPECTED)[1:]
    assert not any(alert.destinations for alert in emitted)


def test_a_way_that_a_vehicle_can_make_clears() -> None:
    """The tag errs by 20 km for some minutes while he drives off, then reports where a car has brought him by then."""
    story = begin_nearby(**PLACES)
    stay(story, 300, 600, 20_000)
    for i in range(20):
        story.at(600 + 15 * i, "tag", 0, -6000 - 200 * i)
    assert cleared(story) == [100, 1000, 2000]
    [emitted, over] = story.of(AlertKind.SPOOFING_SUSPECTED)
    assert (emitted.demand, over.demand) == (Demand.NOTIFY, Demand.RECORD)
    assert story.alerts[-1].incident_ends


def test_positions_before_a_possible_way_do_not_count_as_agreeing() -> None:
    story = begin_nearby(**PLACES)
    stay(story, 300, 900, 20_000)
    for number, at_s in enumerate(range(900, 1000, 15)):
        assert bool(cleared(story)) is (number > 4)  # the minute beyond the ring, and four agreeing positions
        story.at(at_s, "tag", -9000)


@pytest.mark.parametrize("gap_s", [150, 400])
def test_a_way_that_a_car_makes_in_a_gap_clears(gap_s: int) -> None:
    story = begin_nearby(**PLACES)
    stay(story, 300 + gap_s, 1200 + gap_s, 20 * gap_s)
    assert cleared(story) == [100, 1000, 2000]
    assert not spoofed(story)


def test_late_reports_that_show_the_way_clear_the_ring() -> None:
    """His tag had no network on the way. From his present position it sends the newest reports first."""
    story = begin_nearby(**PLACES)
    for at_s in range(900, 1200, 15):
        story.at(at_s, "tag", 50 + 25 * 600, fix_s=at_s)
    assert cleared(story) == [100, 1000, 2000]
    spoof = begin_nearby(**PLACES)
    for at_s in range(315, 600, 15):
        spoof.at(at_s, "tag", 20_000)
    assert not cleared(spoof)
    for at_s in range(600, 615):
        spoof.at(at_s, "tag", 20_000, fix_s=at_s)
        spoof.at(at_s, "tag", 50, fix_s=at_s - 285.5)
    assert not cleared(spoof)


def test_a_withheld_clearing_outlasts_the_window_and_restarts() -> None:
    story = begin_nearby(**PLACES)
    hours = WINDOW_MS // 3_600_000 * 3
    for at_s in range(300, hours * 3600, 60):
        story.at(at_s, "tag", 20_000 + at_s % 40)
        if at_s % 1800 == 0:
            story.state = codec.decode(codec.encode(story.state))
    assert story.state.tracks["tag"].fixes[0].time_ms > T0_MS + 3_600_000
    assert not cleared(story)
    for at_s in range(hours * 3600, hours * 3600 + 300, 60):
        story.at(at_s, "tag", 50)
    assert [alert.demand for alert in story.of(AlertKind.RING_ENTERED)][-1] is Demand.RESPOND
    for at_s in range(hours * 3600 + 300, hours * 3600 + 1200, 60):
        story.at(at_s, "tag", at_s - hours * 3600)
    assert 100 in cleared(story)


def test_the_end_of_the_order_ends_the_withholding() -> None:
    story = begin_nearby(**PLACES, valid_until_ms=T0_MS + 3_600_000)
    stay(story, 300, 3500, 20_000)
    story.tick(3601)
    assert cleared(story) == [100, 1000, 2000]
    assert not WITHHELD.of(story.state.cases["case-1"]) and story.alerts[-1].incident_ends


def test_a_replaced_tag_ends_the_withholding() -> None:
    story = begin_nearby(**PLACES)
    stay(story, 300, 900, 20_000)
    story.case(900, tag_device_ids=["tag-2"], version=2, **PLACES)
    for at_s in range(915, 1200, 15):
        story.at(at_s, "tag-2", 9000)
    assert cleared(story) == [100, 1000, 2000]


def test_a_jump_does_not_retract_a_predicted_contact() -> None:
    """Nobody was within the ring that demands a response. Somebody is on the way because he came straight towards her."""
    story = Story()
    story.case(**PLACES)
    for i in range(12):
        story.at(15 * i, "tag", 1800 - 60 * i)
    assert story.of(AlertKind.CONTACT_PREDICTED)
    for i in range(12, 100):
        story.at(15 * i, "tag", 30_000)
    assert not cleared(story) and spoofed(story)[0][:2] == (
        Demand.NOTIFY,
        2000 if 1000 not in story.entered() else 1000,
    )


def test_an_unseen_wearer_stays_unseen_where_no_vehicle_got_in_time() -> None:
    story = Story()
    story.case(**PLACES)
    stay(story, 0, 300, 900)
    story.tick(700)
    near = story.of(AlertKind.UNKNOWN_NEAR)
    assert [alert.demand for alert in near] == [Demand.NOTIFY, Demand.RESPOND]
    for at_s in range(720, 1500, 15):
        story.at(at_s, "tag", 60_000)
    assert story.of(AlertKind.UNKNOWN_NEAR) == near
    assert spoofed(story)[0][:2] == (Demand.NOTIFY, 0)
    story.at(1500, "tag", 3000)
    assert [alert.demand for alert in story.of(AlertKind.UNKNOWN_NEAR)][2:] == [Demand.RECORD]


def test_a_jump_of_an_unseen_wearer_does_not_prevent_the_response() -> None:
    story = Story()
    story.case(**PLACES)
    stay(story, 0, 300, 900)
    left_s = 286
    for at_s in range(left_s + 185, 1500, 15):
        story.at(at_s, "tag", 60_000)
    notice, response = story.of(AlertKind.UNKNOWN_NEAR)
    assert (notice.demand, response.demand) == (Demand.NOTIFY, Demand.RESPOND)
    assert (notice.at_ms - T0_MS) // 1000 == left_s + 180
    assert left_s + 300 <= (response.at_ms - T0_MS) / 1000 <= left_s + 400, (
        "on foot from where the wearer was seen last"
    )
    story.at(1500, "tag", 3000)
    assert story.of(AlertKind.UNKNOWN_NEAR)[2:], "a vehicle can have gone there by now"


def test_an_encounter_that_ends_after_a_jump_away_sends_somebody() -> None:
    meeting = encounter(0, 600)
    story = begin_nearby(**PLACES, encounters=[meeting])
    stay(story, 300, 900, 20_000)
    responds = [alert for alert in story.of(AlertKind.RING_ENTERED) if alert.demand is Demand.RESPOND]
    assert [(respond.at_ms - T0_MS) / 1000 for respond in responds] == [600]
    assert not cleared(story)
