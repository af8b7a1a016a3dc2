"""Responses without a ring when the record of a device ends: an unseen wearer, a cut strap, a panic call."""

from __future__ import annotations

import pytest

from services.geofence.domain.demands import AlertKind
from services.geofence.domain.detectors import ended_records
from services.geofence.domain.entries import Demand, Rules
from tandem.common.v1 import tag_duty_pb2
from tests.support.ended_records import (
    ENDED_S,
    FAR_M,
    NO_TAG,
    OTHER_TAG,
    STORIES,
    WAIT_S,
    at_home,
    ends_of,
    is_open,
    restart,
    tampered,
    unseen,
)
from tests.support.geofence.stories import T0_MS, circle

EACH = pytest.mark.parametrize("name", STORIES)


@EACH
def test_the_end_of_a_record_ends_the_response_half_an_hour_later(name: str) -> None:
    tell, gone, kinds = STORIES[name]
    story = tell()
    before = len(story.alerts)
    story.case(ENDED_S, version=2, **gone)
    restart(story)
    story.tick(ENDED_S + WAIT_S - 1)
    assert is_open(story) and not kinds & {alert.kind for alert in story.alerts[before:]}
    assert all(alert.demand < Demand.RESPOND for alert in story.alerts[before:])
    restart(story)
    story.tick(ENDED_S + WAIT_S + 600)
    [(kind, at_s, unconfirmed)] = ends_of(story)
    assert kind in kinds and at_s == ENDED_S + WAIT_S and unconfirmed
    assert {alert.kind for alert in story.alerts[before:] if alert.unconfirmed} - {AlertKind.JAMMED} == kinds
    assert not ended_records.is_any(story.state.cases["case-1"])


@EACH
def test_the_check_stands_in_the_agenda_and_a_later_snapshot_does_not_move_it(name: str) -> None:
    tell, gone, _ = STORIES[name]
    story = tell()
    story.case(ENDED_S, version=2, **gone)
    story.case(ENDED_S + 600, version=3, valid_until_ms=T0_MS + 90_000_000, **gone)
    assert is_open(story)
    story.tick(ENDED_S + WAIT_S)
    assert ends_of(story) and ends_of(story)[0][1] == ENDED_S + WAIT_S


@EACH
def test_the_end_of_the_order_ends_it_at_once(name: str) -> None:
    tell, gone, kinds = STORIES[name]
    story = tell()
    story.case(ENDED_S, version=2, **gone)
    story.case(ENDED_S + 60, version=3, valid_until_ms=T0_MS + (ENDED_S + 90) * 1000, **gone)
    story.tick(ENDED_S + 90)
    [(kind, at_s, unconfirmed)] = ends_of(story)
    assert kind in kinds and at_s == ENDED_S + 90 and unconfirmed
    assert all(alert.target_id == "p" for alert in story.of(AlertKind.PANIC, AlertKind.UNKNOWN_NEAR))
    assert not ended_records.is_any(story.state.cases["case-1"])


@EACH
def test_an_order_that_is_not_in_force_yet_asks_for_nothing(name: str) -> None:
    tell, gone, _ = STORIES[name]
    story = tell()
    story.case(ENDED_S, version=2, **gone)
    story.case(ENDED_S + 60, version=3, valid_from_ms=T0_MS + 9_000_000, **gone)
    assert [at_s for _, at_s, _ in ends_of(story)] == [ENDED_S + 60]
    assert not ended_records.is_any(story.state.cases["case-1"])


@pytest.mark.parametrize("name", ["unseen", "panicked"])
def test_a_dropped_person_ends_it_at_once(name: str) -> None:
    tell, gone, _ = STORIES[name]
    story = tell()
    story.case(ENDED_S, version=2, **gone)
    story.case(ENDED_S + 60, version=3, **gone | {"persons": [], "places": [circle("home", 9000, 0, radius_m=20)]})
    assert [at_s for _, at_s, _ in ends_of(story)] == [ENDED_S + 60] and not is_open(story)
    assert story.alerts[-1].incident_ends and story.alerts[-1].target_id == "p"


@EACH
def test_new_rules_shorten_the_wait(name: str) -> None:
    tell, gone, _ = STORIES[name]
    story = tell()
    story.case(ENDED_S, version=2, **gone)
    story.enter(ENDED_S + 600, Rules(silent_notify_after_ms=300_000, protected_lost_after_ms=300_000))
    assert [at_s for _, at_s, _ in ends_of(story)] == [ENDED_S + 600]


# ── another tag ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["unseen", "tampered"])
def test_another_tag_that_shows_the_wearer_far_away_decides(name: str) -> None:
    tell, gone, kinds = STORIES[name]
    story = tell()
    story.case(ENDED_S, version=2, **gone)
    story.case(ENDED_S + 60, version=3, **OTHER_TAG)
    at_home(story, ENDED_S + 60, ENDED_S + 300)
    assert is_open(story)
    restart(story)
    story.at(ENDED_S + 300, "tag-2", FAR_M)
    [(kind, at_s, unconfirmed)] = ends_of(story)
    assert kind in kinds and at_s == ENDED_S + 300 and not unconfirmed
    assert story.alerts[-1].cause is not None and story.alerts[-1].cause.device_id == "tag-2"
    assert not ended_records.is_any(story.state.cases["case-1"])


