"""Positions that can't be taken as they stand: vague, frozen, copied, or dated too far off. Told of, weighed, never dropped."""

from __future__ import annotations

import random

import pytest

from services.geofence.domain import codec
from services.geofence.domain.alerts import AlertKind, AnomalyKind
from services.geofence.domain.entries import Demand
from tandem.common.v1 import geometry_pb2
from tests.support.geofence.stories import T0_MS, Story

ONE_RING = [geometry_pb2.Ring(radius_m=100, action=geometry_pb2.RESPOND)]


def begun(**changes: object) -> Story:
    story = Story()
    story.case(**changes)  # type: ignore[arg-type]
    story.at(0, "phone", 0)
    return story


def anomalies(story: Story) -> list[tuple[AnomalyKind | None, Demand]]:
    return [(alert.anomaly, alert.demand) for alert in story.alerts if alert.anomaly]


@pytest.mark.parametrize("accuracy_m", [5, 20, 50])
@pytest.mark.parametrize("seed", range(8))
def test_whoever_is_below_50_m_for_half_a_minute_is_always_found(accuracy_m: float, seed: int) -> None:
    rng = random.Random(seed)
    story = begun()
    for at_s in range(0, 301, 15):
        true_m = max(45, 2500 - 10 * at_s) if at_s < 260 else 45
        off = [rng.gauss(0, accuracy_m / 1.51) for _ in range(2)]
        story.at(at_s, "tag", true_m + off[0], off[1], accuracy_m=accuracy_m)
    assert any(alert.demand is Demand.RESPOND and (alert.at_ms - T0_MS) / 1000 <= 300 for alert in story.alerts)
    assert 100 in story.entered()


def test_a_vague_position_sends_nobody_and_the_wider_rings_tell_of_it() -> None:
    story = begun()
    story.at(1, "tag", 40, accuracy_m=800)
    assert story.entered() == [2000, 1000]


def test_where_no_wider_ring_tells_of_a_vague_position_the_desks_are_told_once_an_hour() -> None:
    story = begun(rings=ONE_RING)
    for at_s in (1, 700, 1400):
        story.at(at_s, "phone", 0)
        story.at(at_s, "tag", 500, accuracy_m=800)
        story.state = codec.decode(codec.encode(story.state))
    assert anomalies(story) == [(AnomalyKind.VAGUE, Demand.NOTIFY)]
    [told] = [alert for alert in story.alerts if alert.anomaly]
    assert told.kind is AlertKind.UNKNOWN_NEAR and told.probability is not None and told.probability < 0.2


def test_vague_positions_that_go_on_saying_the_same_send_somebody() -> None:
    story = begun()
    for i in range(4):
        story.at(1 + 15 * i, "tag", 10 * i, accuracy_m=500)
    assert 100 not in story.entered()
    story.at(61, "tag", 20, accuracy_m=500)
    [entered] = [one for one in story.of(AlertKind.RING_ENTERED) if one.ring_mm == 100_000]
    assert entered.probability is not None and entered.probability >= 0.2


def test_a_sharp_position_outside_does_not_make_the_vague_one_before_it_sharp() -> None:
    story = begun()
    story.at(1, "tag", 10, accuracy_m=800)
    story.at(61, "tag", 3000, accuracy_m=5)
    assert 100 not in story.entered()


def jittering(story: Story, upto_s: int) -> None:
    rng = random.Random(1)
    for at_s in range(0, upto_s, 15):
        story.at(at_s, "tag", 5000 + rng.uniform(-4, 4), rng.uniform(-4, 4))


def test_a_tag_that_always_jittered_and_stops_is_told_of_for_the_record() -> None:
    story = begun()
    jittering(story, 600)
    for at_s in range(600, 1500, 15):
        story.at(at_s, "tag", 5000)
    assert anomalies(story) == [(AnomalyKind.FROZEN, Demand.RECORD)]


def test_a_tag_that_pins_itself_whenever_it_stands_is_not_frozen() -> None:
    story = begun()
    for at_s in range(0, 3000, 15):
        story.at(at_s, "tag", 5000 + at_s // 300)
    assert anomalies(story) == []


def test_a_track_that_was_there_before_is_told_of_and_counts_all_the_same() -> None:
    story = begun()
    rng = random.Random(2)
    way = [(3000 + rng.uniform(-50, 50) - 20 * i, rng.uniform(-50, 50)) for i in range(48)]
    for i, (north_m, east_m) in enumerate([*way, *way]):
        story.at(15 * i, "tag", north_m, east_m)
    assert anomalies(story) == [(AnomalyKind.COPIED, Demand.NOTIFY)]
    assert len(story.state.tracks["tag"].fixes) == 96


def test_a_tag_whose_clock_is_hours_behind_is_told_of_after_a_minute_once_an_hour() -> None:
    story = begun()
    for at_s in range(0, 1200, 15):
        story.at(at_s, "tag", 50, fix_s=at_s - 10_800)
        story.state = codec.decode(codec.encode(story.state))
    [told] = [alert for alert in story.alerts if alert.anomaly]
    assert (told.anomaly, told.demand, told.at_ms) == (AnomalyKind.CLOCK, Demand.NOTIFY, T0_MS + 60_000)


def test_what_was_buffered_for_hours_and_ends_with_now_is_no_wrong_clock() -> None:
    story = begun()
    for i in range(40):
        story.at(i, "tag", 5000, fix_s=-10_800 + 15 * i)
    story.at(50, "tag", 5000)
    for i in range(40):
        story.at(70 + i, "tag", 5000, fix_s=-9_000 + 15 * i)
    assert anomalies(story) == []
