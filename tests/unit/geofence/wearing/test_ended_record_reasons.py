"""A response when a record ends: the same tag once more, a removal, several reasons at once, and her own device."""

from __future__ import annotations

from typing import Any

import pytest

from services.geofence.domain.demands import AlertKind
from services.geofence.domain.detectors import ended_records
from services.geofence.domain.entries import Demand
from services.geofence.domain.state import Outage
from tandem.common.v1 import geometry_pb2, log_pb2, tag_duty_pb2
from tests.support.ended_records import (
    ENDED_S,
    FAR_M,
    NO_PHONE,
    NO_TAG,
    OTHER_PHONE,
    OTHER_TAG,
    STORIES,
    WAIT_S,
    at_home,
    begin,
    ends_of,
    is_open,
    panicked,
    restart,
    rings_of,
    tampered,
    unseen,
)
from tests.support.geofence.stories import T0_MS, Story

# ── the same tag ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_cut_tag_that_comes_back_is_still_cut() -> None:
    story = tampered()
    before = len(story.alerts)
    story.case(ENDED_S, version=2, **NO_TAG)
    story.case(ENDED_S + 300, version=3)
    assert not ended_records.is_any(story.state.cases["case-1"])
    for at_s in range(ENDED_S + 300, ENDED_S + 2 * WAIT_S, 60):
        story.at(at_s, "tag", FAR_M)
    assert is_open(story) and AlertKind.TAMPERED not in {alert.kind for alert in story.alerts[before:]}
    story.says(ENDED_S + 2 * WAIT_S, "tag", "STRAP_CLOSED")
    assert ends_of(story) == [(AlertKind.TAMPERED, ENDED_S + 2 * WAIT_S, False)]


def test_a_tag_that_was_closed_while_its_record_had_ended_shows_the_wearer_when_it_is_back() -> None:
    story = tampered()
    story.case(ENDED_S, version=2, **NO_TAG)
    story.says(ENDED_S + 100, "tag", "STRAP_CLOSED")
    assert is_open(story)
    story.case(ENDED_S + 300, version=3)
    assert is_open(story)
    story.at(ENDED_S + 330, "tag", FAR_M)
    assert ends_of(story) == [(AlertKind.TAMPERED, ENDED_S + 330, False)]


def test_a_silent_tag_that_comes_back_shows_the_wearer_with_its_first_position() -> None:
    story = unseen()
    story.case(ENDED_S, version=2, **NO_TAG)
    story.case(ENDED_S + 300, version=3)
    at_home(story, ENDED_S + 300, ENDED_S + 330)
    assert is_open(story)
    story.at(ENDED_S + 330, "tag", 2500)
    assert not story.state.cases["case-1"].near and is_open(story) is False


@pytest.mark.parametrize("name", ["unseen", "tampered"])
def test_late_reports_of_the_ended_tag_change_nothing(name: str) -> None:
    story = STORIES[name][0]()
    story.case(ENDED_S, version=2, **NO_TAG)
    before = len(story.alerts)
    for at_s in range(ENDED_S + 10, ENDED_S + 600, 60):
        story.at(at_s, "tag", FAR_M, fix_s=at_s - 300)
        story.at(at_s + 1, "tag", FAR_M)
    story.says(ENDED_S + 610, "tag", "STRAP_CLOSED")
    assert len(story.alerts) == before and is_open(story)


# ── a removal, rings, two reasons ────────────────────────────────────────────────────────────────────────────────────


def removal_of(from_s: int, until_s: int) -> tag_duty_pb2.TagRemoval:
    return tag_duty_pb2.TagRemoval(
        removal_id="r", device_id="tag", from_ms=T0_MS + from_s * 1000, until_ms=T0_MS + until_s * 1000
    )


@pytest.mark.parametrize("name", ["unseen", "tampered"])
def test_a_removal_after_it_neither_shortens_nor_lengthens_the_wait(name: str) -> None:
    story = STORIES[name][0]()
    removals = [removal_of(ENDED_S - 5, 90_000)]
    story.case(ENDED_S - 5, version=2, removals=removals)
    story.case(ENDED_S, version=3, removals=removals, **NO_TAG)
    story.tick(ENDED_S + WAIT_S - 1)
    assert is_open(story)
    story.tick(ENDED_S + WAIT_S)
    assert [at_s for _, at_s, _ in ends_of(story)] == [ENDED_S + WAIT_S]


