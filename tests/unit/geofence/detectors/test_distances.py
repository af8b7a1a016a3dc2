"""While a ring is entered, she is warned again as the wearer comes nearer or goes away."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.geofence import translate
from services.geofence.domain import codec
from services.geofence.domain.alerts import Alert
from services.geofence.domain.demands import AlertKind, Leg
from services.geofence.domain.detectors.distances import WARNED
from services.geofence.domain.entries import Demand
from tandem.common.v1 import encounter_pb2, geometry_pb2, log_pb2
from tests.support.geofence.stories import T0_MS, Story, circle


def come(story: Story, metres: list[float], every_s: float = 15, from_s: float = 0) -> list[Alert]:
    """Moves the wearer to these distances north of her, one after the other. Returns the repeated warnings."""
    for i, north_m in enumerate(metres):
        story.at(from_s + i * every_s, "phone", 0)
        story.at(from_s + i * every_s, "tag", north_m)
    return story.of(AlertKind.DISTANCE_CHANGED)


def figures(alerts: list[Alert]) -> list[tuple[int, int]]:
    """Ring and distance of each warning, in metres."""
    return [(alert.ring_mm // 1000, round((alert.distance_mm or 0) / 1000)) for alert in alerts]


def begun(**changes: object) -> Story:
    story = Story()
    story.case(0, "1", **changes)
    return story


def alone(**changes: object) -> Story:
    """A case with a single ring, of 2 km: no narrower ring warns her."""
    return begun(rings=[geometry_pb2.Ring(radius_m=2000, action=geometry_pb2.WARN)], **changes)


def unanswered(**changes: object) -> Story:
    """A case without a ring that demands a response: no contact is predicted."""
    wide, narrow = (
        geometry_pb2.Ring(radius_m=m, action=a) for m, a in ((2000, geometry_pb2.WARN), (1000, geometry_pb2.NOTIFY))
    )
    return begun(rings=[wide, narrow], **changes)


def test_half_of_the_distance_goes_to_the_warning_leg_alone() -> None:
    emitted = come(alone(), [2100, 1990, 1500, 1000, 990, 700, 500, 490, 300, 240, 140, 118, 60, 10])
    assert figures(emitted) == [(2000, 990), (2000, 490), (2000, 240), (2000, 118), (2000, 10)]
    for alert in emitted:
        assert alert.demand is Demand.WARN and alert.destinations == ((Leg.WARNING, "p"),)
        assert alert.incident_id and alert.episode_id


def stay(story: Story, north_m: float, from_s: int, to_s: int) -> None:
    for at_s in range(from_s, to_s, 60):
        story.at(at_s, "phone", 0)
        story.at(at_s, "tag", north_m)


def test_staying_away_is_warned_of_once() -> None:
    story = alone()
    come(story, [1990, 240])
    stay(story, 730, 60, 800)  # no three times as far
    stay(story, 1000, 800, 1390)  # not for long enough
    stay(story, 240, 1390, 1500)
    stay(story, 1000, 1500, 3000)
    stay(story, 100, 3000, 3100)
    stay(story, 1000, 3100, 5000)
    assert figures(story.of(AlertKind.DISTANCE_CHANGED)) == [(2000, 240), (2000, 1000), (2000, 100)]


def test_beyond_the_narrowest_ring_only_its_all_clear_is_sent() -> None:
    story = begun()
    come(story, [1990, 900, 300])
    stay(story, 1050, 60, 3000)  # not yet left for good
    assert figures(story.of(AlertKind.DISTANCE_CHANGED)) == [(1000, 300)]


def test_a_distance_that_she_knows_is_repeated_after_a_week() -> None:
    day_s = 86_400
    story = unanswered(valid_until_ms=T0_MS + 30 * day_s * 1000)
    for day in range(9):
        come(story, [3000, 1900, 900, 300, 310, 1500, 2500, *[4000] * 8], every_s=60, from_s=day * day_s)
    at_s = [(alert.decided_at_ms - T0_MS) // 1000 for alert in story.of(AlertKind.DISTANCE_CHANGED)]
    assert at_s == [180, 7 * day_s + 240]  # the first report after seven days


@pytest.mark.parametrize(("usual_m", "now_m", "warnings"), [(300, 210, 1), (300, 190, 2), (450, 310, 1), (450, 290, 2)])
def test_a_distance_well_below_the_known_distance_is_news(usual_m: float, now_m: float, warnings: int) -> None:
    story = unanswered()
    come(story, [3000, 1900, 990, usual_m, 1500, 2500, *[4000] * 8], every_s=60)
    assert len(story.of(AlertKind.DISTANCE_CHANGED)) == 1
    come(story, [3000, 1900, 990, now_m, now_m], every_s=60, from_s=7200)
    assert len(story.of(AlertKind.DISTANCE_CHANGED)) == warnings


def test_a_wearer_who_comes_nearer_each_day_is_no_habit() -> None:
    """What she wasn't told is no habit."""
    story = unanswered()
    for day, nearest_m in enumerate((480, 420, 360, 310)):
        come(story, [3000, 1900, 990, nearest_m, nearest_m, 1500, 2500, *[4000] * 8], every_s=60, from_s=day * 7200)
    assert figures(story.of(AlertKind.DISTANCE_CHANGED)) == [(1000, 480), (1000, 310)]


