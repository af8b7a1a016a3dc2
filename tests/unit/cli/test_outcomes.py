"""Incidents as `tandem incidents` prints them, of what the legs answer."""

from __future__ import annotations

from services.cli.simulate import outcome
from services.cli.terminal import SafeConsole
from tandem.common.v1 import alert_pb2, geometry_pb2
from tandem.dispatch.v1 import dispatch_pb2


def test_a_person_who_may_not_have_been_warned_is_shown_with_the_reason() -> None:
    assignment = dispatch_pb2.Assignment(
        assignment_id="assignment-1",
        incident_id="incident-1",
        leg=alert_pb2.POLICE,
        subject_id="person-1",
        order_ids=["order-1"],
        state=dispatch_pb2.NOTIFIED,
        demand=geometry_pb2.NOTIFY,
        person_flag=dispatch_pb2.PersonFlag(flag=dispatch_pb2.NO_RECEIPT),
    )
    incident = dispatch_pb2.Incident(incident_id="incident-1", order_ids=["order-1"], assignments=[assignment])
    incident.opened_at.FromMilliseconds(1_000)
    (found,) = outcome._joined({"police": [incident]})
    assert found.to_json()["legs"][0]["person_flag"] == "NO_RECEIPT"
    console = SafeConsole(width=120, record=True)
    console.print(*outcome.tables([found]))
    assert "NOTIFIED, NO_RECEIPT" in console.export_text()
