"""Authorised encounters: nobody is sent while one is active, she is still warned, and an approach that outlasts it is notified."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.errors import InvalidField
from services.geofence import translate
from services.geofence.domain import codec
from services.geofence.domain.alerts import Alert
from services.geofence.domain.demands import AlertKind
from services.geofence.domain.entries import Demand
from tandem.common.v1 import log_pb2
from tests.support.geofence.encounters import encounter
from tests.support.geofence.stories import T0_MS, Story, circle

MIDNIGHT_S = -((T0_MS // 1000 + 9 * 3600) % 86_400)
"""The last midnight in Korea before second 0, as a second of the story."""
WARN = Demand.WARN
NOTIFY = Demand.NOTIFY
RESPOND = Demand.RESPOND


def stay(story: Story, from_s: int, to_s: int, north_m: float) -> Story:
    """Both sides report each minute, at this distance."""
    for at_s in range(from_s, to_s, 60):
        story.at(at_s, "phone", 0)
        story.at(at_s, "tag", north_m)
    return story


def entered(story: Story) -> list[tuple[int, Demand, float, str]]:
    """Ring in metres, demand, second and encounter of each RING_ENTERED."""
    return [
        (a.ring_mm // 1000, a.demand, (a.at_ms - T0_MS) / 1000, a.encounter_id)
        for a in story.of(AlertKind.RING_ENTERED)
    ]


def test_during_an_encounter_she_is_warned_and_nobody_is_sent() -> None:
    story = Story()
    story.case(encounters=[encounter()])
    stay(story, 0, 600, 50)
    assert entered(story) == [(2000, WARN, 0, ""), (1000, WARN, 0, "hearing"), (100, WARN, 0, "hearing")]
    assert max(alert.demand for alert in story.alerts) is WARN


def on_a_bus(story: Story, to_s: int) -> Story:
    """Both ride a bus at 20 m/s and report each minute in turn: by their newest positions they are 600 m apart."""
    for at_s in range(0, to_s, 30):
        story.at(at_s, "tag" if at_s % 60 == 0 else "phone", 20 * at_s)
    return story


def test_two_people_on_one_bus_are_near_when_the_encounter_ends() -> None:
    story = Story()
    story.case(encounters=[encounter(until_s=610)])
    on_a_bus(story, 900)
    assert entered(story)[-2:] == [(1000, NOTIFY, 610, ""), (100, RESPOND, 610, "")]
    assert not story.of(AlertKind.RING_CLEARED)


def test_a_wearer_who_left_a_moment_before_the_end_sends_nobody() -> None:
    story = Story()
    story.case(encounters=[encounter(until_s=610)])
    stay(story, 0, 570, 50)
    story.at(600, "tag", 300)
    story.tick(620)
    assert [ring_m for ring_m, demand, *_ in entered(story) if demand is RESPOND] == []
    assert [alert.ring_mm for alert in story.of(AlertKind.RING_CLEARED)] == [100_000]


def test_an_old_position_of_her_phone_proves_no_departure() -> None:
    story = Story()
    story.case(encounters=[encounter(until_s=910)])
    stay(story, 0, 600, 50)
    for at_s in range(600, 900, 60):
        story.at(at_s, "tag", 50 + 5 * (at_s - 540))
    story.tick(920)
    assert (100, RESPOND) in [(ring_m, demand) for ring_m, demand, *_ in entered(story)]


def parted(gone_m: float) -> Story:
    """Her phone reports each 4 minutes. He is gone half a minute before its last report, and the encounter ends 200 s after that."""
    story = Story()
    story.case(encounters=[encounter(until_s=1_880)])
    for at_s in range(0, 1_880, 30):
        if at_s % 240 == 0:
            story.at(at_s, "phone", 0)
        story.at(at_s, "tag", 50 + max(0, min(gone_m, 15 * (at_s - 1_300))))
    story.tick(1_900)
    return story


@pytest.mark.parametrize(("gone_m", "demands_response"), [(5_000, False), (0, True)])
def test_a_phone_that_reports_each_four_minutes_shows_that_they_have_parted(
    gone_m: float, demands_response: bool
) -> None:
    assert ((100, RESPOND) in [row[:2] for row in entered(parted(gone_m))]) is demands_response


def test_a_wearer_still_there_at_the_end_sends_somebody_without_a_report() -> None:
    story = Story()
    story.case(encounters=[encounter(until_s=100)])
    stay(story, 0, 60, 50)
    story.tick(150)
    assert entered(story)[3:] == [(1000, NOTIFY, 100, ""), (100, RESPOND, 100, "")]
    assert story.alerts[-1].cause is None
    assert len({alert.incident_id for alert in story.alerts}) == 1


def test_no_approach_is_allowed_before_or_after_the_encounter() -> None:
    for window in ((50, 100), (-100, 0)):
        story = Story()
        story.case(encounters=[encounter(*window)])
        stay(story, 0, 60, 50)
        assert [demand for _, demand, _, _ in entered(story)] == [WARN, NOTIFY, RESPOND]


def test_a_wearer_gone_by_the_end_sends_nobody_and_may_enter_later() -> None:
    story = Story()
    story.case(encounters=[encounter(until_s=100)])
    stay(story, 0, 60, 50)
    stay(story, 90, 91, 500)
    story.tick(110)
    assert (1000, NOTIFY, 100, "") in entered(story), "still within a kilometre"
    assert RESPOND not in [alert.demand for alert in story.alerts]
    assert [alert.ring_mm for alert in story.of(AlertKind.RING_CLEARED)] == [100_000]
    stay(story, 150, 151, -500)  # straight through between two reports
    assert entered(story)[-1][:2] == (100, RESPOND)


@pytest.mark.parametrize(("from_s", "until_s", "allowed"), [(-60, 60, True), (1, 60, False), (-60, 0, False)])
def test_daily_hours_are_those_of_korea(from_s: int, until_s: int, allowed: bool) -> None:
    at_s = MIDNIGHT_S + 86_400 * 2 + 32_400  # nine in the morning, the day after tomorrow
    story = Story()
    hours = {"daily_from_s": 32_400 + from_s, "daily_until_s": 32_400 + until_s}
    story.case(
        encounters=[encounter(until_s=500_000, **hours)], valid_until_ms=T0_MS + 600_000_000, valid_from_ms=T0_MS - 1
    )
    story.at(at_s, "phone", 0)
    story.at(at_s, "tag", 50)
    assert max(alert.demand for alert in story.of(AlertKind.RING_ENTERED)) is (WARN if allowed else RESPOND)
    story.tick(at_s + 100)
    assert max(alert.demand for alert in story.of(AlertKind.RING_ENTERED)) is RESPOND
    if allowed:
        assert entered(story)[-1][2] == at_s + until_s


def test_an_encounter_is_active_only_at_its_places() -> None:
    story = Story()
    story.case(encounters=[encounter(places=[circle("court", 60, 0, radius_m=30)])])
    stay(story, 0, 120, 50)
    assert [demand for _, demand, _, _ in entered(story)] == [WARN] * 3
    stay(story, 120, 180, 20)
    assert not entered(story)[3:], "10 m beyond the edge, which is twice the positions' accuracy"
    stay(story, 180, 181, 10)
    assert entered(story)[3:] == [(1000, NOTIFY, 180, ""), (100, RESPOND, 180, "")], "left the court towards her"


def test_an_encounter_is_not_active_while_the_wearer_is_unknown() -> None:
    story = Story()
    story.case(encounters=[encounter(places=[circle("court", 60, 0, radius_m=30)])])
    stay(story, 0, 1, 50)
    story.tick(300)
    assert entered(story)[3:] == [(1000, NOTIFY, 180, ""), (100, RESPOND, 180, "")]


def test_a_way_through_a_corridor_is_allowed_between_its_reports_too() -> None:
    story = Story()
    story.case(encounters=[encounter(places=[circle("bridge", 0, 0, radius_m=1100)])])
    story.at(0, "phone", 0)
    story.at(0, "tag", 1090)
    story.at(60, "tag", -1090)
    assert {demand for _, demand, _, _ in entered(story)} == {WARN}


def in_court() -> Story:
    """Both sit in court for 10 minutes and report each half minute."""
    story = Story()
    story.case(encounters=[encounter(places=[circle("court", 0, 0, radius_m=60)])])
    for at_s in range(0, 600, 30):
        story.at(at_s, "phone", 0)
        story.at(at_s, "tag", 10 + at_s / 300)
    return story


def test_a_position_that_is_not_believed_ends_no_encounter_at_a_place() -> None:
    story = in_court()
    story.at(600, "phone", 0)
    story.at(600, "tag", 1000)
    story.at(630, "phone", 0)
    story.at(630, "tag", 10)
    assert [demand for _, demand, _, _ in entered(story)] == [WARN] * 3


def test_a_second_position_outside_shows_that_a_car_took_both_out_of_the_court() -> None:
    story = in_court()
    for at_s in (600, 630, 660):
        for device_id in ("phone", "tag"):
            story.at(at_s, device_id, 20 * (at_s - 570))
    assert entered(story)[3:] == [(1000, NOTIFY, 630, ""), (100, RESPOND, 630, "")]


def test_an_encounter_ends_three_minutes_after_the_last_believed_position() -> None:
    story = in_court()
    story.at(600, "tag", 1000)
    story.tick(900)
    assert entered(story)[3:] == [(1000, NOTIFY, 750, ""), (100, RESPOND, 750, "")]


def test_an_amendment_that_removes_the_encounter_sends_somebody_at_once() -> None:
    story = Story()
    story.case(encounters=[encounter()])
    stay(story, 0, 60, 50)
    story.case(70, version=2)
    assert entered(story)[3:] == [(1000, NOTIFY, 70, ""), (100, RESPOND, 70, "")]


def test_an_encounter_mutes_neither_a_cut_strap_nor_an_unseen_wearer() -> None:
    story = Story()
    story.case(encounters=[encounter()])
    stay(story, 0, 1, 50)
    story.says(10, "tag", "STRAP_OPEN")
    story.tick(300)
    assert [alert.demand for alert in story.of(AlertKind.TAMPERED, AlertKind.UNKNOWN_NEAR)] == [RESPOND, RESPOND]


def test_an_encounter_that_ends_before_it_begins_is_rejected() -> None:
    snapshot = log_pb2.CaseSnapshot(case_id="1", valid_until_ms=1, encounters=[encounter(10, 10)])
    snapshot.rings.add(radius_m=100, action="RESPOND")
    with pytest.raises(InvalidField, match="encounters"):
        translate.case_of(snapshot)


def life(seed: int, splits: set[int], ticks_s: float) -> list[Alert]:
    """Approaches and departures with encounters of all sorts, a restart before each of `splits`, and a tick every `ticks_s`."""
    rng = random.Random(seed)
    story = Story(clear_after_s=10)
    at_s = 0.0
    for i in range(60):
        if i in splits:
            story.state = codec.decode(codec.encode(story.state))
        before_s, at_s = at_s, at_s + rng.choice((5, 20, 60, 190))
        while ticks_s and before_s + ticks_s < at_s:
            before_s += ticks_s
            story.tick(before_s)
        if i % 20 == 0:
            allowed = [
                encounter(
                    at_s + rng.uniform(-500, 500),
                    at_s + rng.uniform(600, 2000),
                    encounter_id=f"e{n}",
                    places=[circle("court", 60, 0, radius_m=60)] if rng.random() < 0.5 else [],
                )
                for n in range(2)
            ]
            story.case(at_s, version=i + 1, encounters=allowed)
        for device_id in rng.choice((("tag",), ("phone",), ("tag", "phone"))):
            story.at(at_s, device_id, rng.choice((50, 90, 140, 700, 2500)) if device_id == "tag" else 0)
    return story.alerts


@given(st.integers(0, 100_000), st.sets(st.integers(0, 59), max_size=8), st.floats(1, 50))
@settings(max_examples=40, deadline=None)
def test_neither_restarts_nor_ticks_change_the_alerts(seed: int, splits: set[int], ticks_s: float) -> None:
    whole = life(seed, set(), 0)
    assert life(seed, splits, 0) == whole
    emitted = [(a.kind, a.demand, a.at_ms, a.ring_mm, a.encounter_id, a.incident_ends) for a in whole]
    ticked = life(seed, set(), ticks_s)
    assert [(a.kind, a.demand, a.at_ms, a.ring_mm, a.encounter_id, a.incident_ends) for a in ticked] == emitted
