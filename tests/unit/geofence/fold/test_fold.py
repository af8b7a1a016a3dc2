"""The decision, as stories: the reports that arrive, and the alerts that must follow."""

from __future__ import annotations

import pytest

from services.geofence.domain import codec
from services.geofence.domain.alerts import DeadLetter
from services.geofence.domain.demands import AlertKind, Leg
from services.geofence.domain.entries import Demand
from tandem.common.v1 import log_pb2
from tests.support.geofence.stories import T0_MS, Story, circle, polygon


def seconds(ms: int) -> float:
    return (ms - T0_MS) / 1000


# ── entering ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_first_fix_inside_enters_every_ring_at_once() -> None:
    story = Story()
    story.case()
    story.at(10, "phone", 0)
    story.at(20, "tag", 60)
    assert story.emitted() == [("RING_ENTERED", 2000, 20), ("RING_ENTERED", 1000, 20), ("RING_ENTERED", 100, 20)]
    assert [a.demand for a in story.alerts] == [Demand.WARN, Demand.NOTIFY, Demand.RESPOND]
    assert story.alerts[-1].distance_mm == pytest.approx(60_000, abs=15)


def test_a_pass_between_two_reports_is_found_with_its_moments() -> None:
    story = Story(clear_after_s=10)
    story.case()
    story.at(0, "phone", 0, 30)
    story.at(0, "tag", -500)
    story.at(50, "tag", 500)  # straight through at 20 m/s: within 100 m of the person for 9.5 s
    story.at(50, "phone", 0, 30)
    for at_s in (110, 125, 140, 155):  # four positions of each side agree before anybody stands down
        story.at(at_s, "tag", 2600)
        story.at(at_s, "phone", 0, 30)
    cleared = next(a for a in story.alerts if a.kind is AlertKind.RING_CLEARED and a.ring_mm == 100_000)
    half_s = (100**2 - 30**2) ** 0.5 / 20
    [(from_ms, to_ms)] = cleared.inside
    assert seconds(from_ms) == pytest.approx(25 - half_s, abs=0.002)
    assert seconds(to_ms) == pytest.approx(25 + half_s, abs=0.002)
    assert cleared.min_distance_mm == pytest.approx(30_000, abs=15)
    entered = next(a for a in story.alerts if a.kind is AlertKind.RING_ENTERED and a.ring_mm == 100_000)
    assert entered.at_ms == from_ms and seconds(entered.decided_at_ms) == 50


def test_the_victim_walks_towards_the_wearer_who_never_moves() -> None:
    story = Story()
    story.case()
    story.at(0, "tag", 0)
    for i in range(21):
        story.at(i * 10, "phone", 300 - 14 * i)
    assert story.entered() == [2000, 1000, 100]
    entered = story.of(AlertKind.RING_ENTERED)[-1]
    assert entered.cause is not None and entered.cause.device_id == "phone"
    assert seconds(entered.at_ms) == pytest.approx(200 / 1.4, abs=0.01)


def test_a_decision_does_not_wait_for_the_other_sides_next_report() -> None:
    story = Story()
    story.case()
    story.at(0, "phone", 0)
    story.at(1, "tag", 300)
    story.at(61, "tag", 90)  # her last report is a minute old
    assert story.entered() == [2000, 1000, 100]
    assert seconds(story.alerts[-1].decided_at_ms) == 61


def test_the_side_without_a_new_report_is_assumed_to_go_on_as_before() -> None:
    story = Story()
    story.case()
    story.at(0, "phone", 800)
    story.at(10, "phone", 700)  # 10 m/s towards the wearer
    story.at(10, "tag", 0)
    story.at(45, "tag", 0, 1)
    entered = [a for a in story.alerts if a.ring_mm == 1_000_000]
    assert entered and 100 not in story.entered(), "30 s is as far as a velocity is trusted"
    story.at(50, "phone", 90)
    assert story.entered()[-1] == 100


# ── places ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_ring_counts_from_the_edge_of_a_place() -> None:
    story = Story()
    story.case(persons=[], places=[circle("school", 0, 0, radius_m=250)])
    story.at(0, "tag", 360)
    assert story.entered() == [2000, 1000]
    story.at(10, "tag", 345)
    assert story.entered() == [2000, 1000, 100]
    assert story.alerts[0].distance_mm == pytest.approx(110_000, abs=15)


