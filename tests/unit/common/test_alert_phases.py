"""Which part of an event an alert tells, for each kind and demand that the fold gives."""

from __future__ import annotations

import pytest

from services.common.alert_phases import AlertPhase, phase_of
from services.geofence.domain import demands
from services.geofence.domain.demands import AlertKind, Detection
from services.geofence.domain.entries import Demand, EquipmentKind
from tandem.common.v1 import alert_pb2, geometry_pb2

_DESK = alert_pb2.Destination(leg=alert_pb2.POLICE, subject_id="p1")
BEGINNINGS = {
    Detection.NOT_HEARD,
    Detection.HEARD_AGAIN,
    Detection.PRESENCE_CONTRADICTED,
    Detection.JUMPED,
    Detection.FROZEN,
    Detection.REMOVAL_BEGUN,
    Detection.STRAP_OPENED_BY_PERMISSION,
    Detection.STRAP_CLOSED_BY_PERMISSION,
}
ENDS = {Detection.PERSON_FOUND, Detection.OUTAGE_OVER, Detection.FITTING_SETTLED, Detection.LAPSE_SETTLED}
OF_UNSEEN_WEARERS = {
    Detection.IN_REACH,
    Detection.POSITION_REGAINED,
    Detection.PRESENT_AT_UNIT,
    Detection.POSSIBLY_INSIDE_RECORDED,
}
OF_SPOOFING = {Detection.LEFT_BY_JUMP_REPEATED, Detection.WAY_FOUND}


def alert(of: tuple[AlertKind, Demand], *, outage_id: str = "", ring_m: float = 0.0) -> alert_pb2.Alert:
    kind, demand = of
    return alert_pb2.Alert(
        kind=alert_pb2.AlertKind.Value(kind.value),
        demand=geometry_pb2.Demand.Value(demand.name),
        outage_id=outage_id,
        ring_m=ring_m,
    )


def test_each_detection_for_the_record_is_a_beginning_an_end_or_a_change() -> None:
    recorded = {detection for detection, (_, demand) in demands.DETECTIONS.items() if demand is Demand.RECORD}
    assert recorded == BEGINNINGS | ENDS | OF_UNSEEN_WEARERS | OF_SPOOFING
    for detection in BEGINNINGS:
        assert phase_of(alert(demands.DETECTIONS[detection])) is AlertPhase.BEGUN, detection
    for detection in ENDS:
        outage_id = "outage-1" if detection is Detection.OUTAGE_OVER else ""
        assert phase_of(alert(demands.DETECTIONS[detection], outage_id=outage_id)) is AlertPhase.OVER, detection
    for detection in OF_SPOOFING:
        assert phase_of(alert(demands.DETECTIONS[detection])) is AlertPhase.CHANGED, detection


def test_what_demands_somebody_has_begun() -> None:
    for of in (*demands.DETECTIONS.values(), *demands.EQUIPMENT.values()):
        if of[1] is not Demand.RECORD:
            assert phase_of(alert(of)) is AlertPhase.BEGUN, of


@pytest.mark.parametrize(("end", "begun"), demands.ENDS.items())
def test_the_end_of_an_equipment_event_is_an_end(end: EquipmentKind, begun: EquipmentKind) -> None:
    assert phase_of(alert(demands.EQUIPMENT[end])) is AlertPhase.OVER
    assert phase_of(alert(demands.EQUIPMENT[begun])) is AlertPhase.BEGUN


def test_a_silence_that_an_outage_explains_is_a_beginning() -> None:
    """The fold records the beginning alone, as the notice of the outage covers it."""
    for kind in (AlertKind.SILENT, AlertKind.PROTECTED_DEVICE_LOST, AlertKind.UNKNOWN_NEAR):
        assert phase_of(alert((kind, Demand.RECORD), outage_id="outage-1")) is AlertPhase.BEGUN


def test_a_record_about_an_unseen_wearer_is_an_end_only_where_the_desks_learn_of_it() -> None:
    recorded = alert(demands.DETECTIONS[Detection.POSITION_REGAINED])
    assert phase_of(recorded) is AlertPhase.CHANGED
    recorded.destinations.append(_DESK)
    assert phase_of(recorded) is AlertPhase.OVER
    possible = alert(demands.DETECTIONS[Detection.POSSIBLY_INSIDE_RECORDED], ring_m=100)
    assert phase_of(possible) is AlertPhase.BEGUN


@pytest.mark.parametrize(
    "kind", [AlertKind.RING_CLEARED, AlertKind.TAMPERED, AlertKind.UNKNOWN_NEAR, AlertKind.HEARD_AGAIN]
)
def test_an_end_that_no_report_shows_is_unconfirmed(kind: AlertKind) -> None:
    ended = alert((kind, Demand.RECORD))
    ended.destinations.append(_DESK)
    assert phase_of(ended) is not AlertPhase.UNCONFIRMED
    ended.unconfirmed = True
    assert phase_of(ended) is AlertPhase.UNCONFIRMED
