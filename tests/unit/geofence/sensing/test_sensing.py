"""The fold asks tags for the reports that its decisions need: what, when, and when not."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import pytest

from services.geofence.domain import codec, fold
from services.geofence.domain.entries import FOLD_VERSION, Body, Entry, FoldVersion, Tick
from tandem.common.v1 import exercise_pb2, geometry_pb2, log_pb2
from tests.support.geofence.encounters import encounter
from tests.support.geofence.stories import T0_MS, Story, circle, second

HOUR_S = 3600


def stay(story: Story, from_s: float, until_s: float, *, north_m: float, every_s: float = 30) -> None:
    """The wearer and the person stay where they are, and both report."""
    move(story, from_s, until_s, north_m=north_m, every_s=every_s, mps=0)


def move(story: Story, from_s: float, until_s: float, *, north_m: float, every_s: float = 30, mps: float) -> float:
    """The wearer moves away from the person (towards her if `mps` is negative), and both report. Returns where the wearer ends."""
    at_s = from_s
    while at_s < until_s:
        story.at(at_s, "phone", 0)
        story.at(at_s + 1, "tag", north_m + mps * (at_s - from_s))
        at_s += every_s
    return north_m + mps * (at_s - every_s - from_s)


def asking(**changes: object) -> Story:
    story = Story()
    story.case(**changes)  # type: ignore[arg-type]
    return story


# ── intervals ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_requests_change_no_alert_and_no_number_of_one() -> None:
    silent, story = asking(exercise=exercise_pb2.DRILL), asking()
    for each in (silent, story):
        move(each, 1, 900, north_m=6000, mps=-6)
    assert story.requests and not silent.requests
    assert [(a.kind, a.demand, a.decided_at_ms, a.ordinal) for a in silent.alerts] == [
        (a.kind, a.demand, a.decided_at_ms, a.ordinal) for a in story.alerts
    ]
    assert story.alerts


def test_a_wearer_far_away_reports_seldom_and_the_request_is_renewed_after_half_of_its_time() -> None:
    story = asking()
    stay(story, 1, 4 * HOUR_S, north_m=20_000, every_s=150)
    requests = story.requests
    assert {request.device_id for request in requests} == {"tag"}
    assert 8 <= len(requests) <= 14
    for request, following in pairwise(requests):
        life_ms = request.until_ms - request.decided_at_ms
        assert 0 < life_ms <= HOUR_S * 1000
        assert following.decided_at_ms < request.until_ms
    assert all(30 <= interval_s <= 170 for interval_s in story.intervals()) and story.intervals()[0] >= 150
    assert len({request.request_id for request in requests}) == len(requests)


def test_an_approach_shortens_the_interval_down_to_half_a_minute() -> None:
    story = asking()
    move(story, 1, 1400, north_m=20_000, mps=-14, every_s=15)
    intervals = story.intervals()
    assert intervals[0] >= 150
    assert intervals[-1] <= 30 / 0.75, "an interval that is a quarter too long stays, so that noise changes nothing"
    near = [request.interval_s for request in story.requests if 20_000 - 14 * second(request) < 1500]
    assert near and all(interval_s is not None and 30 <= interval_s <= 60 for interval_s in near)


def test_a_wearer_at_rest_who_drives_off_within_a_safe_region_is_asked_for_more() -> None:
    """No ring can be reached within the region, but the interval rests on the pace and is evaluated."""
    story = asking(rings=[geometry_pb2.Ring(radius_m=100, action=geometry_pb2.RESPOND)])
    for i in range(4):
        story.at(15 * i, "tag", 3050)  # so that the pace is known once she is
    stay(story, 60, 1000, north_m=3050, every_s=15)
    region = story.state.tracks["tag"].safe_region
    assert region is not None
    before = len(story.requests)
    assert story.intervals()[-1] >= 150
    for i in range(20):  # to and fro, as fast as a car
        story.at(1006 + 15 * i, "tag", 3050, 9.5 * 15 * min(i % 6, 6 - i % 6))
    assert story.state.tracks["tag"].safe_region == region
    story.tick(1300)
    (first,) = story.requests[before:]
    assert first.interval_s is not None and first.interval_s <= 1.1 * 125


def test_a_wearer_who_comes_to_rest_is_asked_for_less() -> None:
    story = asking()
    end_m = move(story, 1, 1280, north_m=20_000, mps=-14, every_s=15)
    assert story.intervals()[-1] < 130
    before = len(story.intervals())
    stay(story, 1280, 2100, north_m=end_m, every_s=15)
    assert max(story.intervals()[before:]) >= 130


def test_her_own_movement_counts_but_her_device_is_never_asked() -> None:
    story = asking()
    stay(story, 1, 600, north_m=4000, every_s=15)
    assert story.intervals()[-1] >= 130
    before = len(story.requests)
    for i in range(16):
        story.at(600 + 15 * i, "phone", 14 * 15 * i)
    assert {request.device_id for request in story.requests} == {"tag"}
    called = [request for request in story.requests[before:] if request.interval_s is not None]
    assert called and called[0].interval_s is not None and called[0].interval_s < 125
    assert 600 < second(called[0]) < 720


def test_the_greatest_need_of_two_orders_wins() -> None:
    story = asking()
    other = log_pb2.ProtectedTarget(person_id="q", device_ids=["phone2"])
    story.case(0, "2", persons=[other])
    for i in range(40):
        story.at(30 * i, "phone", 0)
        story.at(30 * i, "phone2", 19_600)
        story.at(30 * i + 1, "tag", 20_000)
    assert all(interval_s <= 60 for interval_s in story.intervals())
    story.case(1200, "2", persons=[other], version=2, valid_until_ms=T0_MS + 1_200_000)
    stay(story, 1201, 1500, north_m=20_000)
    assert story.intervals()[-1] >= 150, "the order with the smaller need is left"


def test_noise_changes_nothing() -> None:
    story = asking()
    for i in range(60):
        story.at(30 * i, "phone", 0)
        story.at(30 * i + 1, "tag", 900 + 20 * (-1) ** i, accuracy_m=20)
    assert len(story.intervals()) <= 4


def test_a_vague_position_asks_for_no_more_than_a_report_a_minute() -> None:
    story = asking()
    for i in range(20):
        story.at(60 * i, "phone", 0)
        story.at(60 * i + 1, "tag", 2500, accuracy_m=1500)
    assert min(story.intervals()) >= 54


def test_places_count_like_persons() -> None:
    story = asking(persons=[], places=[circle("home", 0, 0, radius_m=50)])
    for i in range(20):
        story.at(30 * i, "tag", 500)
    assert 30 <= story.intervals()[-1] <= 60


def test_a_low_battery_lengthens_the_interval_far_from_rings_and_not_near_them() -> None:
    def intervals(north_m: float) -> list[int]:
        story = asking()
        story.says(0, "tag", "BATTERY_LOW")
        # Every report says that the battery is low, and the wearer drives to and fro at 14 m/s.
        for i in range(40):
            story.at(15 * i, "phone", 0)
            story.at(15 * i + 1, "tag", north_m, 420.0 * (i // 2 % 2))
        return story.intervals()

    assert max(intervals(3500)) == 170
    assert max(intervals(500)) <= 60


def test_a_jump_away_doesnt_lengthen_the_interval_while_the_ring_stays_entered() -> None:
    story = asking()
    stay(story, 1, 300, north_m=60, every_s=15)
    assert story.entered() == [2000, 1000, 100]
    for i in range(40):
        story.at(300 + 15 * i, "phone", 0)
        story.at(301 + 15 * i, "tag", 20_000 + 5 * (i % 3))
    assert max(story.intervals()) <= 60


def test_an_authorised_encounter_needs_a_report_a_minute() -> None:
    story = asking(encounters=[encounter(until_s=1500)])
    stay(story, 1, 1400, north_m=30)
    assert min(story.intervals()) >= 54
    stay(story, 1510, 1700, north_m=30)
    assert story.intervals()[-1] <= 33


@pytest.mark.parametrize("exercise", [exercise_pb2.DRILL, exercise_pb2.CANARY])
def test_exercises_ask_for_nothing(exercise: exercise_pb2.Exercise) -> None:
    story = asking(exercise=exercise)
    move(story, 1, 900, north_m=6000, mps=-6)
    assert not story.requests


# ── position now ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_overdue_report_near_a_ring_asks_for_the_position_at_once_and_at_most_three_times() -> None:
    story = asking()
    stay(story, 1, 600, north_m=900, every_s=30)  # the last report comes at 572 s
    for at_s in range(600, 1200, 30):
        story.at(at_s, "phone", 0)
    story.tick(1200)
    assert story.located_s() == [572 + 38, 572 + 98, 572 + 158]
    assert [r.until_ms - r.decided_at_ms for r in story.requests if r.interval_s is None] == [60_000] * 3
    story.at(1201, "tag", 900)
    story.tick(1400)
    assert story.located_s()[3:] == [1239, 1299, 1359], "a position begins a new row"


def test_the_kept_interval_counts_and_not_the_one_that_was_asked() -> None:
    story = asking()
    stay(story, 1, 1200, north_m=900, every_s=120)
    assert max(story.intervals()) <= 60
    assert not story.located_s(), "each report came when the device usually reports"
    story.tick(1500)
    assert story.located_s()[0] == 1082 + 128


def test_far_from_all_rings_no_position_is_asked_for() -> None:
    story = asking()
    stay(story, 1, 600, north_m=9000)
    story.tick(1500)
    assert not story.located_s()


def test_a_position_is_asked_for_at_most_once_a_minute_however_often_reports_fail() -> None:
    story = asking()
    stay(story, 1, 300, north_m=900, every_s=10)
    for i in range(20):
        story.at(320 + 25 * i, "tag", 900)  # always 15 s after it was due at first
    located_s = story.located_s()
    assert located_s and all(after - before >= 60 for before, after in pairwise(located_s))


def test_an_outage_asks_nobody() -> None:
    story = Story()
    for n in range(30):
        person = log_pb2.ProtectedTarget(person_id=f"p{n}", device_ids=[f"phone{n}"])
        story.case(0, str(n), wearer_id=f"w{n}", tag_device_ids=[f"tag{n}"], persons=[person])
    for i in range(6):
        for n in range(30):
            story.at(170 * i, f"phone{n}", 0)
            story.at(170 * i + 1, f"tag{n}", 1500)
    story.tick(1200)
    assert story.state.outage is not None
    began_s = (story.state.outage.from_ms - T0_MS) / 1000 + 180
    assert all(second(request) <= began_s + 1 for request in story.requests)


def test_a_silent_tag_gets_no_more_requests_and_is_asked_at_its_next_report() -> None:
    story = asking()
    stay(story, 1, 1000, north_m=900)
    for at_s in range(1000, 3 * HOUR_S, 300):
        story.at(at_s, "phone", 0)
    count = len(story.requests)
    assert max(map(second, story.requests)) < 1250
    story.at(3 * HOUR_S, "tag", 900)
    story.tick(3 * HOUR_S + 21)
    assert len(story.requests) == count + 1


# ── ends ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("what", ["end", "amend", "hands"])
def test_after_the_end_of_the_order_the_need_runs_out(what: str) -> None:
    story = asking()
    stay(story, 1, 1000, north_m=900)
    asked = story.of_device("tag")
    if what == "end":
        story.case(1000, version=2, valid_until_ms=T0_MS + 1_000_000)
    elif what == "amend":
        story.case(1000, version=2, tag_device_ids=["tag2"])
    else:  # the tag belongs to somebody now against whom no order is in force
        story.case(1000, version=2, tag_device_ids=["tag2"])
        story.case(1000, "3", wearer_id="w3", valid_from_ms=T0_MS + 7_000_000)
    for at_s in range(1001, 6000, 30):
        story.at(at_s, "tag", 900)
    assert story.of_device("tag") == asked
    assert "tag" not in story.state.sensing


def test_a_device_that_changed_hands_begins_without_a_memory() -> None:
    story = asking()
    stay(story, 1, 1000, north_m=900)
    assert story.state.sensing["tag"].basis_s <= 60
    person = log_pb2.ProtectedTarget(person_id="q", device_ids=["phone2"])
    story.case(1000, "3", wearer_id="w3", persons=[person])
    assert "tag" not in story.state.sensing


def test_an_order_that_begins_asks_at_once_for_what_it_needs() -> None:
    story = Story()
    for i in range(20):
        story.at(30 * i, "phone", 0)
        story.at(30 * i + 1, "tag", 400)
    assert not story.requests
    story.case(580)
    story.tick(601)
    (request,) = story.requests
    assert request.interval_s is not None and request.interval_s <= 60


# ── clocks ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("step_s", [-1500, -100, 60])
def test_a_clock_that_steps_gives_no_flood_of_requests(step_s: int) -> None:
    story = asking()
    stay(story, 1, 600, north_m=900)
    before = len(story.requests)
    for i in range(100):
        at_s = 600 + 30 * i
        story.at(at_s, "phone", 0)
        story.at(at_s + 1, "tag", 900, fix_s=at_s + 1 + step_s)
    assert len(story.requests) - before <= 8


# ── the log's version ────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Ticked(Story):
    """A story that ticks every 5 s, whatever is due, so that two states fold the same entries."""

    ticked_s: float = 0

    def enter(self, at_s: float, body: Body) -> None:
        while self.ticked_s + 5 < at_s:
            self.ticked_s += 5
            self.outputs += fold.step(
                self.state, Entry(self.state.sequence + 1, T0_MS + round(self.ticked_s * 1000), Tick())
            )
        self.outputs += fold.step(self.state, Entry(self.state.sequence + 1, T0_MS + round(at_s * 1000), body))


def test_an_evaluator_that_knows_less_of_the_log_makes_the_same_requests_after_its_next_version() -> None:
    whole, later = Ticked(), Ticked()
    for story in (whole, later):
        story.case()
        stay(story, 1, 1000, north_m=900)
    later.state.sensing.clear()
    later.state.log_version_ms = None
    counts = []
    for story in (whole, later):
        stay(story, 1000, 2000, north_m=900)
        story.enter(2000, FoldVersion(FOLD_VERSION))
        counts.append(len(story.outputs))
        stay(story, 2001, 9000, north_m=900)
    after = whole.outputs[counts[0] :]
    assert whole.outputs[: counts[0]] != later.outputs[: counts[1]] and len(after) > 3
    assert after == later.outputs[counts[1] :]
    assert codec.encode(whole.state) == codec.encode(later.state)


# ── checkpoints ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_was_asked_is_in_the_checkpoint() -> None:
    story = asking()
    move(story, 1, 700, north_m=8000, mps=-10, every_s=15)
    assert story.state.sensing["tag"].basis_s
    restored = codec.decode(codec.encode(story.state))
    assert restored.sensing == story.state.sensing
    assert restored.sensing_due == sorted(story.state.sensing_due) != []