def test_a_polygon_is_protected_along_its_edges_corners_and_inside() -> None:
    l_shape = ((0, 0), (0, 400), (100, 400), (100, 100), (400, 100), (400, 0))
    story = Story(clear_after_s=5)
    story.case(persons=[], places=[polygon("campus", *l_shape)])
    story.at(0, "tag", 300, 300)  # in the notch: 200 m from both arms
    assert story.entered() == [2000, 1000]
    story.at(10, "tag", 195, 300)
    assert story.entered() == [2000, 1000, 100]
    assert seconds(story.alerts[-1].at_ms) == pytest.approx(100 / 10.5, abs=0.01)


def test_a_courtyard_is_outside_the_place_but_near_it() -> None:
    block, yard = ((0, 0), (0, 500), (500, 500), (500, 0)), ((50, 50), (50, 450), (450, 450), (450, 50))
    story = Story(clear_after_s=5)
    story.case(persons=[], places=[polygon("home", *block, holes=[yard])])
    story.at(0, "tag", 250, 250)  # in the middle of the courtyard: 200 m from every wall
    assert story.entered() == [2000, 1000]
    assert story.alerts[0].distance_mm == pytest.approx(200_000, abs=50)
    story.at(10, "tag", 355, 250)
    assert story.entered() == [2000, 1000, 100]
    assert seconds(story.alerts[-1].at_ms) == pytest.approx(100 / 10.5, abs=0.01)
    story.at(40, "tag", 475, 250)  # through the wall into the house
    for at_s in (80, 100, 110, 120):
        story.at(at_s, "tag", 250, 250)
    [cleared] = story.of(AlertKind.RING_CLEARED)
    assert cleared.min_distance_mm == 0
    assert codec.encode(codec.decode(codec.encode(story.state))) == codec.encode(story.state)


def test_police_go_to_the_place_and_the_person_is_warned() -> None:
    story = Story()
    story.case(places=[circle("home", 0, 0, radius_m=20)])
    story.at(0, "tag", 90)
    [respond] = [a for a in story.alerts if a.demand is Demand.RESPOND]
    assert respond.destinations == ((Leg.PROBATION, "w"), (Leg.POLICE, "order-1/home"), (Leg.WARNING, "p"))


@pytest.mark.parametrize("hers_s", [None, 495, 500])
@pytest.mark.parametrize("who", ["tag", "phone"])
def test_the_first_fix_after_a_gap_decides_at_once(who: str, hers_s: int | None) -> None:
    """More than 3 minutes lie between two reports of one side, and the second one is near the other side's."""
    story = Story()
    story.case()
    moving, resting = ("tag", "phone") if who == "tag" else ("phone", "tag")
    story.at(0, resting, 0)
    story.at(300, moving, 900)
    for at_s in (400, hers_s):
        if at_s is not None:
            story.at(at_s, resting, 0)
    story.at(500, moving, 60)
    nearest = [alert for alert in story.of(AlertKind.RING_ENTERED) if alert.ring_mm == 100_000]
    assert [seconds(alert.decided_at_ms) for alert in nearest] == [500]


# ── clearing ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def leave(story: Story, from_s: int, metres_out: float, for_s: int) -> None:
    for t in range(from_s, from_s + for_s + 1, 10):
        story.at(t, "phone", 0)
        story.at(t, "tag", metres_out)


def test_a_ring_is_cleared_only_beyond_its_margin_and_after_a_minute() -> None:
    story = Story()
    story.case()
    leave(story, 0, 50, 10)
    leave(story, 20, 125, 120)  # outside, but within 20 m and the accuracies, 5 m each, of the edge
    assert not [a for a in story.alerts if a.kind is AlertKind.RING_CLEARED]
    leave(story, 150, 140, 50)
    assert not [a for a in story.alerts if a.kind is AlertKind.RING_CLEARED]
    leave(story, 210, 140, 20)
    [cleared] = [a for a in story.alerts if a.kind is AlertKind.RING_CLEARED]
    assert cleared.ring_mm == 100_000 and not cleared.incident_ends, "the wider rings are still entered"
    assert not cleared.late, "the minute that it takes to be sure isn't lateness"