def test_a_removal_that_covers_the_open_strap_ends_the_tampering_also_with_the_record() -> None:
    story = tampered()
    story.case(ENDED_S, version=2, removals=[removal_of(30, ENDED_S + 10)], **NO_TAG)
    assert ends_of(story) == [(AlertKind.TAMPERED, ENDED_S, False)]
    story = tampered()
    story.case(ENDED_S, version=2, removals=[removal_of(30, ENDED_S - 10)], **NO_TAG)
    assert is_open(story)


def test_a_removal_explains_no_open_case() -> None:
    story = tampered(event="CASE_OPEN")
    story.case(ENDED_S, version=2, removals=[removal_of(30, ENDED_S + 10)], **NO_TAG)
    assert is_open(story)


def test_a_ring_and_an_unseen_wearer_end_together_and_the_ring_comes_last() -> None:
    story = begin(stays_m=800)
    at_home(story, 60, ENDED_S)
    assert {alert.kind for alert in story.alerts if alert.demand is Demand.RESPOND} == {AlertKind.UNKNOWN_NEAR}
    story.says(ENDED_S - 1, "tag", "STRAP_OPEN")
    before = len(story.alerts)
    story.case(ENDED_S, version=2, **NO_TAG)
    assert len(story.alerts) == before
    story.tick(ENDED_S + WAIT_S)
    ended = [alert for alert in story.alerts[before:] if alert.unconfirmed]
    assert [alert.kind for alert in ended] == [
        AlertKind.UNKNOWN_NEAR,
        AlertKind.TAMPERED,
        AlertKind.RING_CLEARED,
        AlertKind.RING_CLEARED,
    ]
    assert ends_of(story) == [(AlertKind.RING_CLEARED, ENDED_S + WAIT_S, True)]


def test_events_that_send_nobody_end_with_the_record_unconfirmed() -> None:
    story = begin()
    story.says(60, "tag", "JAMMING_SUSPECTED")
    story.case(70, version=2, **NO_TAG)
    assert (story.alerts[-1].kind, story.alerts[-1].unconfirmed) == (AlertKind.JAMMED, True)


def test_another_tag_ends_the_silence_unconfirmed_until_it_is_heard() -> None:
    for heard in (False, True):
        story = unseen()
        if heard:
            story.at(ENDED_S - 5, "tag-2", FAR_M)
        story.case(ENDED_S, version=2, **OTHER_TAG)
        [alert] = story.of(AlertKind.HEARD_AGAIN)
        assert alert.unconfirmed is not heard


def test_a_wearer_without_a_tag_counts_in_no_outage() -> None:
    story = unseen()
    assert "case-1" in story.state.watched and "case-1" in story.state.silences
    story.case(ENDED_S, version=2, **NO_TAG)
    assert not story.state.watched and not story.state.silences and story.state.cases["case-1"].silent
    restart(story)
    assert not story.state.watched
    begun = Outage(outage_id="o", incident_id="i", from_ms=T0_MS, members={}, max_silent=12)
    story.state.outage = begun  # as after a gap in the log, before the silent wearers are counted
    story.tick(ENDED_S + WAIT_S)
    assert story.state.outage is begun and not story.state.cases["case-1"].silent


def possibly_inside() -> Story:
    """A vague position allows that the wearer is within the ring that demands a response, and nothing else is open."""
    story = begin()
    story.case(60, version=2, rings=[geometry_pb2.Ring(radius_m=100, action=geometry_pb2.RESPOND)])
    story.at(70, "phone", 0)
    story.at(71, "tag", 300, accuracy_m=400)
    assert story.alerts[-1].kind is AlertKind.UNKNOWN_NEAR
    return story


def test_a_possible_presence_that_only_a_record_ends_is_unconfirmed() -> None:
    for changes in (NO_TAG, {"valid_until_ms": T0_MS + 90_000}):
        story = possibly_inside()
        story.case(80, version=3, rings=[geometry_pb2.Ring(radius_m=100, action=geometry_pb2.RESPOND)], **changes)
        story.tick(90)
        assert story.alerts[-1].kind is AlertKind.UNKNOWN_NEAR and story.alerts[-1].unconfirmed
    story = possibly_inside()
    for at_s in range(90, 400, 15):
        story.at(at_s, "phone", 0)
        story.at(at_s + 1, "tag", 3000)
    assert story.alerts[-1].kind is AlertKind.UNKNOWN_NEAR and not story.alerts[-1].unconfirmed


