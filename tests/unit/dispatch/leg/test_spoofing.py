"""Suspected spoofing of positions: desks are notified even while a unit is on its way, and the response stays open."""

from __future__ import annotations

import pytest

from services.console import translate as console
from services.console.domain import board
from services.dispatch.domain.assignment import AssignmentState
from services.dispatch.domain.enums import Demand
from services.dispatch.domain.events import SPOOFING_SUSPECTED, Notified, SpoofingSuspected
from services.dispatch.leg import chain, translate
from services.dispatch.leg.chain import ChainHead
from tandem.common.v1 import alert_pb2
from tests.support.dispatch.incidents import Story, alert


def test_the_kind_equals_that_of_the_protos() -> None:
    assert SPOOFING_SUSPECTED == alert_pb2.SPOOFING_SUSPECTED


@pytest.mark.parametrize("leg", ["probation", "police"])
def test_a_desk_whose_unit_is_on_its_way_is_notified_and_the_response_stays_open(leg: str) -> None:
    story = Story(leg)
    story.fold(alert(5, Demand.RESPOND, "w1"))
    story.acknowledge("w1")
    story.progress("w1", AssignmentState.DISPATCHED)
    before = story.of("w1")
    events = story.fold(alert(6, Demand.NOTIFY, "w1", kind=alert_pb2.SPOOFING_SUSPECTED))
    assert [event for event in events if isinstance(event, SpoofingSuspected)] == [
        SpoofingSuspected(story.now_ms, story.id_of("w1"), "alert-6")
    ]
    after = story.of("w1")
    assert (after.state, after.due_ms, after.number) == (AssignmentState.DISPATCHED, before.due_ms, before.number + 1)
    message = translate.assignment_message(story.incident, after, None)
    assert message.HasField("spoofing_suspected_at")
    shown = board.IncidentCard("incident-1", 0, None, (console.assignment(message),))
    assert board.shown(shown)["flags"] == ["spoofing"]


def test_a_desk_without_an_assignment_gets_the_notice_and_the_flag() -> None:
    story = Story("probation")
    events = story.fold(alert(6, Demand.NOTIFY, "w1", kind=alert_pb2.SPOOFING_SUSPECTED))
    assert {type(event) for event in events} >= {Notified, SpoofingSuspected}
    assert story.of("w1").state is AssignmentState.NOTIFIED


def test_a_closed_assignment_and_a_record_alert_get_no_flag() -> None:
    story = Story("police")
    story.fold(alert(5, Demand.RESPOND, "w1"))
    assert not story.fold(alert(6, Demand.RECORD, kind=alert_pb2.SPOOFING_SUSPECTED))
    story.fold(alert(7, Demand.RECORD, "w1", ends=True))
    assert story.of("w1").state is AssignmentState.STOOD_DOWN
    story.fold(alert(8, Demand.NOTIFY, "w2", kind=alert_pb2.SPOOFING_SUSPECTED))
    assert story.of("w1").spoofing_suspected_ms is None


def test_the_other_agency_does_not_get_the_time_of_the_suspicion() -> None:
    story = Story("police")
    story.fold(alert(5, Demand.RESPOND, "w1"))
    story.fold(alert(6, Demand.NOTIFY, "w1", kind=alert_pb2.SPOOFING_SUSPECTED))
    step = translate.step(story.incident, story.of("w1"), story.now_ms, latency_ms=None, kept=True)
    published = type(step).FromString(translate.outward(step)).assignment
    assert step.assignment.HasField("spoofing_suspected_at") and not published.HasField("spoofing_suspected_at")


def test_the_event_read_from_the_chain_equals_the_written_one() -> None:
    event = SpoofingSuspected(5, "assignment-1", "alert-6")
    link = chain.write(ChainHead(), "incident-1", event)
    assert chain.read(link.kind, link.body) == event
