"""The true distance of the decision-quality study."""

from __future__ import annotations

import pytest

from bench.decision.placement import Play, moved
from bench.decision.truth import Truth
from tests.support.decision_quality import HOME, play


def test_the_true_distance_is_computed_in_continuous_time() -> None:
    truth = Truth(play((0, 430), (100, -570), (200, -570)))
    # 10 m/s, and the home is a circle of 30 m.
    assert pytest.approx((30_000, 56_000), abs=2) == truth.within(100)[0]
    assert pytest.approx((40_000, 56_000), abs=2) == truth.within(100, 40_000)[0]
    assert truth.within(600) == [(0, 200_000)]
    assert truth.min_m(0, 200_000) == 0
    assert truth.min_m(50_000, 90_000) == pytest.approx(40, abs=0.02)
    assert truth.min_m(500_000, 600_000) == pytest.approx(540, abs=0.02)


def test_the_distance_of_two_moving_people_follows_both_ways() -> None:
    hers = (HOME, moved(HOME, 0, 1000)._replace(at_ms=80_000), moved(HOME, 0, 1000)._replace(at_ms=100_000))
    his = (moved(HOME, 0, 1000), HOME._replace(at_ms=100_000))
    truth = Truth(Play("p", "pair", "w", his, hers, False))
    # They approach each other at 12.5 m/s and 10 m/s over 1,000 m.
    assert truth.at_m(0) == pytest.approx(1000, abs=0.01)
    assert truth.min_m(0, 100_000) == pytest.approx(0, abs=0.01)
    assert pytest.approx((955 / 22.5 * 1000, 1045 / 22.5 * 1000), abs=2) == truth.within(45)[0]
