"""What a leg finds out by itself: another leg that shows nothing, an alert that was missing, steps that its record lacks."""

from __future__ import annotations

from dataclasses import replace

from services.dispatch.domain.decisions import CompareSteps, FoldAlert, ReportLeg
from services.dispatch.domain.enums import Demand
from services.dispatch.domain.events import AlertFolded, AlertWasMissing, LegAbsent, LegReturned, Offered, StepsLost
from services.dispatch.domain.incident import AssignmentState, step_id
from services.dispatch.leg import chain, translate
from services.dispatch.leg.chain import ChainHead
from tandem.common.v1 import alert_pb2, geometry_pb2
from tests.support.dispatch.incidents import DEADLINES, Story, alert


def responding() -> Story:
    """Two destinations of the police's, of which one is over."""
    story = Story()
    story.fold(replace(alert(5, Demand.RESPOND, "p1", "p2"), legs=("probation", "warning")))
    return story


def test_an_absent_leg_is_told_once_of_each_open_assignment_and_its_return_as_well() -> None:
    story = responding()
    assert story.incident.awaited == {"probation", "warning"}
    told = story.do(ReportLeg("probation", False, 20_000))
    assert told == tuple(LegAbsent(20_000, story.id_of(one), "probation") for one in ("p1", "p2"))
    assert story.do(ReportLeg("probation", False, 21_000)) == ()
    message = translate.assignment_message(story.incident, story.of("p1"), None)
    assert list(message.absent_legs) == [alert_pb2.PROBATION]
    assert (story.of("p1").state, story.of("p1").number) == (AssignmentState.OFFERED, 2)
    assert story.do(ReportLeg("probation", True, 22_000)) == tuple(
        LegReturned(22_000, story.id_of(one), "probation") for one in ("p1", "p2")
    )
    assert not story.of("p1").absent_legs
    assert story.do(ReportLeg("probation", True, 23_000)) == ()


def test_nobody_is_told_of_an_absent_leg_where_all_is_over() -> None:
    story = responding()
    story.fold(alert(6, Demand.RESPOND, "p1", ends=True))
    assert {assignment.state for assignment in story.incident.assignments.values()} == {AssignmentState.STOOD_DOWN}
    assert story.do(ReportLeg("probation", False, 20_000)) == ()


def test_who_is_absent_neither_answers_nor_delays_anything() -> None:
    story = responding()
    due_ms = story.of("p1").due_ms
    story.do(ReportLeg("probation", False, 5_000))
    assert story.of("p1").due_ms == due_ms
    story.acknowledge("p1")
    assert story.of("p1").absent_legs == {"probation"}


def test_an_alert_that_was_missing_is_taken_in_with_a_word_of_it_and_never_twice() -> None:
    story = Story()
    missing = FoldAlert(alert(5, Demand.RESPOND, "p1"), 1_000, DEADLINES, was_missing=True)
    assert [type(event) for event in story.do(missing)] == [AlertWasMissing, AlertFolded, Offered]
    assert story.do(missing) == ()


def test_the_next_step_is_numbered_behind_those_that_were_lost() -> None:
    story = responding()
    before = step_id(story.of("p1"))
    id_ = story.id_of("p1")
    assert story.do(CompareSteps(id_, 1, 2_000)) == (), "the record has it"
    assert story.do(CompareSteps(id_, 4, 2_000)) == (StepsLost(2_000, id_, 4),)
    assert (story.of("p1").number, story.of("p1").state) == (5, AssignmentState.OFFERED)
    assert step_id(story.of("p1")) != before
    assert story.do(CompareSteps(id_, 4, 3_000)) == ()
    assert story.do(CompareSteps("assign-of-nobody", 4, 3_000)) == ()


def test_what_was_found_is_written_and_read_again() -> None:
    story = responding()
    for command in (
        ReportLeg("warning", False, 20_000),
        ReportLeg("warning", True, 21_000),
        CompareSteps(story.id_of("p1"), 9, 22_000),
        FoldAlert(alert(7, Demand.RESPOND, "p3"), 23_000, DEADLINES, was_missing=True),
    ):
        story.do(command)
    head = ChainHead()
    for event in story.events:
        link = chain.write(head, "incident-1", event)
        assert chain.read(link.kind, link.body) == event
        assert chain.first_broken(head, [link])[1] is None
        head = ChainHead(link.id, link.hash)


def test_probation_looks_after_others_only_where_a_response_is_demanded_and_the_gateway_after_nobody() -> None:
    message = alert_pb2.Alert(
        alert_id="a",
        sequence=1,
        demand=geometry_pb2.RESPOND,
        incident_id="i",
        order_id="o",
        kind=alert_pb2.RING_ENTERED,
    )
    for leg, subject in ((alert_pb2.PROBATION, "w1"), (alert_pb2.POLICE, "p1"), (alert_pb2.WARNING, "p1")):
        message.destinations.add(leg=leg, subject_id=subject)
    parsed = {leg: translate.alert(message.SerializeToString(), leg) for leg in ("probation", "warning")}
    assert parsed["probation"] and parsed["probation"].legs == ("police", "warning")
    assert parsed["warning"] and parsed["warning"].legs == ()
    message.demand = geometry_pb2.NOTIFY
    noticed = translate.alert(message.SerializeToString(), "probation")
    assert noticed and noticed.legs == ()
