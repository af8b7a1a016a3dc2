"""Checks: assignments that a notice demands (Tag Act Decree 13-2(2), Tag Act 31-6(5)), beside the response until a desk ends them."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import pytest

from services.common.messaging import stored
from services.dispatch.domain.answers import Acknowledge, Close
from services.dispatch.domain.assignment import Assignment, AssignmentState, assignment_id
from services.dispatch.domain.decisions import concerns
from services.dispatch.domain.enums import CloseCause, Demand, EscalationReason, Task
from services.dispatch.domain.events import Escalated, Offered, StoodDown
from services.dispatch.domain.incident import Alert
from services.dispatch.domain.leg import Leg
from services.dispatch.leg import chain, translate
from tandem.common.v1 import alert_pb2, geometry_pb2, notice_pb2
from tests.support.dispatch.incidents import BY, WITHIN_MS, Story, alert

RECORD, WARN, NOTIFY, RESPOND = Demand
State = AssignmentState


def with_check(sequence: int, demand: Demand = NOTIFY, *subjects: str, ends: bool = False) -> Alert:
    return replace(alert(sequence, demand, *(subjects or ("w",)), ends=ends), check_subject_ids=("w",))


def over(sequence: int) -> Alert:
    return alert(sequence, RECORD, ends=True, kind=alert_pb2.RING_CLEARED)


def check_id(story: Story) -> str:
    return assignment_id("incident-1", story.incident.leg, "w", task=Task.CHECK)


def check_of(story: Story) -> Assignment:
    return story.incident.assignments[check_id(story)]


@pytest.mark.parametrize("leg", ["probation", "police"])
def test_a_mere_notice_offers_the_check_at_once_with_a_deadline(leg: str) -> None:
    story = Story(leg)
    story.fold(with_check(5))
    check, notice = check_of(story), story.of("w")
    assert (check.state, check.task, check.due_ms) == (State.OFFERED, Task.CHECK, story.now_ms + WITHIN_MS)
    assert (notice.state, notice.task) == (State.NOTIFIED, Task.RESPOND)
    assert check.assignment_id != notice.assignment_id


def test_an_unanswered_check_escalates_like_any_offer() -> None:
    story = Story("probation")
    story.fold(with_check(5))
    (escalated,) = story.pass_time(WITHIN_MS)
    assert isinstance(escalated, Escalated) and escalated.escalation_reason is EscalationReason.NOT_ACKNOWLEDGED
    assert check_of(story).state is State.ESCALATED


@pytest.mark.parametrize("is_accepted", [False, True])
def test_the_end_of_the_incident_ends_the_response_and_not_the_check(is_accepted: bool) -> None:
    story = Story("probation")
    story.fold(with_check(5, RESPOND))
    if is_accepted:
        story.do(Acknowledge(check_id(story), BY))
    events = story.fold(over(9))
    assert [event.assignment_id for event in events if isinstance(event, StoodDown)] == [story.id_of("w")]
    assert check_of(story).state is (State.ACKNOWLEDGED if is_accepted else State.OFFERED)
    assert story.incident.ended_ms is None
    story.do(Acknowledge(check_id(story), BY))
    story.do(Close(check_id(story), BY, CloseCause.BREACH_CONFIRMED, ""))
    assert check_of(story).state is State.CLOSED and story.incident.ended_ms is not None


def test_a_second_notice_adds_nothing_to_a_check_in_progress_and_reopens_a_closed_one() -> None:
    story = Story("police")
    story.fold(with_check(5))
    story.do(Acknowledge(check_id(story), BY))
    assert not [event for event in story.fold(with_check(6)) if isinstance(event, Offered)]
    story.do(Close(check_id(story), BY, CloseCause.NOBODY_FOUND, ""))
    assert not [event for event in story.fold(replace(with_check(4), alert_id="late")) if isinstance(event, Offered)]
    (offered,) = [event for event in story.fold(with_check(8)) if isinstance(event, Offered)]
    assert (offered.task, check_of(story).state) == (Task.CHECK, State.OFFERED)


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_in_whatever_order_alerts_arrive_the_check_is_offered_once(order: tuple[int, ...]) -> None:
    alerts = [with_check(5), with_check(6, RESPOND), over(9)]
    story = Story("probation")
    events = [event for n in order for event in story.fold(alerts[n])]
    offers = [event for event in events if isinstance(event, Offered) and event.task is Task.CHECK]
    assert len(offers) == 1 and check_of(story).state is State.OFFERED


def test_a_leg_without_the_check_has_none() -> None:
    story = Story("police")
    story.fold(alert(5, NOTIFY, "p1"))
    assert {assignment.task for assignment in story.incident.assignments.values()} == {Task.RESPOND}
    bare = replace(alert(5, WARN), subject_ids=(), check_subject_ids=("w",))
    assert concerns(Leg.POLICE, bare) and not concerns(Leg.POLICE, replace(bare, check_subject_ids=()))


def test_the_record_keeps_the_task_and_the_messages_name_it() -> None:
    story = Story("probation")
    story.fold(with_check(5))
    head = chain.ChainHead()
    for event in story.events:
        link = chain.write(head, "incident-1", event)
        assert chain.read(link.kind, link.body) == event
        head = chain.ChainHead(link.id, link.hash)
    message = translate.assignment_message(story.incident, check_of(story), None)
    assert (message.task, message.subject_id) == (notice_pb2.CHECK, "w")
    step = translate.step(story.incident, check_of(story), 1, latency_ms=None)
    stored_step = stored.step(translate.outward(step), "incident.probation.incident-1")
    assert translate.peer(stored_step, Leg.POLICE).payload


def test_each_leg_reads_its_own_checks_from_the_alert() -> None:
    message = alert_pb2.Alert(
        alert_id="a", incident_id="i", sequence=1, demand=geometry_pb2.NOTIFY, order_id="o", wearer_id="w"
    )
    message.checks.add(leg=alert_pb2.POLICE, subject_id="w")
    for leg, expected in ((Leg.POLICE, ("w",)), (Leg.PROBATION, ()), (Leg.WARNING, ())):
        parsed = translate.alert(message.SerializeToString(), leg)
        assert parsed is not None and parsed.check_subject_ids == expected
