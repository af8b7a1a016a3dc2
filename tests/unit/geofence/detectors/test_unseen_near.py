"""A wearer unseen near a target: the desks are notified first, and somebody is sent when the wearer can have arrived."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.geofence.domain import codec
from services.geofence.domain.demands import AlertKind
from services.geofence.domain.entries import Demand, Rules
from tandem.common.v1 import log_pb2
from tests.support.geofence.encounters import encounter
from tests.support.geofence.stories import T0_MS, Story, circle

RECORD = Demand.RECORD
NOTIFY = Demand.NOTIFY
RESPOND = Demand.RESPOND
HOME: dict[str, Any] = {
    "persons": [log_pb2.ProtectedTarget(person_id="p")],
    "places": [circle("home", 0, 0, radius_m=1)],
}
EDGE_M = 1 + 100 + 5
"""The place's own radius, the ring that demands a response, and the accuracy."""


def begin(**changes: Any) -> Story:
    """A case from an hour before second 0 on, with a home and without a device of the person."""
    story = Story()
    story.case(-3600, **(HOME | changes))
    return story


def report(story: Story, metres: float, *, mps: float = 0, interval_s: float = 15, reports: int = 60) -> None:
    """The wearer comes from farther away at one speed, and is last seen at second 0 at a distance from the home."""
    for i in range(reports - 1, -1, -1):
        story.at(-i * interval_s, "tag", metres + mps * i * interval_s)


def near(story: Story) -> list[tuple[Demand, float]]:
    """Demand and second of each alert since the wearer was last seen."""
    alerts = [(alert.demand, (alert.at_ms - T0_MS) / 1000) for alert in story.of(AlertKind.UNKNOWN_NEAR)]
    return [(demand, at_s) for demand, at_s in alerts if at_s > 0]


def about(at_s: float, within_s: float = 1) -> Any:
    return pytest.approx(at_s, abs=within_s)


# ── when somebody is sent ────────────────────────────────────────────────────────────────────────────────────────────


def test_a_report_that_comes_a_second_late_sends_nobody() -> None:
    story = begin()
    report(story, 300, interval_s=60)
    story.at(181, "tag", 300)
    assert near(story) == [(NOTIFY, 180), (RECORD, 181)]


@pytest.mark.parametrize(("interval_s", "at_s"), [(15, 190), (60, 190), (62, 196), (95, 200), (120, 190), (170, 210)])
def test_a_report_that_is_due_soon_has_its_chance(interval_s: int, at_s: int) -> None:
    story = begin()
    report(story, 150, mps=2, interval_s=interval_s, reports=8)
    story.tick(1000)
    assert near(story) == [(NOTIFY, max(180, interval_s + 30)), (RESPOND, at_s)]


@pytest.mark.parametrize("mps", [2, 5, 8])
def test_a_wearer_on_the_way_is_assumed_to_go_on(mps: float) -> None:
    story = begin()
    report(story, 990, mps=mps, reports=20)
    story.tick(1000)
    arrival_s = max(190, (990 - EDGE_M) / mps)
    alerts = near(story)
    assert [demand for demand, _ in alerts] == [NOTIFY, RESPOND]
    (_, notified_s), (_, at_s) = alerts
    assert notified_s == 180
    assert arrival_s <= at_s <= 1.1 * arrival_s, "the accuracies reduce the measured pace a little"


@pytest.mark.parametrize(("metres", "at_s"), [(300, 540), (600, 540), (900, 540)])
def test_a_stationary_wearer_can_start_on_foot(metres: float, at_s: float) -> None:
    story = begin()
    report(story, metres)
    story.tick(1000)
    assert near(story) == [(NOTIFY, 180), (RESPOND, about(at_s))]


def test_a_short_stop_is_no_rest() -> None:
    story = begin()
    report(story, 300, reports=26)
    story.tick(1000)
    assert near(story) == [(NOTIFY, 180), (RESPOND, 190)], "6 minutes and 15 seconds"


@pytest.mark.parametrize("mps", [2, 8])
def test_a_wearer_who_goes_away_has_to_turn_round(mps: float) -> None:
    story = begin()
    report(story, 500, mps=-mps, reports=20)
    story.tick(1000)
    assert near(story) == [(NOTIFY, 180), (RESPOND, 360)]


