"""Possible presence: UNKNOWN_NEAR caused by a report, and its end."""

from __future__ import annotations

from services.geofence.domain import codec
from services.geofence.domain.alerts import Alert, AnomalyKind
from services.geofence.domain.demands import AlertKind
from services.geofence.domain.detectors.approach import POSSIBLE
from services.geofence.domain.entries import Demand
from tandem.common.v1 import geometry_pb2
from tests.support.geofence.stories import T0_MS, Story

ONE_RING = [geometry_pb2.Ring(radius_m=100, action=geometry_pb2.RESPOND)]


def begun(**changes: object) -> Story:
    story = Story()
    story.case(**changes)  # type: ignore[arg-type]
    for at_s in (0, 15, 30, 45):
        story.at(at_s, "phone", 0)
        story.at(at_s, "tag", 1500)
    return story


def near(story: Story) -> list[Alert]:
    return story.of(AlertKind.UNKNOWN_NEAR)


def test_a_jump_to_her_door_notifies_at_once_and_sends_somebody_when_confirmed() -> None:
    story = begun(rings=ONE_RING)
    story.at(60, "tag", 40)
    [emitted] = near(story)
    assert (emitted.demand, emitted.anomaly, emitted.at_ms) == (Demand.NOTIFY, AnomalyKind.JUMP, T0_MS + 60_000)
    assert emitted.distance_mm is not None and emitted.probability is not None and emitted.probability > 0.9
    assert emitted.incident_opens and emitted.incident_ends and not story.entered()
    story.at(75, "tag", 45)
    assert story.entered() == [100]
    assert POSSIBLE.of(story.state.cases["case-1"]) == {}


def test_a_single_wild_position_is_retracted_after_three_minutes() -> None:
    story = begun(rings=ONE_RING)
    story.at(60, "tag", 40)
    for at_s in range(75, 400, 15):
        story.at(at_s, "tag", 1500)
        story.at(at_s, "phone", 0)
        story.state = codec.decode(codec.encode(story.state))
    emitted, over = near(story)
    assert (over.demand, over.at_ms) == (Demand.RECORD, T0_MS + 240_000) and over.destinations == emitted.destinations
    assert not story.entered()


def test_a_possible_presence_is_notified_within_a_wider_ring_too() -> None:
    story = begun()
    for at_s in range(60, 480, 15):
        story.at(at_s, "phone", 0)
        story.at(at_s, "tag", 250)
    story.at(480, "tag", 180, accuracy_m=60)
    assert [alert.demand for alert in near(story)] == [Demand.NOTIFY] and 1000 in story.entered()
    assert 100 not in story.entered()


def test_a_possible_presence_is_only_recorded_where_somebody_was_sent() -> None:
    story = begun()
    for at_s in range(60, 360, 15):
        story.at(at_s, "phone", 0)
        story.at(at_s, "tag", max(180, 1500 - 6 * (at_s - 45)))
    assert story.of(AlertKind.CONTACT_PREDICTED)
    story.at(360, "tag", 180, accuracy_m=60)
    emitted = near(story)
    assert emitted and {(alert.demand, alert.destinations) for alert in emitted} == {(Demand.RECORD, ())}
    assert 100 not in story.entered()


def test_a_possible_presence_is_notified_once_an_hour_and_otherwise_recorded() -> None:
    story = begun(rings=ONE_RING)
    for at_s in range(60, 4400, 15):
        story.at(at_s, "phone", 0)
        story.at(at_s, "tag", 40 if at_s in (60, 660, 4260) else 1500)
    assert [alert.demand for alert in near(story) if alert.anomaly] == [Demand.NOTIFY, Demand.RECORD, Demand.NOTIFY]


def test_a_wild_position_of_her_phone_hides_nobody() -> None:
    story = begun()
    for at_s in range(60, 300, 15):
        story.at(at_s, "tag", max(30, 1500 - 10 * (at_s - 45)))
        if at_s % 60 == 0:
            story.at(at_s, "phone", 0 if at_s < 240 else 2500)
    assert 100 in story.entered()


def test_a_possible_presence_ends_with_the_order() -> None:
    story = begun(rings=ONE_RING, valid_until_ms=T0_MS + 100_000)
    story.at(60, "tag", 40)
    story.tick(120)
    assert [alert.demand for alert in near(story)] == [Demand.NOTIFY, Demand.RECORD]
    assert POSSIBLE.of(story.state.cases["case-1"]) == {}


def stand_at(at_m: float) -> Story:
    """He stands this far north of her for four minutes, and both report each minute."""
    story = Story()
    story.case()
    for at_s in range(0, 300, 60):
        story.at(at_s, "phone", 0)
        story.at(at_s, "tag", at_m)
    return story


def test_a_wearer_who_jumps_away_may_still_be_there_and_go_on() -> None:
    story = stand_at(200)
    assert not near(story)
    story.at(300, "tag", 900)
    [emitted] = near(story)
    # 200 m, less the ring, is less than a minute's walk at 2 m/s.
    assert (emitted.demand, emitted.anomaly, emitted.at_ms) == (Demand.NOTIFY, AnomalyKind.JUMP, T0_MS + 300_000)
    assert emitted.distance_mm is not None and 199_000 < emitted.distance_mm < 201_000
    assert 100 not in story.entered()


def test_a_wearer_who_leaves_at_an_unchanged_pace_has_left() -> None:
    story = Story()
    story.case()
    for at_s, north_m in ((0, 1200), (30, 900), (60, 600), (90, 300), (120, 600), (150, 900)):
        story.at(at_s, "phone", 0)
        story.at(at_s, "tag", north_m)
    assert not near(story)


def test_the_fourth_position_elsewhere_ends_a_possible_presence_after_a_jump() -> None:
    emitted = {}
    for every_s in (10, 60):
        story = stand_at(300)
        for i in range(1, 5):
            story.at(240 + every_s * i, "tag", 1500)
        emitted[every_s] = [alert.at_ms - T0_MS for alert in near(story)]
    # The ring is 95 s of walking away. By then four positions 10 s apart have confirmed that he is elsewhere.
    assert emitted == {10: [], 60: [360_000]}


def test_a_jump_of_her_phone_does_not_hide_a_wearer_at_her_door() -> None:
    story = stand_at(200)
    story.at(290, "phone", -620)
    assert not near(story)
    story.at(300, "tag", 40)
    [emitted] = near(story)
    assert (emitted.demand, emitted.anomaly) == (Demand.NOTIFY, AnomalyKind.JUMP)
    assert emitted.distance_mm is not None and emitted.distance_mm < 41_000 and 100 not in story.entered()
