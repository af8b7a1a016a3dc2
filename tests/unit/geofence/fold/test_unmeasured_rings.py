"""Open rings to which no device of the case measures the distance any more, and rings round a place whose record is corrected."""

from __future__ import annotations

from typing import Any

import pytest

from services.geofence.domain import codec
from services.geofence.domain.demands import AlertKind
from services.geofence.domain.detectors.clearing import UNMEASURED
from services.geofence.domain.entries import Demand, Rules
from tandem.common.v1 import log_pb2, tag_duty_pb2
from tests.support.geofence.encounters import encounter
from tests.support.geofence.stories import T0_MS, Story, circle

ENDED_S = 300
WAIT_S = Rules().silent_notify_after_ms // 1000
NO_TAG: dict[str, Any] = {"tag_device_ids": []}
NO_PHONE: dict[str, Any] = {"persons": [log_pb2.ProtectedTarget(person_id="p")]}
ENDS = {"his tag": NO_TAG, "her phone": NO_PHONE, "both": NO_TAG | NO_PHONE}


def breach(**case: Any) -> Story:
    """The wearer stands 40 m from the person from second 0 on, and all rings are entered."""
    story = Story()
    story.case(**case)
    stay(story, 0, ENDED_S, 40)
    assert story.entered() == [2000, 1000, 100]
    return story


def stay(story: Story, from_s: int, to_s: int, north_m: float, *, tag: str = "tag", phone: str = "phone") -> None:
    """Folds positions of both sides each 15 s: the wearer's at a distance from the person, who is at home."""
    for at_s in range(from_s, to_s, 15):
        story.at(at_s, phone, 0)
        story.at(at_s + 1, tag, north_m)


