"""Findings of a leg: absent legs, missing alerts, and steps that its record lacks."""

from __future__ import annotations

from dataclasses import replace

from services.dispatch.domain.assignment import AssignmentState, step_id
from services.dispatch.domain.decisions import CompareSteps, FoldAlert, ReportLeg
from services.dispatch.domain.enums import Demand
from services.dispatch.domain.events import AlertFolded, AlertWasMissing, LegAbsent, LegReturned, Offered, StepsLost
from services.dispatch.domain.leg import Leg
from services.dispatch.leg import chain, translate
from services.dispatch.leg.chain import ChainHead
from tandem.common.v1 import alert_pb2, geometry_pb2
from tests.support.dispatch.incidents import Story, alert


def responding() -> Story:
    """A police story with two open destinations whose alert demands all three legs."""
    story = Story()
    story.fold(replace(alert(5, Demand.RESPOND, "p1", "p2"), legs=(Leg.PROBATION, Leg.WARNING)))
    return story


def test_the_absence_and_the_return_of_a_leg_are_reported_once_for_each_open_assignment() -> None:
    story = responding()
    assert story.incident.awaited == {"probation", "warning"}
    events = story.do(ReportLeg(Leg.PROBATION, False), 20_000)
    assert events == tuple(LegAbsent(20_000, story.id_of(subject), Leg.PROBATION) for subject in ("p1", "p2"))
    assert story.do(ReportLeg(Leg.PROBATION, False), 21_000) == ()
    message = translate.assignment_message(story.incident, story.of("p1"), None)
    assert list(message.absent_legs) == [alert_pb2.PROBATION]
    assert (story.of("p1").state, story.of("p1").number) == (AssignmentState.OFFERED, 2)
    assert story.do(ReportLeg(Leg.PROBATION, True), 22_000) == tuple(
        LegReturned(22_000, story.id_of(subject), Leg.PROBATION) for subject in ("p1", "p2")
    )
    assert not story.of("p1").absent_legs
    assert story.do(ReportLeg(Leg.PROBATION, True), 23_000) == ()


def test_an_absent_leg_is_not_reported_where_all_assignments_are_over() -> None:
    story = responding()
    story.fold(alert(6, Demand.RESPOND, "p1", ends=True))
    assert {assignment.state for assignment in story.incident.assignments.values()} == {AssignmentState.STOOD_DOWN}
    assert story.do(ReportLeg(Leg.PROBATION, False), 20_000) == ()


def test_an_absent_leg_changes_no_deadline_and_no_answer() -> None:
    story = responding()
    due_ms = story.of("p1").due_ms
    story.do(ReportLeg(Leg.PROBATION, False), 5_000)
    assert story.of("p1").due_ms == due_ms
    story.acknowledge("p1")
    assert story.of("p1").absent_legs == {"probation"}


def test_a_missing_alert_is_applied_once_and_recorded_as_missing() -> None:
    story = Story()
    missing = FoldAlert(alert(5, Demand.RESPOND, "p1"), was_missing=True)
    assert [type(event) for event in story.do(missing)] == [AlertWasMissing, AlertFolded, Offered]
    assert story.do(missing) == ()


def test_the_next_step_is_numbered_after_lost_steps() -> None:
    story = responding()
    before = step_id(story.of("p1"))
    id_ = story.id_of("p1")
    assert story.do(CompareSteps(id_, 1), 2_000) == (), "the record has this step"
    assert story.do(CompareSteps(id_, 4), 2_000) == (StepsLost(2_000, id_, 4),)
    assert (story.of("p1").number, story.of("p1").state) == (5, AssignmentState.OFFERED)
    assert step_id(story.of("p1")) != before
    assert story.do(CompareSteps(id_, 4), 3_000) == ()
    assert story.do(CompareSteps("assign-of-nobody", 4), 3_000) == ()


def test_findings_read_from_the_chain_equal_the_written_ones() -> None:
    story = responding()
    for now_ms, command in (
        (20_000, ReportLeg(Leg.WARNING, False)),
        (21_000, ReportLeg(Leg.WARNING, True)),
        (22_000, CompareSteps(story.id_of("p1"), 9)),
        (23_000, FoldAlert(alert(7, Demand.RESPOND, "p3"), was_missing=True)),
    ):
        story.do(command, now_ms)
    head = ChainHead()
    for event in story.events:
        link = chain.write(head, "incident-1", event)
        assert chain.read(link.kind, link.body) == event
        assert chain.first_broken(head, [link])[1] is None
        head = ChainHead(link.id, link.hash)


def test_probation_awaits_other_legs_only_for_a_response_and_the_warning_leg_awaits_none() -> None:
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
    probation, warning = (translate.alert(message.SerializeToString(), leg) for leg in (Leg.PROBATION, Leg.WARNING))
    assert probation and probation.legs == (Leg.POLICE, Leg.WARNING)
    assert warning and warning.legs == ()
    message.demand = geometry_pb2.NOTIFY
    noticed = translate.alert(message.SerializeToString(), Leg.PROBATION)
    assert noticed and noticed.legs == ()
