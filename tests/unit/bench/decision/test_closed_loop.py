"""A commanded tag of the decision-quality study obeys the fold's requests, by its own way of delivery."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from itertools import count, pairwise

import pytest

from bench.decision.arms import ARMS
from bench.decision.judge import judge
from bench.decision.noise import TAG, Gaps, World
from bench.decision.play import Played, perform
from bench.decision.truth import Truth
from services.geofence.domain import fold
from services.geofence.domain.alerts import Output
from services.geofence.domain.entries import FOLD_VERSION, Entry, FoldVersion, Positions
from services.geofence.domain.pairs import apart
from services.geofence.domain.state import State
from tests.support.decision_quality import ScriptedFold, interval, play, position_now

HOUR = play((0, 3000), (3600, 3000))


def _world(*, is_clear: bool) -> World:
    """An hour in the first draw of the noise in which nothing is lost from 580 to 900 s, or in which 600 to 700 s is a gap."""
    seen_ms = range(580_000, 900_000, 1000) if is_clear else range(600_000, 700_000, 1000)
    for draw in count(1):
        world = World(HOUR, draw, Gaps.LONG)
        tag = world.tag
        if all(tag.is_in_gap(at_ms) is not is_clear for at_ms in seen_ms) and not (
            is_clear and any(tag.reachable_ms(at_ms, 0) != at_ms for at_ms in seen_ms)
        ):
            return world
    raise AssertionError


CLEAR, GAP = _world(is_clear=True), _world(is_clear=False)


def _played(world: World, arm: str, outputs: Mapping[int, Output]) -> Played:
    return perform(world, ARMS[arm], ScriptedFold(outputs).step)


def _fixes_s(played: Played) -> list[float]:
    return sorted({report.fix_ms / 1000 for report in played.received if report.device == TAG})


def test_a_stream_brings_an_interval_in_two_seconds_and_its_end_brings_the_usual_one() -> None:
    played = _played(CLEAR, "asked", {600: interval(600, 30, 800)})
    usual_s = _fixes_s(_played(CLEAR, "60 s", {}))
    before_s = max(at_s for at_s in usual_s if at_s <= 602)
    asked_s = [at_s for at_s in _fixes_s(played) if 602 <= at_s < 860]
    expected_s = max(602, before_s + 30)
    while expected_s <= 800:
        assert asked_s.pop(0) == pytest.approx(expected_s)
        expected_s += 30
    assert asked_s.pop(0) == pytest.approx(max(expected_s + 30, 800))
    assert [at_s for at_s in _fixes_s(played) if at_s < 602] == [at_s for at_s in usual_s if at_s < 602]
    assert (played.commands, played.locates, played.located) == (1, 0, 0)


def test_a_longer_interval_ends_with_its_time_too() -> None:
    fixes_s = _fixes_s(_played(CLEAR, "asked", {600: interval(600, 170, 660)}))
    last_s = max(at_s for at_s in fixes_s if at_s < 602)
    assert min(at_s for at_s in fixes_s if at_s >= 602) == max(last_s + 60, 660)


def test_a_newer_interval_replaces_the_one_before() -> None:
    fixes_s = _fixes_s(_played(CLEAR, "asked", {600: interval(600, 170, 2000), 640: interval(640, 20, 2000)}))
    asked_s = [at_s for at_s in fixes_s if 700 <= at_s < 880]
    assert {after - before for before, after in pairwise(asked_s)} == {20}


def test_a_position_on_demand_comes_within_ten_seconds_and_leaves_the_interval_alone() -> None:
    played = _played(CLEAR, "asked", {620: position_now(620)})
    usual_s = set(_fixes_s(_played(CLEAR, "60 s", {})))
    (demanded_s,) = set(_fixes_s(played)) - usual_s
    assert 622 <= demanded_s <= 630
    assert usual_s < set(_fixes_s(played))
    assert (played.commands, played.locates, played.located) == (0, 1, 1)
    assert played.sent == len(usual_s) + 1


def test_in_a_gap_a_position_on_demand_fails_and_an_interval_waits_for_its_end() -> None:
    end_s = next(at_s for at_s in count(600) if not GAP.tag.is_in_gap(at_s * 1000))
    failed = _played(GAP, "asked", {605: position_now(605)})
    assert (failed.locates, failed.located) == (1, 0)
    assert _fixes_s(failed) == _fixes_s(_played(GAP, "60 s", {}))
    fixes_s = _fixes_s(_played(GAP, "asked", {605: interval(605, 20, 3000)}))
    assert not [at_s for at_s in fixes_s if 600 <= at_s < end_s]
    assert end_s + 1 <= next(at_s for at_s in fixes_s if at_s > end_s) <= end_s + 62
    # A command that ended meanwhile is not obeyed.
    assert _fixes_s(_played(GAP, "asked", {605: interval(605, 20, 690)})) == _fixes_s(failed)


def test_on_the_next_contact_the_answer_to_a_report_brings_what_was_requested_before() -> None:
    outputs = {600: interval(600, 170, 3000), 605: interval(605, 20, 3000)}
    played = _played(CLEAR, "asked, next contact", outputs)
    usual = [report for report in _played(CLEAR, "60 s", {}).received if report.device == TAG]
    contact_s = min(report.arrived_ms for report in usual if report.arrived_ms >= 605_000) / 1000
    later_s = [at_s for at_s in _fixes_s(played) if contact_s < at_s < 880]
    assert {after - before for before, after in pairwise(later_s)} == {20}
    assert later_s[0] <= contact_s + 20
    assert [at_s for at_s in _fixes_s(played) if at_s < contact_s] == [
        report.fix_ms / 1000 for report in usual if report.fix_ms / 1000 < contact_s
    ]


def test_a_tag_that_cannot_be_commanded_reports_as_one_of_which_nothing_is_requested() -> None:
    outputs = {600: interval(600, 30, 3000), 620: position_now(620)}
    played = _played(CLEAR, "60 s", outputs)
    assert played.received == _played(CLEAR, "60 s", {}).received
    assert (played.commands, played.locates, played.located) == (0, 0, 0)


def test_the_logs_of_all_arms_are_alike_and_begin_with_the_version_of_the_fold() -> None:
    asked, constant = ScriptedFold({}), ScriptedFold({})
    perform(CLEAR, ARMS["asked"], asked.step)
    perform(CLEAR, ARMS["60 s"], constant.step)
    assert asked.bodies[0] == FoldVersion(FOLD_VERSION)
    assert asked.bodies == constant.bodies


def test_with_the_true_fold_a_rule_by_distance_makes_a_tag_report_often_near_her_and_seldom_far_away() -> None:
    def asking(state: State, entry: Entry) -> list[Output]:
        outputs = fold.step(state, entry)
        last = state.last_fix((TAG,))
        if not isinstance(entry.body, Positions) or last is None:
            return outputs
        found = apart(state, last, state.cases["case"].case.targets[0])
        is_near = found is not None and found.mm < 1_500_000
        return [*outputs, interval(entry.stamp_ms // 1000, 30 if is_near else 170, entry.stamp_ms // 1000 + 3600)]

    visit = play((0, 12_000), (6_000, 12_000), (6_800, 0), (8_000, 0), (8_800, 12_000), (15_000, 12_000))
    world = World(visit)
    judged = judge(world, ARMS["asked"], Truth(visit), step=asking)
    assert (judged.breaches, judged.missed, judged.late) == (1, 0, 0)
    fixes_s = _fixes_s(perform(world, ARMS["asked"], asking))
    near_s = [after - before for before, after in pairwise(fixes_s) if 6_900 < before < 8_000]
    far_s = [after - before for before, after in pairwise(fixes_s) if 1_000 < before < 5_800]
    assert statistics.median(near_s) == 30
    assert statistics.median(far_s) == 170
    assert judged.commands > judged.sent


def test_what_the_fold_itself_requests_makes_a_tag_report_seldom_far_away_and_often_near_her() -> None:
    visit = play((0, 12_000), (6_000, 12_000), (6_800, 0), (8_000, 0), (8_800, 12_000), (15_000, 12_000))
    world = World(visit)
    played = perform(world, ARMS["asked"])
    assert played.commands > 0
    fixes_s = _fixes_s(played)
    far_s = [after - before for before, after in pairwise(fixes_s) if 2_000 < before < 5_800]
    near_s = [after - before for before, after in pairwise(fixes_s) if 6_900 < before < 8_000]
    assert statistics.median(far_s) >= 110
    assert statistics.median(near_s) <= 60
    constant = perform(world, ARMS["60 s"])
    assert (constant.commands, constant.locates) == (0, 0)