def test_no_distance_beyond_the_widest_ring_is_sent() -> None:
    assert figures(come(alone(), [1990, 400, 2010, 2600, 5000])) == [(2000, 400)]


def test_entering_a_ring_warns_her_by_its_own_alert() -> None:
    story = begun()
    come(story, [1200, 990, 600, 480])
    alerts = [
        (alert.kind, alert.ring_mm // 1000) for alert in story.of(AlertKind.RING_ENTERED, AlertKind.DISTANCE_CHANGED)
    ]
    assert alerts == [
        (AlertKind.RING_ENTERED, 2000),
        (AlertKind.RING_ENTERED, 1000),
        (AlertKind.DISTANCE_CHANGED, 1000),
    ]


def test_a_predicted_contact_warns_of_the_distance_too() -> None:
    story = begun()
    come(story, [990, 990, 990, 730, 480, 300, 230], every_s=30)
    assert figures(story.of(AlertKind.CONTACT_PREDICTED)) == [(100, 480)]
    assert figures(story.of(AlertKind.DISTANCE_CHANGED)) == [(1000, 230)]


def test_a_home_300_m_away_gives_a_single_warning_after_those_of_the_rings() -> None:
    story = begun()
    way_home = [3000 - 150 * i for i in range(18)]
    assert len(come(story, [*way_home, *[300 + 20 * (-1) ** i for i in range(100)]])) == 1


def test_two_people_in_one_bus_who_report_in_turn_stay_near_each_other() -> None:
    story = begun()
    for i in range(20):
        story.at(i * 60, "phone", 1200 * i)
        story.at(i * 60 + 30, "tag", 1200 * i + 600)
    assert not story.of(AlertKind.DISTANCE_CHANGED)


def test_warnings_are_at_least_fifteen_seconds_apart() -> None:
    emitted = come(alone(), [1990 * 0.8**i for i in range(14)], every_s=3)
    at_s = [(alert.decided_at_ms - T0_MS) / 1000 for alert in emitted]
    assert len(at_s) > 1 and all(later - before >= 15 for before, later in pairwise(at_s))


def test_a_buffered_batch_warns_once() -> None:
    story = alone()
    come(story, [1990, 1980])
    for i in range(8):
        story.at(150, "tag", 1900 - 240 * i, fix_s=40 + 10 * i)
    assert len(story.of(AlertKind.DISTANCE_CHANGED)) == 1


def test_an_unknown_position_gives_no_distance() -> None:
    story = alone()
    come(story, [1990, 1980])
    for at_s in (200, 260, 320):
        story.at(at_s, "tag", 900 - at_s)
    assert not story.of(AlertKind.DISTANCE_CHANGED)


def test_outside_all_rings_no_distance_is_sent_and_the_all_clear_reaches_her() -> None:
    story = begun()
    come(story, [3000, 2800, 2600])
    assert not story.alerts
    come(story, [1900, 2100, 2300, 2600, 2900, 3200, 3500, 3800, 4100], from_s=60)
    clear = story.alerts[-1]
    assert (clear.kind, clear.demand) == (AlertKind.RING_CLEARED, Demand.RECORD)
    assert (Leg.WARNING, "p") in clear.destinations
    emitted = len(story.of(AlertKind.DISTANCE_CHANGED))
    come(story, [4500, 5000], from_s=300)
    assert len(story.of(AlertKind.DISTANCE_CHANGED)) == emitted and not WARNED.of(story.state.cases["case-1"])


def test_a_ring_for_the_record_and_a_place_repeat_nothing() -> None:
    ring = geometry_pb2.Ring(radius_m=2000, action=geometry_pb2.RECORD)
    assert not come(begun(rings=[ring]), [1990, 900, 400, 150])
    nobody = [log_pb2.ProtectedTarget(person_id="p")]
    story = begun(persons=nobody, places=[circle("home", 0, 0, radius_m=20)])
    assert not come(story, [1990, 900, 400, 150]) and story.of(AlertKind.RING_ENTERED)


def test_an_encounter_mutes_no_repeat() -> None:
    allowed = encounter_pb2.Encounter(encounter_id="e")
    getattr(allowed, "from").FromMilliseconds(T0_MS - 1000)
    allowed.until.FromMilliseconds(T0_MS + 3_600_000)
    assert figures(come(alone(encounters=[allowed]), [1990, 990])) == [(2000, 990)]


def test_the_distance_is_in_the_measure_alone() -> None:
    [emitted] = come(alone(), [1990, 990])
    assert translate.measure_to_proto(emitted).distance_m == pytest.approx(990, abs=0.1)
    assert not any("distance" in field.name for field, _ in translate.alert_to_proto(emitted, 0).ListFields())


@given(st.lists(st.floats(20, 2500), min_size=5, max_size=40), st.integers(1, 10))
@settings(max_examples=40, deadline=None)
def test_restarts_between_warnings_change_nothing(metres: list[float], every: int) -> None:
    whole, story = begun(), begun()
    come(whole, metres)
    for i, north_m in enumerate(metres):
        if i % every == 0:
            story.state = codec.decode(codec.encode(story.state))
        come(story, [north_m], from_s=i * 15)
    assert story.outputs == whole.outputs and codec.encode(story.state) == codec.encode(whole.state)


# ── known stays ──────────────────────────────────────────────────────────────────────────────────────────────────────

HOUR_S = 3_600


RIDE_S = 600
"""Duration of the wearer's way from one stay to the next, seconds: 5 km in it are no sign of spoofing."""


def live(story: Story, north_m: float, from_h: float, to_h: float, *, came_from_m: float | None = None) -> None:
    """Both sides report for some hours; the wearer is at a distance north of her, perhaps after a way from another distance."""
    begin_m = north_m if came_from_m is None else came_from_m
    for at_s in range(round(from_h * HOUR_S), round(to_h * HOUR_S), 170):
        way = min((at_s - from_h * HOUR_S) / RIDE_S, 1)
        story.at(at_s, "phone", 0)
        story.at(at_s, "tag", begin_m + (north_m - begin_m) * way)


def warned_entries(story: Story, ring_m: int) -> list[bool]:
    """Whether she was warned of each entry of a ring."""
    entries = [alert for alert in story.of(AlertKind.RING_ENTERED) if alert.ring_mm == ring_m * 1000]
    assert all((Leg.PROBATION, alert.wearer_id) in alert.destinations for alert in entries)
    return [(Leg.WARNING, "p") in alert.destinations for alert in entries]


@pytest.mark.parametrize(
    ("stay_h", "away_h", "warned"),
    [(7, 9, [True, False]), (5, 9, [True, True]), (7, 35, [True, False]), (7, 37, [True, True])],
)
def test_a_return_to_a_known_stay_warns_the_desks_alone(stay_h: float, away_h: float, warned: list[bool]) -> None:
    story = begun(valid_until_ms=T0_MS + 20 * 24 * HOUR_S * 1000)
    live(story, 600, 0, stay_h)
    live(story, 5000, stay_h, stay_h + away_h, came_from_m=600)
    live(story, 600, stay_h + away_h, stay_h + away_h + 1, came_from_m=5000)
    assert warned_entries(story, 1000) == warned
    assert warned_entries(story, 2000) == warned


def test_a_known_stay_is_warned_of_each_week() -> None:
    story = begun(valid_until_ms=T0_MS + 20 * 24 * HOUR_S * 1000)
    for day in range(9):
        live(story, 600, 24 * day, 24 * day + 12, came_from_m=5000)
        live(story, 5000, 24 * day + 12, 24 * day + 24, came_from_m=600)
    assert warned_entries(story, 1000) == [True, *[False] * 7, True]


def test_the_ring_that_demands_a_response_always_warns() -> None:
    story = begun(valid_until_ms=T0_MS + 20 * 24 * HOUR_S * 1000)
    live(story, 50, 0, 7)
    live(story, 5000, 7, 16, came_from_m=50)
    live(story, 50, 16, 17, came_from_m=5000)
    assert warned_entries(story, 100) == [True, True]
    assert warned_entries(story, 1000) == [True, False]


def test_an_approach_from_a_known_stay_is_warned_of() -> None:
    story = unanswered()
    live(story, 600, 0, 7)
    live(story, 5000, 7, 16, came_from_m=600)
    live(story, 600, 16, 17, came_from_m=5000)
    come(story, [600, 500, 400, 290, 200, 100], every_s=60, from_s=17 * HOUR_S)
    assert figures(story.of(AlertKind.DISTANCE_CHANGED)) == [(1000, 290), (1000, 100)]


def test_stays_survive_a_checkpoint() -> None:
    story = begun(valid_until_ms=T0_MS + 20 * 24 * HOUR_S * 1000)
    live(story, 600, 0, 7)
    live(story, 5000, 7, 16, came_from_m=600)
    story.state = codec.decode(codec.encode(story.state))
    live(story, 600, 16, 17, came_from_m=5000)
    assert warned_entries(story, 1000) == [True, False]


def test_a_jump_at_a_known_distance_is_no_news() -> None:
    story = unanswered()
    live(story, 600, 0, 1)
    come(story, [600, 290, 290, 290], every_s=60, from_s=HOUR_S)
    live(story, 290, 1.1, 3)
    come(story, [290, 110, 290, 290], every_s=60, from_s=3 * HOUR_S)
    assert figures(story.of(AlertKind.DISTANCE_CHANGED)) == [(1000, 290)]
    come(story, [110, 110], every_s=60, from_s=4 * HOUR_S)
    assert figures(story.of(AlertKind.DISTANCE_CHANGED)) == [(1000, 290), (1000, 110)]
