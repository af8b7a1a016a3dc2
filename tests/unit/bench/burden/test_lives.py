"""The weeks of the burden study: nobody violates anything in them, and they stay as they were fixed."""

from __future__ import annotations

import random
from functools import cache
from itertools import pairwise

import pytest

from bench.burden.journeys import Diary, Pace, around, route
from bench.burden.lives import APART_M, DAYS, HOMES_M, SEEDS, START_MS, Life, digest, life
from bench.burden.world import WeekReceiver
from bench.decision.noise import TAG
from bench.decision.truth import Truth
from services.geofence.domain.entries import EquipmentKind

DIGEST = "74db595d4627d5ca85314ce63fdcad57f732bb0530153e959a928dfbc569132d"
"""Digest of all lives, fixed before anything was tuned. A change of a life makes all earlier figures incomparable."""
H_MS = 3_600_000
_life = cache(life)
LIVES = [(home_m, seed) for home_m in HOMES_M for seed in SEEDS]


@pytest.mark.parametrize(("home_m", "seed"), LIVES)
@pytest.mark.parametrize("is_place", [False, True])
def test_the_wearer_never_comes_within_150_m(home_m: int, seed: int, is_place: bool) -> None:
    play = _life(home_m, seed).play(is_place=is_place)
    assert Truth(play).min_m(play.way[0].at_ms, play.way[-1].at_ms) >= APART_M - 0.1


@pytest.mark.parametrize(("home_m", "seed"), LIVES)
def test_both_sides_have_a_whole_week_in_order_of_time(home_m: int, seed: int) -> None:
    lived = _life(home_m, seed)
    for way in (lived.wearer, lived.person):
        assert way[0].at_ms == START_MS
        assert way[-1].at_ms == START_MS + DAYS * 24 * H_MS
        assert [*way] == sorted(way, key=lambda spot: spot.at_ms)
        assert len({spot.at_ms for spot in way}) == len(way)


@pytest.mark.parametrize(("home_m", "seed"), LIVES)
def test_the_wearer_sleeps_at_home_and_works_far_away(home_m: int, seed: int) -> None:
    lived = _life(home_m, seed)
    truth = Truth(lived.play(is_place=True))
    for day in range(4):
        night_ms, noon_ms = (START_MS + (24 * day + hour) * H_MS for hour in (4, 12))
        assert lived.doing_at(night_ms) == "at home"
        assert truth.at_m(night_ms) == pytest.approx(home_m - 30, abs=0.5)
        assert lived.doing_at(noon_ms) == "at work"
        assert truth.at_m(noon_ms) > 2_500


def test_a_life_depends_on_its_distance_and_seed_alone() -> None:
    assert life(500, 3) == _life(500, 3)
    assert life(500, 3).wearer != _life(500, 4).wearer
    assert digest([_life(500, 3)]) != digest([_life(500, 4)])


def test_the_lives_are_those_that_were_fixed() -> None:
    assert digest([_life(home_m, seed) for home_m, seed in LIVES]) == DIGEST


def test_the_lives_have_all_kinds_of_days() -> None:
    lives = [_life(home_m, seed) for home_m, seed in LIVES]
    doings = {doing.what for lived in lives for doing in lived.doings}
    assert doings == {
        "at home",
        "at work",
        "away",
        "driving away",
        "driving home",
        "driving home towards her",
        "driving past",
        "driving to a shop",
        "driving to work",
        "in a shop",
        "on a visit",
        "on the bus",
        "on the train",
        "waiting",
        "walking around",
        "walking home",
        "walking to a shop",
        "walking to the stop",
    }
    assert [sum(_is_away(_life(home_m, seed)) for seed in SEEDS) for home_m in HOMES_M] == [3, 2, 2]
    assert any(event.kind is EquipmentKind.BATTERY_LOW for lived in lives for event in lived.events)
    assert all(any(spot[1:] != lived.person[0][1:] for spot in lived.person) for lived in lives)


def test_a_week_has_two_long_and_six_shorter_gaps_a_day_at_most() -> None:
    lived = _life(300, 0)
    receiver = WeekReceiver(lived.name, TAG, lived.wearer)
    in_gap = [receiver.is_in_gap(START_MS + at_s * 1000) for at_s in range(DAYS * 86_400)]
    lengths_s = [len(run) for run in "".join("g" if gap else " " for gap in in_gap).split()]
    assert DAYS * 7 <= len(lengths_s) <= DAYS * 8
    assert min(lengths_s) >= 59
    assert sum(length_s >= 181 for length_s in lengths_s) <= 2 * DAYS
    assert max(lengths_s) <= 481


@pytest.mark.parametrize("seed", range(50))
def test_a_route_keeps_away_from_her_home(seed: int) -> None:
    rng = random.Random(seed)
    start, end = complex(300), complex(-rng.uniform(300, 2_000), rng.uniform(-50, 50))
    points = [start, *route(start, end, rng, grid=rng.uniform(0, 1.5))]
    assert points[-1] == end
    assert _nearest_m(points) >= 189
    assert _nearest_m([start, *around(start, end, 250)]) == pytest.approx(250, abs=1)


def test_a_straight_way_that_passes_far_off_stays_straight() -> None:
    assert around(1000 + 300j, -1000 + 300j, 250) == [-1000 + 300j]


def test_a_journey_keeps_to_the_speeds_of_its_pace() -> None:
    diary = Diary(0, random.Random(1), "at home")
    diary.go([5_000], Pace.WALK, "walking")
    assert diary.here == 5_000
    assert 5_000 / 1.6 < diary.now_s < 5_000 / 1.1 * 1.5


def _is_away(lived: Life) -> bool:
    return any(doing.what == "away" for doing in lived.doings)


def _nearest_m(points: list[complex]) -> float:
    fine = [start + (end - start) * step / 200 for start, end in pairwise(points) for step in range(201)]
    return min(map(abs, fine))
