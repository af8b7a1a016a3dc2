"""Late evidence: both desks learn of a presence near a place that reports prove more than 2 h later."""

from __future__ import annotations

from typing import Any

import pytest

from services.geofence.domain import codec
from services.geofence.domain.alerts import Alert, DeadLetter
from services.geofence.domain.demands import AlertKind, Leg
from services.geofence.domain.detectors.late_evidence import LATE_EVIDENCE, MAX_STRETCHES
from services.geofence.domain.entries import Demand
from tandem.common.v1 import log_pb2
from tests.support.geofence.encounters import encounter
from tests.support.geofence.stories import T0_MS, Story, circle

LATE_S = 20_000
"""Second at which the late reports arrive; the case is a day old by then."""


def begun(**changes: Any) -> Story:
    story = Story()
    story.case(places=[circle("home", 0, 0, radius_m=0)], **changes)
    return story


def late(story: Story, fixes_s: range, north_m: float = 20, at_s: float = LATE_S, device_id: str = "tag") -> None:
    for fix_s in fixes_s:
        story.at(at_s, device_id, north_m, fix_s=fix_s)


def emitted(story: Story) -> list[Alert]:
    return story.of(AlertKind.LATE_EVIDENCE)


def seconds(alert: Alert) -> list[tuple[float, float]]:
    return [((from_ms - T0_MS) / 1000, (to_ms - T0_MS) / 1000) for from_ms, to_ms in alert.inside]


def test_both_desks_learn_when_he_was_there_and_nobody_is_sent() -> None:
    story = begun()
    late(story, range(600, 1600, 15))
    assert not emitted(story)
    story.tick(LATE_S + 60)
    [alert] = emitted(story)
    assert alert.demand is Demand.NOTIFY and alert.destinations == ((Leg.PROBATION, "w"), (Leg.POLICE, "order-1/home"))
    assert (alert.ring_mm, alert.target_id, alert.late) == (100_000, "home", True)
    assert seconds(alert) == [(600, 1590)] and alert.at_ms == T0_MS + 600_000
    assert alert.min_distance_mm == pytest.approx(20_000, abs=20)
    assert alert.incident_opens and alert.incident_ends and not story.state.incidents
    assert 100 not in story.entered()
    assert any(isinstance(output, DeadLetter) for output in story.outputs)


def test_the_order_of_arrival_does_not_matter() -> None:
    forward, backward = begun(), begun()
    late(forward, range(600, 1600, 60))
    late(backward, range(1560, 599, -60))
    for story in (forward, backward):
        story.tick(LATE_S + 60)
    assert seconds(emitted(forward)[0]) == seconds(emitted(backward)[0]) == [(600, 1560)]


def test_separate_visits_are_separate_stretches() -> None:
    story = begun()
    late(story, range(600, 700, 30))
    late(story, range(3000, 3100, 30))
    story.tick(LATE_S + 60)
    assert seconds(emitted(story)[0]) == [(600, 690), (3000, 3090)]


def test_the_desks_are_notified_once_an_hour_and_miss_nothing() -> None:
    story = begun()
    for i in range(40):
        late(story, range(600 + 15 * i, 615 + 15 * i, 15), at_s=LATE_S + 15 * i)
    story.tick(LATE_S + 4000)
    first, second = emitted(story)
    assert [(alert.decided_at_ms - T0_MS) / 1000 for alert in (first, second)] == [LATE_S + 60, LATE_S + 3660]
    assert seconds(first)[0][0] == 600 and seconds(second)[-1][1] == 1185
    assert seconds(second)[0][0] > seconds(first)[-1][1]


def test_a_resent_report_is_no_news() -> None:
    story = begun()
    late(story, range(600, 1000, 15))
    story.tick(LATE_S + 60)
    late(story, range(600, 1000, 15), at_s=LATE_S + 200)
    story.tick(LATE_S + 10_000)
    assert len(emitted(story)) == 1


def test_only_a_likely_presence_of_the_tag_within_the_case_counts() -> None:
    for story, north_m, device_id in (
        (begun(), 300.0, "tag"),
        (begun(), 20.0, "phone"),
        (begun(valid_from_ms=T0_MS + 2_000_000), 20.0, "tag"),
        (begun(encounters=[encounter()]), 20.0, "tag"),
    ):
        late(story, range(600, 1000, 15), north_m, device_id=device_id)
        story.tick(LATE_S + 60)
        assert not emitted(story)
    vague = begun()
    vague.at(LATE_S, "tag", 20, fix_s=600, accuracy_m=300)
    vague.tick(LATE_S + 60)
    assert not emitted(vague)


def test_a_report_from_before_the_tag_changed_hands_says_nothing() -> None:
    story = Story()
    other = [log_pb2.ProtectedTarget(person_id="q", device_ids=["other"])]
    story.case(case="2", wearer_id="v", persons=other)
    story.case(1000, places=[circle("home", 0, 0, radius_m=0)])
    late(story, range(600, 900, 15))
    story.tick(LATE_S + 60)
    assert not emitted(story)


def test_a_new_snapshot_and_the_end_of_the_order_lose_nothing() -> None:
    amended = begun()
    late(amended, range(600, 1000, 15))
    amended.case(LATE_S + 10, version=2)
    assert len(emitted(amended)) == 1 and not LATE_EVIDENCE.of(amended.state.cases["case-1"])
    ended = begun(valid_until_ms=T0_MS + (LATE_S + 30) * 1000)
    late(ended, range(600, 1000, 15))
    ended.tick(LATE_S + 31)
    assert len(emitted(ended)) == 1 and not ended.state.incidents


def test_the_notices_of_one_moment_have_one_order_before_and_after_a_checkpoint() -> None:
    places = [circle("work", 0, 0, radius_m=0), circle("home", 0, 0, radius_m=0)]
    whole, restarted = Story(), Story()
    for story in (whole, restarted):
        story.case(places=places)
        late(story, range(600, 1000, 15))
    restarted.state = codec.decode(codec.encode(restarted.state))
    for story in (whole, restarted):
        story.tick(LATE_S + 60)
    assert [alert.target_id for alert in emitted(whole)] == ["work", "home"]
    assert restarted.outputs == whole.outputs


def test_the_memory_is_bounded_and_survives_a_checkpoint() -> None:
    whole, story = begun(), begun()
    late(whole, range(0, 200 * 30, 30))
    for fix_s in range(0, 200 * 30, 30):
        story.state = codec.decode(codec.encode(story.state))
        late(story, range(fix_s, fix_s + 1))
    for each in (whole, story):
        each.tick(LATE_S + 60)
    assert whole.outputs == story.outputs and codec.encode(whole.state) == codec.encode(story.state)
    scattered = begun()
    late(scattered, range(0, 10_000, 50))
    late(scattered, range(-60_000, 0, 400))
    [evidence] = LATE_EVIDENCE.of(scattered.state.cases["case-1"]).values()
    assert len(evidence.found) == MAX_STRETCHES
