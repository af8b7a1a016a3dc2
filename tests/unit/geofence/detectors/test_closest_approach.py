"""Closest approach: a wearer who, at the present movement, reaches her before help can arrive."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.geofence.domain import codec
from services.geofence.domain.alerts import Alert
from services.geofence.domain.demands import AlertKind, Leg
from services.geofence.domain.entries import Demand, Rules
from tandem.common.v1 import encounter_pb2, geometry_pb2, log_pb2
from tests.support.geofence.stories import T0_MS, Story, circle


def come(
    story: Story, from_m: float, mps: float, for_s: int, *, aside_m: float = 0, every_s: int = 15, accuracy_m: float = 5
) -> list[Alert]:
    """The wearer comes from the north while her phone stays. Returns the predicted contacts."""
    for at_s in range(0, for_s + 1, every_s):
        story.at(at_s, "tag", from_m - mps * at_s, aside_m, accuracy_m=accuracy_m)
        story.at(at_s, "phone", 0)
    return story.of(AlertKind.CONTACT_PREDICTED)


def begun(**changes: object) -> Story:
    story = Story()
    story.case(0, "1", **changes)
    return story


def test_help_is_sent_before_a_driver_reaches_the_ring() -> None:
    story = begun()
    [predicted] = come(story, 1900, 10, 120)
    assert (predicted.at_ms - T0_MS) / 1000 == 60, "half a minute of movement, and another check"
    assert predicted.demand is Demand.RESPOND and predicted.ring_mm == 100_000
    assert predicted.destinations == ((Leg.PROBATION, "w"), (Leg.POLICE, "p"), (Leg.WARNING, "p"))
    assert predicted.distance_mm == pytest.approx(1_300_000, abs=50)
    assert story.entered() == [2000, 1000]


def test_a_contact_is_predicted_once_and_its_ring_alert_joins_the_same_incident() -> None:
    story = begun()
    [predicted] = come(story, 1900, 10, 185)
    assert story.entered() == [2000, 1000, 100]
    assert {alert.incident_id for alert in story.alerts} == {predicted.incident_id}


def test_the_next_episode_predicts_contact_once_more() -> None:
    story = Story(clear_after_s=10)
    story.case()
    for begins_s in (0, 400):
        for at_s in range(0, 121, 15):
            story.at(begins_s + at_s, "phone", 0)
            story.at(begins_s + at_s, "tag", 1900 - 10 * at_s)
        for at_s in range(150, 301, 30):
            story.at(begins_s + at_s, "phone", 0)
            story.at(begins_s + at_s, "tag", 700 + 30 * (at_s - 120))
    assert len(story.of(AlertKind.CONTACT_PREDICTED)) == 2
    assert len({alert.incident_id for alert in story.of(AlertKind.CONTACT_PREDICTED)}) == 2


@pytest.mark.parametrize(
    ("why", "from_m", "mps", "aside_m", "accuracy_m"),
    [
        ("help is there first", 1900, 2, 0, 5),
        ("passes by", 1900, 10, 400, 5),
        ("goes along a road that touches the ring", 1900, 10, 60, 5),
        ("goes away", 500, -3, 0, 5),
        ("stands still", 500, 0, 0, 5),
        ("slower than a walker", 500, 0.9, 0, 5),
        ("no more than the receiver's noise", 500, 1.4, 0, 80),
        ("a jump", 1900, 70, 0, 5),
        ("outside all rings", 9000, 10, 0, 5),
    ],
)
def test_nobody_is_sent_without_a_credible_approach(
    why: str, from_m: float, mps: float, aside_m: float, accuracy_m: float
) -> None:
    for_s = 30 if why == "a jump" else 90
    assert not come(begun(), from_m, mps, for_s, aside_m=aside_m, accuracy_m=accuracy_m), why


def test_contact_with_a_walker_minutes_away_is_predicted() -> None:
    assert len(come(begun(), 600, 1.4, 60)) == 1


@pytest.mark.parametrize(("accuracy_m", "away_m"), [(20, 1300), (40, 850), (50, 550)])
def test_vaguer_positions_predict_contact_only_from_nearer(accuracy_m: float, away_m: float) -> None:
    """A line of half a minute says little about minutes later, because both of its ends may be off."""
    [predicted] = come(begun(), 1900, 10, 185, accuracy_m=accuracy_m)
    assert predicted.distance_mm == pytest.approx(away_m * 1000, abs=50)


def test_she_may_walk_towards_a_wearer_who_waits() -> None:
    story = begun()
    for at_s in range(0, 91, 15):
        story.at(at_s, "tag", 0)
        story.at(at_s, "phone", 600 - 1.4 * at_s)
    [predicted] = story.of(AlertKind.CONTACT_PREDICTED)
    assert predicted.cause is not None and predicted.cause.device_id == "phone" and not predicted.cause_of_wearer


def test_a_turn_cancels_an_unconfirmed_approach() -> None:
    story = begun()
    for at_s, north_m in ((0, 1500), (30, 1200), (40, 1300), (70, 1600), (100, 1300)):
        story.at(at_s, "phone", 0)
        story.at(at_s, "tag", north_m)
    assert not story.of(AlertKind.CONTACT_PREDICTED)


def test_a_contact_is_predicted_at_a_place_too() -> None:
    story = begun(persons=[log_pb2.ProtectedTarget(person_id="p")], places=[circle("home", 0, 0, radius_m=200)])
    for at_s in range(0, 61, 15):
        story.at(at_s, "tag", 1900 - 10 * at_s)
    [predicted] = story.of(AlertKind.CONTACT_PREDICTED)
    assert predicted.target_id == "home"


def test_the_time_that_help_needs_is_a_rule() -> None:
    story = begun()
    story.enter(0, Rules(help_after_ms=60_000))
    assert not come(story, 1900, 10, 90)
    assert len(come(begun(), 1900, 10, 90)) == 1


def test_an_order_without_a_ring_that_responds_predicts_nothing() -> None:
    ring = geometry_pb2.Ring
    rings = [ring(radius_m=2000, action=geometry_pb2.WARN), ring(radius_m=100, action=geometry_pb2.NOTIFY)]
    assert not come(begun(rings=rings), 1900, 10, 120)


def test_an_authorised_encounter_predicts_nothing_until_it_ends() -> None:
    allowed = encounter_pb2.Encounter(encounter_id="e", reason=encounter_pb2.COMMUTE)
    getattr(allowed, "from").FromMilliseconds(T0_MS - 1000)
    allowed.until.FromMilliseconds(T0_MS + 80_000)
    [predicted] = come(begun(encounters=[allowed]), 1900, 10, 120)
    assert (predicted.at_ms - T0_MS) / 1000 == 90


def test_late_reports_predict_nothing() -> None:
    story = begun()
    story.at(0, "phone", 0)
    story.at(100, "tag", 1900)
    for fix_s in range(0, 91, 15):
        story.at(101, "tag", 1900 - 10 * fix_s, fix_s=fix_s)
    assert not story.of(AlertKind.CONTACT_PREDICTED)


@given(st.integers(0, 100_000), st.sets(st.integers(0, 79), max_size=10))
@settings(max_examples=40, deadline=None)
def test_restarts_anywhere_change_nothing(seed: int, splits: set[int]) -> None:
    def walk(stops: set[int]) -> Story:
        rng = random.Random(seed)
        story = begun()
        north_m = 1900.0
        mps = -5.0
        for i in range(80):
            if i in stops:
                story.state = codec.decode(codec.encode(story.state))
            mps = rng.choice((mps, mps, mps, -mps, -8, 3))
            north_m += mps * 15
            story.at(i * 15, "phone", 0)
            story.at(i * 15, "tag", north_m, fix_s=i * 15 - rng.choice((0, 0, 0, 20)))
        return story

    whole, story = walk(set()), walk(splits)
    assert story.outputs == whole.outputs
    assert codec.encode(story.state) == codec.encode(whole.state)
