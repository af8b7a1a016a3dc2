"""The study of her map on few plays and weeks: its seeds give the same weeks, its judge and its attacker bite."""

from __future__ import annotations

import cmath
import hashlib
import math

from bench.decision.placement import Play, Spot, moved
from bench.region.approaches import KEPT_ARMS, see
from bench.region.attacker import VIEWS, Attacker, Habits, chosen
from bench.region.lives import HOME_M, week
from bench.region.watching import Sighting, encounters, watch

START = Spot(1_790_000_000_000, 375_000_000, 1_270_000_000)


def test_the_weeks_are_fixed_and_live_at_least_2_km_apart() -> None:
    weeks = [week(seed) for seed in range(3)]
    assert all(HOME_M[0] <= abs(each.home) <= HOME_M[1] for each in weeks)
    rounded = [
        [(round(s.at_s), round(s.wearer.real), round(s.person.imag)) for s in each.samples[::40]] for each in weeks
    ]
    assert hashlib.sha256(repr(rounded).encode()).hexdigest()[:16] == "5d6e783a61948075"


def test_a_straight_approach_is_held_by_its_regions_and_never_put_far() -> None:
    way = tuple(moved(START._replace(at_ms=START.at_ms + n * 5_000), 1_400 - 7 * n, 0) for n in range(190))
    other = (START, START._replace(at_ms=way[-1].at_ms))
    for arm in KEPT_ARMS:
        seen = see(Play("straight", "beside-0", "w", way, other, is_place=False), arm)
        assert seen and len(seen.radii_m) > 10 and seen.said_far == 0
        assert sum(seen.held) >= 0.8 * len(seen.held)


def sighting(at_s: float, bearing: float) -> Sighting:
    return Sighting(at_s, cmath.rect(300, bearing), 0, 200)


def test_the_attacker_finds_a_home_by_directions_that_lead_there_and_knows_nothing_without_views() -> None:
    habits = Habits()
    for n in range(60):
        turn = 2 * math.pi * n / 60
        habits.learn(cmath.rect(4_000, turn), [sighting(d * 86_400, turn + 0.1 * (d - 2)) for d in range(5)])
    attacker, home = Attacker(habits), cmath.rect(4_000, 1.0)
    assert attacker.error_m(home, []) > 0.95 * abs(home)
    assert attacker.error_m(home, [sighting(d * 86_400, 1.0) for d in range(5)]) < 0.5 * abs(home)


def test_he_has_20_views_the_first_and_last_of_each_encounter_before_the_others() -> None:
    many = [sighting(86_400 * day + 15 * n, 0) for day in range(4) for n in range(30)]
    assert len(encounters(many)) == 4
    groups = chosen(many)
    assert sum(map(len, groups)) == VIEWS
    for day, group in enumerate(groups):
        assert (group[0], group[-1]) == (many[30 * day], many[30 * day + 29])
    assert chosen([]) == []


def test_a_week_offers_views_and_more_would_leave_without_the_rules_of_the_map() -> None:
    watched = watch(week(1))
    assert watched.shown and len(watched.bare) > len(watched.shown)
    assert all(sighting.rim_m < 600 for sighting in watched.shown)
