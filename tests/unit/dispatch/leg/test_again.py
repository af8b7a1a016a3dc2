"""What was taken is offered anew when the threat comes back, and never otherwise."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.dispatch.domain.decisions import Alert
from services.dispatch.domain.enums import Demand
from services.dispatch.domain.events import AlertFolded, Escalated, Event, Offered, Reoffered, StoodDown
from services.dispatch.domain.evolving import evolve
from services.dispatch.domain.incident import UNANSWERED, AssignmentState, Incident
from services.dispatch.leg import chain
from tandem.common.v1 import alert_pb2
from tests.support.dispatch.incidents import OF_BEFORE, WITHIN_MS, Story, alert

RECORD, WARN, NOTIFY, RESPOND = Demand


def cleared(sequence: int, *subjects: str, threat: str = "ring-100") -> Alert:
    return alert(sequence, RECORD, *(subjects or ("p1",)), threat=threat, kind=alert_pb2.RING_CLEARED)


def taken(leg: str = "police") -> Story:
    """The ring of 100 m was entered and the desk took it."""
    story = Story(leg)
    story.fold(alert(5, RESPOND, "p1"))
    story.acknowledge("p1")
    return story


def kinds(events: tuple[Event, ...]) -> list[type[Event]]:
    return [type(event) for event in events]


@pytest.mark.parametrize("leg", ["probation", "police", "warning"])
def test_a_ring_that_is_entered_again_after_its_clearing_is_offered_again_in_the_same_record(leg: str) -> None:
    story = taken(leg)
    story.now_ms += 60_000
    assert kinds(story.fold(cleared(7))) == [AlertFolded]
    folded, again = story.fold(alert(9, RESPOND, "p1"))
    assert isinstance(folded, AlertFolded)
    assert isinstance(again, Reoffered) and again.alert_id == "alert-9"
    (one,) = story.incident.assignments.values()
    assert (one.state, one.number, one.assignment_id) == (AssignmentState.OFFERED, 3, story.id_of("p1"))
    assert (one.offered_ms, one.due_ms) == (61_000, 61_000 + WITHIN_MS)
    assert (one.acknowledged_ms, one.acknowledged_by) == (None, "")
    assert one.cause and one.cause.report_id == "report-9"
    assert kinds(story.acknowledge("p1")) and story.of("p1").state is AssignmentState.ACKNOWLEDGED


def test_the_kind_is_that_of_the_alert_that_led_to_the_last_offer() -> None:
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


def test_another_threat_after_a_clearing_is_offered_too() -> None:
    story = taken()
    story.fold(cleared(7))
    assert kinds(story.fold(alert(8, RESPOND, "p1", threat="panic")))[1:] == [Reoffered]


def test_more_of_the_same_approach_is_not_offered_again() -> None:
    story = Story()
    story.fold(alert(5, RESPOND, "p1", threat="ring-500"))
    story.acknowledge("p1")
    for one in (
        alert(6, RESPOND, "p1", threat="ring-100"),
        alert(7, RESPOND, "p1", threat="panic"),
        cleared(8, threat="ring-2000"),  # of a ring that asked nobody to go
        alert(9, RESPOND, "p1", threat="cut"),
        alert(10, NOTIFY, "p1", threat="off"),
    ):
        assert kinds(story.fold(one)) == [AlertFolded]
    assert story.of("p1").state is AssignmentState.ACKNOWLEDGED


def test_a_clearing_offers_nothing_and_a_notice_after_it_neither() -> None:
    story = taken()
    assert kinds(story.fold(cleared(7))) == [AlertFolded]
    assert kinds(story.fold(alert(8, NOTIFY, "p1"))) == [AlertFolded]


def test_an_answer_is_to_all_that_was_known_then() -> None:
    story = Story()
    story.fold(alert(5, RESPOND, "p1"))
    story.fold(cleared(7))
    assert kinds(story.fold(alert(9, RESPOND, "p1"))) == [AlertFolded], "it is being offered all the time"
    story.acknowledge("p1")
    assert kinds(story.fold(alert(10, RESPOND, "p1", threat="panic"))) == [AlertFolded]


def test_an_answer_that_comes_after_the_clearing_is_none_to_the_next_approach() -> None:
    story = Story()
    story.fold(alert(5, RESPOND, "p1"))
    story.fold(cleared(7))
    story.acknowledge("p1")
    assert kinds(story.fold(alert(9, RESPOND, "p1")))[1:] == [Reoffered]


def test_a_clearing_that_comes_late_offers_what_followed_it_in_the_log() -> None:
    story = taken()
    assert kinds(story.fold(alert(9, RESPOND, "p1"))) == [AlertFolded]
    _, again = story.fold(cleared(7))
    assert isinstance(again, Reoffered) and again.alert_id == "alert-9"
    assert story.of("p1").cause == alert(9).cause
    assert kinds(story.fold(cleared(11))) == [AlertFolded]


def test_what_the_log_had_before_the_answered_alert_offers_nothing() -> None:
    story = taken()
    for one in (cleared(2), alert(1, RESPOND, "p1"), cleared(4), alert(3, RESPOND, "p1")):
        assert kinds(story.fold(one)) == [AlertFolded]
    assert story.of("p1").state is AssignmentState.ACKNOWLEDGED


def test_each_destination_is_offered_what_is_asked_of_it() -> None:
    story = Story()
    story.fold(alert(5, RESPOND, "p1", "p2", threat="cut"))
    story.acknowledge("p1")
    story.acknowledge("p2")
    story.fold(cleared(7, "p1", "p2", threat="cut"))
    story.fold(alert(8, RESPOND, "p1", threat="p1-ring"))
    assert (story.of("p1").state, story.of("p2").state) == (AssignmentState.OFFERED, AssignmentState.ACKNOWLEDGED)
    story.fold(alert(9, RESPOND, "p1", "p2", threat="cut"))
    assert (story.of("p1").number, story.of("p2").state) == (3, AssignmentState.OFFERED)


def test_the_deadline_of_the_second_offer_runs_as_that_of_the_first() -> None:
    story = taken()
    story.fold(cleared(7))
    story.fold(alert(9, RESPOND, "p1"))
    for wait_ms in (WITHIN_MS, WITHIN_MS, 2 * WITHIN_MS, 4 * WITHIN_MS):
        assert story.pass_time(wait_ms - 1) == ()
        assert kinds(story.pass_time(1)) == [Escalated]


def test_what_was_escalated_stays_with_the_supervisor() -> None:
    story = Story()
    story.fold(alert(5, RESPOND, "p1"))
    story.pass_time(WITHIN_MS)
    story.fold(cleared(7))
    assert kinds(story.fold(alert(9, RESPOND, "p1"))) == [AlertFolded]
    assert story.of("p1").state is AssignmentState.ESCALATED and story.of("p1").due_ms


def test_the_end_stands_down_what_was_offered_again_and_nothing_brings_that_back() -> None:
    story = taken()
    story.fold(cleared(7))
    story.fold(alert(9, RESPOND, "p1"))
    assert kinds(story.fold(alert(12, RECORD, "p1", ends=True)))[1:] == [StoodDown]
    assert kinds(story.fold(cleared(10))) == [AlertFolded]
    assert kinds(story.fold(alert(11, RESPOND, "p1"))) == [AlertFolded]
    assert story.of("p1").state is AssignmentState.STOOD_DOWN and story.incident.ended_ms is not None


def test_a_person_is_warned_at_each_ring_of_the_second_approach_as_of_the_first() -> None:
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


def test_a_clearing_alone_is_no_incident_of_the_leg() -> None:
    story = Story()
    story.fold(cleared(7))
    assert not story.incident.assignments and story.incident.opened_ms is None and story.incident.order_ids == ()


# ── databases of before ──────────────────────────────────────────────────────────────────────────────────────────────


def of_before() -> Story:
    story = Story()
    for link in OF_BEFORE:
        story.incident = evolve(story.incident, chain.read(link.kind, link.body))
    return story


def test_events_of_before_give_the_state_that_they_gave() -> None:
    story = of_before()
    one = story.of("p1")
    assert (one.state, one.number, one.acknowledged_ms) == (AssignmentState.ACKNOWLEDGED, 4, 33_000)
    assert kinds(story.fold(alert(6, RESPOND, "p1"))) == []


def test_what_was_taken_before_clearings_were_kept_is_offered_for_the_next_alert_and_then_by_the_rule() -> None:
    story = of_before()
    assert kinds(story.fold(alert(8, RESPOND, "p1", threat="ring-300")))[1:] == [Reoffered]
    story.acknowledge("p1")
    assert kinds(story.fold(alert(9, RESPOND, "p1", threat="panic"))) == [AlertFolded]
    story.fold(cleared(10, threat="ring-100"))  # perhaps that of the alert of before
    assert kinds(story.fold(alert(11, RESPOND, "p1", threat="ring-300")))[1:] == [Reoffered]


# ── any history ──────────────────────────────────────────────────────────────────────────────────────────────────────

SUBJECTS = ("p1", "p2")
THREATS = {"p1-ring-100": ("p1",), "p1-ring-500": ("p1",), "p2-ring-100": ("p2",), "cut": SUBJECTS}
"""Which destinations each is about."""


@dataclass(frozen=True)
class Happening:
    """A threat begins or is over, or the desk takes an assignment."""

    threat: str = ""
    takes: str = ""


happenings = st.lists(
    st.one_of(
        st.sampled_from(sorted(THREATS)).map(lambda threat: Happening(threat=threat)),
        st.sampled_from(SUBJECTS).map(lambda subject: Happening(takes=subject)),
    ),
    max_size=20,
)


@given(st.sampled_from(["probation", "police", "warning"]), happenings, st.data())
def test_each_demand_after_a_clearing_leads_to_an_offer_and_no_other_and_no_redelivery(
    leg: str, history: list[Happening], data: st.DataObject
) -> None:
    story = Story(leg)
    standing: set[str] = set()
    over: set[str] = set()
    """Destinations of which a threat was over since somebody was asked to go there last."""
    delivered: list[Alert] = []
    for sequence, what in enumerate(history, 1):
        before = {assignment.subject_id: assignment.state for assignment in story.incident.assignments.values()}
        if what.takes:
            if before.get(what.takes) in UNANSWERED:
                story.acknowledge(what.takes)
            continue
        subjects = THREATS[what.threat]
        begins = what.threat not in standing
        standing ^= {what.threat}
        delivered.append(alert(sequence, RESPOND if begins else RECORD, *subjects, threat=what.threat))
        story.fold(delivered[-1])
        for subject in subjects:
            offered = story.of(subject).state in UNANSWERED
            assert offered == (
                before.get(subject, AssignmentState.OFFERED) in UNANSWERED or (begins and subject in over)
            )
        over = over - set(subjects) if begins else over | set(subjects)
        assert story.fold(data.draw(st.sampled_from(delivered))) == ()
    assert all(story.fold(one) == () for one in delivered)
    assert len(story.incident.assignments) == len({s for one in delivered for s in one.subject_ids})  # I4


@given(st.lists(st.sampled_from(sorted(THREATS)), max_size=8), st.randoms(use_true_random=False))
def test_the_order_of_arrival_decides_nothing(log: list[str], shuffle: object) -> None:
    standing: set[str] = set()
    alerts = []
    for sequence, threat in enumerate(log, 10):
        standing ^= {threat}
        alerts.append(alert(sequence, RESPOND if threat in standing else RECORD, *THREATS[threat], threat=threat))
    told, shuffled = taken(), taken()
    for one in alerts:
        told.fold(one)
    shuffle.shuffle(alerts)  # type: ignore[attr-defined]  # random.Random
    for one in alerts:
        shuffled.fold(one)
    states = [
        {assignment.subject_id: assignment.state for assignment in story.incident.assignments.values()}
        for story in (told, shuffled)
    ]
    assert states[0] == states[1]


@given(happenings)
def test_the_written_events_give_the_same_state(history: list[Happening]) -> None:
    story = Story()
    for sequence, what in enumerate(history, 1):
        if what.takes and what.takes in {assignment.subject_id for assignment in story.incident.assignments.values()}:
            story.acknowledge(what.takes)
        elif what.threat:
            demand = RESPOND if sequence % 2 else RECORD
            story.fold(alert(sequence, demand, *THREATS[what.threat], threat=what.threat))
    head, again = chain.ChainHead(), Incident("incident-1", "police")
    links = []
    for event in story.events:
        links.append(chain.write(head, "incident-1", event))
        head = chain.ChainHead(links[-1].id, links[-1].hash)
        again = evolve(again, chain.read(links[-1].kind, links[-1].body))
    assert again == story.incident
    assert chain.first_broken(chain.ChainHead(), links) == (head, None)
    assert sum(isinstance(event, Offered) for event in story.events) == len(story.incident.assignments)
