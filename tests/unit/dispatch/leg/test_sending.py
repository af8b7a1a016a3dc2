"""Units are asked by the leg and by officers: several offers are open, the first acceptance wins, and asking is no dispatch."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from services.common.errors import FailedPrecondition, NotFound
from services.dispatch.domain.assignment import ACCEPTED, OVER, UNANSWERED, AssignmentState
from services.dispatch.domain.enums import Demand, EscalationLevel, EscalationReason, Estimate, Exercise, UnitOfferState
from services.dispatch.domain.events import (
    Acknowledged,
    Escalated,
    Event,
    NoUnitLeft,
    Rejected,
    Reminded,
    SentByRadio,
    UnitAsked,
    UnitOfferEnded,
)
from services.dispatch.domain.incident import Incident, evolve
from services.dispatch.domain.leg import Leg
from services.dispatch.domain.roster import NO_ROSTER, Board, Status, Travel, UnitReport
from services.dispatch.leg import chain
from tests.support.dispatch.incidents import BY, DEADLINES, Story, alert
from tests.support.dispatch.roster import TWO_OFFICES, board, unit

ASKED, TOOK, REFUSED, MISSED, NOT_NEEDED, OFF_DUTY, REPLACED = UnitOfferState
KIM, LEE = "spiffe://npa/desk/console/kim", "spiffe://npa/desk/console/lee"
DISPATCHED, EN_ROUTE = AssignmentState.DISPATCHED, AssignmentState.EN_ROUTE
UNITS = [unit(id_, "a") for id_ in ("a1", "a2", "a3")] + [unit("b1", "b")]
FOUR = board(TWO_OFFICES, UNITS)
NOBODY_YET = replace(FOUR, units={})


def offered(where: Board = FOUR, leg: str = "police") -> Story:
    """The nearest unit is asked."""
    story = Story(leg, where)
    story.fold(alert(5, Demand.RESPOND, "p1"))
    return story


def with_desk(where: Board = FOUR) -> Story:
    """The supervisor's desk is asked, as no unit was on duty. The units of `where` came since."""
    story = offered(NOBODY_YET)
    story.board = where
    return story


def offers(story: Story) -> dict[str, UnitOfferState]:
    return {offer.unit_id: offer.state for offer in story.of("p1").unit_offers}


def kinds(events: tuple[Event, ...]) -> list[type[Event]]:
    return [type(event) for event in events]


def refused(story: Story, act: object) -> str:
    """Reason for which a command is refused. It changes nothing."""
    before = story.incident
    with pytest.raises(FailedPrecondition) as caught:
        assert callable(act)
        act()
    assert story.incident is before
    return caught.value.code


# ── several open offers ──────────────────────────────────────────────────────────────────────────────────────────────


def test_the_next_one_is_asked_after_10_s_and_an_offer_is_open_for_30_s() -> None:
    story = offered()
    story.receive("p1")
    assert story.pass_time(DEADLINES.answer_ms - 1) == ()
    assert kinds(story.pass_time(1)) == [Escalated] and offers(story) == {"a1": ASKED, "a2": ASKED}
    story.receive("p1")
    story.pass_time(DEADLINES.answer_ms)
    assert offers(story) == {"a1": ASKED, "a2": ASKED, "b1": ASKED}
    assert story.of("p1").engaged_unit_ids == {"a1", "a2", "b1"} and not story.of("p1").unit_id
    story.receive("p1")
    assert story.pass_time(DEADLINES.answer_ms - 1) == ()
    ended, escalated = story.pass_time(1)
    assert isinstance(ended, UnitOfferEnded) and (ended.offer_number, ended.state) == (1, MISSED)
    assert isinstance(escalated, Escalated) and escalated.choice and escalated.choice.desk == "supervisor-a"
    assert offers(story) == {"a1": MISSED, "a2": ASKED, "b1": ASKED}, "those who were asked later have their 30 s"


