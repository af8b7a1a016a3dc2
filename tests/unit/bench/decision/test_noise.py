"""The noise of the decision-quality study is fixed, and doesn't depend on the interval at which a tag reports."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from itertools import groupby, pairwise

import pytest

from bench.decision import placement
from bench.decision.noise import Gaps, World
from bench.decision.placement import Spot, offset_m
from tests.support.decision_quality import HOME, play
from tests.support.geofence import geolife

PLACED = "60dddea040163679dbfe44af74c718b13c82ae1760ae1f9db3de3051c96e6564"
REPORTED = "6906e6757a048d22e92e94a7a3bdf602701654d796d3bd3fa38c213ce3cdde5b"
HOUR_S = 3600


def test_placement_and_noise_are_those_fixed_beforehand() -> None:
    plays = placement.plays(geolife.require_geolife())
    assert len({play.name for play in plays}) == len(plays)
    assert placement.digest(plays) == PLACED
    hashed = hashlib.sha256()
    for each in plays[::100]:
        for world in (World(each, draw, gaps) for gaps in Gaps for draw in (1, 2)):
            reports = [world.tag.constant(15_000), world.tag.constant(60_000), world.phone]
            hashed.update(repr([[tuple(report) for report in own] for own in reports]).encode())
    assert hashed.hexdigest() == REPORTED


def test_a_sparser_tag_reports_what_a_denser_one_reports_at_the_same_moments() -> None:
    world = World(play((0, 0), (8 * HOUR_S, 20_000)))
    dense = {(report.fix_ms, report.arrived_ms): report for report in world.tag.constant(15_000)}
    sparse = world.tag.constant(60_000)
    assert len(sparse) * 3 < len(dense)
    for report in sparse:
        same = dense[report.fix_ms, report.arrived_ms]
        assert same._replace(number=report.number) == report


def test_the_regimes_differ_in_nothing_but_gaps() -> None:
    short, long = (World(play((0, 0), (12 * HOUR_S, 0)), gaps=gaps).tag for gaps in (Gaps.SHORT, Gaps.LONG))
    seen_ms = [at_ms for at_ms in range(0, 12 * HOUR_S * 1000, 10_000) if not short.is_in_gap(at_ms)]
    both_ms = [at_ms for at_ms in seen_ms if not long.is_in_gap(at_ms)]
    assert len(both_ms) > 2_500
    assert all(short.reports(at_ms, 1) == long.reports(at_ms, 1) for at_ms in both_ms)
    for tag, max_s in ((short, 180), (long, 480)):
        fixes_s = [report.fix_ms / 1000 for report in tag.constant(1000)]
        gaps_s = [after - before for before, after in pairwise(sorted(set(fixes_s))) if after - before > 2]
        assert len(gaps_s) > 12
        assert max_s * 0.7 < max(gaps_s) < max_s + 2


def test_a_jump_lasts_seconds_so_a_dense_tag_sees_more_reports_of_it() -> None:
    tag = World(play((0, 0), (250 * HOUR_S, 0))).tag
    runs, shares = {}, {}
    for every_ms in (15_000, 60_000):
        by_number = {report.number: report for report in tag.constant(every_ms)}
        spots = [Spot(0, report.lat_e7, report.lon_e7) for _, report in sorted(by_number.items())]
        is_off = [math.hypot(*offset_m(HOME, spot)) > 190 for spot in spots]
        runs[every_ms] = Counter(len(list(group)) for off, group in groupby(is_off) if off)
        shares[every_ms] = sum(is_off) / len(is_off)
    for reports in (1, 2, 3):
        assert runs[15_000][reports] > 0.2 * runs[15_000].total()
    # Two jumps may follow each other.
    assert sum(runs[15_000][reports] for reports in (1, 2, 3)) > 0.95 * runs[15_000].total()
    assert runs[60_000][1] > 0.95 * runs[60_000].total()
    # A jump of 30 s twice in four hours.
    assert shares[15_000] == pytest.approx(0.5 * 30 / 3600, rel=0.25)
    assert shares[60_000] == pytest.approx(shares[15_000], rel=0.25)


def test_draws_of_the_noise_differ_and_each_can_be_repeated() -> None:
    walk = play((0, 1500), (1000, 0), (1500, 0), is_place=False)
    first, second = World(walk), World(walk, 2)
    assert World(walk).tag.constant(15_000) == first.tag.constant(15_000) != second.tag.constant(15_000)
    assert World(walk).phone == first.phone != second.phone
    assert World(walk, 2).known_ms == second.known_ms
