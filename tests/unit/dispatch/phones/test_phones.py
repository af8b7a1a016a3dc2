"""What a phone says about itself, and the summary of an incident for a protected person."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.dispatch.domain.assignment import AssignmentState
from services.dispatch.domain.enums import Demand, Exercise, WarningFlag
from services.dispatch.domain.events import PANIC, Flagged
from services.dispatch.phones import domain
from services.dispatch.phones.domain import PhoneLocation, PhoneScreen, PoliceSummary
from tandem.common.v1 import alert_pb2
from tandem.dispatch.v1 import phone_state_pb2
from tests.support.dispatch.incidents import Story, alert

PLACE = "order-1/home"


def test_each_part_of_a_phones_state_has_its_own_time() -> None:
    state = domain.first("phone-1", PhoneLocation.GOOD, PhoneScreen.OPEN, at_ms=1_000)
    state = domain.after(state, PhoneLocation.DENIED, PhoneScreen.OPEN, at_ms=2_000)
    state = domain.after(state, PhoneLocation.DENIED, PhoneScreen.HIDDEN, at_ms=3_000)
    assert (state.location, state.location_ms) == (PhoneLocation.DENIED, 2_000)
    assert (state.screen, state.screen_ms, state.at_ms) == (PhoneScreen.HIDDEN, 3_000, 3_000)
    assert domain.after(state, PhoneLocation.GOOD, PhoneScreen.OPEN, at_ms=2_999) == state


def test_numbers_are_those_of_the_protos() -> None:
    names = dict(phone_state_pb2.PhoneLocation.items())
    assert {each.value for each in PhoneLocation} == set(names.values())
    assert int(names["PHONE_LOCATION_DENIED"]) == PhoneLocation.DENIED
    assert int(phone_state_pb2.PHONE_SCREEN_HIDDEN) == PhoneScreen.HIDDEN
    assert alert_pb2.PANIC == PANIC


def at(story: Story, ms: int) -> Story:
    story.now_ms = ms
    return story


def ended(*states: AssignmentState, subject: str = "p1", accepted: bool = True) -> Story:
    """An incident of the police that begins at 1,000 ms; each state comes 1,000 ms later; it is over at 20,000 ms."""
    story = Story()
    story.fold(alert(1, Demand.RESPOND, subject))
    if accepted:
        at(story, 2_000).receive(subject)
        story.acknowledge(subject)
    for number, state in enumerate(states, 3):
        at(story, 1_000 * number).progress(subject, state)
    at(story, 20_000).fold(alert(2, Demand.RECORD, ends=True))
    return story


def summary(story: Story, person_id: str = "p1", order_id: str = "order-1") -> PoliceSummary | None:
    return domain.summary("incident-1", story.events, person_id=person_id, order_id=order_id)


DISPATCHED = AssignmentState.DISPATCHED
EN_ROUTE = AssignmentState.EN_ROUTE
ON_SCENE = AssignmentState.ON_SCENE


@pytest.mark.parametrize("subject", ["p1", PLACE])
def test_a_summary_has_the_polices_times_for_her_and_her_places(subject: str) -> None:
    assert summary(ended(DISPATCHED, EN_ROUTE, ON_SCENE, subject=subject)) == PoliceSummary(
        began_ms=1_000, ended_ms=20_000, sent_ms=3_000, arrived_ms=5_000
    )
    assert summary(ended(DISPATCHED, subject=subject)) == PoliceSummary(
        began_ms=1_000, ended_ms=20_000, sent_ms=3_000, arrived_ms=None
    )
    assert summary(ended(subject=subject, accepted=False)) == PoliceSummary(
        began_ms=1_000, ended_ms=20_000, sent_ms=None, arrived_ms=None
    )


def test_the_end_is_when_the_police_are_done_and_until_then_there_is_no_summary() -> None:
    story = ended(DISPATCHED, EN_ROUTE, ON_SCENE)
    if story.of("p1").state is not AssignmentState.CLOSED:
        at(story, 30_000).close("p1")
    found = summary(story)
    assert found and found.ended_ms == 30_000
    running = Story()
    running.fold(alert(1, Demand.RESPOND, "p1"))
    assert summary(running) is None and summary(Story()) is None


def test_nobody_else_gets_a_summary() -> None:
    assert summary(ended(DISPATCHED), person_id="p2", order_id="order-2") is None
    assert summary(ended(DISPATCHED, subject=PLACE), person_id="p2", order_id="order-1-other") is None


def test_after_a_call_for_help_nobody_reads_of_it_on_her_phone() -> None:
    story = Story()
    story.fold(alert(1, Demand.RESPOND, "p1", kind=alert_pb2.PANIC))
    at(story, 20_000).fold(alert(2, Demand.RECORD, ends=True))
    assert summary(story) is None
    under_duress = ended(DISPATCHED)
    id_ = under_duress.id_of("p1")
    under_duress.events.append(
        Flagged(5_000, id_, WarningFlag.DURESS, flagged_ms=4_000, alert_id="alert-1", place=(1, 0))
    )
    assert summary(under_duress) is None


def test_an_exercise_has_no_summary() -> None:
    story = Story()
    story.fold(replace(alert(1, Demand.RESPOND, "p1"), exercise=Exercise.DRILL))
    at(story, 20_000).fold(replace(alert(2, Demand.RECORD, ends=True), exercise=Exercise.DRILL))
    assert summary(story) is None


def test_the_summary_does_not_wait_for_the_duty_to_look_into_the_wearers_act() -> None:
    story = Story()
    story.fold(replace(alert(1, Demand.RESPOND, "p1"), check_subject_ids=("wearer-1",)))
    at(story, 20_000).fold(alert(2, Demand.RECORD, ends=True))
    assert story.incident.ended_ms is None
    found = summary(story)
    assert found and found.ended_ms == 20_000
