"""Escalation of an offer from level to level, and the answers to it from receipt to closing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.common.errors import FailedPrecondition, NotFound
from services.dispatch.domain.answers import Acknowledge
from services.dispatch.domain.assignment import AssignmentState
from services.dispatch.domain.enums import CloseCause, Demand, EscalationLevel, EscalationReason, UnitOfferState
from services.dispatch.domain.events import (
    AlertFolded,
    Escalated,
    Event,
    NobodyAvailable,
    Offered,
    Rejected,
    Reminded,
    Reoffered,
    StoodDown,
    UnitOfferEnded,
)
from services.dispatch.domain.incident import Incident, evolve
from services.dispatch.domain.leg import Leg
from services.dispatch.domain.roster import NO_ROSTER, Board, Status
from services.dispatch.leg import chain
from tandem.common.v1 import alert_pb2
from tests.support.dispatch.incidents import BY, DEADLINES, WITHIN_MS, Story, alert
from tests.support.dispatch.roster import AT_DAY, TWO_OFFICES, board, unit

RECORD, WARN, NOTIFY, RESPOND = Demand
WAY = (AssignmentState.DISPATCHED, AssignmentState.EN_ROUTE, AssignmentState.ON_SCENE, AssignmentState.APPREHENDED)
NOBODY = board(TWO_OFFICES, [])


def offered(where: Board = AT_DAY, leg: str = "police") -> Story:
    story = Story(leg, where)
    story.fold(alert(5, RESPOND, "p1"))
    return story


def accepted(where: Board = AT_DAY) -> Story:
    story = offered(where)
    story.receive("p1")
    story.acknowledge("p1")
    return story


def kinds(events: tuple[Event, ...]) -> list[type[Event]]:
    return [type(event) for event in events]


def asked(story: Story) -> tuple[EscalationLevel, str, EscalationReason]:
    assignment = story.of("p1")
    choice = assignment.choice
    assert choice
    return choice.level, choice.unit_id or choice.desk, assignment.escalation_reason


# ── deadlines ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_unconfirmed_offer_skips_the_office_of_the_silent_machine() -> None:
    story = offered()
    assert story.pass_time(DEADLINES.receive_ms - 1) == ()
    story.pass_time(1)
    assert asked(story) == (EscalationLevel.NEXT_OFFICE, "b1", EscalationReason.NOT_RECEIVED)


def test_the_10_s_to_answer_run_from_the_offer_not_from_the_receipt() -> None:
    story = offered()
    story.now_ms += 4_000
    story.receive("p1")
    assert story.pass_time(DEADLINES.answer_ms - 4_001) == ()
    story.pass_time(1)
    assert asked(story) == (EscalationLevel.NEXT_UNIT, "a2", EscalationReason.NOT_ACKNOWLEDGED)


def test_an_accepted_assignment_must_be_dispatched_within_a_minute() -> None:
    story = accepted()
    assert kinds(story.pass_time(DEADLINES.dispatch_ms - 1)) == [Reminded]
    story.pass_time(1)
    assert asked(story) == (EscalationLevel.NEXT_UNIT, "a2", EscalationReason.NOT_DISPATCHED)
    assert story.of("p1").acknowledged_ms is None and story.of("p1").state is AssignmentState.ESCALATED
    story.acknowledge("p1")
    story.progress("p1", AssignmentState.DISPATCHED)
    assert story.pass_time(DEADLINES.dispatch_ms) == ()


def test_each_escalation_level_is_an_event_with_a_deadline_and_the_last_is_repeated_with_backoff() -> None:
    story = offered()
    levels = []
    for _ in range(8):
        story.receive("p1")
        due_ms = story.of("p1").due_ms
        assert due_ms is not None
        *ended, event = story.pass_time(due_ms - story.now_ms)
        assert kinds(tuple(ended)) == [UnitOfferEnded] * len(ended)
        assert isinstance(event, Escalated) and event.choice and event.due_ms > story.now_ms
        levels.append((event.choice.level, event.due_ms - story.now_ms))
    receive_ms = DEADLINES.receive_ms
    assert levels == [
        (EscalationLevel.NEXT_UNIT, receive_ms),
        (EscalationLevel.NEXT_OFFICE, receive_ms),
        (EscalationLevel.SUPERVISOR, receive_ms),
        *((EscalationLevel.NATIONAL_DESK, WITHIN_MS << n) for n in (0, 0, 1, 2, 3)),
    ]
    assert {offer.state for offer in story.of("p1").unit_offers} == {UnitOfferState.MISSED}


def test_without_a_roster_only_the_acknowledgement_has_a_deadline() -> None:
    story = offered(NO_ROSTER)
    assert story.of("p1").choice is None and story.pass_time(WITHIN_MS - 1) == ()
    story.acknowledge("p1")
    assert story.pass_time(10 * DEADLINES.dispatch_ms) == () and story.of("p1").due_ms is None


def test_a_roster_that_comes_during_an_offer_is_used_from_the_next_escalation_on() -> None:
    story = offered(NO_ROSTER)
    story.board = AT_DAY
    story.pass_time(WITHIN_MS)
    assert asked(story) == (EscalationLevel.UNIT, "a1", EscalationReason.NOT_ACKNOWLEDGED)


# ── nobody, refused, gone ────────────────────────────────────────────────────────────────────────────────────────────


def test_without_an_available_unit_the_supervisor_is_asked_at_once() -> None:
    story = Story("police", NOBODY)
    events = story.fold(alert(5, RESPOND, "p1"))
    assert kinds(events) == [AlertFolded, Offered, NobodyAvailable, Escalated]
    assert asked(story) == (EscalationLevel.SUPERVISOR, "supervisor-a", EscalationReason.NOBODY)
    assert story.of("p1").nobody_available_ms == story.now_ms
    story.acknowledge("p1")
    assert story.of("p1").nobody_available_ms is None


def test_a_rejection_escalates_at_once() -> None:
    story = offered()
    rejected, escalated = story.reject("p1")
    assert isinstance(rejected, Rejected) and rejected.reason == "no car" and isinstance(escalated, Escalated)
    assert asked(story) == (EscalationLevel.NEXT_UNIT, "a2", EscalationReason.REFUSED)


def test_a_repeated_rejection_does_not_reject_the_next_offer() -> None:
    story = offered()
    number = story.of("p1").offer_number
    story.reject("p1", number)
    with pytest.raises(FailedPrecondition, match="offered on since"):
        story.reject("p1", number)
    assert asked(story)[1] == "a2"


def test_a_unit_cannot_accept_after_another_one_and_a_desk_can_take_no_offer_that_has_ended() -> None:
    story = offered()
    older = story.of("p1").offer_number
    story.pass_time(DEADLINES.receive_ms)
    story.acknowledge("p1")  # the present unit accepts
    with pytest.raises(FailedPrecondition, match="another unit has") as refused:
        story.do(Acknowledge(story.id_of("p1"), "link/a1", older, unit_id="a1"))
    assert refused.value.code == "ANOTHER_UNIT_HAS_IT"
    with pytest.raises(FailedPrecondition, match="offered on since"):
        story.do(Acknowledge(story.id_of("p1"), BY, older))
    story.do(Acknowledge(story.id_of("p1"), "link/b1", story.of("p1").offer_number))
    assert story.of("p1").acknowledged_by != "link/b1", "the offer was accepted before"


@pytest.mark.parametrize("state", [AssignmentState.ACKNOWLEDGED, *WAY])
def test_an_accepted_assignment_can_be_given_back_until_the_unit_is_on_scene(state: AssignmentState) -> None:
    story = accepted()
    for step in WAY[: WAY.index(state) + 1 if state in WAY else 0]:
        story.progress("p1", step)
    if state in (AssignmentState.ON_SCENE, AssignmentState.APPREHENDED):
        with pytest.raises(FailedPrecondition, match=state.name):
            story.reject("p1")
    else:
        story.reject("p1")
        assert story.of("p1").state is AssignmentState.ESCALATED and asked(story)[1] == "a2"


def test_a_unit_that_leaves_the_roster_is_replaced_at_once_at_the_same_level() -> None:
    story = accepted()
    without = board(TWO_OFFICES, [unit("a2", "a"), unit("b1", "b")])
    assert kinds(story.change_roster(without)) == [Escalated]
    assert asked(story) == (EscalationLevel.UNIT, "a2", EscalationReason.UNIT_GONE)
    assert story.of("p1").acknowledged_ms is None
    assert story.change_roster(without) == ()


def test_a_unit_that_goes_off_duty_is_replaced_unless_it_is_on_the_scene() -> None:
    off = board(TWO_OFFICES, [unit("a1", "a"), unit("b1", "b")], status={"a1": Status.OFF})
    story = accepted()
    story.change_roster(off)
    assert asked(story) == (EscalationLevel.NEXT_OFFICE, "b1", EscalationReason.UNIT_GONE)
    story = accepted()
    for step in WAY[:3]:
        story.progress("p1", step)
    assert story.change_roster(off) == () and story.of("p1").state is AssignmentState.ON_SCENE


def test_two_destinations_of_one_incident_go_to_two_units() -> None:
    story = Story("police", AT_DAY)
    story.fold(alert(5, RESPOND, "p1", "p2", "p3"))
    chosen = [story.of(subject).choice for subject in ("p1", "p2", "p3")]
    assert [(choice.unit_id, choice.busy_in) for choice in chosen if choice] == [("a1", ""), ("a2", ""), ("b1", "")]
    story.fold(alert(6, RESPOND, "p4"))
    fourth = story.of("p4").choice
    assert fourth and (fourth.unit_id, fourth.busy_in) == ("a1", "incident-1"), "no unit is free any more"


# ── answers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_receipt_of_an_earlier_offer_does_not_confirm_the_present_one() -> None:
    story = offered()
    earlier, due_ms = story.of("p1").offer_number, 2 * DEADLINES.receive_ms + story.now_ms
    story.pass_time(DEADLINES.receive_ms)
    assert story.receive("p1", earlier) and story.of("p1").received_ms is None, "its unit sees it, and may accept"
    assert story.of("p1").due_ms == due_ms and story.receive("p1", earlier) == ()
    assert story.receive("p1") and story.receive("p1") == ()
    with pytest.raises(FailedPrecondition, match="offer_number 99 doesn't exist"):
        story.receive("p1", 99)


def test_progress_goes_state_by_state_and_a_repeated_state_changes_nothing() -> None:
    story = accepted()
    for n, step in enumerate(WAY):
        assert story.progress("p1", step) and story.progress("p1", step) == ()
        assert story.of("p1").state is step
        for later in WAY[n + 2 :]:
            with pytest.raises(FailedPrecondition, match=f"{later.name} comes after"):
                story.progress("p1", later)
    assert story.progress("p1", AssignmentState.EN_ROUTE) == () and story.acknowledge("p1") == ()


def test_an_unanswered_offer_can_neither_progress_nor_be_closed() -> None:
    story = offered()
    with pytest.raises(FailedPrecondition, match="OFFERED"):
        story.progress("p1", AssignmentState.DISPATCHED)
    with pytest.raises(FailedPrecondition, match="OFFERED"):
        story.close("p1")
    for answer in (story.reject, story.receive):
        with pytest.raises(NotFound):
            answer("p9", 1)


@pytest.mark.parametrize("after", [0, 1, 2, 3, 4])
def test_a_closed_assignment_is_reopened_only_by_a_new_demand(after: int) -> None:
    story = accepted()
    for step in WAY[:after]:
        story.progress("p1", step)
    story.close("p1", CloseCause.FALSE_POSITION)
    assert story.close("p1", CloseCause.FALSE_POSITION) == () and story.pass_time(10**9) == ()
    with pytest.raises(FailedPrecondition, match="as FALSE_POSITION"):
        story.close("p1", CloseCause.BREACH_CONFIRMED)
    with pytest.raises(FailedPrecondition, match="CLOSED"):
        story.acknowledge("p1")
    with pytest.raises(FailedPrecondition, match="CLOSED"):
        story.progress("p1", AssignmentState.ON_SCENE)
    with pytest.raises(FailedPrecondition, match="CLOSED"):
        story.reject("p1")
    assert kinds(story.fold(alert(4, RESPOND, "p1"))) == [AlertFolded], "the desk knew of a later alert"
    assert kinds(story.fold(alert(6, RESPOND, "p1"))) == [AlertFolded, Offered]
    assert story.of("p1").state is AssignmentState.OFFERED and story.of("p1").close_cause is None


def test_an_assignment_stood_down_keeps_the_kind_of_the_end_and_may_be_closed() -> None:
    story = accepted()
    (_, over) = story.fold(alert(7, RECORD, ends=True, kind=alert_pb2.RING_CLEARED))
    assert over == StoodDown(story.now_ms, story.id_of("p1"), alert_pb2.RING_CLEARED)
    assert story.of("p1").stood_down_kind == alert_pb2.RING_CLEARED and story.of("p1").unit_id == ""
    story.close("p1", CloseCause.AUTHORISED)
    assert story.of("p1").state is AssignmentState.CLOSED and story.incident.ended_ms == story.now_ms


def test_the_end_does_not_change_a_closed_assignment() -> None:
    story = accepted()
    story.close("p1")
    assert kinds(story.fold(alert(7, RECORD, ends=True))) == [AlertFolded]
    assert story.incident.ended_ms == story.now_ms
    assert kinds(story.fold(alert(6, RESPOND, "p1"))) == [AlertFolded], "the incident ended at 7"
    assert kinds(story.fold(alert(8, RESPOND, "p1"))) == [AlertFolded, Offered]


def test_an_assignment_on_the_way_is_reoffered_when_the_threat_comes_back() -> None:
    story = accepted()
    story.progress("p1", AssignmentState.DISPATCHED)
    story.fold(alert(6, RECORD, "p1", kind=alert_pb2.RING_CLEARED))
    _, reoffered = story.fold(alert(7, RESPOND, "p1"))
    assert isinstance(reoffered, Reoffered) and reoffered.choice and reoffered.choice.unit_id == "a1"
    assert story.of("p1").tried == {"a1"}


def test_the_incident_refolded_from_the_chain_is_the_same() -> None:
    story = offered(replace(NOBODY, units={}))
    story.board = AT_DAY
    story.acknowledge("p1")
    story.reject("p1")
    story.receive("p1")
    story.send("p1", "a1")
    story.pass_time(DEADLINES.answer_ms)
    story.radio("p1", "12")
    for step in WAY[1:]:
        story.progress("p1", step)
    story.close("p1")
    head, incident = chain.ChainHead(), Incident("incident-1", Leg.POLICE)
    for event in story.events:
        link = chain.write(head, "incident-1", event)
        head = chain.ChainHead(link.id, link.hash)
        incident = evolve(incident, chain.read(link.kind, link.body))
    assert incident == story.incident and incident.assignments
