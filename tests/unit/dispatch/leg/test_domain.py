"""Decisions on one leg's share of an incident: single rules, then properties for any order of alerts."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import FailedPrecondition, NotFound
from services.common.messaging import flow
from services.dispatch.domain.assignment import AssignmentState
from services.dispatch.domain.enums import Demand
from services.dispatch.domain.events import Acknowledged, AlertFolded, Escalated, Offered, StoodDown
from services.dispatch.domain.incident import Alert, Incident, evolve
from services.dispatch.domain.leg import Leg
from services.dispatch.leg import chain
from tests.support.dispatch.incidents import WITHIN_MS, Story, alert


@pytest.mark.parametrize(
    ("leg", "demand", "state"),
    [
        (leg, demand, state)
        for leg, states in {
            "probation": (None, None, AssignmentState.NOTIFIED, AssignmentState.OFFERED),
            "police": (None, None, AssignmentState.NOTIFIED, AssignmentState.OFFERED),
            "warning": (None, AssignmentState.OFFERED, AssignmentState.OFFERED, AssignmentState.OFFERED),
        }.items()
        for demand, state in zip(Demand, states, strict=True)
    ],
)
def test_the_first_state_of_each_demand_and_leg(leg: str, demand: Demand, state: AssignmentState | None) -> None:
    story = Story(leg)
    story.fold(alert(5, demand, "p1"))
    assert [assignment.state for assignment in story.incident.assignments.values()] == ([state] if state else [])
    assert all(isinstance(event, AlertFolded) for event in story.events) == (state is None)


def test_the_legs_are_those_of_the_flow_table_and_each_has_a_policy() -> None:
    assert tuple(Leg) == flow.LEGS
    assert all(leg.policy.offers and not leg.policy.offers & leg.policy.notifies for leg in Leg)


def test_a_graver_demand_offers_the_same_assignment() -> None:
    story = Story()
    story.fold(alert(5, Demand.NOTIFY, "p1"))
    assert story.of("p1").offered_ms is None and story.of("p1").due_ms is None
    story.now_ms += 500
    story.fold(alert(6, Demand.RESPOND, "p1"))
    assert story.of("p1") == replace(
        story.of("p1"), state=AssignmentState.OFFERED, demand=Demand.RESPOND, offered_ms=1_500, due_ms=31_500, number=2
    )
    assert story.incident.opened_ms == 1_000


def test_a_lesser_demand_does_not_withdraw_an_offer() -> None:
    story = Story()
    story.fold(alert(5, Demand.RESPOND, "p1"))
    (folded,) = story.fold(alert(6, Demand.NOTIFY, "p1"))
    assert isinstance(folded, AlertFolded)
    assert story.of("p1").state is AssignmentState.OFFERED and story.of("p1").demand is Demand.RESPOND


def test_each_destination_has_a_separate_assignment() -> None:
    story = Story()
    story.fold(alert(5, Demand.RESPOND, "p1", "p2"))
    story.acknowledge("p1")
    assert story.of("p1").state is AssignmentState.ACKNOWLEDGED and story.of("p2").state is AssignmentState.OFFERED


def test_a_second_order_joins_the_incident() -> None:
    story = Story()
    story.fold(alert(6, Demand.RESPOND, "p1", order="order-2"))
    story.fold(alert(5, Demand.RESPOND, "p1", order="order-1"))
    assert story.incident.order_ids == ("order-1", "order-2")


def test_an_acknowledged_assignment_is_not_reoffered_but_the_alert_is_recorded() -> None:
    story = Story()
    story.fold(alert(5, Demand.RESPOND, "p1"))
    story.acknowledge("p1")
    (folded,) = story.fold(alert(6, Demand.RESPOND, "p1"))
    assert isinstance(folded, AlertFolded)
    assert story.of("p1").state is AssignmentState.ACKNOWLEDGED


def test_a_second_acknowledgement_changes_nothing() -> None:
    story = Story()
    story.fold(alert(5, Demand.RESPOND, "p1"))
    (acknowledged,) = story.acknowledge("p1", "spiffe://npa/desk/a")
    assert isinstance(acknowledged, Acknowledged)
    assert story.acknowledge("p1", "spiffe://npa/desk/b") == ()
    assert story.of("p1").acknowledged_by == "spiffe://npa/desk/a"


def test_only_an_offered_assignment_can_be_acknowledged() -> None:
    story = Story()
    with pytest.raises(NotFound):
        story.acknowledge("p1")
    story.fold(alert(5, Demand.NOTIFY, "p1"))
    with pytest.raises(FailedPrecondition, match="NOTIFIED"):
        story.acknowledge("p1")
    story.fold(alert(6, Demand.RECORD, ends=True))
    with pytest.raises(FailedPrecondition, match="STOOD_DOWN"):
        story.acknowledge("p1")


def test_a_deadline_fires_once_after_each_period_until_somebody_answers() -> None:
    story = Story()
    story.fold(alert(5, Demand.RESPOND, "p1"))
    assert story.pass_time(WITHIN_MS - 1) == ()
    (escalated,) = story.pass_time(1)
    assert isinstance(escalated, Escalated) and story.pass_time(0) == ()
    assert len(story.pass_time(WITHIN_MS)) == 1
    story.acknowledge("p1")
    assert story.pass_time(10 * WITHIN_MS) == ()
    assert story.of("p1").acknowledged_ms == 1_000 + 2 * WITHIN_MS


def test_the_end_stands_down_all_assignments_and_keeps_the_acknowledgement() -> None:
    story = Story()
    story.fold(alert(5, Demand.RESPOND, "p1", "p2"))
    story.fold(alert(6, Demand.NOTIFY, "p3"))
    story.acknowledge("p1")
    story.now_ms += 1
    story.fold(alert(7, Demand.RECORD, ends=True))
    assert {assignment.state for assignment in story.incident.assignments.values()} == {AssignmentState.STOOD_DOWN}
    assert story.of("p1").acknowledged_ms == 1_000 and story.of("p1").acknowledged_by
    assert story.incident.ended_ms == 1_001


def test_an_offer_whose_end_arrived_first_is_recorded_and_stood_down() -> None:
    story = Story()
    story.fold(alert(9, Demand.RECORD, ends=True))
    folded, offered, stood_down = story.fold(alert(5, Demand.RESPOND, "p1"))
    assert isinstance(folded, AlertFolded) and isinstance(offered, Offered) and isinstance(stood_down, StoodDown)
    assert story.incident.ended_ms is not None


def test_an_offer_after_a_notice_whose_end_arrived_first_is_recorded_too() -> None:
    story = Story()
    story.fold(alert(5, Demand.NOTIFY, "p1"))
    story.fold(alert(9, Demand.RECORD, ends=True))
    kinds = [type(event) for event in story.fold(alert(7, Demand.RESPOND, "p1"))]
    assert kinds == [AlertFolded, Offered, StoodDown]


def test_an_end_does_not_stand_down_a_later_demand() -> None:
    story = Story()
    story.fold(alert(9, Demand.RESPOND, "p1"))
    story.fold(alert(5, Demand.RECORD, ends=True))
    assert story.of("p1").state is AssignmentState.OFFERED and story.incident.ended_ms is None


def test_a_demand_after_the_end_is_not_lost() -> None:
    story = Story()
    story.fold(alert(5, Demand.RESPOND, "p1"))
    story.acknowledge("p1")
    story.fold(alert(6, Demand.RECORD, ends=True))
    story.fold(alert(7, Demand.RESPOND, "p1"))
    assert story.of("p1").state is AssignmentState.OFFERED and story.of("p1").acknowledged_ms is None


# ── any order ────────────────────────────────────────────────────────────────────────────────────────────────────────

SUBJECTS = ("p1", "p2", "p3")
demands = st.sampled_from(list(Demand))
alerts_of_an_incident = st.lists(
    st.tuples(demands, st.lists(st.sampled_from(SUBJECTS), unique=True)), min_size=1, max_size=6
).map(lambda drawn: [alert(n, demand, *subjects) for n, (demand, subjects) in enumerate(drawn, 1)])


@st.composite
def histories(draw: st.DrawFn) -> tuple[str, list[Alert], bool, list[tuple[str, object]]]:
    """A leg, an incident's alerts in the log's order, whether it ended, and actions that deliver each alert at least once."""
    alerts = draw(alerts_of_an_incident)
    ended = draw(st.booleans())
    if ended:
        alerts.append(alert(len(alerts) + 1, draw(demands), *draw(st.sets(st.sampled_from(SUBJECTS))), ends=True))
    deliveries = draw(st.permutations(alerts + draw(st.lists(st.sampled_from(alerts), max_size=4))))
    actions: list[tuple[str, object]] = [("alert", delivery) for delivery in deliveries]
    others = st.one_of(
        st.tuples(st.just("time"), st.integers(1, 2 * WITHIN_MS)),
        st.tuples(st.just("desk"), st.sampled_from(SUBJECTS)),
    )
    for action in draw(st.lists(others, max_size=6)):
        actions.insert(draw(st.integers(0, len(actions))), action)
    return draw(st.sampled_from(flow.LEGS)), alerts, ended, actions


def play(leg: str, actions: list[tuple[str, object]]) -> Story:
    story = Story(leg)
    for kind, argument in actions:
        if kind == "alert":
            assert isinstance(argument, Alert)
            story.fold(argument)
        elif kind == "time":
            assert isinstance(argument, int)
            story.pass_time(argument)
        else:
            with contextlib.suppress(NotFound, FailedPrecondition):
                story.acknowledge(str(argument))
    return story


@given(histories())
def test_each_destination_has_one_assignment_and_no_demand_is_lost_in_any_order(
    history: tuple[str, list[Alert], bool, list[tuple[str, object]]],
) -> None:
    leg, alerts, ended, actions = history
    story = play(leg, actions)
    policy = Leg(leg).policy
    involving = policy.offers | policy.notifies
    involved = {subject for drawn in alerts if drawn.demand in involving for subject in drawn.subject_ids}
    asked = {subject for drawn in alerts if drawn.demand in policy.offers for subject in drawn.subject_ids}
    # I4: one record for each destination, and each of its steps has a different number.
    assert {assignment.subject_id for assignment in story.incident.assignments.values()} == involved
    for subject in involved:
        steps = [event for event in story.events if getattr(event, "assignment_id", None) == story.id_of(subject)]
        assert story.of(subject).number == len(steps)
        offers = sum(isinstance(step, Offered) for step in steps)
        assert offers == (subject in asked)
    # An end leaves nothing open; without one nothing is stood down.
    stood_down = [assignment.state is AssignmentState.STOOD_DOWN for assignment in story.incident.assignments.values()]
    assert all(stood_down) if ended else not any(stood_down)
    # I3: each offer is answered, or escalated at its deadline.
    story.pass_time(WITHIN_MS)
    for subject in asked:
        answered = AssignmentState.STOOD_DOWN if ended else AssignmentState.ACKNOWLEDGED
        assert story.of(subject).state in (answered, AssignmentState.ESCALATED)
        assert not (ended and story.of(subject).state is AssignmentState.ESCALATED)


@given(histories(), st.randoms(use_true_random=False))
def test_a_redelivered_alert_changes_nothing(
    history: tuple[str, list[Alert], bool, list[tuple[str, object]]], shuffle: object
) -> None:
    leg, alerts, _, actions = history
    story = play(leg, actions)
    shuffle.shuffle(alerts)  # type: ignore[attr-defined]  # random.Random
    assert [event for repeated in alerts for event in story.fold(repeated)] == []


@given(histories())
def test_the_state_is_the_fold_of_the_stored_events(
    history: tuple[str, list[Alert], bool, list[tuple[str, object]]],
) -> None:
    leg, _, _, actions = history
    story = play(leg, actions)
    head, incident = chain.ChainHead(), Incident("incident-1", Leg(leg))
    for event in story.events:
        link = chain.write(head, "incident-1", event)
        head = chain.ChainHead(link.id, link.hash)
        incident = evolve(incident, chain.read(link.kind, link.body))
    assert incident == story.incident


@given(
    st.lists(st.tuples(demands, st.booleans(), st.integers(1, 12)), min_size=1, max_size=8, unique_by=lambda x: x[2])
)
def test_a_demand_after_every_end_stays_open_in_any_order(drawn: list[tuple[Demand, bool, int]]) -> None:
    story = Story("warning")
    for demand, ends, sequence in drawn:
        story.fold(alert(sequence, demand, "p1", ends=ends))
    last_end = max((sequence for _, ends, sequence in drawn if ends), default=0)
    wanted = any(demand > Demand.RECORD and sequence > last_end for demand, _, sequence in drawn)
    asked = any(demand > Demand.RECORD for demand, _, _ in drawn)
    states = [assignment.state for assignment in story.incident.assignments.values()]
    assert states == ([AssignmentState.OFFERED if wanted else AssignmentState.STOOD_DOWN] if asked else [])


def test_an_unanswered_offer_is_repeated_with_backoff_and_never_dropped() -> None:
    story = Story()
    story.fold(alert(1, Demand.RESPOND, "p1"))
    escalations = 0
    for _ in range(24 * 60):
        escalations += sum(isinstance(event, Escalated) for event in story.pass_time(60_000))
    assert 20 < escalations < 40, "in a day: intervals double from 30 s up to an hour"
    assert story.of("p1").due_ms is not None


def test_a_confirmed_warning_is_reoffered_only_when_the_threat_grows() -> None:
    story = Story("warning")
    story.fold(alert(1, Demand.WARN, "p1"))
    story.acknowledge("p1")
    story.fold(alert(2, Demand.WARN, "p1"))
    assert story.of("p1").state is AssignmentState.ACKNOWLEDGED
    story.fold(alert(3, Demand.RESPOND, "p1"))
    assert story.of("p1").state is AssignmentState.OFFERED
