"""Test alerts for readers of ALERTS, each with its measure, as an evaluator publishes them."""

from __future__ import annotations

from services.common.messaging import flow
from tandem.common.v1 import alert_pb2, geometry_pb2
from tests.support.dispatch import dispatch
from tests.support.stream_readers.reader import Message

LOG_ROWS = tuple(row.subject for row in flow.FLOWS if row.stream == flow.LOG.name)
"""Subjects of the log in the flow table. A user that may read one of them may read all."""


def alert_messages(
    name: str,
    *,
    sequence: int = 1,
    kind: alert_pb2.AlertKind.ValueType = alert_pb2.RING_ENTERED,
    figures: bytes | None = None,
) -> list[Message]:
    """An alert that opens the incident `name`, with a wearer and a person of the same name, and the alert's measure."""
    alert = dispatch.alert(sequence, geometry_pb2.RESPOND, incident=name, protected=(f"person-{name}",))
    alert.alert_id = alert_id(name, sequence)
    alert.kind, alert.ring_m = kind, 1000.0
    alert.order_id = f"order-{name}"
    alert.case_id = f"case-{name}"
    alert.wearer_id = f"wearer-{name}"
    alert.target_id = f"person-{name}"
    measure = alert_pb2.Measure(alert_id=alert.alert_id, distance_m=450.0).SerializeToString()
    return [
        (flow.alert_subject(0, alert.alert_id), alert.SerializeToString()),
        (flow.measure_subject(0, alert.alert_id), measure if figures is None else figures),
    ]


def alert_id(name: str, sequence: int = 1) -> str:
    """Id of the alert that `alert_messages` makes."""
    return f"alert-{name}-{sequence}"
