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


def test_each_hundred_metres_nearer_goes_to_the_warning_leg_alone() -> None:
    emitted = come(begun(), [2100, 1990, 1950, 1885, 1840, 1780, 1675, 1670])
    assert figures(emitted) == [(2000, 1885), (2000, 1780), (2000, 1675)]
    for alert in emitted:
        assert alert.demand is Demand.WARN and alert.destinations == ((Leg.WARNING, "p"),)
        assert alert.incident_id and alert.episode_id


def test_going_away_is_warned_of_more_rarely() -> None:
    assert figures(come(begun(), [1200, 1310, 1450, 1510, 1700, 1820, 1890])) == [(2000, 1510), (2000, 1820)]


def test_entering_a_ring_warns_her_by_its_own_alert() -> None:
    story = begun()
    come(story, [1200, 990, 950, 880])
    alerts = [
        (alert.kind, alert.ring_mm // 1000) for alert in story.of(AlertKind.RING_ENTERED, AlertKind.DISTANCE_CHANGED)
    ]
    assert alerts == [
        (AlertKind.RING_ENTERED, 2000),
        (AlertKind.RING_ENTERED, 1000),
        (AlertKind.DISTANCE_CHANGED, 1000),
    ]


def test_warnings_are_at_least_fifteen_seconds_apart() -> None:
    emitted = come(begun(), [1990 - 60 * i for i in range(14)], every_s=3)
    at_s = [(alert.decided_at_ms - T0_MS) / 1000 for alert in emitted]
    assert len(at_s) > 1 and all(later - before >= 15 for before, later in pairwise(at_s))


def test_a_buffered_batch_warns_once() -> None:
    story = begun()
    come(story, [1990, 1980])
    for i in range(8):
        story.at(150, "tag", 1900 - 100 * i, fix_s=40 + 10 * i)
    assert len(story.of(AlertKind.DISTANCE_CHANGED)) == 1


def test_an_unknown_position_gives_no_distance() -> None:
    story = begun()
    come(story, [1990, 1980])
    for at_s in (200, 260, 320):
        story.at(at_s, "tag", 1500 - at_s)
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
    assert not come(begun(rings=[ring]), [1990, 1800, 1600, 1400])
    nobody = [log_pb2.ProtectedTarget(person_id="p")]
    story = begun(persons=nobody, places=[circle("home", 0, 0, radius_m=20)])
    assert not come(story, [1990, 1800, 1600, 1400]) and story.of(AlertKind.RING_ENTERED)


def test_an_encounter_mutes_no_repeat() -> None:
    allowed = encounter_pb2.Encounter(encounter_id="e")
    getattr(allowed, "from").FromMilliseconds(T0_MS - 1000)
    allowed.until.FromMilliseconds(T0_MS + 3_600_000)
    assert figures(come(begun(encounters=[allowed]), [1990, 1850])) == [(2000, 1850)]


def test_the_distance_is_in_the_measure_alone() -> None:
    [emitted] = come(begun(), [1990, 1850])
    assert translate.measure_to_proto(emitted).distance_m == pytest.approx(1850, abs=0.1)
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
