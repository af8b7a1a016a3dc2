"""Limits of the unit that has an assignment: it is reminded of its next step, and without it the assignment escalates."""

from __future__ import annotations

import pytest

from services.common.errors import FailedPrecondition
from services.dispatch.domain.answers import Assure, EndDistress, RaiseDistress
from services.dispatch.domain.assignment import AssignmentState
from services.dispatch.domain.enums import Demand, EscalationLevel, EscalationReason
from services.dispatch.domain.escalation import LATE_SHARE
from services.dispatch.domain.events import Assured, DistressEnded, DistressRaised, Escalated, Reminded
from services.dispatch.domain.roster import NO_ROSTER
from services.dispatch.leg import translate
from tandem.dispatch.v1 import dispatch_pb2
from tests.support.dispatch.incidents import BY, DEADLINES, Story, alert
from tests.support.dispatch.races import set_travel, with_travel

DISPATCHED = AssignmentState.DISPATCHED
EN_ROUTE = AssignmentState.EN_ROUTE
ON_SCENE = AssignmentState.ON_SCENE
REACT_MS = DEADLINES.react_ms
UNIT = "spiffe://tandem/unit/police/a1"


def accepted(*states: AssignmentState, travel_s: int | None = 400) -> Story:
    story = with_travel(a1=travel_s, a2=900, b1=1_200) if travel_s is not None else with_travel()
    story.fold(alert(5, Demand.RESPOND, "p1"))
    story.receive("p1")
    story.acknowledge("p1")
    for state in states:
        story.progress("p1", state)
    return story


def reminded_then_escalated(story: Story, within_ms: int, reason: EscalationReason) -> None:
    """Checks that the unit is reminded after a time, once, and that the assignment escalates when the time to react is over."""
    assert story.pass_time(within_ms - 1) == ()
    [reminder] = story.pass_time(1)
    assert isinstance(reminder, Reminded) and story.of("p1").reminded_ms == story.now_ms
    assert story.pass_time(story.of("p1").due_ms - story.now_ms - 1) == ()  # type: ignore[operator]
    [escalated] = story.pass_time(1)
    assert isinstance(escalated, Escalated) and escalated.escalation_reason is reason
    assert story.of("p1").reminded_ms is None and story.of("p1").remind_ms is None


