"""Re-offers: an accepted assignment is offered once more when the threat comes back, and never otherwise."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import FailedPrecondition, NotFound
from services.dispatch.domain.answers import Acknowledge, WarnedOf
from services.dispatch.domain.assignment import UNANSWERED, AssignmentState
from services.dispatch.domain.enums import Demand
from services.dispatch.domain.events import Acknowledged, AlertFolded, Escalated, Event, Offered, Reoffered, StoodDown
from services.dispatch.domain.incident import Alert, Incident, evolve
from services.dispatch.domain.leg import Leg
from services.dispatch.leg import chain
from tandem.common.v1 import alert_pb2
from tests.support.dispatch.incidents import EARLIER_EVENTS, WITHIN_MS, Story, alert

RECORD, WARN, NOTIFY, RESPOND = Demand


def cleared(sequence: int, *subjects: str, threat: str = "ring-100") -> Alert:
    return alert(sequence, RECORD, *(subjects or ("p1",)), threat=threat, kind=alert_pb2.RING_CLEARED)


def accepted(leg: str = "police") -> Story:
    """A story in which the ring of 100 m was entered and the desk accepted the assignment."""
    story = Story(leg)
    story.fold(alert(5, RESPOND, "p1"))
    story.acknowledge("p1")
    return story


def kinds(events: tuple[Event, ...]) -> list[type[Event]]:
    return [type(event) for event in events]


@pytest.mark.parametrize("leg", ["probation", "police", "warning"])
def test_a_ring_entered_after_its_clearing_is_reoffered_in_the_same_record(leg: str) -> None:
    story = accepted(leg)
    story.now_ms += 60_000
    assert kinds(story.fold(cleared(7))) == [AlertFolded]
    folded, reoffered = story.fold(alert(9, RESPOND, "p1"))
    assert isinstance(folded, AlertFolded)
    assert isinstance(reoffered, Reoffered) and reoffered.alert_id == "alert-9"
    (assignment,) = story.incident.assignments.values()
    assert (assignment.state, assignment.number) == (AssignmentState.OFFERED, 3)
    assert assignment.assignment_id == story.id_of("p1")
    assert (assignment.offered_ms, assignment.due_ms) == (61_000, 61_000 + WITHIN_MS)
    assert (assignment.acknowledged_ms, assignment.acknowledged_by) == (None, "")
    assert assignment.cause and assignment.cause.report_id == "report-9"
    assert kinds(story.acknowledge("p1")) and story.of("p1").state is AssignmentState.ACKNOWLEDGED


def test_the_kind_is_that_of_the_alert_that_caused_the_last_offer() -> None:
    story = Story()
    story.fold(alert(3, NOTIFY, "p1", threat="off", kind=alert_pb2.DEVICE_OFF))
    assert story.of("p1").kind == alert_pb2.DEVICE_OFF
    story.fold(alert(5, RESPOND, "p1"))
    story.fold(alert(6, RESPOND, "p1", threat="panic", kind=alert_pb2.PANIC))
    assert story.of("p1").kind == alert_pb2.RING_ENTERED
    story.acknowledge("p1")
    story.fold(cleared(7))
    story.fold(alert(8, RESPOND, "p1", threat="cut", kind=alert_pb2.TAMPERED))
    assert story.of("p1").kind == alert_pb2.TAMPERED


def test_another_threat_after_a_clearing_is_reoffered() -> None:
    story = accepted()
    story.fold(cleared(7))
    assert kinds(story.fold(alert(8, RESPOND, "p1", threat="panic")))[1:] == [Reoffered]


def test_more_alerts_of_the_same_approach_are_not_reoffered() -> None:
    story = Story()
    story.fold(alert(5, RESPOND, "p1", threat="ring-500"))
    story.acknowledge("p1")
    for further in (
        alert(6, RESPOND, "p1", threat="ring-100"),
        alert(7, RESPOND, "p1", threat="panic"),
        cleared(8, threat="ring-2000"),  # a ring without a demand to respond
        alert(9, RESPOND, "p1", threat="cut"),
        alert(10, NOTIFY, "p1", threat="off"),
    ):
        assert kinds(story.fold(further)) == [AlertFolded]
    assert story.of("p1").state is AssignmentState.ACKNOWLEDGED


def test_neither_a_clearing_nor_a_notice_after_it_is_reoffered() -> None:
    story = accepted()
    assert kinds(story.fold(cleared(7))) == [AlertFolded]
    assert kinds(story.fold(alert(8, NOTIFY, "p1"))) == [AlertFolded]


def test_an_acceptance_answers_all_alerts_that_were_known_then() -> None:
    story = Story()
    story.fold(alert(5, RESPOND, "p1"))
    story.fold(cleared(7))
    assert kinds(story.fold(alert(9, RESPOND, "p1"))) == [AlertFolded], "the first offer is still open"
    story.acknowledge("p1")
    assert kinds(story.fold(alert(10, RESPOND, "p1", threat="panic"))) == [AlertFolded]


def test_an_acceptance_after_the_clearing_does_not_answer_the_next_approach() -> None:
    story = Story()
    story.fold(alert(5, RESPOND, "p1"))
    story.fold(cleared(7))
    story.acknowledge("p1")
    assert kinds(story.fold(alert(9, RESPOND, "p1")))[1:] == [Reoffered]


def test_a_late_clearing_reoffers_for_the_alert_that_follows_it_in_the_log() -> None:
    story = accepted()
    assert kinds(story.fold(alert(9, RESPOND, "p1"))) == [AlertFolded]
    _, reoffered = story.fold(cleared(7))
    assert isinstance(reoffered, Reoffered) and reoffered.alert_id == "alert-9"
    assert story.of("p1").cause == alert(9).cause
    assert kinds(story.fold(cleared(11))) == [AlertFolded]


def test_alerts_before_the_answered_one_in_the_log_are_not_reoffered() -> None:
    story = accepted()
    for earlier in (cleared(2), alert(1, RESPOND, "p1"), cleared(4), alert(3, RESPOND, "p1")):
        assert kinds(story.fold(earlier)) == [AlertFolded]
    assert story.of("p1").state is AssignmentState.ACKNOWLEDGED


def test_each_destination_is_reoffered_only_for_its_own_alerts() -> None:
    story = Story()
    story.fold(alert(5, RESPOND, "p1", "p2", threat="cut"))
    story.acknowledge("p1")
    story.acknowledge("p2")
    story.fold(cleared(7, "p1", "p2", threat="cut"))
    story.fold(alert(8, RESPOND, "p1", threat="p1-ring"))
    assert (story.of("p1").state, story.of("p2").state) == (AssignmentState.OFFERED, AssignmentState.ACKNOWLEDGED)
    story.fold(alert(9, RESPOND, "p1", "p2", threat="cut"))
    assert (story.of("p1").number, story.of("p2").state) == (3, AssignmentState.OFFERED)


def test_a_reoffer_has_the_deadlines_of_a_first_offer() -> None:
    story = accepted()
    story.fold(cleared(7))
    story.fold(alert(9, RESPOND, "p1"))
    for wait_ms in (WITHIN_MS, WITHIN_MS, 2 * WITHIN_MS, 4 * WITHIN_MS):
        assert story.pass_time(wait_ms - 1) == ()
        assert kinds(story.pass_time(1)) == [Escalated]


def test_an_escalated_assignment_stays_with_the_supervisor() -> None:
    story = Story()
    story.fold(alert(5, RESPOND, "p1"))
    story.pass_time(WITHIN_MS)
    story.fold(cleared(7))
    assert kinds(story.fold(alert(9, RESPOND, "p1"))) == [AlertFolded]
    assert story.of("p1").state is AssignmentState.ESCALATED and story.of("p1").due_ms


def test_the_end_stands_down_a_reoffer_and_earlier_alerts_do_not_reopen_it() -> None:
    story = accepted()
    story.fold(cleared(7))
    story.fold(alert(9, RESPOND, "p1"))
    assert kinds(story.fold(alert(12, RECORD, "p1", ends=True)))[1:] == [StoodDown]
    assert kinds(story.fold(cleared(10))) == [AlertFolded]
    assert kinds(story.fold(alert(11, RESPOND, "p1"))) == [AlertFolded]
    assert story.of("p1").state is AssignmentState.STOOD_DOWN and story.incident.ended_ms is not None


def test_a_person_is_warned_at_each_ring_of_each_approach() -> None:
    story = Story("warning")
    sequence = 0
    for _ in range(2):
        for demand in (WARN, NOTIFY, RESPOND):
            sequence += 1
            story.fold(alert(sequence, demand, "p1", threat=f"ring-{demand}"))
            assert story.of("p1").state is AssignmentState.OFFERED, (sequence, demand)
            story.acknowledge("p1")
        for demand in (RESPOND, NOTIFY, WARN):
            sequence += 1
            story.fold(cleared(sequence, threat=f"ring-{demand}"))
            assert story.of("p1").state is AssignmentState.ACKNOWLEDGED


def test_a_clearing_alone_opens_no_incident() -> None:
    story = Story()
    story.fold(cleared(7))
    assert not story.incident.assignments and story.incident.opened_ms is None and story.incident.order_ids == ()


# ── older databases ──────────────────────────────────────────────────────────────────────────────────────────────────


def older_story() -> Story:
    story = Story()
    for link in EARLIER_EVENTS:
        story.incident = evolve(story.incident, chain.read(link.kind, link.body))
    return story


def test_older_events_give_the_same_state_as_before() -> None:
    story = older_story()
    assignment = story.of("p1")
    assert (assignment.state, assignment.number) == (AssignmentState.ACKNOWLEDGED, 4)
    assert assignment.acknowledged_ms == 33_000
    assert kinds(story.fold(alert(6, RESPOND, "p1"))) == []


def test_an_assignment_accepted_before_clearings_were_stored_is_reoffered_once_and_then_by_the_rule() -> None:
    story = older_story()
    assert kinds(story.fold(alert(8, RESPOND, "p1", threat="ring-300")))[1:] == [Reoffered]
    story.acknowledge("p1")
    assert kinds(story.fold(alert(9, RESPOND, "p1", threat="panic"))) == [AlertFolded]
    story.fold(cleared(10, threat="ring-100"))  # may belong to the older alert, whose threat is unknown
    assert kinds(story.fold(alert(11, RESPOND, "p1", threat="ring-300")))[1:] == [Reoffered]


# ── any history ──────────────────────────────────────────────────────────────────────────────────────────────────────

SUBJECTS = ("p1", "p2")
THREATS = {"p1-ring-100": ("p1",), "p1-ring-500": ("p1",), "p2-ring-100": ("p2",), "cut": SUBJECTS}
"""Destinations of each threat."""


@dataclass(frozen=True)
class Action:
    """A threat begins or is over, or the desk accepts an assignment."""

    threat: str = ""
    accepts: str = ""


action_lists = st.lists(
    st.one_of(
        st.sampled_from(sorted(THREATS)).map(lambda threat: Action(threat=threat)),
        st.sampled_from(SUBJECTS).map(lambda subject: Action(accepts=subject)),
    ),
    max_size=20,
)


@given(st.sampled_from(["probation", "police", "warning"]), action_lists, st.data())
def test_only_a_demand_after_a_clearing_is_reoffered_and_a_redelivery_changes_nothing(
    leg: str, history: list[Action], data: st.DataObject
) -> None:
    story = Story(leg)
    active: set[str] = set()
    over: set[str] = set()
    """Destinations with a threat that was over since the last offer."""
    delivered: list[Alert] = []
    for sequence, action in enumerate(history, 1):
        before = {assignment.subject_id: assignment.state for assignment in story.incident.assignments.values()}
        if action.accepts:
            if before.get(action.accepts) in UNANSWERED:
                story.acknowledge(action.accepts)
            continue
        subjects = THREATS[action.threat]
        begins = action.threat not in active
        active ^= {action.threat}
        delivered.append(alert(sequence, RESPOND if begins else RECORD, *subjects, threat=action.threat))
        story.fold(delivered[-1])
        for subject in subjects:
            offered = story.of(subject).state in UNANSWERED
            assert offered == (
                before.get(subject, AssignmentState.OFFERED) in UNANSWERED or (begins and subject in over)
            )
        over = over - set(subjects) if begins else over | set(subjects)
        assert story.fold(data.draw(st.sampled_from(delivered))) == ()
    assert all(story.fold(repeated) == () for repeated in delivered)
    assert len(story.incident.assignments) == len({s for folded in delivered for s in folded.subject_ids})  # I4


@given(st.lists(st.sampled_from(sorted(THREATS)), max_size=8), st.randoms(use_true_random=False))
def test_the_order_of_arrival_does_not_change_the_result(log: list[str], shuffle: object) -> None:
    active: set[str] = set()
    alerts = []
    for sequence, threat in enumerate(log, 10):
        active ^= {threat}
        alerts.append(alert(sequence, RESPOND if threat in active else RECORD, *THREATS[threat], threat=threat))
    ordered, shuffled = accepted(), accepted()
    for drawn in alerts:
        ordered.fold(drawn)
    shuffle.shuffle(alerts)  # type: ignore[attr-defined]  # random.Random
    for drawn in alerts:
        shuffled.fold(drawn)
    states = [
        {assignment.subject_id: assignment.state for assignment in story.incident.assignments.values()}
        for story in (ordered, shuffled)
    ]
    assert states[0] == states[1]


@given(action_lists)
def test_stored_events_give_the_same_state(history: list[Action]) -> None:
    story = Story()
    for sequence, action in enumerate(history, 1):
        if action.accepts and action.accepts in {
            assignment.subject_id for assignment in story.incident.assignments.values()
        }:
            story.acknowledge(action.accepts)
        elif action.threat:
            demand = RESPOND if sequence % 2 else RECORD
            story.fold(alert(sequence, demand, *THREATS[action.threat], threat=action.threat))
    head, refolded = chain.ChainHead(), Incident("incident-1", Leg.POLICE)
    links = []
    for event in story.events:
        links.append(chain.write(head, "incident-1", event))
        head = chain.ChainHead(links[-1].id, links[-1].hash)
        refolded = evolve(refolded, chain.read(links[-1].kind, links[-1].body))
    assert refolded == story.incident
    assert chain.first_broken(chain.ChainHead(), links) == (head, None)
    assert sum(isinstance(event, Offered) for event in story.events) == len(story.incident.assignments)


def receipt(story: Story, sequence: int, alert_id: str | None = None) -> tuple[Event, ...]:
    """The receipt of the message about the alert at a log position."""
    of = WarnedOf(place=(sequence, 0), alert_id=f"alert-{sequence}" if alert_id is None else alert_id)
    return story.do(Acknowledge(story.id_of("p1"), "receipt/1", warned_of=of))


def test_a_receipt_acknowledges_the_offer_of_its_message_and_no_later_one() -> None:
    story = Story("warning")
    story.fold(alert(5, WARN, "p1", threat="ring-1000"))
    assert kinds(receipt(story, 5)) == [Acknowledged]
    assert kinds(story.fold(alert(7, RESPOND, "p1")))[1:] == [Reoffered]
    with pytest.raises(FailedPrecondition, match="before the present offer"):
        receipt(story, 5)
    assert story.of("p1").state is AssignmentState.OFFERED
    story.pass_time(WITHIN_MS)
    with pytest.raises(FailedPrecondition):
        receipt(story, 5)  # an escalation asks about the same alert
    assert kinds(receipt(story, 7)) == [Acknowledged]


def test_a_receipt_waits_for_the_alert_of_its_message() -> None:
    story = Story("warning")
    story.fold(alert(5, WARN, "p1", threat="ring-1000"))
    receipt(story, 5)
    with pytest.raises(NotFound, match="alert"):
        receipt(story, 7)
    story.fold(alert(7, RESPOND, "p1"))
    assert kinds(receipt(story, 7)) == [Acknowledged]


def test_a_receipt_of_advice_counts_by_its_log_position() -> None:
    story = Story("warning")
    story.fold(alert(5, RESPOND, "p1"))
    with pytest.raises(FailedPrecondition):
        receipt(story, 4, "")
    assert kinds(receipt(story, 6, "")) == [Acknowledged]
