"""A panic that a vendor reports says whether it was called in silence, and so does its entry of the log."""

from __future__ import annotations

import pytest

from services.common.errors import InvalidField
from services.geofence import translate as geofence_translate
from services.geofence.domain.entries import EquipmentReport
from services.ingest import translate
from tandem.common.v1 import log_pb2
from tandem.ingest.v1 import ingest_pb2


def event(kind: log_pb2.EquipmentKind.ValueType, *, silent: bool) -> ingest_pb2.EquipmentEvent:
    message = ingest_pb2.EquipmentEvent(device_id="phone", report_id="r-1", event=kind, silent=silent)
    message.event_time.FromMilliseconds(1_000)
    return message


@pytest.mark.parametrize("silent", [False, True])
def test_the_entry_of_the_log_says_what_the_vendor_reported(silent: bool) -> None:
    entry = translate.equipment_entry(translate.parse_equipment(event(log_pb2.PANIC_BUTTON, silent=silent)), 5)
    body = geofence_translate.entry_body(entry.SerializeToString())
    assert isinstance(body, EquipmentReport) and body.silent is silent


def test_another_event_is_not_silent() -> None:
    with pytest.raises(InvalidField, match="PANIC_BUTTON") as refused:
        translate.parse_equipment(event(log_pb2.BATTERY_LOW, silent=True))
    assert refused.value.field == "silent"