@pytest.mark.parametrize("name", ["unseen", "tampered"])
def test_another_tag_that_shows_the_wearer_near_her_goes_on_with_the_incident(name: str) -> None:
    story = STORIES[name][0]()
    incidents = {alert.incident_id for alert in story.alerts if alert.demand is Demand.RESPOND}
    story.case(ENDED_S, version=2, **NO_TAG)
    story.case(ENDED_S + 60, version=3, **OTHER_TAG)
    at_home(story, ENDED_S + 60, ENDED_S + 300)
    story.at(ENDED_S + 300, "tag-2", 40)
    assert story.entered() == [2000, 1000, 100] and not ends_of(story)
    responses = [alert for alert in story.alerts if alert.demand is Demand.RESPOND]
    assert len(responses) == 2 and {alert.incident_id for alert in responses} == incidents


@pytest.mark.parametrize("name", ["unseen", "tampered"])
def test_another_tag_that_never_reports_leaves_the_response_open(name: str) -> None:
    """As any silent tag does. Its end begins the wait once more."""
    story = STORIES[name][0]()
    story.case(ENDED_S, version=2, **NO_TAG)
    story.case(ENDED_S + 60, version=3, **OTHER_TAG)
    at_home(story, ENDED_S + 60, ENDED_S + 2 * WAIT_S)
    assert is_open(story)
    at_s = ENDED_S + 2 * WAIT_S
    story.case(at_s, version=4, **NO_TAG)
    story.tick(at_s + WAIT_S - 1)
    assert is_open(story)
    story.tick(at_s + WAIT_S)
    assert [ended_s for _, ended_s, _ in ends_of(story)] == [at_s + WAIT_S]


def test_an_exchange_in_one_snapshot_ends_no_tampering_before_the_new_tag_reports() -> None:
    story = tampered()
    story.case(ENDED_S, version=2, **OTHER_TAG)
    assert is_open(story)
    story.at(ENDED_S + 60, "tag-2", FAR_M)
    assert ends_of(story) == [(AlertKind.TAMPERED, ENDED_S + 60, False)]


def test_a_position_from_before_the_end_of_the_record_shows_nothing() -> None:
    story = tampered()
    story.case(ENDED_S, version=2, **NO_TAG)
    story.case(ENDED_S + 60, version=3, **OTHER_TAG)
    story.at(ENDED_S + 70, "tag-2", FAR_M, fix_s=ENDED_S - 20)
    assert is_open(story)
    story.at(ENDED_S + 75, "tag-2", FAR_M)
    assert ends_of(story) == [(AlertKind.TAMPERED, ENDED_S + 75, False)]


def test_a_kept_position_of_a_wearer_who_is_unseen_shows_nothing() -> None:
    story = tampered()
    story.case(ENDED_S, version=2, **OTHER_TAG)
    story.at(ENDED_S + 600, "tag-2", FAR_M, fix_s=ENDED_S + 60)
    assert is_open(story)


def test_a_second_tag_that_is_whole_decides() -> None:
    story = tampered(tag_device_ids=["tag", "tag-2"])
    story.at(ENDED_S - 20, "tag-2", FAR_M)
    story.case(ENDED_S, version=2, **OTHER_TAG)
    assert is_open(story)
    story.at(ENDED_S + 40, "tag-2", FAR_M)
    assert ends_of(story) == [(AlertKind.TAMPERED, ENDED_S + 40, False)]


def test_the_end_of_one_of_two_unseen_tags_changes_nothing() -> None:
    story = unseen(tag_device_ids=["tag", "tag-2"])
    before = len(story.alerts)
    story.case(ENDED_S, version=2, tag_device_ids=["tag"])
    story.tick(ENDED_S + WAIT_S + 600)
    assert is_open(story) and AlertKind.UNKNOWN_NEAR not in {alert.kind for alert in story.alerts[before:]}


def test_another_tag_that_was_opened_too_shows_nothing() -> None:
    story = tampered()
    story.case(ENDED_S, version=2, **OTHER_TAG)
    story.says(ENDED_S + 10, "tag-2", "STRAP_OPEN")
    story.at(ENDED_S + 20, "tag-2", FAR_M)
    before = len(story.alerts)
    assert is_open(story) and ended_records.is_any(story.state.cases["case-1"])
    story.says(ENDED_S + 30, "tag-2", "STRAP_CLOSED")
    assert [alert.unconfirmed for alert in story.alerts[before:]] == [False, False] and ends_of(story)


def test_another_tag_that_is_off_by_permission_shows_nothing() -> None:
    removal = tag_duty_pb2.TagRemoval(
        removal_id="r", device_id="tag-2", from_ms=T0_MS + ENDED_S * 1000, until_ms=T0_MS + 90_000_000
    )
    story = tampered()
    story.case(ENDED_S, version=2, removals=[removal], **OTHER_TAG)
    story.says(ENDED_S + 10, "tag-2", "STRAP_OPEN")
    story.at(ENDED_S + 20, "tag-2", FAR_M)
    assert is_open(story)
