"""A dead letter counts only under the subject of the reader that it names, which that reader's user alone may publish."""

from __future__ import annotations

import pytest

from services.common.messaging import stored
from services.common.rpc.errors import InvalidField
from tandem.common.v1 import alert_pb2


def dead_letters(by: str = "fold", sequence: int = 7) -> bytes:
    return alert_pb2.DeadLetter(stream="LOG_0", sequence=sequence, by=by, reason="too late").SerializeToString()


def test_what_an_evaluator_set_aside_is_taken() -> None:
    found = stored.dead_letter(dead_letters(), "dead_letter.geofence.fold.LOG_0.7")
    assert (found.stream, found.sequence) == ("LOG_0", 7)


@pytest.mark.parametrize(
    ("subject", "data"),
    [
        ("dead_letter.geofence.fold.LOG_0.7", b""),
        ("dead_letter.geofence.fold.LOG_0.7", b"{}"),
        ("dead_letter.geofence.fold.LOG_0.7", b"\xff\xff\xff"),
        ("dead_letter.geofence.fold.LOG_0.7", dead_letters(sequence=8)),
        ("dead_letter.geofence.fold.LOG_0.7", dead_letters("police-alerts")),
        ("dead_letter.geofence.fold.LOG_0.7", dead_letters("nobody")),
        ("dead_letter.dispatch-warning.fold.LOG_0.7", dead_letters()),
        ("dead_letter.dispatch-warning.warning-alerts.LOG_0.7", dead_letters()),
    ],
)
def test_what_disagrees_with_its_subject_is_refused(subject: str, data: bytes) -> None:
    with pytest.raises(InvalidField):
        stored.dead_letter(data, subject)
