"""Equipment events that an end overtakes: sent together, buffered or resent, they give the same result in any order."""

from __future__ import annotations

import itertools

import pytest

from services.geofence.domain import codec
from services.geofence.domain.alerts import Alert, DeadLetter
from services.geofence.domain.demands import AlertKind
from services.geofence.domain.entries import Demand, EquipmentKind
from services.geofence.domain.state import EventKey
from tandem.common.v1 import log_pb2
from tests.support.geofence.stories import T0_MS, Story

RECORD = Demand.RECORD
NOTIFY = Demand.NOTIFY
RESPOND = Demand.RESPOND
STRAP_OPEN = EventKey(EquipmentKind.STRAP_OPEN, "tag")
HOLDS_INCIDENT = (
    ("STRAP_OPEN", "STRAP_CLOSED", "tag"),
    ("CASE_OPEN", "CASE_CLOSED", "tag"),
    ("PANIC_BUTTON", "PANIC_CANCELLED", "phone"),
)


def story_of() -> Story:
    story = Story()
    story.case()
    story.at(0, "phone", 0)
    story.at(0, "tag", 20_000)
    return story


def emitted(alerts: list[Alert]) -> list[tuple[Demand, int]]:
    return [(alert.demand, (alert.at_ms - T0_MS) // 1000) for alert in alerts]


@pytest.mark.parametrize(("event", "end", "device"), HOLDS_INCIDENT)
def test_a_beginning_that_arrives_after_its_end_is_emitted_and_ended(event: str, end: str, device: str) -> None:
    story = story_of()
    story.says(50, device, end, event_s=48)
    story.state = codec.decode(codec.encode(story.state))
    story.says(51, device, event, event_s=40)
    assert emitted(story.alerts) == [(RECORD, 48), (RESPOND, 40), (RECORD, 48)]
    _, begun, over = story.alerts
    assert begun.incident_opens and not begun.incident_ends and begun.destinations
    assert over.incident_ends and over.incident_id == begun.incident_id
    state = story.state
    assert not state.incidents and not state.active_events[device] and not state.cases["case-1"].raised
    story.case(60, case="2")
    assert len(story.alerts) == 3  # a later order isn't notified of it


def test_a_beginning_after_an_end_is_active() -> None:
    story = story_of()
    story.says(50, "tag", "STRAP_CLOSED", event_s=48)
    story.says(52, "tag", "STRAP_OPEN", event_s=49)
    assert emitted(story.alerts) == [(RECORD, 48), (RESPOND, 49)]
    assert story.state.incidents


def test_an_overtaken_beginning_ends_no_active_event() -> None:
    story = story_of()
    story.says(50, "tag", "STRAP_CLOSED", event_s=48)
    story.says(61, "tag", "STRAP_OPEN", event_s=60)
    story.says(62, "tag", "STRAP_OPEN", event_s=40)
    assert emitted(story.alerts) == [(RECORD, 48), (RESPOND, 60), (RESPOND, 40)]
    assert story.state.incidents and story.state.cases["case-1"].raised == {STRAP_OPEN: T0_MS + 60_000}
    story.says(71, "tag", "STRAP_CLOSED", event_s=70)
    assert not story.state.incidents


def test_an_event_resent_after_hours_opens_nothing() -> None:
    story = story_of()
    story.says(50, "tag", "STRAP_OPEN", "open", event_s=50)
    story.says(60, "tag", "STRAP_CLOSED", "closed", event_s=60)
    story.says(8000, "tag", "STRAP_OPEN", "open", event_s=50)
    assert not story.state.incidents and story.of(AlertKind.TAMPERED)[-1].demand is RECORD


def test_a_jamming_that_is_over_notifies_the_desks_once() -> None:
    story = story_of()
    story.says(50, "tag", "JAMMING_OVER", event_s=48)
    for second in (40, 41, 42):
        story.says(second + 11, "tag", "JAMMING_SUSPECTED", event_s=second)
    assert emitted(story.of(AlertKind.JAMMED)) == [(RECORD, 48), (NOTIFY, 40), (RECORD, 48)]


def test_a_previous_owners_end_ends_no_event_of_the_new_owner() -> None:
    story = story_of()
    story.says(50, "tag", "STRAP_CLOSED", event_s=48)
    other = log_pb2.ProtectedTarget(person_id="q", device_ids=["phone2"])
    story.case(55, version=2, tag_device_ids=["tag9"])
    story.case(56, case="2", wearer_id="w2", persons=[other])
    assert "tag" not in story.state.ended_events


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_the_order_of_arrival_does_not_change_the_active_events(order: tuple[int, ...]) -> None:
    events = (("STRAP_OPEN", 10), ("STRAP_CLOSED", 20), ("STRAP_OPEN", 30), ("STRAP_CLOSED", 40))
    story = story_of()
    for at_s, number in enumerate(order, 50):
        event, event_s = events[number]
        story.says(at_s, "tag", event, event_s=event_s)
    assert not story.state.incidents and not story.state.active_events["tag"]


@pytest.mark.parametrize(("event", "end", "device"), HOLDS_INCIDENT)
def test_events_are_ordered_by_a_clock_that_is_ahead_too(event: str, end: str, device: str) -> None:
    story = story_of()
    story.says(50, device, end, event_s=81)
    story.says(50.01, device, event, event_s=80)
    assert not story.state.incidents and not story.state.active_events[device]
    story.says(51, device, event, "repeated", event_s=83)
    assert story.state.incidents and all(alert.at_ms <= story.state.now_ms for alert in story.alerts)


@pytest.mark.parametrize(("event", "end", "device"), HOLDS_INCIDENT)
def test_an_end_by_a_clock_that_was_ahead_ends_no_later_event(event: str, end: str, device: str) -> None:
    story = story_of()
    story.says(40, device, event, event_s=3640)
    story.says(50, device, end, event_s=3650)
    assert not story.state.incidents
    story.state = codec.decode(codec.encode(story.state))
    story.says(90, device, event, "again", event_s=90)
    assert emitted(story.alerts) == [(RESPOND, 40), (RECORD, 50), (RESPOND, 90)]
    assert story.state.incidents and story.state.active_events[device]


@pytest.mark.parametrize(("event", "end", "device"), HOLDS_INCIDENT)
def test_a_clock_that_was_set_right_ends_what_it_began_while_ahead(event: str, end: str, device: str) -> None:
    story = story_of()
    story.says(50, device, event, event_s=150)
    story.state = codec.decode(codec.encode(story.state))
    story.says(90, device, end, event_s=90)
    assert emitted(story.alerts) == [(RESPOND, 50), (RECORD, 90)]
    assert not story.state.incidents and not story.state.active_events[device]


def test_a_clock_that_stays_ahead_ends_and_begins_events_as_a_right_one() -> None:
    story = story_of()
    for at_s, event in ((50, "STRAP_OPEN"), (80, "STRAP_CLOSED"), (110, "STRAP_OPEN")):
        story.says(at_s, "tag", event, event_s=at_s + 600)
    assert emitted(story.alerts) == [(RESPOND, 50), (RECORD, 80), (RESPOND, 110)] and story.state.incidents


def test_a_repeated_end_does_not_notify_the_desks_twice() -> None:
    story = story_of()
    story.says(50, "tag", "JAMMING_SUSPECTED", event_s=50)
    story.says(60, "tag", "JAMMING_OVER", event_s=60)
    story.says(61, "tag", "JAMMING_OVER", "repeated", event_s=61)
    before = len(story.alerts)
    story.says(62, "tag", "JAMMING_SUSPECTED", "late", event_s=55)
    assert len(story.alerts) == before


def test_an_event_without_a_case_is_emitted_once_a_case_exists() -> None:
    story = Story()
    story.case(valid_from_ms=T0_MS + 100_000)
    story.says(49, "tag", "JAMMING_OVER", event_s=49)
    story.says(50, "tag", "JAMMING_SUSPECTED", event_s=40)
    story.at(100, "tag", 20_000)
    story.says(110, "tag", "JAMMING_SUSPECTED", "late", event_s=45)
    assert emitted(story.of(AlertKind.JAMMED))[-2:] == [(NOTIFY, 45), (RECORD, 49)]


def test_a_late_event_of_a_previous_owner_is_a_dead_letter() -> None:
    story = story_of()
    story.case(60, version=2, tag_device_ids=["tag9"])
    other = log_pb2.ProtectedTarget(person_id="q", device_ids=["phone2"])
    story.case(60, case="2", wearer_id="w2", persons=[other])
    before = len(story.alerts)
    story.says(70, "tag", "STRAP_OPEN", event_s=40)
    assert len(story.alerts) == before and not story.state.active_events.get("tag")
    dead_letters = [output.reason for output in story.outputs if isinstance(output, DeadLetter)]
    assert dead_letters == ["an event from before its device changed hands"]
    story.says(80, "tag", "STRAP_OPEN", "hers", event_s=75)
    assert story.alerts[-1].demand is RESPOND and story.alerts[-1].case_id == "case-2"