def test_silence_never_clears() -> None:
    story = Story()
    story.case()
    story.at(0, "phone", 0)
    story.at(0, "tag", 50)
    for t in range(0, 3600, 10):
        story.at(t + 1, "tag", 9000)  # the wearer is far from where she was an hour ago
    cleared = [a for a in story.alerts if a.kind is AlertKind.RING_CLEARED]
    assert not cleared, "her position is unknown, which is never safe"


def test_inside_lists_each_stretch_of_one_episode() -> None:
    story = Story()
    story.case()
    for t in range(0, 300, 5):
        story.at(t, "phone", 0)
        story.at(t, "tag", 50 if (t // 20) % 2 == 0 else 110)
    for t in range(300, 400, 5):
        story.at(t, "phone", 0)
        story.at(t, "tag", 400)
    [cleared] = [a for a in story.alerts if a.kind is AlertKind.RING_CLEARED and a.ring_mm == 100_000]
    assert len(cleared.inside) == 8
    assert all(
        stretch[1] <= following[0] for stretch, following in zip(cleared.inside, cleared.inside[1:], strict=False)
    )


# ── incidents ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_cut_strap_sends_both_legs_and_holds_until_it_is_closed() -> None:
    story = Story()
    story.case()
    story.says(5, "tag", "STRAP_OPEN")
    [cut] = story.alerts
    assert (cut.kind, cut.demand) == (AlertKind.TAMPERED, Demand.RESPOND)
    assert cut.destinations == ((Leg.PROBATION, "w"), (Leg.POLICE, "p"), (Leg.WARNING, "p"))
    story.says(6, "tag", "STRAP_OPEN", report_id="e5")
    assert len(story.alerts) == 1, "the same report again counts once"
    story.says(60, "tag", "STRAP_CLOSED")
    assert story.alerts[-1].incident_ends and story.alerts[-1].demand is Demand.RECORD


def test_a_low_battery_is_for_the_record() -> None:
    story = Story()
    story.case()
    story.says(5, "tag", "BATTERY_LOW")
    assert [(a.kind, a.demand, a.incident_id) for a in story.alerts] == [(AlertKind.LOW_BATTERY, Demand.RECORD, "")]


def test_the_second_phone_of_a_person_counts_like_the_first() -> None:
    story = Story(clear_after_s=10)
    story.case(persons=[log_pb2.ProtectedTarget(person_id="p", device_ids=["phone", "watch"])])
    story.at(0, "phone", 5000)
    story.at(0, "watch", 0)
    story.at(1, "tag", 50)
    assert story.entered() == [2000, 1000, 100]


# ── attempts at evasion ──────────────────────────────────────────────────────────────────────────────────────────────


def persons(*device_ids: str) -> list[log_pb2.ProtectedTarget]:
    return [log_pb2.ProtectedTarget(person_id="p", device_ids=device_ids)]


def test_a_dead_phone_near_the_wearer_still_counts_with_a_watch_at_home() -> None:
    story = Story()
    story.case(persons=persons("phone", "watch"))
    story.at(0, "phone", 0)
    story.at(1, "watch", 5000)
    story.at(2, "tag", 50)
    for t in range(10, 900, 10):
        story.at(t, "watch", 5000)
        story.at(t, "tag", 50)
    assert not [a for a in story.alerts if a.kind is AlertKind.RING_CLEARED]


def test_vague_positions_clear_nothing() -> None:
    story = Story()
    story.case()
    story.at(0, "phone", 0)
    story.at(0, "tag", 50)
    for t in range(10, 300, 10):
        story.at(t, "phone", 0)
        story.at(t, "tag", 300, accuracy_m=50_000)
    assert not [a for a in story.alerts if a.kind is AlertKind.RING_CLEARED]


def test_a_tag_cannot_press_the_panic_button() -> None:
    story = Story()
    story.case()
    story.says(5, "tag", "PANIC_BUTTON")
    assert story.outputs == [DeadLetter(story.state.sequence, "PANIC_BUTTON from a device that can't say so")]