def test_the_times_are_rules() -> None:
    rules = Rules(report_grace_ms=40_000, rest_ms=100_000, rest_respond_after_ms=250_000, away_respond_after_ms=400_000)
    for mps, at_s in ((2.0, 220), (0.0, 250), (-2.0, 400)):
        story = begin()
        story.enter(-3600, rules)
        report(story, 300, mps=mps, reports=10)
        story.tick(1000)
        assert near(story) == [(NOTIFY, 180), (RESPOND, at_s)]


def test_beyond_the_ring_that_demands_a_notice_nobody_is_sent() -> None:
    story = begin()
    report(story, 1010)
    story.tick(1000)
    assert near(story) == [(RECORD, 180), (NOTIFY, about((1010 - EDGE_M) / 2))]


# ── what was announced ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("events", "demanded"),
    [
        ([], [RESPOND]),
        ([(-600, "BATTERY_LOW")], []),
        ([(-600, "BATTERY_LOW"), (-300, "BATTERY_RECOVERED")], [RESPOND]),
        ([(-600, "BATTERY_LOW"), (-300, "CHARGER_CONNECTED")], [RESPOND]),
        ([(-600, "BATTERY_RECOVERED"), (-300, "BATTERY_LOW")], []),
        ([(-300, "OUT_OF_COVERAGE")], [RESPOND]),
        ([(-600, "BATTERY_LOW"), (-300, "STRAP_OPEN")], [RESPOND]),
        ([(-600, "BATTERY_LOW"), (-300, "JAMMING_SUSPECTED")], [RESPOND]),
    ],
)
def test_a_shutdown_is_a_sign_of_evasion_unless_the_battery_was_low(
    events: list[tuple[float, str]], demanded: list[Demand]
) -> None:
    story = begin()
    for i, (at_s, event) in enumerate(events):
        story.says(-700 + i, "tag", event, event_s=at_s)
    report(story, 5000, reports=40)
    story.says(5, "tag", "SHUTDOWN")
    story.state = codec.decode(codec.encode(story.state))
    story.tick(1700)
    assert [demand for demand, _ in near(story) if demand is RESPOND] == demanded


def test_a_warning_of_long_ago_explains_no_shutdown() -> None:
    story = Story()
    story.case(-30_000, **HOME)
    story.says(-22_000, "tag", "BATTERY_LOW")
    report(story, 5000, reports=40)
    story.says(5, "tag", "SHUTDOWN")
    story.tick(1700)
    assert [demand for demand, _ in near(story)] == [RESPOND]


@pytest.mark.parametrize("event", ["BATTERY_LOW", "OUT_OF_COVERAGE"])
def test_an_announced_silence_near_her_sends_somebody_later(event: str) -> None:
    story = begin()
    report(story, 500, mps=2, reports=20)
    story.says(5, "tag", event)
    story.tick(1000)
    assert near(story) == [(NOTIFY, 180), (RESPOND, 540)]


def test_a_tag_that_is_back_in_coverage_announces_nothing() -> None:
    story = begin()
    report(story, 400, mps=2, reports=20)
    story.says(5, "tag", "OUT_OF_COVERAGE")
    story.says(10, "tag", "BACK_IN_COVERAGE")
    story.tick(1000)
    assert near(story) == [(NOTIFY, 180), (RESPOND, 190)]


@pytest.mark.parametrize("sign", ["SHUTDOWN", "JAMMING_SUSPECTED", "STRAP_OPEN", "CASE_OPEN"])
def test_after_a_sign_of_evasion_nobody_waits(sign: str) -> None:
    story = begin()
    report(story, 500)
    story.says(5, "tag", sign)
    story.tick(1000)
    assert near(story) == [(RESPOND, 180)]


# ── encounters ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_during_an_encounter_the_desks_are_notified_and_nobody_is_sent() -> None:
    story = begin(encounters=[encounter(-1000, 1500)])
    report(story, 300)
    story.tick(1490)
    assert near(story) == [(NOTIFY, 180)]
    story.tick(1510)
    assert near(story)[1:] == [(RESPOND, 1500)], "still unseen when the encounter is over"


def test_an_encounter_at_a_place_ends_where_the_wearer_is_unseen() -> None:
    place = circle("court", 300, 0, radius_m=50)
    story = begin(encounters=[encounter(-1000, 1500, places=[place])])
    report(story, 300)
    story.tick(1000)
    assert near(story) == [(NOTIFY, 180), (RESPOND, 540)]


