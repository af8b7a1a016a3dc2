"""Anomalous positions are notified and weighed, never dropped: vague, frozen, copied, or dated too far off."""

from __future__ import annotations

import random

import pytest

from services.geofence.domain import codec
from services.geofence.domain.alerts import AnomalyKind
from services.geofence.domain.demands import AlertKind
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
def test_a_presence_below_50_m_for_half_a_minute_is_always_detected(accuracy_m: float, seed: int) -> None:
    rng = random.Random(seed)
    story = begun()
    for at_s in range(0, 301, 15):
        true_m = max(45, 2500 - 10 * at_s) if at_s < 260 else 45
        off = [rng.gauss(0, accuracy_m / 1.51) for _ in range(2)]
        story.at(at_s, "tag", true_m + off[0], off[1], accuracy_m=accuracy_m)
    assert any(alert.demand is Demand.RESPOND and (alert.at_ms - T0_MS) / 1000 <= 300 for alert in story.alerts)
    assert 100 in story.entered()


def test_a_vague_position_enters_the_wider_rings_and_sends_nobody() -> None:
    story = begun()
    story.at(1, "tag", 40, accuracy_m=800)
    assert story.entered() == [2000, 1000]


def test_a_vague_position_outside_all_wider_rings_notifies_the_desks_once_an_hour() -> None:
    story = begun(rings=ONE_RING)
    for at_s in (1, 700, 1400):
        story.at(at_s, "phone", 0)
        story.at(at_s, "tag", 500, accuracy_m=800)
        story.state = codec.decode(codec.encode(story.state))
    assert anomalies(story) == [(AnomalyKind.VAGUE, Demand.NOTIFY)]
    [emitted] = [alert for alert in story.alerts if alert.anomaly]
    assert emitted.kind is AlertKind.UNKNOWN_NEAR and emitted.probability is not None and emitted.probability < 0.2


def test_vague_positions_that_stay_at_one_place_send_somebody() -> None:
    story = begun()
    for i in range(4):
        story.at(1 + 15 * i, "tag", 10 * i, accuracy_m=500)
    assert 100 not in story.entered()
    story.at(61, "tag", 20, accuracy_m=500)
    [entered] = [alert for alert in story.of(AlertKind.RING_ENTERED) if alert.ring_mm == 100_000]
    assert entered.probability is not None and entered.probability >= 0.2


def test_a_sharp_position_outside_does_not_sharpen_the_vague_one_before_it() -> None:
    story = begun()
    story.at(1, "tag", 10, accuracy_m=800)
    story.at(61, "tag", 3000, accuracy_m=5)
    assert 100 not in story.entered()


def jittering(story: Story, upto_s: int) -> None:
    rng = random.Random(1)
    for at_s in range(0, upto_s, 15):
        story.at(at_s, "tag", 5000 + rng.uniform(-4, 4), rng.uniform(-4, 4))


def test_a_jittering_tag_that_freezes_is_recorded() -> None:
    story = begun()
    jittering(story, 600)
    for at_s in range(600, 1500, 15):
        story.at(at_s, "tag", 5000)
    assert anomalies(story) == [(AnomalyKind.FROZEN, Demand.RECORD)]


def test_a_tag_that_always_pins_itself_at_a_standstill_is_not_frozen() -> None:
    story = begun()
    for at_s in range(0, 3000, 15):
        story.at(at_s, "tag", 5000 + at_s // 300)
    assert anomalies(story) == []


def test_a_copied_track_is_notified_and_still_counts() -> None:
    story = begun()
    rng = random.Random(2)
    way = [(3000 + rng.uniform(-50, 50) - 20 * i, rng.uniform(-50, 50)) for i in range(48)]
    for i, (north_m, east_m) in enumerate([*way, *way]):
        story.at(15 * i, "tag", north_m, east_m)
    assert anomalies(story) == [(AnomalyKind.COPIED, Demand.NOTIFY)]
    assert len(story.state.tracks["tag"].fixes) == 96


def test_a_tag_with_a_clock_hours_behind_is_notified_after_a_minute_once_an_hour() -> None:
    story = begun()
    for at_s in range(0, 1200, 15):
        story.at(at_s, "tag", 50, fix_s=at_s - 10_800)
        story.state = codec.decode(codec.encode(story.state))
    [emitted] = [alert for alert in story.alerts if alert.anomaly]
    assert (emitted.anomaly, emitted.demand, emitted.at_ms) == (AnomalyKind.CLOCK, Demand.NOTIFY, T0_MS + 60_000)


def test_a_backlog_of_hours_that_ends_with_now_is_no_wrong_clock() -> None:
    story = begun()
    for i in range(40):
        story.at(i, "tag", 5000, fix_s=-10_800 + 15 * i)
    story.at(50, "tag", 5000)
    for i in range(40):
        story.at(70 + i, "tag", 5000, fix_s=-9_000 + 15 * i)
    assert anomalies(story) == []
