"""The decision, told as stories: what arrives when, and what must come of it."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.geofence.domain import approach, codec
from services.geofence.domain.alerts import Kind, Leg, Parked
from services.geofence.domain.entries import Demand
from tandem.common.v1 import geometry_pb2, log_pb2
from tests.support.stories import T0_MS, Story, circle, polygon


def seconds(ms: int) -> float:
    return (ms - T0_MS) / 1000


# ── entering ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_first_fix_inside_enters_every_ring_at_once() -> None:
    story = Story()
    story.case()
    story.at(10, "phone", 0)
    story.at(20, "tag", 60)
    assert story.told() == [("RING_ENTERED", 2000, 20), ("RING_ENTERED", 1000, 20), ("RING_ENTERED", 100, 20)]
    assert [a.demand for a in story.alerts] == [Demand.WARN, Demand.NOTIFY, Demand.RESPOND]
    assert story.alerts[-1].distance_mm == pytest.approx(60_000, abs=15)


def test_a_pass_between_two_reports_is_found_with_its_moments() -> None:
    story = Story(clear_after_s=10)
    story.case()
    story.at(0, "phone", 0, 30)
    story.at(0, "tag", -500)
    story.at(50, "tag", 500)  # straight through at 20 m/s: within 100 m of the person for 9.5 s
    story.at(50, "phone", 0, 30)
    story.at(110, "tag", 2600)
    story.at(110, "phone", 0, 30)
    cleared = next(a for a in story.alerts if a.kind is Kind.RING_CLEARED and a.ring_mm == 100_000)
    half_s = (100**2 - 30**2) ** 0.5 / 20
    [(from_ms, to_ms)] = cleared.inside
    assert seconds(from_ms) == pytest.approx(25 - half_s, abs=0.002)
    assert seconds(to_ms) == pytest.approx(25 + half_s, abs=0.002)
    assert cleared.min_distance_mm == pytest.approx(30_000, abs=15)
    entered = next(a for a in story.alerts if a.kind is Kind.RING_ENTERED and a.ring_mm == 100_000)
    assert entered.at_ms == from_ms and seconds(entered.decided_at_ms) == 50


def test_the_victim_walks_towards_the_wearer_who_never_moves() -> None:
    story = Story()
    story.case()
    story.at(0, "tag", 0)
    for i in range(21):
        story.at(i * 10, "phone", 300 - 14 * i)
    assert story.entered() == [2000, 1000, 100]
    entered = story.of(Kind.RING_ENTERED)[-1]
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


def test_the_side_that_has_not_reported_is_taken_to_go_on_as_before() -> None:
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


def test_an_order_that_comes_after_the_last_reports_is_decided_on_them() -> None:
    story = Story()
    story.at(0, "phone", 0)
    story.at(5, "tag", 80)
    story.case(60)
    assert story.told() == [("RING_ENTERED", 2000, 60), ("RING_ENTERED", 1000, 60), ("RING_ENTERED", 100, 60)]
    assert story.alerts[0].cause is None


def test_an_order_begins_to_the_second_without_a_new_report() -> None:
    story = Story()
    story.at(0, "phone", 0)
    story.at(5, "tag", 80)
    story.case(10, valid_from_ms=T0_MS + 90_000)
    story.tick(60)
    assert not story.alerts
    story.tick(120)
    assert {(at, seconds(a.decided_at_ms)) for a in story.alerts for at in [seconds(a.at_ms)]} == {(90, 90)}


def test_an_order_ends_at_its_last_moment_and_so_does_the_incident() -> None:
    story = Story()
    story.case(valid_until_ms=T0_MS + 100_000)
    story.at(0, "phone", 0)
    story.at(10, "tag", 50)
    story.tick(200)
    cleared = [a for a in story.alerts if a.kind is Kind.RING_CLEARED]
    assert [a.ring_mm for a in cleared] == [100_000, 1_000_000, 2_000_000]
    assert [a.incident_ends for a in cleared] == [False, False, True]
    story.at(300, "tag", 20)
    assert len(story.alerts) == 6, "an order that is over decides nothing"


def test_an_extended_order_goes_on() -> None:
    story = Story()
    story.case(valid_until_ms=T0_MS + 100_000)
    story.case(50, version=2, valid_until_ms=T0_MS + 10_000_000)
    story.tick(150)
    story.at(160, "phone", 0)
    story.at(170, "tag", 50)
    assert story.entered() == [2000, 1000, 100]


def test_an_older_snapshot_changes_nothing() -> None:
    story = Story()
    story.case(version=2)
    story.case(1, version=1, valid_until_ms=T0_MS + 1)
    story.case(1, version=2, valid_until_ms=T0_MS + 1)
    story.at(10, "phone", 0)
    story.at(10, "tag", 50)
    assert story.entered() == [2000, 1000, 100]


def test_an_amended_place_is_decided_at_once_and_the_old_one_is_closed() -> None:
    story = Story()
    story.case(persons=[], places=[circle("home", 0, 0, 20)])
    story.at(0, "tag", 100)
    assert story.entered() == [2000, 1000, 100]
    story.case(30, version=2, persons=[], places=[circle("new-home", 5000, 0, 20)])
    cleared = [a for a in story.alerts if a.kind is Kind.RING_CLEARED]
    assert [(a.target_id, a.incident_ends) for a in cleared] == [("home", False), ("home", False), ("home", True)]
    story.case(40, version=3, persons=[], places=[circle("third-home", 150, 0, 20)])
    assert [a.target_id for a in story.alerts[6:]] == ["third-home"] * 3


# ── places ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_ring_counts_from_the_edge_of_a_place() -> None:
    story = Story()
    story.case(persons=[], places=[circle("school", 0, 0, 250)])
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


def test_a_courtyard_is_no_part_of_the_place_and_near_to_it() -> None:
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
    story.at(80, "tag", 250, 250)
    story.at(120, "tag", 250, 250)
    [cleared] = story.of(Kind.RING_CLEARED)
    assert cleared.min_distance_mm == 0
    assert codec.encode(codec.decode(codec.encode(story.state))) == codec.encode(story.state)


def test_police_go_to_the_place_and_the_person_is_warned() -> None:
    story = Story()
    story.case(places=[circle("home", 0, 0, 20)])
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
    nearest = [one for one in story.of(Kind.RING_ENTERED) if one.ring_mm == 100_000]
    assert [seconds(one.decided_at_ms) for one in nearest] == [500]


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
    assert not [a for a in story.alerts if a.kind is Kind.RING_CLEARED]
    leave(story, 150, 140, 50)
    assert not [a for a in story.alerts if a.kind is Kind.RING_CLEARED]
    leave(story, 210, 140, 20)
    [cleared] = [a for a in story.alerts if a.kind is Kind.RING_CLEARED]
    assert cleared.ring_mm == 100_000 and not cleared.incident_ends, "the wider rings are still entered"
    assert not cleared.late, "the minute that it takes to be sure isn't lateness"


def test_silence_never_clears() -> None:
    story = Story()
    story.case()
    story.at(0, "phone", 0)
    story.at(0, "tag", 50)
    for t in range(0, 3600, 10):
        story.at(t + 1, "tag", 9000)  # the wearer is far from where she was an hour ago
    cleared = [a for a in story.alerts if a.kind is Kind.RING_CLEARED]
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
    [cleared] = [a for a in story.alerts if a.kind is Kind.RING_CLEARED and a.ring_mm == 100_000]
    assert len(cleared.inside) == 8
    assert all(one[1] <= other[0] for one, other in zip(cleared.inside, cleared.inside[1:], strict=False))


# ── incidents ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_three_orders_at_once_are_one_incident_with_their_own_episodes() -> None:
    story = Story(clear_after_s=10)
    for case in ("1", "2", "3"):
        story.case(case=case, persons=[], places=[circle(f"home{case}", int(case) * 10, 0, 5)])
    story.at(0, "tag", 50)
    assert len({a.incident_id for a in story.alerts}) == 1
    assert len({a.episode_id for a in story.alerts}) == 3
    for t in range(10, 60, 5):
        story.at(t, "tag", 9000)
    ends = [a.incident_ends for a in story.alerts]
    assert ends.count(True) == 1 and ends[-1]
    story.at(200, "tag", 50)
    assert story.alerts[-1].incident_id != story.alerts[0].incident_id


def test_a_cut_strap_sends_both_legs_and_holds_until_it_is_closed() -> None:
    story = Story()
    story.case()
    story.says(5, "tag", "STRAP_OPEN")
    [cut] = story.alerts
    assert (cut.kind, cut.demand) == (Kind.TAMPERED, Demand.RESPOND)
    assert cut.destinations == ((Leg.PROBATION, "w"), (Leg.POLICE, "p"), (Leg.WARNING, "p"))
    story.says(6, "tag", "STRAP_OPEN", report_id="e5")
    assert len(story.alerts) == 1, "the same report again counts once"
    story.says(60, "tag", "STRAP_CLOSED")
    assert story.alerts[-1].incident_ends and story.alerts[-1].demand is Demand.RECORD


def test_the_end_of_an_order_takes_a_panic_back() -> None:
    story = Story()
    story.case(valid_until_ms=T0_MS + 100_000)
    story.says(5, "phone", "PANIC_BUTTON")
    assert story.alerts[0].demand is Demand.RESPOND and story.alerts[0].target_id == "p"
    story.tick(200)
    assert story.alerts[-1].kind is Kind.PANIC and story.alerts[-1].incident_ends


def test_a_low_battery_is_for_the_record() -> None:
    story = Story()
    story.case()
    story.says(5, "tag", "BATTERY_LOW")
    assert [(a.kind, a.demand, a.incident_id) for a in story.alerts] == [(Kind.LOW_BATTERY, Demand.RECORD, "")]


def test_the_second_phone_of_a_person_counts_like_the_first() -> None:
    story = Story(clear_after_s=10)
    story.case(persons=[log_pb2.ProtectedTarget(person_id="p", device_ids=["phone", "watch"])])
    story.at(0, "phone", 5000)
    story.at(0, "watch", 0)
    story.at(1, "tag", 50)
    assert story.entered() == [2000, 1000, 100]


# ── time ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_report_that_comes_late_is_folded_in_and_its_alert_says_so() -> None:
    story = Story()
    story.case()
    for t in (0, 60, 120, 180, 240):
        story.at(t, "phone", 0)
        story.at(t, "tag", 5000)
    story.at(300, "tag", 50, fix_s=100)
    late = next(a for a in story.alerts if a.ring_mm == 100_000)
    assert late.late and seconds(late.at_ms) < 100


def test_a_report_older_than_two_hours_is_set_aside_with_a_reason() -> None:
    story = Story()
    story.case()
    story.at(8000, "phone", 0)
    story.at(8000, "tag", 50, fix_s=700)
    assert story.outputs[-1] == Parked(story.state.sequence, "1 positions older than 2 h")
    assert not story.entered()


def test_a_fix_from_the_future_counts_as_of_its_arrival() -> None:
    story = Story()
    story.case()
    story.at(0, "phone", 0)
    story.at(10, "tag", 50, fix_s=100)
    assert {seconds(a.at_ms) for a in story.alerts} == {10}


def test_time_never_runs_backwards() -> None:
    story = Story()
    story.case()
    story.tick(100)
    story.tick(50)
    assert story.state.now_ms == T0_MS + 100_000


def test_no_line_joins_fixes_that_are_more_than_three_minutes_apart() -> None:
    story = Story()
    story.case()
    for t in (0, 200):
        story.at(t, "phone", 0)
    story.at(0, "tag", -3000)
    story.at(200, "tag", 3000)
    assert not story.entered()


# ── the same for ever ────────────────────────────────────────────────────────────────────────────────────────────────


def walk(seed: int) -> list[tuple[float, str, float, float]]:
    rng = random.Random(seed)
    north = {"tag": 2500.0, "phone": 0.0}
    east = {"tag": 0.0, "phone": 0.0}
    found = []
    for i in range(120):
        device = rng.choice(("tag", "phone"))
        north[device] += rng.uniform(-120, 80 if device == "tag" else 120)
        east[device] += rng.uniform(-80, 80)
        found.append((i * 4.0, device, north[device], east[device]))
    return found


def tell(
    reports: list[tuple[float, str, float, float]], arrive_s: list[float] | None = None, clear_after_s: int = 60
) -> Story:
    story = Story(clear_after_s=clear_after_s)
    story.case()
    for i, (fix_s, device, north_m, east_m) in enumerate(reports):
        story.at(fix_s if arrive_s is None else arrive_s[i], device, north_m, east_m, fix_s=fix_s)
    return story


@given(st.integers(0, 10_000), st.integers(1, 40))
@settings(max_examples=40, deadline=None)
def test_a_state_that_was_stored_in_the_middle_goes_on_as_if_nothing_had_been(seed: int, every: int) -> None:
    whole = tell(walk(seed))
    story = Story()
    story.case()
    for i, (fix_s, device, north_m, east_m) in enumerate(walk(seed)):
        if i % every == 0:
            story.state = codec.decode(codec.encode(story.state))
        story.at(fix_s, device, north_m, east_m)
    assert story.outputs == whole.outputs
    assert codec.encode(story.state) == codec.encode(whole.state)


@given(st.integers(0, 10_000), st.floats(1, 12))
@settings(max_examples=60, deadline=None)
def test_sorting_out_what_is_out_of_reach_changes_no_decision(seed: int, scale: float) -> None:
    reports = [(t, device, north_m * scale, east_m * scale) for t, device, north_m, east_m in walk(seed)]
    sorted_out = tell(reports)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(approach, "_out_of_reach", lambda *_: False)
        assert tell(reports).outputs == sorted_out.outputs


@given(st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_reports_sent_again_change_nothing(seed: int) -> None:
    once, twice = tell(walk(seed)), Story()
    twice.case()
    for fix_s, device, north_m, east_m in walk(seed):
        twice.at(fix_s, device, north_m, east_m)
        twice.at(fix_s, device, north_m, east_m)
    assert [(a.kind, a.at_ms, a.inside) for a in twice.alerts] == [(a.kind, a.at_ms, a.inside) for a in once.alerts]
    assert twice.state.tracks["tag"].fixes == once.state.tracks["tag"].fixes


@given(st.integers(0, 10_000), st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_until_a_ring_is_cleared_the_order_of_arrival_does_not_matter_to_its_account(
    seed: int, rng: random.Random
) -> None:
    reports = walk(seed)
    shuffled = list(reports)
    rng.shuffle(shuffled)
    accounts = []
    for order in (reports, shuffled):
        # Nothing is cleared in between: what a clearing has told stays told, whatever comes late.
        story = tell(order, arrive_s=[600.0] * len(order), clear_after_s=3600)
        case_state = story.state.cases["case-1"]
        found = []
        for ring in case_state.case.rings:
            target = case_state.case.targets[0]
            ring_state = case_state.ring(target, ring)
            approach.account(story.state, case_state, target, ring, story.state.now_ms)
            found.append((ring_state.open, ring_state.inside, ring_state.min_mm) if ring_state.open else None)
        accounts.append(found)
    for one, other in zip(*accounts, strict=True):
        if one is not None and other is not None:
            assert one == other


def test_a_snapshot_that_is_over_already_closes_what_was_open_and_brings_new_targets() -> None:
    story = Story()
    story.case()
    story.at(0, "phone", 0)
    story.at(1, "tag", 50)
    story.case(30, version=2, places=[circle("home", 0, 0, 20)], valid_until_ms=T0_MS + 20_000)
    assert story.alerts[-1].incident_ends
    assert all(a.kind is Kind.RING_CLEARED for a in story.alerts[3:])


def test_a_person_and_a_place_may_have_the_same_id() -> None:
    story = Story()
    story.case(places=[circle("p", 8000, 0, 20)])
    story.at(0, "phone", 0)
    story.at(1, "tag", 50)
    assert story.entered() == [2000, 1000, 100]
    story.at(2, "tag", 8000)
    assert story.entered().count(100) == 2


# ── what somebody might try ──────────────────────────────────────────────────────────────────────────────────────────


def persons(*device_ids: str) -> list[log_pb2.ProtectedTarget]:
    return [log_pb2.ProtectedTarget(person_id="p", device_ids=device_ids)]


def test_a_dead_phone_beside_the_wearer_is_not_forgotten_for_a_watch_at_home() -> None:
    story = Story()
    story.case(persons=persons("phone", "watch"))
    story.at(0, "phone", 0)
    story.at(1, "watch", 5000)
    story.at(2, "tag", 50)
    for t in range(10, 900, 10):
        story.at(t, "watch", 5000)
        story.at(t, "tag", 50)
    assert not [a for a in story.alerts if a.kind is Kind.RING_CLEARED]


def test_vague_positions_clear_nothing() -> None:
    story = Story()
    story.case()
    story.at(0, "phone", 0)
    story.at(0, "tag", 50)
    for t in range(10, 300, 10):
        story.at(t, "phone", 0)
        story.at(t, "tag", 300, accuracy_m=50_000)
    assert not [a for a in story.alerts if a.kind is Kind.RING_CLEARED]


def test_an_end_that_is_older_than_the_beginning_ends_nothing() -> None:
    story = Story()
    story.case()
    story.says(100, "tag", "STRAP_OPEN")
    story.says(110, "tag", "STRAP_CLOSED", event_s=50)
    assert not story.alerts[-1].incident_ends
    story.says(120, "tag", "STRAP_CLOSED")
    assert story.alerts[-1].incident_ends


def test_a_strap_cut_before_the_order_came_is_told_when_it_comes() -> None:
    story = Story()
    story.says(5, "tag", "STRAP_OPEN")
    story.case(60)
    assert [(a.kind, a.demand, seconds(a.at_ms)) for a in story.alerts] == [(Kind.TAMPERED, Demand.RESPOND, 60)]
    later = Story()
    later.case(valid_from_ms=T0_MS + 50_000)
    later.says(5, "tag", "STRAP_OPEN")
    later.tick(60)
    assert [(a.kind, seconds(a.at_ms)) for a in later.alerts] == [(Kind.TAMPERED, 50)]


def test_a_tag_cannot_press_the_panic_button() -> None:
    story = Story()
    story.case()
    story.says(5, "tag", "PANIC_BUTTON")
    assert story.outputs == [Parked(story.state.sequence, "PANIC_BUTTON from a device that can't say so")]


def test_events_of_one_moment_end_in_the_same_order_after_a_restart() -> None:
    ends = []
    for restart in (False, True):
        story = Story()
        story.case(valid_until_ms=T0_MS + 100_000)
        story.says(5, "tag", "STRAP_OPEN")
        story.says(6, "phone", "PANIC_BUTTON")
        story.says(7, "tag", "CASE_OPEN")
        if restart:
            story.state = codec.decode(codec.encode(story.state))
        story.tick(200)
        ends.append(story.alerts)
    assert ends[0] == ends[1]


def test_a_graver_action_of_a_ring_that_is_entered_is_told() -> None:
    story = Story()
    story.case(rings=[geometry_pb2.Ring(radius_m=500, action=geometry_pb2.WARN)])
    story.at(0, "phone", 0)
    story.at(1, "tag", 400)
    story.case(30, version=2, rings=[geometry_pb2.Ring(radius_m=500, action=geometry_pb2.RESPOND)])
    assert story.alerts[-1].demand is Demand.RESPOND


def test_a_place_that_is_added_does_not_count_backwards() -> None:
    story = Story()
    story.case(persons=[], places=[circle("home", 9000, 0, 20)])
    story.at(0, "tag", 0)
    story.at(100, "tag", 1000)
    story.case(110, version=2, persons=[], places=[circle("home", 9000, 0, 20), circle("work", 500, 0, 20)])
    story.at(120, "tag", 1200)
    work = [a for a in story.alerts if a.target_id == "work"]
    assert work and all(seconds(a.at_ms) >= 110 for a in work) and 100_000 not in {a.ring_mm for a in work}


def test_a_tag_that_changes_hands_says_nothing_of_its_new_wearer_at_first() -> None:
    story = Story()
    story.case(case="1")
    story.at(0, "phone", 0)
    story.at(1, "tag", 5000)
    story.case(1000, version=2, tag_device_ids=[])
    story.case(1000, case="2", wearer_id="w2", order_id="order-2")
    story.at(1001, "phone", 5000)
    story.at(1002, "tag", 5000, fix_s=900)
    assert not story.entered()
    assert story.outputs[-1] == Parked(story.state.sequence, "1 positions from before their device changed hands")
    story.at(1010, "tag", 5050)
    assert story.entered() == [2000, 1000, 100]


def test_the_last_device_of_a_person_takes_its_rings_with_it() -> None:
    story = Story()
    story.case()
    story.at(0, "phone", 0)
    story.at(1, "tag", 50)
    story.case(30, version=2, persons=persons())
    assert story.alerts[-1].incident_ends


def test_an_order_that_is_put_off_ends_what_is_open() -> None:
    story = Story()
    story.case()
    story.at(0, "phone", 0)
    story.at(1, "tag", 50)
    story.says(2, "tag", "STRAP_OPEN")
    story.case(30, version=2, valid_from_ms=T0_MS + 500_000)
    assert story.alerts[-1].incident_ends
    story.tick(600)
    assert {a.kind for a in story.alerts if seconds(a.at_ms) == 500} >= {Kind.TAMPERED, Kind.RING_ENTERED}


def test_a_clock_that_is_ahead_makes_no_second_report_of_one_that_is_sent_again() -> None:
    story = Story()
    story.case()
    story.at(0, "phone", 0)
    story.at(10, "tag", 5000, fix_s=40, report_id="9")
    story.at(20, "tag", 5100, fix_s=50, report_id="10")
    story.at(60, "tag", 5000, fix_s=40, report_id="9")
    assert [fix.report_id for fix in story.state.tracks["tag"].fixes] == ["9", "10"]


def test_superseded_versions_leave_nothing_behind() -> None:
    story = Story()
    for version in range(1, 50):
        story.case(version=version)
    assert len(story.state.due) == 2, "the end of the order, and when silence begins"
