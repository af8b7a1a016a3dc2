"""The decision-quality study: its plays were fixed before the decision was tuned."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from bench.decision import noise, placement
from bench.decision.judge import THRESHOLDS_M, Judged, judge
from bench.decision.placement import Play, Spot, moved
from bench.decision.score import Score
from bench.decision.truth import Truth
from tests.support.geofence import geolife

PLACED = "60dddea040163679dbfe44af74c718b13c82ae1760ae1f9db3de3051c96e6564"
REPORTED = "93177165167ed0392321773a3d309ed9cd0c78026654ebecdc1c3e6350285fd9"


def test_placement_and_noise_are_those_fixed_beforehand() -> None:
    plays = placement.plays(geolife.require_geolife())
    assert len({play.name for play in plays}) == len(plays)
    assert placement.digest(plays) == PLACED
    hashed = hashlib.sha256()
    for play in plays[::100]:
        for every_ms in (15_000, 60_000):
            hashed.update(repr([tuple(report) for report in noise.reports(play, every_ms)]).encode())
    assert hashed.hexdigest() == REPORTED


def _play(*north_m: tuple[int, int], is_place: bool = True) -> Play:
    """A play of a wearer by pairs of time, s, and distance north of the home, m."""
    home = Spot(0, 375_000_000, 1_270_000_000)
    way = tuple(moved(home, north, 0)._replace(at_ms=at_s * 1000) for at_s, north in north_m)
    return Play("p", "beside-0", "w", way, (home, home._replace(at_ms=way[-1].at_ms)), is_place)


def test_the_true_distance_is_computed_in_continuous_time() -> None:
    truth = Truth(_play((0, 430), (100, -570), (200, -570)))
    # 10 m/s, and the home is a circle of 30 m.
    assert pytest.approx((30_000, 56_000), abs=2) == truth.within(100)[0]
    assert pytest.approx((40_000, 56_000), abs=2) == truth.within(100, 40_000)[0]
    assert truth.within(600) == [(0, 200_000)]
    assert truth.min_m(0, 200_000) == 0
    assert truth.min_m(50_000, 90_000) == pytest.approx(40, abs=0.02)
    assert truth.min_m(500_000, 600_000) == pytest.approx(540, abs=0.02)


def test_the_distance_of_two_moving_people_follows_both_ways() -> None:
    home = Spot(0, 375_000_000, 1_270_000_000)
    hers = (home, moved(home, 0, 1000)._replace(at_ms=80_000), moved(home, 0, 1000)._replace(at_ms=100_000))
    his = (moved(home, 0, 1000), home._replace(at_ms=100_000))
    truth = Truth(Play("p", "pair", "w", his, hers, False))
    # They approach each other at 12.5 m/s and 10 m/s over 1,000 m.
    assert truth.at_m(0) == pytest.approx(1000, abs=0.01)
    assert truth.min_m(0, 100_000) == pytest.approx(0, abs=0.01)
    assert pytest.approx((955 / 22.5 * 1000, 1045 / 22.5 * 1000), abs=2) == truth.within(45)[0]


def test_a_walk_to_the_home_is_a_breach_and_a_walk_past_is_not() -> None:
    to_her = judge(_play((0, 1500), (1000, 0), (1500, 0), is_place=False), 15_000)
    assert (to_her.breaches, to_her.close, to_her.missed, to_her.false) == (1, 1, 0, 0)
    away = judge(_play((0, 1500), (1000, 600), (1500, 1500)), 15_000)
    assert (away.breaches, away.missed, away.plain_missed.sum()) == (0, 0, 0)
    by_threshold = dict(zip(THRESHOLDS_M, away.plain_false, strict=True))
    assert (by_threshold[100], by_threshold[900]) == (0, 1)


def test_the_comparison_uses_the_threshold_that_misses_no_more() -> None:
    """Two wearers with ten breaches each; a threshold of 100 m misses as many as the fold."""
    judged = []
    for wearer in ("a", "b"):
        play = Judged(wearer, "beside-0", 15_000, 1.0, breaches=10, missed=1, false=1)
        play.plain_missed = np.where(THRESHOLDS_M < 100, 5, 1)
        play.plain_false = np.where(THRESHOLDS_M < 100, 2, 8)
        judged.append(play)
    score = Score(judged)
    assert (score.sums.threshold_m, score.sums.false_ratio) == (100, 2 / 16)
    assert score.interval(lambda sums: sums.false_ratio) == (0.125, 0.125, 0.125)
    judged[0].missed_but_near = 1
    assert Score(judged).sums.false_ratio_unnotified == 2 / 16
    assert Score(judged).sums.equal_unnotified == -1
    judged[1].missed, judged[1].false = 0, 9
    assert Score(judged).sums.missed_share == 1 / 20
    # The plain rule misses two with every threshold, so the comparison uses the largest one.
    assert Score(judged).sums.threshold_m == THRESHOLDS_M[-1]
    low, high = Score(judged).interval(lambda sums: sums.false)[1:]
    assert (low, high) == (2, 18)


def test_draws_of_the_noise_differ_and_the_first_is_the_fixed_one() -> None:
    play = _play((0, 1500), (1000, 0), (1500, 0), is_place=False)
    first, second = (noise.reports(play, 15_000, draw) for draw in (1, 2))
    assert noise.reports(play, 15_000) == first != second
    assert noise.reports(play, 15_000, 2) == second
    assert judge(play, 15_000, 2).draw == 2
