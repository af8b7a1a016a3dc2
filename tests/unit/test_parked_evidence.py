"""Evidence takes from PARKED what an evaluator set aside, and nothing that another publisher put there."""

from __future__ import annotations

import pytest

from services.common import flow
from services.common.pull import Delivered
from services.dispatch.evidence_gathering import _parked_entry
from tandem.common.v1 import alert_pb2


def message(subject: str, data: bytes) -> Delivered:
    return Delivered(subject, data, flow.PARKED.name, 1, 0, 0, "")


def parked(by: str = "fold", sequence: int = 7) -> bytes:
    return alert_pb2.Parked(stream="LOG_0", sequence=sequence, by=by, reason="too late").SerializeToString()


def test_what_an_evaluator_set_aside_is_taken() -> None:
    found = _parked_entry(message("parked.geofence.fold.LOG_0.7", parked()))
    assert found is not None and (found.stream, found.sequence) == ("LOG_0", 7)


@pytest.mark.parametrize(
    ("subject", "data"),
    [
        ("parked.geofence.fold.LOG_0.7", b""),
        ("parked.geofence.fold.LOG_0.7", b"{}"),
        ("parked.geofence.fold.LOG_0.7", b"\xff\xff\xff"),
        ("parked.geofence.fold.LOG_0.7", parked(sequence=8)),
        ("parked.geofence.fold.LOG_0.7", parked("police-alerts")),
        ("parked.dispatch-warning.fold.LOG_0.7", parked()),
        ("parked.dispatch-warning.warning-alerts.LOG_0.7", parked("warning-alerts")),
    ],
)
def test_what_disagrees_with_its_subject_is_passed_over(subject: str, data: bytes) -> None:
    assert _parked_entry(message(subject, data)) is None