# ── her device ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "other", [OTHER_PHONE, {"persons": [log_pb2.ProtectedTarget(person_id="p", device_ids=["w"])]}]
)
def test_another_device_of_hers_answers_no_panic_call(other: dict[str, Any]) -> None:
    story = panicked()
    story.case(ENDED_S, version=2, **other)
    at_home(story, ENDED_S, ENDED_S + WAIT_S, phone=other["persons"][0].device_ids[0])
    assert is_open(story)
    story.tick(ENDED_S + WAIT_S)
    assert ends_of(story) == [(AlertKind.PANIC, ENDED_S + WAIT_S, True)]
    assert {alert.target_id for alert in story.of(AlertKind.PANIC)} == {"p"}


def test_a_phone_that_another_person_gets_answers_no_panic_call() -> None:
    story = panicked()
    story.case(ENDED_S, version=2, **NO_PHONE)
    other = log_pb2.ProtectedTarget(person_id="q", device_ids=["phone"])
    story.case(ENDED_S + 60, version=3, persons=[*NO_PHONE["persons"], other])
    story.tick(ENDED_S + WAIT_S - 1)
    assert is_open(story)
    story.tick(ENDED_S + WAIT_S)
    assert ends_of(story) == [(AlertKind.PANIC, ENDED_S + WAIT_S, True)]
    assert {alert.target_id for alert in story.of(AlertKind.PANIC)} == {"p"}


def test_a_phone_that_comes_back_can_take_its_panic_call_back() -> None:
    story = panicked()
    story.case(ENDED_S, version=2, **NO_PHONE)
    story.case(ENDED_S + 60, version=3)
    story.tick(ENDED_S + 2 * WAIT_S)
    assert is_open(story)
    story.says(ENDED_S + 2 * WAIT_S, "phone", "PANIC_CANCELLED")
    assert ends_of(story)[0][0] is AlertKind.PANIC and not ends_of(story)[0][2]


@pytest.mark.parametrize("other", [NO_PHONE, OTHER_PHONE])
def test_a_wearer_who_is_seen_once_more_while_nothing_measures_his_distance_is_no_all_clear(
    other: dict[str, Any],
) -> None:
    story = unseen()
    story.case(ENDED_S, version=2, **other)
    story.heard(ENDED_S + 5, "phone-2")  # which says nothing about where she is
    for at_s in range(ENDED_S + 10, ENDED_S + WAIT_S, 30):
        story.at(at_s, "tag", 40)
    assert is_open(story) and not rings_of(story)
    restart(story)
    story.tick(ENDED_S + WAIT_S)
    assert ends_of(story) == [(AlertKind.UNKNOWN_NEAR, ENDED_S + WAIT_S, True)]


def test_an_old_position_of_her_new_phone_ends_no_response() -> None:
    story = unseen()
    story.at(ENDED_S - 5, "phone-2", 0)
    story.case(ENDED_S, version=2, **OTHER_PHONE)
    story.at(ENDED_S + 10, "tag", FAR_M)
    assert is_open(story)
    story.at(ENDED_S + 20, "phone-2", 0)
    assert not is_open(story)


def test_her_new_phone_decides_about_a_wearer_who_is_seen_once_more() -> None:
    for north_m, rings in ((FAR_M, []), (40, [2000, 1000, 100])):
        story = unseen()
        story.case(ENDED_S, version=2, **NO_PHONE)
        story.at(ENDED_S + 10, "tag", north_m)
        story.case(ENDED_S + 20, version=3, **OTHER_PHONE)
        story.at(ENDED_S + 30, "tag", north_m)
        assert is_open(story)
        story.at(ENDED_S + 40, "phone-2", 0)
        assert story.entered() == rings and is_open(story) == bool(rings)
        assert not ended_records.is_any(story.state.cases["case-1"])
        assert not any(alert.unconfirmed for alert in story.of(AlertKind.UNKNOWN_NEAR))


def test_a_person_whose_lost_device_ends_is_not_said_to_be_found() -> None:
    story = begin()
    story.tick(2_000)
    [lost] = story.of(AlertKind.PROTECTED_DEVICE_LOST)
    assert lost.demand is Demand.NOTIFY
    story.case(2_000, version=2, **NO_PHONE)
    assert story.of(AlertKind.PROTECTED_DEVICE_LOST)[-1].unconfirmed
