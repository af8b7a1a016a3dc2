"""Runs of work that may be done at once."""

from __future__ import annotations

import random

import pytest

from services.common.runs import runs


@pytest.mark.parametrize("seed", range(20))
def test_runs_keep_the_order_and_hold_no_thing_twice(seed: int) -> None:
    rng = random.Random(seed)
    items = [(number, rng.choice(["a", "b", "c", "d", None])) for number in range(60)]
    found = list(runs(items, lambda item: item[1], at_most=3))
    assert [item for run in found for item in run] == items
    for run in found:
        things = [thing for _, thing in run]
        assert len(set(things)) == len(things) <= 3
        assert things == [None] or None not in things


def test_items_about_different_things_share_a_run_and_no_items_give_none() -> None:
    assert list(runs("abc", str, at_most=64)) == [["a", "b", "c"]]
    assert not list(runs("", str, at_most=64))
