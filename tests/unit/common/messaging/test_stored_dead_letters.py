"""A dead letter is valid only under the subject of its reader, which only the reader's user may publish."""

from __future__ import annotations

import pytest

from services.common.errors import InvalidField
from services.common.messaging import stored
from tandem.common.v1 import alert_pb2


def dead_letter(by: str = "fold", sequence: int = 7) -> bytes:
    return alert_pb2.DeadLetter(stream="LOG_0", sequence=sequence, by=by, reason="too late").SerializeToString()


def test_a_dead_letter_of_an_evaluator_is_accepted() -> None:
    parsed = stored.dead_letter(dead_letter(), "dead_letter.geofence.fold.LOG_0.7")
    assert (parsed.stream, parsed.sequence) == ("LOG_0", 7)


@pytest.mark.parametrize(
    ("subject", "data"),
    [
        ("dead_letter.geofence.fold.LOG_0.7", b""),
        ("dead_letter.geofence.fold.LOG_0.7", b"{}"),
        ("dead_letter.geofence.fold.LOG_0.7", b"\xff\xff\xff"),
        ("dead_letter.geofence.fold.LOG_0.7", dead_letter(sequence=8)),
        ("dead_letter.geofence.fold.LOG_0.7", dead_letter("police-alerts")),
        ("dead_letter.geofence.fold.LOG_0.7", dead_letter("nobody")),
        ("dead_letter.dispatch-warning.fold.LOG_0.7", dead_letter()),
        ("dead_letter.dispatch-warning.warning-alerts.LOG_0.7", dead_letter()),
    ],
)
def test_a_dead_letter_that_disagrees_with_its_subject_is_refused(subject: str, data: bytes) -> None:
    with pytest.raises(InvalidField):
        stored.dead_letter(data, subject)
