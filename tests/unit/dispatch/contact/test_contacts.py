"""The assignment of a first contact: message, confirmation, call, turning back, and what it leaves alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.common.errors import FailedPrecondition, InvalidField, NotFound
from services.dispatch.domain import contact as contacts
from services.dispatch.domain.answers import Acknowledge
from services.dispatch.domain.assignment import Assignment, AssignmentState, WearerContact
from services.dispatch.domain.contact import CALL_AFTER_MS, CONFIRM_MS, Confirm, RecordCall
from services.dispatch.domain.enums import CallReason, ContactPlan, ContactState, Demand
from services.dispatch.domain.events import Event
from services.dispatch.domain.incident import Alert, AlertContact, Incident, evolve
from services.dispatch.domain.leg import Leg
from services.dispatch.leg import chain, translate
from tandem.common.v1 import alert_pb2, first_contact_pb2, notice_pb2
from tandem.dispatch.v1 import calls_pb2, contact_pb2, dispatch_pb2
from tests.support.dispatch.incidents import Story, alert

BY = "spiffe://moj/desk/a"
ID = contacts.contact_assignment_id("incident-1", Leg.PROBATION, "w")


def notify(sequence: int, plan: ContactPlan, contact_id: str = "contact-1", leg: str = "w") -> Alert:
    """The alert of the ring that demands NOTIFY, with what it says about the contact."""
    device_id = "tag" if plan is ContactPlan.TAG else ""
    contact = AlertContact(contact_id, plan, device_id)
    return replace(alert(sequence, Demand.NOTIFY, leg, threat="ring-1000"), wearer_id="w", contact=contact)


def turned_back(sequence: int, contact_id: str = "contact-1", *, ends: bool = True) -> Alert:
    left = alert(sequence, Demand.RECORD, "w", threat="ring-1000", kind=alert_pb2.RING_CLEARED, ends=ends)
    return replace(left, wearer_id="w", contact=AlertContact(contact_id, ContactPlan.TURNED_BACK, ""))


def begun(plan: ContactPlan = ContactPlan.TAG) -> Story:
    story = Story("probation")
    story.fold(notify(5, plan))
    return story


def contact_of(story: Story) -> WearerContact:
    contact = story.incident.assignments[ID].contact
    assert contact is not None
    return contact


def state_of(story: Story) -> tuple[ContactState, CallReason]:
    return contact_of(story).state, contact_of(story).call_reason


def call(story: Story, *, spoken: bool, contact_id: str = "contact-1") -> tuple[Event, ...]:
    return story.do(RecordCall(assignment_id=ID, by=BY, contact_id=contact_id, spoken=spoken))


def test_the_numbers_are_those_of_the_protos() -> None:
    states = {name.removeprefix("CONTACT_"): int(number) for name, number in contact_pb2.ContactState.items()}
    assert {state.name: int(state) for state in ContactState} | {"STATE_UNSPECIFIED": 0} == states
    plans = {name.removeprefix("CONTACT_PLAN_"): int(number) for name, number in first_contact_pb2.ContactPlan.items()}
    assert {plan.name: int(plan) for plan in ContactPlan} | {"UNSPECIFIED": 0} == plans
    reasons = {name.removeprefix("CALL_"): int(number) for name, number in contact_pb2.CallReason.items()}
    assert {reason.name: int(reason) for reason in CallReason if reason} | {"REASON_UNSPECIFIED": 0} == reasons


def test_a_contact_and_a_notice_have_an_assignment_each() -> None:
    story = begun()
    assert {a.state for a in story.incident.assignments.values()} == {AssignmentState.NOTIFIED}
    assert len(story.incident.assignments) == 2 and story.of("w").contact is None
    assert state_of(story) == (ContactState.SENT, CallReason.UNSPECIFIED)


@pytest.mark.parametrize("plan", [ContactPlan.CALL, ContactPlan.OUT_OF_BUDGET])
def test_a_contact_without_a_message_has_no_deadline_although_its_alert_names_a_device(plan: ContactPlan) -> None:
    story = Story("probation")
    story.fold(replace(notify(5, plan), contact=AlertContact("contact-1", plan, "tag")))
    assert story.incident.assignments[ID].due_ms is None


def test_a_message_without_a_device_brings_the_call_onto_the_list() -> None:
    story = Story("probation")
    story.fold(replace(notify(5, ContactPlan.TAG), contact=AlertContact("contact-1", ContactPlan.TAG, "")))
    story.pass_time(CONFIRM_MS)
    assert state_of(story) == (ContactState.CALL_DUE, CallReason.NOT_CONFIRMED)


@pytest.mark.parametrize("leg", ["police", "warning"])
def test_no_other_leg_makes_one(leg: str) -> None:
    story = Story(leg)
    story.fold(notify(5, ContactPlan.TAG))
    assert not any(assignment.contact for assignment in story.incident.assignments.values())


def test_the_tag_confirms_and_the_wearer_turns_back() -> None:
    story = begun()
    story.do(Confirm(ID, "contact-1", None))
    assert state_of(story)[0] is ContactState.CONTACTED
    story.now_ms += 60_000
    story.fold(turned_back(9))
    assert state_of(story)[0] is ContactState.TURNED_BACK
    assert story.incident.assignments[ID].state is AssignmentState.STOOD_DOWN
    assert not story.pass_time(10 * CALL_AFTER_MS), "nobody is called any more"
    assert story.incident.ended_ms is not None


def test_a_wearer_who_does_not_turn_back_is_called() -> None:
    story = begun()
    story.do(Confirm(ID, "contact-1", None))
    assert not story.pass_time(CALL_AFTER_MS - 1)
    story.pass_time(1)
    assert state_of(story) == (ContactState.CALL_DUE, CallReason.NOT_TURNED_BACK)
    call(story, spoken=True)
    assert state_of(story)[0] is ContactState.CONTACTED and contact_of(story).recorded_by == BY
    assert not call(story, spoken=True), "a repeated result changes nothing"
    assert not story.pass_time(10 * CALL_AFTER_MS)


def test_a_tag_that_can_not_be_commanded_brings_the_call_at_once() -> None:
    story = begun()
    story.do(Confirm(ID, "contact-1", CallReason.TAG_REFUSED))
    assert state_of(story) == (ContactState.CALL_DUE, CallReason.TAG_REFUSED)
    call(story, spoken=False)
    assert state_of(story)[0] is ContactState.NO_ANSWER
    call(story, spoken=True)
    assert state_of(story)[0] is ContactState.CONTACTED, "the second try reached the wearer"


def test_a_wearer_without_a_heard_tag_is_called_at_once() -> None:
    assert state_of(begun(ContactPlan.CALL)) == (ContactState.CALL_DUE, CallReason.NO_TAG)


def test_a_tag_that_does_not_confirm_brings_the_call_by_the_deadline_even_if_ingest_is_away() -> None:
    story = begun()
    assert not story.pass_time(CONFIRM_MS - 1)
    story.pass_time(1)
    assert state_of(story) == (ContactState.CALL_DUE, CallReason.NOT_CONFIRMED)
    story.do(Confirm(ID, "contact-1", None))
    assert state_of(story)[0] is ContactState.CONTACTED, "a late confirmation counts"


def test_a_budget_that_is_used_up_is_shown_and_nobody_calls() -> None:
    story = begun(ContactPlan.OUT_OF_BUDGET)
    assert state_of(story)[0] is ContactState.OUT_OF_BUDGET
    assert not story.pass_time(10 * CONFIRM_MS)
    with pytest.raises(FailedPrecondition, match="OUT_OF_BUDGET"):
        call(story, spoken=True)


def test_a_withheld_contact_makes_no_assignment() -> None:
    assert ID not in begun(ContactPlan.WITHHELD).incident.assignments


def test_a_contact_of_an_ended_order_is_refused_with_the_reason() -> None:
    story = begun(ContactPlan.CALL)
    story.fold(alert(9, Demand.RECORD, "w", threat="ring-1000", kind=alert_pb2.RING_CLEARED, ends=True))
    assert story.incident.assignments[ID].state is AssignmentState.STOOD_DOWN
    with pytest.raises(FailedPrecondition, match="has ended"):
        call(story, spoken=True)
    assert not story.do(Confirm(ID, "contact-1", None)), "a confirmation that comes too late changes nothing"
    assert not story.fold(notify(5, ContactPlan.TAG)), "nor does a repeated alert"


def test_the_result_of_an_earlier_contact_is_refused() -> None:
    story = begun(ContactPlan.CALL)
    story.fold(notify(7, ContactPlan.CALL, "contact-2"))
    with pytest.raises(FailedPrecondition, match="another contact"):
        call(story, spoken=True)
    assert call(story, spoken=True, contact_id="contact-2")
    with pytest.raises(NotFound):
        story.do(RecordCall(assignment_id=story.id_of("w"), by=BY, contact_id="contact-1", spoken=True))


def test_a_contact_changes_nothing_about_a_response() -> None:
    with_contact, without = begun(), Story("probation")
    without.fold(replace(notify(5, ContactPlan.TAG), contact=None))

    def respond(story: Story) -> tuple[Event, ...]:
        story.now_ms += 20_000
        return story.fold(replace(alert(8, Demand.RESPOND, "w"), wearer_id="w"))

    assert respond(with_contact) == respond(without)
    assert state_of(with_contact)[0] is ContactState.SENT, "once both are due they run side by side"
    assert with_contact.acknowledge("w") == without.acknowledge("w")


def test_answers_to_offers_are_refused_for_a_contact() -> None:
    with pytest.raises(FailedPrecondition, match="nothing to acknowledge"):
        begun().do(Acknowledge(ID, BY))


def test_events_of_a_contact_are_stored_and_read_back() -> None:
    story = begun()
    story.do(Confirm(ID, "contact-1", None))
    story.pass_time(CALL_AFTER_MS)
    call(story, spoken=True)
    incident, head = Incident("incident-1", Leg.PROBATION), chain.ChainHead()
    for event in story.events:
        link = chain.write(head, "incident-1", event)
        head = chain.ChainHead(link.id, link.hash)
        incident = evolve(incident, chain.read(link.kind, link.body))
    assert incident == story.incident


def message_of(story: Story) -> dispatch_pb2.Assignment:
    assignment: Assignment = story.incident.assignments[ID]
    return translate.assignment_message(story.incident, assignment, None)


def test_both_desks_see_the_contact_and_only_the_own_one_sees_who_called() -> None:
    story = begun(ContactPlan.CALL)
    call(story, spoken=True)
    own = message_of(story)
    assert own.task == notice_pb2.CONTACT and own.contact.state == contact_pb2.CONTACTED
    assert own.contact.recorded_by == BY
    step = translate.step(story.incident, story.incident.assignments[ID], story.now_ms, latency_ms=None)
    other = dispatch_pb2.Step.FromString(translate.outward(step)).assignment
    assert other.contact.state == contact_pb2.CONTACTED and not other.contact.recorded_by


def test_an_alert_of_a_newer_fold_with_an_unknown_plan_says_nothing_about_a_contact() -> None:
    contact = first_contact_pb2.FirstContact(contact_id="c", plan=99)  # type: ignore[arg-type]
    assert translate.alert_contact(alert_pb2.Alert(contact=contact)) is None
    contact = first_contact_pb2.FirstContact(plan=first_contact_pb2.CONTACT_PLAN_TAG)
    with pytest.raises(InvalidField, match="contact_id"):
        translate.alert_contact(alert_pb2.Alert(contact=contact))
    with pytest.raises(InvalidField, match="result"):
        translate.spoken(calls_pb2.CALL_RESULT_UNSPECIFIED)