def cleared(story: Story) -> list[tuple[int, float]]:
    """Ring, m, and second of decision of each clearing."""
    found = story.of(AlertKind.RING_CLEARED)
    return [(alert.ring_mm // 1000, (alert.decided_at_ms - T0_MS) / 1000) for alert in found]


def restart(story: Story) -> None:
    story.state = codec.decode(codec.encode(story.state))


@pytest.mark.parametrize("gone", ENDS)
def test_a_ring_whose_last_device_ends_in_the_records_clears_after_the_wait(gone: str) -> None:
    story = breach()
    story.case(ENDED_S, version=2, **ENDS[gone])
    before = len(story.alerts)
    story.tick(ENDED_S + WAIT_S - 1)
    assert not cleared(story) and all(alert.demand < Demand.RESPOND for alert in story.alerts[before:])
    restart(story)
    story.tick(ENDED_S + WAIT_S + 600)
    at_s = ENDED_S + WAIT_S
    assert cleared(story) == [(100, at_s), (1000, at_s), (2000, at_s)]
    assert [alert.incident_ends for alert in story.alerts].count(True) == 1 and story.alerts[-1].incident_ends
    assert story.alerts[-1].kind is AlertKind.RING_CLEARED
    assert not story.state.incidents


def test_the_clearing_states_no_distance_and_what_was_proved_before_the_end() -> None:
    story = breach()
    story.case(ENDED_S, version=2, **NO_TAG)
    story.tick(ENDED_S + WAIT_S)
    for alert in story.of(AlertKind.RING_CLEARED):
        [(from_ms, to_ms)] = alert.inside
        assert alert.distance_mm is None and to_ms - from_ms == pytest.approx(284_000, abs=1000)
        assert alert.min_distance_mm == pytest.approx(40_000, abs=100)


def test_a_new_tag_after_the_old_one_goes_on_with_the_incident() -> None:
    story = breach()
    [incident_id] = {alert.incident_id for alert in story.alerts}
    story.case(ENDED_S, version=2, **NO_TAG)
    story.case(ENDED_S + 60, version=3, tag_device_ids=["tag-2"])
    stay(story, ENDED_S + 60, ENDED_S + WAIT_S + 600, 40, tag="tag-2")
    assert not cleared(story) and not UNMEASURED.of(story.state.cases["case-1"])
    stay(story, ENDED_S + WAIT_S + 720, ENDED_S + WAIT_S + 900, 5000, tag="tag-2")
    assert [ring_m for ring_m, _ in cleared(story)] == [100, 1000, 2000]
    assert {alert.incident_id for alert in story.alerts} == {incident_id} and story.entered() == [2000, 1000, 100]
    assert {alert.distance_mm for alert in story.of(AlertKind.RING_CLEARED)} == {100_000, 1_000_000, 2_000_000}


def test_a_new_phone_after_the_old_one_goes_on_with_the_incident() -> None:
    story = breach()
    story.case(ENDED_S, version=2, **NO_PHONE)
    stay(story, ENDED_S, ENDED_S + 60, 40)
    story.case(ENDED_S + 60, version=3, persons=[log_pb2.ProtectedTarget(person_id="p", device_ids=["phone-2"])])
    stay(story, ENDED_S + 60, ENDED_S + WAIT_S + 600, 40, phone="phone-2")
    assert not cleared(story) and story.entered() == [2000, 1000, 100]
    stay(story, ENDED_S + WAIT_S + 720, ENDED_S + WAIT_S + 900, 5000, phone="phone-2")
    assert [ring_m for ring_m, _ in cleared(story)] == [100, 1000, 2000]


def test_the_wait_begins_with_the_newest_end() -> None:
    story = breach()
    story.case(ENDED_S, version=2, **NO_TAG)
    story.case(ENDED_S + 60, version=3, tag_device_ids=["tag-2"])
    story.case(ENDED_S + 120, version=4, **NO_TAG)
    story.tick(ENDED_S + 120 + WAIT_S - 1)
    assert not cleared(story)
    story.tick(ENDED_S + 120 + WAIT_S)
    assert len(cleared(story)) == 3


def test_a_snapshot_in_between_does_not_lengthen_the_wait() -> None:
    story = breach()
    story.case(ENDED_S, version=2, **NO_TAG)
    story.case(ENDED_S + 600, version=3, **NO_TAG, valid_until_ms=T0_MS + 90_000_000)
    story.tick(ENDED_S + WAIT_S)
    assert len(cleared(story)) == 3


def test_another_device_of_hers_measures_on() -> None:
    persons = [log_pb2.ProtectedTarget(person_id="p", device_ids=["phone", "watch"])]
    story = breach(persons=persons)
    story.at(ENDED_S - 1, "watch", 0)
    story.case(ENDED_S, version=2, persons=[log_pb2.ProtectedTarget(person_id="p", device_ids=["watch"])])
    assert not UNMEASURED.of(story.state.cases["case-1"])
    stay(story, ENDED_S, ENDED_S + 180, 5000, phone="watch")
    assert len(cleared(story)) == 3


def test_a_removal_on_record_changes_nothing() -> None:
    """It says why the tag comes off, and not that he left."""
    story = breach()
    removal = tag_duty_pb2.TagRemoval(
        removal_id="r", device_id="tag", from_ms=T0_MS + 200_000, until_ms=T0_MS + 90_000_000
    )
    story.case(ENDED_S - 5, version=2, removals=[removal])
    story.case(ENDED_S, version=3, removals=[removal], **NO_TAG)
    story.tick(ENDED_S + WAIT_S - 1)
    assert not cleared(story)
    story.tick(ENDED_S + WAIT_S)
    assert len(cleared(story)) == 3


def test_the_end_of_the_order_ends_the_wait() -> None:
    story = breach()
    story.case(ENDED_S, version=2, **NO_TAG)
    story.case(ENDED_S + 60, version=3, **NO_TAG, valid_until_ms=T0_MS + (ENDED_S + 90) * 1000)
    story.tick(ENDED_S + 90)
    assert [at_s for _, at_s in cleared(story)] == [ENDED_S + 90] * 3


def test_a_dropped_person_or_ring_is_cleared_at_once() -> None:
    story = breach()
    story.case(ENDED_S, version=2, persons=[], places=[circle("home", 9000, 0, radius_m=20)], **NO_TAG)
    assert [at_s for _, at_s in cleared(story)] == [ENDED_S] * 3 and not story.state.incidents


def test_an_order_that_is_not_in_force_yet_watches_nothing() -> None:
    story = breach()
    story.case(ENDED_S, version=2, valid_from_ms=T0_MS + 900_000, **NO_TAG)
    assert [at_s for _, at_s in cleared(story)] == [ENDED_S] * 3


def test_new_rules_shorten_the_wait() -> None:
    story = breach()
    story.case(ENDED_S, version=2, **NO_TAG)
    story.enter(ENDED_S + 600, Rules(silent_notify_after_ms=300_000))
    assert [at_s for _, at_s in cleared(story)] == [ENDED_S + 600] * 3


def test_a_corrected_place_keeps_its_open_rings_until_positions_are_beyond_the_new_shape() -> None:
    story = breach(persons=[], places=[circle("home", 0, 0, radius_m=20)])
    story.case(ENDED_S, version=2, persons=[], places=[circle("home", 0, 0, radius_m=60)])
    restart(story)
    stay(story, ENDED_S, 600, 40)
    assert not cleared(story) and story.entered() == [2000, 1000, 100]
    story.case(600, version=3, persons=[], places=[circle("home", 500, 0, radius_m=20)])
    stay(story, 600, 900, 40)
    assert [ring_m for ring_m, _ in cleared(story)] == [100], "he is 440 m from where the home is now"
    [alert] = story.of(AlertKind.RING_CLEARED)
    inside_s = sum(to_ms - from_ms for from_ms, to_ms in alert.inside) / 1000
    assert inside_s == pytest.approx(585, abs=20), "each moment is measured by the shape of that time"
    assert story.entered() == [2000, 1000, 100] and len({each.incident_id for each in story.alerts}) == 1


def test_late_reports_do_not_measure_an_earlier_moment_by_the_corrected_shape() -> None:
    story = breach(persons=[], places=[circle("home", 0, 0, radius_m=20)])
    story.case(ENDED_S, version=2, persons=[], places=[circle("home", 0, 400, radius_m=20)])
    for at_s in range(5, ENDED_S, 30):
        story.at(ENDED_S + 1, "tag", 40, 400, fix_s=at_s, report_id=f"late-{at_s}")
    stay(story, 1200, 1500, 9000)
    [alert] = [alert for alert in story.of(AlertKind.RING_CLEARED) if alert.ring_mm == 100_000]
    assert alert.min_distance_mm == pytest.approx(20_000, abs=100)


def test_a_muted_ring_demands_its_response_at_the_end_of_the_encounter() -> None:
    hearing = encounter(until_s=ENDED_S + 300)
    story = breach(encounters=[hearing])
    story.case(ENDED_S, version=2, encounters=[hearing], **NO_TAG)
    story.tick(ENDED_S + 299)
    assert all(alert.demand < Demand.NOTIFY for alert in story.alerts)
    story.tick(ENDED_S + 300)
    assert [alert.demand for alert in story.alerts[-2:]] == [Demand.NOTIFY, Demand.RESPOND] and not cleared(story)
