"""The indoor study: losses and presences follow from the lives, approaches from their seeds, and the tables count them."""

from __future__ import annotations

from bench.burden.counts import Counts, Moment
from bench.burden.lives import START_MS, life
from bench.decision.noise import Period
from bench.indoors.__main__ import goals, notices_a_day, responses_a_day
from bench.indoors.approaches import APPROACH_ARMS, Approach, approaches
from bench.indoors.week import INDOOR_ARMS
from bench.indoors.world import HOME, WORK, IndoorWorld, merged


def test_losses_are_within_stays_in_buildings_and_the_same_each_time() -> None:
    world, same = IndoorWorld(life(300, 0)), IndoorWorld(life(300, 0))
    assert world.losses == same.losses and 7 < len(world.losses) <= 28
    assert {stay.where for stay in world.stays} == {HOME, WORK}
    for loss in world.losses:
        assert any(s.period.start_ms <= loss.start_ms and loss.end_ms <= s.period.end_ms for s in world.stays)
        assert world.tag.is_in_gap(loss.start_ms) and world.tag.is_in_gap(loss.end_ms - 1)
    assert IndoorWorld(life(300, 0), has_losses=False).losses == []


def test_overlapping_periods_become_one() -> None:
    periods = [Period(5, 9), Period(0, 3), Period(8, 12), Period(12, 14), Period(20, 21)]
    assert [*merged(periods)] == [Period(0, 3), Period(5, 14), Period(20, 21)]


def test_each_arm_of_an_approach_has_the_same_way() -> None:
    made = {each.arm: each for each in approaches(1) if each.home_m == 300}
    assert set(made) == {arm.name for arm in APPROACH_ARMS}
    assert len({each.arrives_after_s for each in made.values()}) == 1
    without, carried = made["no unit"].respond_after_s, made["beacon is carried along"].respond_after_s
    assert without is not None and without < 0  # people are sent while he still sits at home
    assert carried is None or carried > without


def test_counts_are_a_day_and_of_unseen_wearers_alone() -> None:
    week = Counts(home_m=300, seed=0, protects="place", arm="no unit", days=7)
    week.moments = [Moment(START_MS, kind, "", "", None) for kind in ("UNKNOWN_NEAR", "RING_ENTERED", "UNKNOWN_NEAR")]
    week.notices.update({"UNKNOWN_NEAR": 14, "SILENT": 7})
    assert (responses_a_day([week]), notices_a_day([week]), notices_a_day([week], "SILENT")) == (2 / 7, 2.0, 1.0)
    units = Counts(home_m=300, seed=0, protects="place", arm=INDOOR_ARMS[-1].name, days=7)
    late = Approach(300, "no unit", 100.0, 90.0)
    assert not late.is_in_time
    unseen = late._replace(respond_after_s=None)
    saved, missed, carried = goals([week, units], [late, unseen, unseen._replace(arm=APPROACH_ARMS[-1].name)])
    assert (saved.value, saved.met, missed.value, missed.met) == (0, True, 1, False)
    assert (carried.value, carried.unit, carried.met) == (1, "of 1", None)
