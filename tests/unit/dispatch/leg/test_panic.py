"""A protected person's call for help: desks and units of open assignments are notified of each, also where a unit is on its way."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common import times
from services.dispatch.domain.assignment import AssignmentState
from services.dispatch.domain.enums import Demand
from services.dispatch.domain.events import Event, PanicCalled, PanicWithdrawn
from services.dispatch.domain.incident import Alert, AlertPanic, Incident, evolve
from services.dispatch.domain.leg import Leg
from services.dispatch.leg import chain, translate
from tandem.common.v1 import alert_pb2, geometry_pb2
from tandem.dispatch.v1 import dispatch_pb2
from tests.support.dispatch.incidents import Story, alert


def called(sequence: int, at_ms: int, *subjects: str, caller: str = "p1") -> Alert:
    panic = AlertPanic(caller, at_ms)
    return alert(sequence, Demand.RESPOND, *(subjects or ("p1",)), kind=alert_pb2.PANIC, threat="panic", panic=panic)


def withdrawn(sequence: int, at_ms: int, *subjects: str, caller: str = "p1") -> Alert:
    panic = AlertPanic(caller, at_ms, withdrawn=True)
    return alert(sequence, Demand.RECORD, *(subjects or ("p1",)), kind=alert_pb2.PANIC, threat="panic", panic=panic)


def message(story: Story, subject: str = "p1") -> dispatch_pb2.Assignment:
    return translate.assignment_message(story.incident, story.of(subject), None)


def shown(story: Story, subject: str = "p1") -> tuple[int | None, int | None]:
    """When the desk reads that she called, and that she took it back."""
    of = message(story, subject)
    called_ms = times.from_timestamp(of.panic_at) if of.HasField("panic_at") else None
    return called_ms, times.from_timestamp(of.panic_withdrawn_at) if of.HasField("panic_withdrawn_at") else None


@pytest.mark.parametrize("leg", ["police", "probation"])
@pytest.mark.parametrize("state", [AssignmentState.ACKNOWLEDGED, AssignmentState.ON_SCENE])
def test_a_unit_that_has_accepted_is_notified_and_its_assignment_goes_on(leg: str, state: AssignmentState) -> None:
    story = Story(leg)
    story.fold(alert(5, Demand.RESPOND, "p1"))
    story.acknowledge("p1")
    for step in (AssignmentState.DISPATCHED, AssignmentState.EN_ROUTE, AssignmentState.ON_SCENE):
        if state is AssignmentState.ON_SCENE:
            story.progress("p1", step)
    before = story.of("p1")
    events = story.fold(called(6, 900))
    assert [type(event) for event in events[1:]] == [PanicCalled]
    after = story.of("p1")
    assert (after.state, after.due_ms, after.number) == (state, before.due_ms, before.number + 1)
    assert shown(story) == (900, None)


def test_each_open_destination_of_the_incident_is_notified_and_one_that_is_over_is_not() -> None:
    story = Story()
    story.fold(alert(5, Demand.RESPOND, "p1", "o1/home", "w1"))
    for subject in ("p1", "o1/home", "w1"):
        story.acknowledge(subject)
    story.close("w1")
    events = story.fold(called(6, 900))
    ids = {event.assignment_id for event in events if isinstance(event, PanicCalled)}
    assert ids == {story.id_of("p1"), story.id_of("o1/home")}


def test_a_call_that_opens_the_incident_and_a_destination_that_comes_later_show_its_time() -> None:
    story = Story()
    story.fold(called(5, 900))
    assert story.of("p1").state is AssignmentState.OFFERED and shown(story) == (900, None)
    story.fold(alert(6, Demand.RESPOND, "o1/home"))
    assert shown(story, "o1/home") == (900, None)


def test_a_repeated_call_has_a_new_time_and_the_same_alert_changes_nothing() -> None:
    story = Story()
    story.fold(called(5, 900))
    story.acknowledge("p1")
    assert [type(event) for event in story.fold(called(7, 950))[1:]] == [PanicCalled]
    assert shown(story) == (950, None)
    assert story.fold(called(7, 950)) == () and story.of("p1").number == 4


def test_a_call_that_is_withdrawn_is_shown_as_such_until_the_next_one() -> None:
    story = Story()
    story.fold(called(5, 900))
    story.acknowledge("p1")
    assert [type(event) for event in story.fold(withdrawn(6, 950))[1:]] == [PanicWithdrawn]
    assert shown(story) == (900, 950) and story.of("p1").state is AssignmentState.ACKNOWLEDGED
    story.fold(called(7, 990))
    assert shown(story)[0] == 990 and shown(story)[1] is None


def test_of_two_persons_the_call_that_is_not_withdrawn_counts() -> None:
    story = Story()
    story.fold(called(5, 900, caller="p1"))
    story.fold(called(6, 950, "p2", caller="p2"))
    story.acknowledge("p1")
    story.fold(withdrawn(7, 990, "p2", caller="p2"))
    assert shown(story) == (900, None)
    story.fold(withdrawn(8, 995, caller="p1"))
    assert shown(story) == (950, 990)


@given(st.permutations([called(5, 900), called(7, 950), withdrawn(6, 920), withdrawn(8, 990), called(9, 995)]))
def test_the_order_of_arrival_changes_nothing(alerts: list[Alert]) -> None:
    story = Story()
    story.fold(alert(4, Demand.RESPOND, "p1"))
    story.acknowledge("p1")
    for arrived in alerts:
        story.fold(arrived)
    assert shown(story) == (995, None)


def test_the_warning_leg_makes_no_step_of_a_call() -> None:
    # Her own phone must show nothing of a silent call.
    story = Story("warning")
    story.fold(alert(5, Demand.RESPOND, "p1"))
    story.acknowledge("p1")
    assert not [event for event in story.fold(called(6, 900)) if isinstance(event, PanicCalled)]


def test_a_restart_keeps_the_call() -> None:
    story = Story()
    story.fold(called(5, 900))
    story.fold(withdrawn(6, 950))
    story.fold(called(7, 990))
    head, events = chain.ChainHead(), list[Event]()
    for event in story.events:
        link = chain.write(head, "incident-1", event)
        head = chain.ChainHead(link.id, link.hash)
        events.append(chain.read(link.kind, link.body))
    restored = Incident("incident-1", Leg.POLICE)
    for event in events:
        restored = evolve(restored, event)
    assert restored == story.incident and restored.panic


def test_other_legs_read_neither_the_step_nor_the_time() -> None:
    story = Story()
    story.fold(called(5, 900))
    step = translate.step(story.incident, story.of("p1"), story.now_ms, latency_ms=None, kept=True)
    outward = type(step).FromString(translate.outward(step)).assignment
    assert step.assignment.HasField("panic_at") and not outward.HasField("panic_at")


def panicked(**changes: Any) -> Alert | None:
    about = {
        "alert_id": "alert-5",
        "sequence": 5,
        "incident_id": "incident-1",
        "order_id": "order-1",
        "wearer_id": "w1",
        "target_id": "p1",
        "kind": alert_pb2.PANIC,
        "demand": geometry_pb2.RESPOND,
        "at": times.to_timestamp(900),
        "destinations": [alert_pb2.Destination(leg=alert_pb2.POLICE, subject_id="p1")],
    }
    message = alert_pb2.Alert(**(about | changes))  # type: ignore[arg-type]  # the values are those of the fields
    return translate.alert(message.SerializeToString(), Leg.POLICE)


def test_an_alert_says_when_she_called_and_when_she_took_it_back() -> None:
    calls = panicked()
    ends = panicked(demand=geometry_pb2.RECORD, at=times.to_timestamp(950))
    assert calls and calls.panic and ends and ends.panic
    assert (calls.panic.at_ms, calls.panic.withdrawn) == (900, False)
    assert (ends.panic.at_ms, ends.panic.withdrawn) == (950, True)
    assert calls.panic.caller == ends.panic.caller and "p1" not in calls.panic.caller
    other = panicked(target_id="p2")
    assert other and other.panic and other.panic.caller != calls.panic.caller


def test_a_device_that_is_gone_takes_no_call_back() -> None:
    gone = panicked(demand=geometry_pb2.RECORD, unconfirmed=True)
    assert gone and gone.panic is None