def test_who_accepts_and_does_not_go_is_reminded_and_escalates_a_minute_after_accepting() -> None:
    story = accepted()
    due_ms = story.of("p1").due_ms
    assert due_ms == story.now_ms + DEADLINES.dispatch_ms
    reminded_then_escalated(story, DEADLINES.dispatch_ms // 2, EscalationReason.NOT_DISPATCHED)
    assert story.now_ms == due_ms


def test_who_is_ordered_to_go_and_does_not_leave_is_reminded() -> None:
    reminded_then_escalated(accepted(DISPATCHED), DEADLINES.depart_ms, EscalationReason.NOT_DEPARTED)


@pytest.mark.parametrize(("travel_s", "within_ms"), [(400, 600_000), (10, 60_000)])
def test_the_arrival_is_awaited_by_the_travel_time_from_the_present_position(travel_s: int, within_ms: int) -> None:
    story = accepted(DISPATCHED, travel_s=800)
    set_travel(story, {"a1": travel_s})
    story.progress("p1", EN_ROUTE)
    reminded_then_escalated(story, within_ms, EscalationReason.NOT_ARRIVED)


def test_without_a_position_now_the_estimate_of_the_offer_counts_and_without_one_the_default() -> None:
    story = accepted(DISPATCHED, travel_s=400)
    set_travel(story, {})
    story.progress("p1", EN_ROUTE)
    assert story.of("p1").remind_ms == story.now_ms + 600_000
    unknown = accepted(DISPATCHED, EN_ROUTE, travel_s=None)
    assert unknown.of("p1").remind_ms == unknown.now_ms + round(DEADLINES.arrive_ms * LATE_SHARE)


def test_a_unit_on_the_scene_that_says_nothing_escalates_to_the_supervisor() -> None:
    story = accepted(DISPATCHED, EN_ROUTE, ON_SCENE)
    reminded_then_escalated(story, DEADLINES.word_ms, EscalationReason.NO_WORD)
    choice = story.of("p1").choice
    assert choice and choice.level is EscalationLevel.SUPERVISOR and not choice.unit_id


@pytest.mark.parametrize("state", [EN_ROUTE, ON_SCENE])
def test_a_word_of_the_unit_begins_the_time_once_more(state: AssignmentState) -> None:
    story = accepted(DISPATCHED, EN_ROUTE, *([ON_SCENE] if state is ON_SCENE else []))
    first_ms = story.of("p1").remind_ms
    assert first_ms is not None
    story.pass_time(first_ms - story.now_ms)
    [assured] = story.do(Assure(story.id_of("p1"), UNIT, story.of("p1").offer_number))
    assert isinstance(assured, Assured) and assured.by == UNIT
    assert story.of("p1").state is state and story.of("p1").reminded_ms is None
    assert story.pass_time(REACT_MS) == ()
    assert story.of("p1").remind_ms == assured.at_ms + (first_ms - 1_000)  # the story began at 1 s


def test_a_unit_that_has_not_left_cannot_put_its_deadline_off() -> None:
    for story in (accepted(), accepted(DISPATCHED)):
        with pytest.raises(FailedPrecondition, match="goes on"):
            story.do(Assure(story.id_of("p1"), UNIT))


def test_a_deadline_that_passed_while_nobody_looked_escalates_without_a_reminder() -> None:
    story = accepted(DISPATCHED, EN_ROUTE)
    [escalated] = story.pass_time(86_400_000)
    assert isinstance(escalated, Escalated)


def test_after_the_arrest_and_without_a_roster_nothing_is_awaited() -> None:
    story = accepted(DISPATCHED, EN_ROUTE, ON_SCENE, AssignmentState.APPREHENDED)
    assert story.of("p1").next_check_ms is None and story.pass_time(86_400_000) == ()
    without = Story("police", NO_ROSTER)
    without.fold(alert(5, Demand.RESPOND, "p1"))
    without.acknowledge("p1")
    for state in (DISPATCHED, EN_ROUTE, ON_SCENE):
        without.progress("p1", state)
    assert without.pass_time(86_400_000) == ()


def test_the_other_leg_learns_neither_the_arrival_deadline_nor_that_it_passed() -> None:
    story = accepted(DISPATCHED, EN_ROUTE)

    def outward() -> dispatch_pb2.Assignment:
        step = translate.step(story.incident, story.of("p1"), story.now_ms, latency_ms=None)
        return dispatch_pb2.Step.FromString(translate.outward(step)).assignment

    assert not outward().HasField("due_at") and not outward().HasField("reminded_at")
    story.pass_time(86_400_000)
    assert outward().state == dispatch_pb2.ESCALATED and not outward().escalation_reason


def test_distress_is_of_the_unit_that_has_the_assignment_and_both_desks_see_it() -> None:
    story = accepted(DISPATCHED)
    id_ = story.id_of("p1")
    with pytest.raises(FailedPrecondition, match="isn't unit a2's"):
        story.do(RaiseDistress(id_, UNIT, "a2"))
    [raised] = story.do(RaiseDistress(id_, UNIT, "a1"))
    assert isinstance(raised, DistressRaised) and story.do(RaiseDistress(id_, UNIT, "a1")) == ()
    step = translate.step(story.incident, story.of("p1"), story.now_ms, latency_ms=None)
    assert dispatch_pb2.Step.FromString(translate.outward(step)).assignment.HasField("distress_at")
    assert story.do(EndDistress(id_, BY, "a2")) == ()
    [ended] = story.do(EndDistress(id_, BY, "a1"))
    assert isinstance(ended, DistressEnded) and story.of("p1").distress_ms is None
    assert story.do(EndDistress(id_, BY, "a1")) == ()


def test_a_call_for_help_ends_although_the_officer_in_distress_answers_no_reminder() -> None:
    story = accepted(DISPATCHED, EN_ROUTE, ON_SCENE)
    id_ = story.id_of("p1")
    story.do(RaiseDistress(id_, UNIT, "a1"))
    reminded_then_escalated(story, DEADLINES.word_ms, EscalationReason.NO_WORD)
    assert story.of("p1").distress_ms is not None and story.of("p1").unit_id == ""
    [ended] = story.do(EndDistress(id_, BY, "a1"))
    assert isinstance(ended, DistressEnded) and story.of("p1").distress_ms is None