# ── devices that report rarely ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("interval_s", "unknown_s"), [(200, 230), (400, 430), (600, 630)])
def test_a_slow_tag_is_unseen_by_the_interval_that_it_keeps(interval_s: int, unknown_s: int) -> None:
    story = begin()
    report(story, 500, interval_s=interval_s, reports=6)
    silences = len(story.of(AlertKind.SILENT))
    for i in range(1, 10):
        story.at(i * interval_s + i % 3, "tag", 500)
    assert not near(story) and len(story.of(AlertKind.SILENT)) == silences, "a tag that keeps its interval is seen"
    left_s = 9 * interval_s
    story.tick(left_s + 2000)
    assert near(story)[-2:] == [
        (NOTIFY, about(left_s + unknown_s, 3)),
        (RESPOND, about(left_s + max(540, unknown_s + 10), 3)),
    ]


def test_a_slow_tag_with_a_sign_of_evasion_is_unseen_after_three_minutes() -> None:
    story = begin()
    report(story, 500, interval_s=600, reports=6)
    story.says(5, "tag", "JAMMING_SUSPECTED")
    story.tick(1000)
    assert near(story)[-1:] == [(RESPOND, 180)]


def test_a_tag_that_returns_to_frequent_reports_is_unseen_sooner() -> None:
    story = begin()
    report(story, 500, interval_s=600, reports=6)
    for at_s in range(60, 121, 15):
        story.at(at_s, "tag", 500)
    story.tick(2000)
    assert near(story) == [(NOTIFY, 300), (RESPOND, about(120 + (500 - EDGE_M) / 2))]
    decided_s = [(alert.decided_at_ms - T0_MS) / 1000 for alert in story.of(AlertKind.UNKNOWN_NEAR)[-2:]]
    assert decided_s == [300, about(317)], "the next check doesn't wait for the interval that was kept before"


# ── nothing dangerous gets lost ──────────────────────────────────────────────────────────────────────────────────────


@given(
    metres=st.integers(110, 990),
    mps=st.floats(0, 14),
    interval_s=st.sampled_from([15, 60, 100, 170, 240, 400]),
    phone=st.booleans(),
    rest_s=st.sampled_from([0, 0, 60, 200, 350, 500, 900]),
)
@settings(max_examples=60, deadline=None)
def test_a_wearer_who_goes_on_to_her_unseen_is_met(
    metres: int, mps: float, interval_s: int, phone: bool, rest_s: int
) -> None:
    """The wearer comes straight towards her, perhaps rests, and vanishes within 1 km. Somebody is sent when the wearer can have arrived
    at the own pace or on foot; the desks are notified before."""
    story = Story()
    persons = [log_pb2.ProtectedTarget(person_id="p", device_ids=["phone"])]
    story.case(-7200, **({"persons": persons} if phone else HOME))
    for i in range(max(7, math.ceil(900 / interval_s)), -1, -1):
        moved_s = max(0, i * interval_s - rest_s)
        story.at(-i * interval_s, "tag", metres + mps * moved_s, accuracy_m=1)
        if phone and i == 0:
            story.at(0, "phone", 0, accuracy_m=1)
    story.tick(3000)
    alerts = [alert for alert in story.of(AlertKind.UNKNOWN_NEAR) if alert.at_ms >= T0_MS]
    notified = [alert.at_ms - T0_MS for alert in alerts if alert.demand >= NOTIFY]
    responded = [alert.at_ms - T0_MS for alert in alerts if alert.demand is RESPOND]
    unknown_s = max(180, interval_s + 30)
    is_rest = rest_s + interval_s >= 400 or mps * (400 - rest_s) < 60
    # The pace is measured between reports of the last 5 minutes, less the accuracies.
    pace_mps = max(2, 0 if is_rest else mps * (300 - rest_s - interval_s) / 300 - 0.1)
    bound_s = max(unknown_s + 30, 540 if is_rest else 0, (metres - 100) / pace_mps)
    assert min(notified) <= (unknown_s + 1) * 1000
    assert min(responded) <= (bound_s + 1) * 1000
    if rest_s == 0 and mps >= 2 and interval_s <= 100:
        arrives_s = (metres - 100) / mps
        assert min(responded) <= (max(unknown_s + 30, 1.1 * arrives_s) + 1) * 1000, "no later than the wearer"
