"""What a destination is comes with the alert and is in each message from the first step on: no page has to guess it."""

from __future__ import annotations

import pytest

from services.dispatch.domain.decisions import FoldAlert
from services.dispatch.domain.enums import SubjectKind, WarningFlag
from services.dispatch.domain.flags import Flag
from services.dispatch.domain.leg import Leg
from services.dispatch.leg import translate
from tandem.common.v1 import alert_pb2, geometry_pb2, subject_pb2
from tests.support.dispatch.incidents import Story

TO = alert_pb2.Destination


def folded(leg: Leg, *to: alert_pb2.Destination, kind: int = alert_pb2.RING_ENTERED, wearer: str = "x1") -> Story:
    """The incident of a leg after an alert about the wearer `x1`, whose id says nothing of what it is."""
    message = alert_pb2.Alert(
        alert_id="alert-5",
        sequence=5,
        incident_id="incident-1",
        order_id="order-1",
        wearer_id=wearer,
        kind=alert_pb2.AlertKind.ValueType(kind),
        demand=geometry_pb2.NOTIFY,
        destinations=to,
        checks=[TO(leg=translate.LEG_NUMBERS[leg], subject_id="x1")] if wearer else [],
    )
    story = Story(leg)
    alert = translate.alert(message.SerializeToString(), leg)
    assert alert
    story.do(FoldAlert(alert))
    return story


def kinds(story: Story) -> set[tuple[str, str]]:
    messages = [translate.assignment_message(story.incident, of, None) for of in story.incident.assignments.values()]
    return {(each.subject_id, subject_pb2.SubjectKind.Name(each.subject_kind)) for each in messages}


def test_the_numbers_are_those_of_the_protos() -> None:
    named = {kind.name: int(kind) for kind in SubjectKind if kind} | {"SUBJECT_KIND_UNSPECIFIED": 0}
    assert named == dict(subject_pb2.SubjectKind.items())


def test_each_destination_has_its_kind() -> None:
    to = [TO(leg=alert_pb2.POLICE, subject_id=subject) for subject in ("x1", "x2", "order-1/x3")]
    assert kinds(folded(Leg.POLICE, *to)) == {
        ("x1", "WEARER"),
        ("x2", "PROTECTED_PERSON"),
        ("order-1/x3", "PROTECTED_PLACE"),
    }
    assert kinds(folded(Leg.PROBATION, TO(leg=alert_pb2.PROBATION, subject_id="x1"))) == {("x1", "WEARER")}


@pytest.mark.parametrize("leg", [Leg.PROBATION, Leg.POLICE])
def test_the_destination_of_an_outage_is_no_wearer(leg: Leg) -> None:
    story = folded(leg, TO(leg=translate.LEG_NUMBERS[leg], subject_id="outage-1"), kind=alert_pb2.OUTAGE, wearer="")
    assert kinds(story) == {("outage-1", "SILENT_WEARERS")}


def test_a_flag_that_opens_the_incident_is_about_a_protected_person() -> None:
    story = Story("police")
    flag = Flag("x2", WarningFlag.DURESS, "alert-5", (5, 0), order_id="order-1", flagged_ms=900)
    story.do(flag)
    assert kinds(story) == {("x2", "PROTECTED_PERSON")}


def test_other_legs_read_the_kind() -> None:
    story = folded(Leg.POLICE, TO(leg=alert_pb2.POLICE, subject_id="x2"))
    step = translate.step(story.incident, story.of("x2"), story.now_ms, latency_ms=None)
    outward = type(step).FromString(translate.outward(step)).assignment
    assert outward.subject_kind == subject_pb2.PROTECTED_PERSON
