"""Figures of the decision-quality study: the equal threshold, paired intervals, rates a day."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from bench.decision import tables
from bench.decision.judged import THRESHOLDS_M, Judged
from bench.decision.score import Score, ratio


def _judged(wearer: str, *, missed: int, nothing: int, arm: str = "60 s") -> Judged:
    """Ten breaches of a wearer in a day; a threshold of less than 100 m misses five, any other one."""
    judged = Judged(wearer, False, arm, "SHORT", 1, 24.0, breaches=10, missed=missed, sent=1440)
    judged.nothing = Counter({"UNKNOWN_NEAR": nothing})
    judged.plain_missed = np.where(THRESHOLDS_M < 100, 5, 1)
    judged.plain_nothing = np.where(THRESHOLDS_M < 100, 2, 8)
    return judged


def test_the_comparison_uses_the_threshold_that_misses_no_more() -> None:
    judged = [_judged(wearer, missed=1, nothing=1) for wearer in ("a", "b")]
    score = Score(judged)
    assert (score.sums.threshold_m, score.sums.plain_ratio) == (100, 2 / 16)
    assert score.interval(lambda sums: sums.plain_ratio) == (0.125, 0.125, 0.125)
    judged[0].missed_but_near = 1
    assert Score(judged).sums.plain_ratio_unnotified == 2 / 16
    assert Score(judged).sums.equal_unnotified == -1
    judged[1].missed, judged[1].nothing = 0, Counter(UNKNOWN_NEAR=9)
    assert Score(judged).sums.missed_share == 1 / 20
    # The plain rule misses two with every threshold, so the comparison uses the largest one.
    assert Score(judged).sums.threshold_m == THRESHOLDS_M[-1]
    low, high = Score(judged).interval(lambda sums: sums.all_nothing)[1:]
    assert (low, high) == (2, 18)


def test_arms_are_compared_in_pairs_of_wearers() -> None:
    """Each wearer has half of the dispatches for nothing, and one miss more: that has no spread, however the wearers differ."""
    wearers = {"a": 2, "b": 20, "c": 200}
    base = Score(_judged(wearer, missed=count, nothing=count) for wearer, count in wearers.items())
    score = Score(_judged(wearer, missed=count + 1, nothing=count // 2) for wearer, count in wearers.items())
    assert score.compared(base, lambda own, other: ratio(own.all_nothing, other.all_nothing)) == (0.5, 0.5, 0.5)
    assert score.compared(base, lambda own, other: own.missed - other.missed) == (3, 3, 3)
    assert base.interval(lambda sums: sums.all_nothing).high > 400
    with pytest.raises(ValueError, match="same wearers"):
        score.compared(Score([_judged("a", missed=1, nothing=1)]), lambda own, other: 0)


def test_rates_are_those_of_plays_near_her_or_far_away() -> None:
    far = _judged("a", missed=0, nothing=0)
    far.is_far = True
    far.hours = 48.0
    far.sent = 1000
    score = Score([_judged("a", missed=0, nothing=0), far])
    assert score.per_day("sent", is_far=False) == 1440
    assert score.per_day("sent", is_far=True) == 500


def test_a_ratio_of_nothing_is_no_error() -> None:
    assert (ratio(2, 4), ratio(0, 0), ratio(3, 0)) == (0.5, 1, math.inf)


def test_each_arm_has_its_figures_and_its_comparisons() -> None:
    judged = [
        _judged(wearer, missed=1, nothing=4, arm=arm)
        for wearer in ("a", "b")
        for arm in ("15 s", "60 s", "asked", "60 s (before)")
    ]
    scores = tables.scores(judged)
    compared = {arm: set(each["compared"]) for arm, each in tables.as_json(scores)["SHORT"].items()}
    assert compared == {
        "15 s": {"60 s", "60 s (before)"},
        "60 s": {"60 s (before)"},
        "asked": {"15 s", "60 s", "60 s (before)"},
        "60 s (before)": {"60 s"},
    }
    figures = tables.as_json(scores)["SHORT"]["asked"]["figures"]
    assert figures["all dispatches for nothing"] == (8, 8, 8)
    assert figures["  begun by UNKNOWN_NEAR"] == 8
    assert figures["tag reports a day, near"] == 1440
    assert tables.as_json(scores)["SHORT"]["60 s"]["targets"] == {}
    assert tables.as_json(scores)["SHORT"]["asked"]["targets"] == {
        "for nothing at most 0.8 of 15 s": "MISSED",
        "for nothing at most 0.5 of 60 s": "MISSED",
        "missed, interval to 60 s not above 0": "met",
        "notified late, interval to 60 s not above 0": "met",
        "for nothing at most 0.5 of 60 s (before)": "MISSED",
        "missed, interval to 60 s (before) not above 0": "met",
        "notified late, interval to 60 s (before) not above 0": "met",
        "tag reports a day near at most 2000": "met",
        "tag reports a day far away at most 700": "met",
    }
    assert len(list(tables.tables(scores, judged))) == 6