@pytest.mark.parametrize("order", list(permutations(("a1", "a2", "b1"))))
def test_the_first_acceptance_wins_in_any_order(order: tuple[str, ...]) -> None:
    story = offered()
    for _ in range(2):
        story.receive("p1")
        story.pass_time(DEADLINES.answer_ms)
    first, *others = order
    [accepted] = story.accept("p1", first)
    own = story.of("p1").offer_to(first)
    assert isinstance(accepted, Acknowledged) and own and accepted.offer_number == own.offer_number
    assert story.of("p1").unit_id == first and story.of("p1").offer_number == own.offer_number
    assert story.of("p1").sent_ms == story.now_ms and story.of("p1").choice == own.choice
    assert offers(story) == {first: TOOK} | dict.fromkeys(others, NOT_NEEDED)
    for unit_id in others:
        assert refused(story, lambda unit_id=unit_id: story.accept("p1", unit_id)) == "ANOTHER_UNIT_HAS_IT"
    assert story.accept("p1", first) == (), "a repeated answer changes nothing"
    story.progress("p1", DISPATCHED)
    assert story.of("p1").unit_id == first


def test_an_earlier_unit_may_accept_while_a_desk_is_asked() -> None:
    story = offered()
    story.pass_time(DEADLINES.receive_ms)  # its machine is silent, so another office is asked
    story.pass_time(DEADLINES.receive_ms)
    assert story.of("p1").choice and story.of("p1").choice.level is EscalationLevel.SUPERVISOR  # type: ignore[union-attr]
    story.accept("p1", "a1")
    assert story.of("p1").state is AssignmentState.ACKNOWLEDGED and story.of("p1").unit_id == "a1"
    assert story.of("p1").due_ms == story.now_ms + DEADLINES.dispatch_ms, "the unit's own limits apply"
    assert kinds(story.pass_time(DEADLINES.dispatch_ms // 2)) == [Reminded]


def test_a_unit_that_missed_its_offer_is_refused_with_the_truth() -> None:
    story = offered()
    story.pass_time(DEADLINES.offer_ms)
    assert offers(story)["a1"] is MISSED
    assert refused(story, lambda: story.accept("p1", "a1")) == "NOBODY_HAS_IT"
    story.accept_at_desk("p1")
    assert refused(story, lambda: story.accept("p1", "a1")) == "DESK_HAS_IT"
    story.radio("p1", "12")
    assert refused(story, lambda: story.accept("p1", "a1")) == "ANOTHER_UNIT_HAS_IT"
    story.fold(alert(7, Demand.RECORD, ends=True))
    assert refused(story, lambda: story.accept("p1", "a1")) == "OVER"


def test_a_refusal_or_the_end_of_a_shift_ends_a_units_own_offer_only() -> None:
    story = offered()
    story.receive("p1")
    story.pass_time(DEADLINES.answer_ms)
    present = story.of("p1")
    [rejected] = story.reject("p1", 1)
    assert (
        isinstance(rejected, Rejected) and rejected.offer_number == 1 and offers(story) == {"a1": REFUSED, "a2": ASKED}
    )
    now = story.of("p1")
    assert (now.state, now.due_ms, now.choice) == (present.state, present.due_ms, present.choice)
    assert refused(story, lambda: story.reject("p1", 1)) == "OFFERED_ON"
    off = replace(FOUR, units={**FOUR.units, "a2": (FOUR.units["a2"][0], UnitReport(Status.OFF))})
    ended, escalated = story.change_roster(off)
    assert isinstance(ended, UnitOfferEnded) and ended.state is OFF_DUTY, "the present one is replaced at once"
    assert isinstance(escalated, Escalated) and escalated.escalation_reason is EscalationReason.UNIT_GONE
    assert offers(story) == {"a1": REFUSED, "a2": OFF_DUTY, "a3": ASKED}


def test_a_unit_that_accepted_and_does_not_go_is_replaced_and_may_not_take_it_back() -> None:
    story = offered()
    story.acknowledge("p1")
    story.pass_time(DEADLINES.dispatch_ms)
    assert offers(story) == {"a1": REPLACED, "a2": ASKED} and not story.of("p1").unit_id
    assert refused(story, lambda: story.accept("p1", "a1")) == "NOBODY_HAS_IT"
    assert story.of("p1").sent_ms is not None, "it was sent, whatever became of it"
    story.acknowledge("p1")
    story.reject("p1")
    assert offers(story) == {"a1": REPLACED, "a2": REFUSED, "b1": ASKED}


def test_open_offers_end_with_the_assignment_and_a_new_threat_begins_them_afresh() -> None:
    story = offered()
    story.fold(alert(7, Demand.RECORD, ends=True))
    assert offers(story) == {"a1": NOT_NEEDED} and story.of("p1").next_check_ms is None
    assert not story.of("p1").engaged_unit_ids
    story.fold(alert(8, Demand.RESPOND, "p1"))
    assert offers(story) == {"a1": ASKED}


# ── the desk takes it ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_desk_that_takes_an_offer_to_a_unit_is_not_the_unit() -> None:
    story = offered()
    story.receive("p1")
    story.accept_at_desk("p1")
    now = story.of("p1")
    assert (now.state, now.unit_id, now.acknowledged_by) == (AssignmentState.ACKNOWLEDGED, "", BY)
    assert now.sent_ms is None and offers(story) == {"a1": ASKED} and now.offer_number == now.number
    assert refused(story, lambda: story.progress("p1", DISPATCHED)) == "NOBODY_ASKED"
    due_ms = now.due_ms
    assert due_ms == story.now_ms + DEADLINES.dispatch_ms
    [asked] = story.pass_time(DEADLINES.answer_ms)
    assert isinstance(asked, UnitAsked) and not asked.by, "the unit's 10 s go on, and the next one is asked"
    assert story.of("p1").due_ms == due_ms
    story.accept("p1", "a1")
    assert story.of("p1").unit_id == "a1" and story.of("p1").ask_next_ms is None


def test_the_answers_of_a_desk_that_took_it_are_not_those_of_the_unit() -> None:
    story = offered()
    unit_number = story.of("p1").offer_number
    story.accept_at_desk("p1")
    [rejected] = story.reject("p1", unit_number)[:1]
    assert offers(story)["a1"] is REFUSED and story.of("p1").state is AssignmentState.ACKNOWLEDGED
    story.reject("p1")
    assert story.of("p1").state is AssignmentState.ESCALATED, "the desk gives back what it took"
    assert isinstance(rejected, Rejected)


def test_a_repeated_acceptance_by_the_desk_changes_nothing() -> None:
    story = offered()
    assert story.accept_at_desk("p1") and story.accept_at_desk("p1", LEE) == () and story.of("p1").acknowledged_by == BY


# ── the desk sends a unit ────────────────────────────────────────────────────────────────────────────────────────────


def test_a_desk_that_waits_accepts_by_sending_and_asking_stops_no_deadline() -> None:
    story = with_desk()
    accepted, asked = story.send("p1", "a2", KIM)
    assert isinstance(accepted, Acknowledged) and (accepted.by, accepted.offer_number) == (KIM, 0)
    assert isinstance(asked, UnitAsked) and (asked.choice.unit_id, asked.by) == ("a2", KIM)
    due_ms = story.of("p1").due_ms
    assert due_ms == story.now_ms + DEADLINES.dispatch_ms
    [more] = story.send("p1", "a3", KIM)
    assert isinstance(more, UnitAsked) and story.of("p1").due_ms == due_ms
    assert offers(story) == {"a2": ASKED, "a3": ASKED} and story.of("p1").sent_ms is None
    assert story.send("p1", "a3", KIM) == (), "a retry asks nobody twice"


def test_after_a_send_the_leg_asks_the_next_free_unit_until_none_is_left_and_then_the_desk_escalates() -> None:
    story = with_desk()
    story.send("p1", "a2", KIM)
    due_ms, began_ms = story.of("p1").due_ms, story.now_ms
    seen: list[type[Event]] = []
    while story.now_ms < began_ms + DEADLINES.dispatch_ms - 1_000:
        seen += kinds(story.pass_time(1_000))
        assert story.of("p1").due_ms == due_ms
    assert seen.count(UnitAsked) == 3 and seen.count(NoUnitLeft) == 1 and seen.count(UnitOfferEnded) == 4
    assert list(offers(story)) == ["a2", "a1", "a3", "b1"]
    [escalated] = story.pass_time(1_000)
    assert isinstance(escalated, Escalated) and escalated.escalation_reason is EscalationReason.NOT_DISPATCHED
    assert escalated.choice and escalated.choice.desk == "national"


def test_a_unit_whose_page_shows_the_offer_has_its_10_s() -> None:
    story = with_desk()
    story.send("p1", "a2", KIM)
    number = story.of("p1").newest_offer_number
    assert story.of("p1").ask_next_ms == story.now_ms + DEADLINES.receive_ms
    assert story.receive("p1", number) and story.of("p1").offer_to("a2").received_ms == story.now_ms  # type: ignore[union-attr]
    assert story.of("p1").ask_next_ms == story.now_ms + DEADLINES.answer_ms
    assert story.pass_time(DEADLINES.answer_ms - 1) == () and kinds(story.pass_time(1)) == [UnitAsked]


def test_when_the_unit_that_was_asked_last_refuses_the_next_one_is_asked_at_once() -> None:
    story = with_desk()
    story.send("p1", "a2", KIM)
    first = story.of("p1").newest_offer_number
    story.send("p1", "a3", KIM)
    assert kinds(story.reject("p1", first)) == [Rejected], "another one was asked since"
    assert kinds(story.reject("p1", story.of("p1").newest_offer_number)) == [Rejected, UnitAsked]
    off = replace(FOUR, units={**FOUR.units, "a1": (FOUR.units["a1"][0], UnitReport(Status.OFF))})
    assert kinds(story.change_roster(off)) == [UnitOfferEnded, UnitAsked]
    assert offers(story) == {"a2": REFUSED, "a3": REFUSED, "a1": OFF_DUTY, "b1": ASKED}


def test_one_more_unit_is_asked_while_offers_are_open_and_nobody_has_accepted() -> None:
    story = offered()
    before = story.of("p1")
    [asked] = story.send("p1", "b1", KIM)
    now = story.of("p1")
    assert isinstance(asked, UnitAsked) and asked.ask_next_ms is None and offers(story) == {"a1": ASKED, "b1": ASKED}
    assert (now.state, now.due_ms, now.choice, now.offer_number) == (
        before.state,
        before.due_ms,
        before.choice,
        before.offer_number,
    )
    assert not now.acknowledged_by
    story.accept("p1", "b1")
    assert story.of("p1").unit_id == "b1" and offers(story) == {"a1": NOT_NEEDED, "b1": TOOK}


def test_the_nearest_free_unit_is_next_whatever_its_office() -> None:
    times = {("a1", "p1"): 300, ("a2", "p1"): 200, ("a3", "p1"): 50, ("b1", "p1"): 100}
    near = board(
        TWO_OFFICES,
        UNITS,
        status={"a3": Status.BUSY},
        travel={trip: Travel(s, Estimate.GREAT_CIRCLE) for trip, s in times.items()},
    )
    story = with_desk(near)
    story.send("p1", "a1", KIM)
    story.pass_time(DEADLINES.receive_ms)
    assert list(offers(story)) == ["a1", "b1"]
    assert story.of("p1").offer_to("b1").choice.level is EscalationLevel.NEXT_OFFICE  # type: ignore[union-attr]


def test_two_officers_at_once_the_second_learns_who_asked_whom() -> None:
    story = with_desk()
    seen = story.of("p1").newest_offer_number
    story.send("p1", "a1", KIM, seen)
    with pytest.raises(FailedPrecondition, match=f"{KIM} asked unit a1") as lost:
        story.send("p1", "a2", LEE, seen)
    assert lost.value.code == "OFFERED_ON"
    assert refused(story, lambda: story.send("p1", "a1", LEE, seen)) == "OFFERED_ON", "also for the same unit"
    assert refused(story, lambda: story.radio("p1", "12", LEE, seen)) == "OFFERED_ON"
    assert kinds(story.send("p1", "a2", KIM, seen)) == [UnitAsked], "one officer's own order is known to him"
    assert kinds(story.send("p1", "a3", LEE)) == [UnitAsked], "an officer who has seen it may send one more"


def test_what_the_leg_asked_by_itself_refuses_no_officer() -> None:
    story = offered()
    seen = story.of("p1").newest_offer_number
    story.pass_time(DEADLINES.receive_ms)
    assert kinds(story.send("p1", "a3", KIM, seen)) == [UnitAsked]
    assert refused(story, lambda: story.send("p1", "a2", KIM, 99)) == "NO_SUCH_OFFER"


def test_a_send_that_is_impossible_is_refused_with_its_reason() -> None:
    story = with_desk()
    with pytest.raises(NotFound, match="unit_id: the roster has no unit c9"):
        story.send("p1", "c9")
    off = {"a1": (UNITS[0], UnitReport(Status.OFF)), "a2": (replace(UNITS[1], removed=True), UnitReport())}
    late = {"a3": (replace(UNITS[2], shift_until_ms=story.now_ms), UnitReport())}
    story.board = replace(FOUR, units={**FOUR.units, **off, **late})
    for unit_id in ("a1", "a2", "a3"):
        assert refused(story, lambda unit_id=unit_id: story.send("p1", unit_id)) == "NOT_ON_DUTY"
    story.board = NO_ROSTER
    assert refused(story, lambda: story.send("p1", "a1")) == "NO_ROSTER"
    story.board = FOUR
    story.send("p1", "a1")
    story.accept("p1", "a1")
    assert refused(story, lambda: story.send("p1", "a2")) == "UNIT_HAS_IT"
    assert refused(story, lambda: story.radio("p1", "12")) == "UNIT_HAS_IT"
    story.fold(alert(7, Demand.RECORD, ends=True))
    assert (
        refused(story, lambda: story.send("p1", "a2")) == refused(story, lambda: story.radio("p1", "12")) == "CANT_SEND"
    )
    notified = Story("police", FOUR)
    notified.fold(alert(5, Demand.NOTIFY, "p1"))
    assert refused(notified, lambda: notified.radio("p1", "12")) == "CANT_SEND"


def test_an_exercise_asks_no_unit_and_is_dispatched_by_radio() -> None:
    story = Story("police", FOUR)
    story.fold(replace(alert(5, Demand.RESPOND, "p1"), exercise=Exercise.DRILL))
    assert refused(story, lambda: story.send("p1", "a1")) == "IS_EXERCISE"
    story.accept_at_desk("p1")
    assert refused(story, lambda: story.progress("p1", DISPATCHED)) == "NOBODY_ASKED"
    assert kinds(story.radio("p1", "12")) == [SentByRadio]
    assert story.progress("p1", EN_ROUTE) and story.pass_time(10**8) == ()


# ── by radio ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_order_by_radio_is_a_dispatch_by_its_officer() -> None:
    story = offered()
    accepted, sent = story.radio("p1", "순찰 12호", KIM)
    assert isinstance(accepted, Acknowledged) and accepted.by == KIM and isinstance(sent, SentByRadio)
    now = story.of("p1")
    assert (now.state, now.radio_unit, now.radio_by, now.progressed_by) == (DISPATCHED, "순찰 12호", KIM, KIM)
    assert now.sent_ms == now.radio_ms == story.now_ms and offers(story) == {"a1": NOT_NEEDED} and not now.unit_id
    assert refused(story, lambda: story.accept("p1", "a1")) == "ANOTHER_UNIT_HAS_IT"
    assert refused(story, lambda: story.send("p1", "a1")) == "UNIT_HAS_IT"
    story.progress("p1", EN_ROUTE)
    assert story.of("p1").progressed_by == BY and story.of("p1").radio_unit == "순찰 12호"


def test_a_unit_sent_by_radio_has_the_limits_of_any_other_and_the_desk_is_reminded() -> None:
    story = offered()
    story.radio("p1", "12")
    assert kinds(story.pass_time(DEADLINES.depart_ms)) == [Reminded]
    [escalated] = story.pass_time(DEADLINES.react_ms)
    assert isinstance(escalated, Escalated) and escalated.escalation_reason is EscalationReason.NOT_DEPARTED
    now = story.of("p1")
    assert (now.radio_unit, now.radio_by, now.radio_ms, now.progressed_by) == ("", "", None, "")
    assert offers(story)["a2"] is ASKED


def test_a_name_is_corrected_by_its_officer_and_the_limits_go_on() -> None:
    story = offered()
    seen = story.of("p1").newest_offer_number
    story.radio("p1", "12", KIM)
    due_ms = story.of("p1").due_ms
    story.pass_time(1_000)
    assert refused(story, lambda: story.radio("p1", "21", LEE, seen)) == "OFFERED_ON"
    assert kinds(story.radio("p1", "21", KIM, seen)) == [SentByRadio] and story.radio("p1", "21", KIM) == ()
    assert (story.of("p1").radio_unit, story.of("p1").due_ms) == ("21", due_ms)
    story.progress("p1", EN_ROUTE)
    story.radio("p1", "22", LEE)
    assert story.of("p1").state is EN_ROUTE and story.of("p1").radio_by == LEE


def test_without_a_roster_the_agencys_system_reports_and_a_name_may_be_added() -> None:
    story = offered(NO_ROSTER)
    story.accept_at_desk("p1")
    story.progress("p1", DISPATCHED)
    assert (story.of("p1").progressed_by, story.of("p1").sent_ms) == (BY, story.now_ms)
    story.radio("p1", "12", KIM)
    assert (story.of("p1").state, story.of("p1").radio_unit) == (DISPATCHED, "12")
    without = offered(NO_ROSTER)
    assert kinds(without.radio("p1", "12", KIM)) == [Acknowledged, SentByRadio] and without.pass_time(10**8) == ()


# ── any sequence ─────────────────────────────────────────────────────────────────────────────────────────────────────


class OffersMachine(RuleBasedStateMachine):
    """Units, officers, time and the roster act on one assignment in any order."""

    @initialize(nobody=st.booleans())
    def begin(self, nobody: bool) -> None:
        self.story = offered(NOBODY_YET if nobody else FOUR)
        self.story.board = FOUR

    def assignment_unit(self) -> str:
        return self.story.of("p1").unit_id

    def attempt(self, act: object) -> tuple[Event, ...] | None:
        """Events of an act; None if it was refused, with a reason."""
        assert callable(act)
        try:
            events: tuple[Event, ...] = act()
        except FailedPrecondition as refusal:
            assert refusal.code
            return None
        return events

    @rule(unit_id=st.sampled_from(sorted(FOUR.units)))
    def a_unit_accepts(self, unit_id: str) -> None:
        before = self.story.of("p1")
        offer = before.offer_to(unit_id)
        may = (offer is not None and offer.is_open) or before.unit_id == unit_id
        events = self.attempt(lambda: self.story.accept("p1", unit_id))
        assert (events is not None) == may
        if may:
            assert self.assignment_unit() == unit_id, "the first acceptance wins"

    @rule(unit_id=st.sampled_from(sorted(FOUR.units)))
    def a_unit_refuses_or_gives_back(self, unit_id: str) -> None:
        if offer := self.story.of("p1").offer_to(unit_id):
            others = self.story.of("p1").engaged_unit_ids - {unit_id}
            self.attempt(lambda: self.story.reject("p1", offer.offer_number))
            assert others <= self.story.of("p1").engaged_unit_ids, "it ends its own offer only"

    @rule(unit_id=st.sampled_from(sorted(FOUR.units)), by=st.sampled_from((KIM, LEE)), stale=st.booleans())
    def an_officer_sends_a_unit(self, unit_id: str, by: str, stale: bool) -> None:
        before = self.story.of("p1")
        events = self.attempt(lambda: self.story.send("p1", unit_id, by, 0 if stale else None))
        if events is None:
            return
        after = self.story.of("p1")
        if before.state is AssignmentState.ACKNOWLEDGED or before.responding_unit_id:
            assert after.due_ms == before.due_ms, "asking stops no deadline"
        assert after.sent_ms == before.sent_ms and after.offer_to(unit_id).is_open  # type: ignore[union-attr]

    @rule(by=st.sampled_from((KIM, LEE)), name=st.sampled_from(("12", "21")))
    def an_officer_sends_by_radio(self, by: str, name: str) -> None:
        if self.attempt(lambda: self.story.radio("p1", name, by)) is not None:
            assert self.story.of("p1").radio_unit == name and not self.story.of("p1").open_offers

    @rule(by=st.sampled_from((KIM, LEE)))
    def an_officer_takes_it(self, by: str) -> None:
        before = self.story.of("p1")
        if self.attempt(lambda: self.story.accept_at_desk("p1", by)):
            assert self.story.of("p1").is_with_desk
            assert self.story.of("p1").open_offers == before.open_offers, "the desk's acceptance ends no unit's offer"

    @rule(step=st.sampled_from((DISPATCHED, EN_ROUTE, AssignmentState.ON_SCENE)))
    def somebody_reports_progress(self, step: AssignmentState) -> None:
        if self.attempt(lambda: self.story.progress("p1", step)):
            assert self.assignment_unit() or self.story.of("p1").radio_unit, "nothing is shown while nobody was asked"

    @rule(ms=st.sampled_from((1, 1_000, 5_000, 10_000, 30_000, 60_000, 400_000)))
    def time_passes(self, ms: int) -> None:
        self.story.pass_time(ms)
        for _ in range(20):  # as the watch of deadlines does
            due_ms = self.story.of("p1").next_check_ms
            if due_ms is None or due_ms > self.story.now_ms:
                return
            self.story.pass_time(0)
        raise AssertionError("a deadline in the past stays due")

    @rule(unit_id=st.sampled_from(sorted(FOUR.units)), status=st.sampled_from(Status))
    def a_unit_reports(self, unit_id: str, status: Status) -> None:
        known = self.story.board.units
        self.story.change_roster(
            replace(self.story.board, units={**known, unit_id: (known[unit_id][0], UnitReport(status))})
        )
        on_scene = self.story.of("p1").state is AssignmentState.ON_SCENE
        if status is Status.OFF and not on_scene:
            assert unit_id not in self.story.of("p1").engaged_unit_ids

    @rule(number=st.integers(1, 40))
    def a_page_confirms_that_it_shows_an_offer(self, number: int) -> None:
        self.attempt(lambda: self.story.receive("p1", number))

    @rule()
    def it_ends_and_begins_once_more(self) -> None:
        sequence = 10 * (len(self.story.events) + 1)
        self.story.fold(alert(sequence, Demand.RECORD, ends=True))
        assert self.story.of("p1").state in OVER and not self.story.of("p1").open_offers
        self.story.fold(alert(sequence + 1, Demand.RESPOND, "p1"))

    @invariant()
    def at_most_one_unit_has_it_and_offers_are_open_only_while_none_has(self) -> None:
        now = self.story.of("p1")
        accepted = [offer for offer in now.unit_offers if offer.state is TOOK]
        assert len(accepted) <= 1 and len({offer.unit_id for offer in now.unit_offers}) == len(now.unit_offers)
        if now.unit_id:
            assert [offer.unit_id for offer in accepted] == [now.unit_id]
        if now.unit_id or now.radio_unit or now.state not in UNANSWERED | ACCEPTED:
            assert not now.open_offers
        assert now.state is not DISPATCHED or now.unit_id or now.radio_unit

    @invariant()
    def each_asked_unit_is_awaited_and_whatever_waits_has_a_deadline(self) -> None:
        now = self.story.of("p1")
        assert all(offer.open_until_ms > self.story.now_ms for offer in now.open_offers)
        if now.state in UNANSWERED or now.is_with_desk:
            assert now.due_ms is not None and now.due_ms > self.story.now_ms
        assert now.ask_next_ms is None or now.is_with_desk

    @invariant()
    def the_fold_of_the_chain_is_the_same(self) -> None:
        head, incident = chain.ChainHead(), Incident("incident-1", Leg.POLICE)
        for event in self.story.events:
            link = chain.write(head, "incident-1", event)
            head = chain.ChainHead(link.id, link.hash)
            incident = evolve(incident, chain.read(link.kind, link.body))
        assert incident == self.story.incident


TestOffers = OffersMachine.TestCase
TestOffers.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
