"""Positions that no movement explains: recorded, never dropped, and no proof that anybody has left."""

from __future__ import annotations

import pytest

from services.geofence.domain import codec
from services.geofence.domain.alerts import AnomalyKind
from services.geofence.domain.demands import AlertKind, Leg
from services.geofence.domain.entries import Demand
from tests.support.geofence.stories import T0_MS, Story


def begun(north_m: float = 5000) -> Story:
    story = Story()
    story.case()
    story.at(0, "phone", 0)
    story.at(0, "tag", north_m)
    return story


@pytest.mark.parametrize(
    ("to_m", "after_s", "accuracy_m", "jumps"),
    [
        (6900, 15, 5, True),  # 127 m/s
        (6300, 15, 5, False),  # 87 m/s: a train
        (6900, 15, 500, False),  # explained by a vague position
        (5200, 0.1, 5, True),
    ],
)
def test_a_jump_is_recorded(to_m: float, after_s: float, accuracy_m: float, jumps: bool) -> None:
    story = begun()
    story.at(after_s, "tag", to_m, accuracy_m=accuracy_m)
    emitted = story.of(AlertKind.IMPLAUSIBLE)
    assert bool(emitted) is jumps
    if emitted:
        assert (emitted[0].demand, emitted[0].at_ms, emitted[0].target_id) == (
            Demand.RECORD,
            T0_MS + round(after_s * 1000),
            "",
        )
        assert emitted[0].cause is not None and emitted[0].incident_id == ""


def test_jumps_of_a_device_are_emitted_once_an_hour_even_after_a_restart() -> None:
    story = begun()
    for i in range(1, 300):
        story.at(i * 15, "tag", 5000 + 9000 * (i % 2))
        story.state = codec.decode(codec.encode(story.state))
    assert [(alert.at_ms - T0_MS) / 1000 for alert in story.of(AlertKind.IMPLAUSIBLE)] == [15, 3615]


def test_a_jump_of_her_phone_goes_to_the_police_alone() -> None:
    story = begun()
    story.at(15, "phone", 20_000)
    [emitted] = story.of(AlertKind.IMPLAUSIBLE)
    assert emitted.target_id == "p" and emitted.destinations == ((Leg.POLICE, "p"),)


def test_a_jump_to_her_notifies_at_once_and_sends_somebody_when_the_next_position_agrees() -> None:
    story = begun()
    story.at(15, "tag", 40)
    assert story.entered() == [2000, 1000]
    [emitted] = story.of(AlertKind.IMPLAUSIBLE)
    assert (emitted.demand, emitted.anomaly) == (Demand.NOTIFY, AnomalyKind.JUMP)
    assert emitted.destinations == ((Leg.PROBATION, "w"), (Leg.POLICE, "p"))
    story.at(30, "tag", 45)
    assert story.entered() == [2000, 1000, 100]


def test_a_receiver_that_goes_to_and_fro_is_believed_the_second_time() -> None:
    story = begun()
    for at_s, north_m in ((15, 40), (30, 5000), (45, 60)):
        assert 100 not in story.entered()
        story.at(at_s, "tag", north_m)
    assert 100 in story.entered()


def test_a_jump_away_that_no_later_position_confirms_clears_nothing() -> None:
    story = begun(50)
    story.at(30, "phone", 0)
    story.at(30, "tag", 9000)
    for at_s in range(60, 171, 30):
        story.at(at_s, "phone", 0)
    story.at(175, "tag", 50)
    assert not story.of(AlertKind.RING_CLEARED)


def test_a_jump_before_an_order_is_in_force_emits_nothing() -> None:
    story = Story()
    story.case(valid_from_ms=T0_MS + 60_000)
    story.at(0, "tag", 5000)
    story.at(15, "tag", 50_000)
    assert not story.of(AlertKind.IMPLAUSIBLE)
