"""An id depends on its cause alone: a newer fold that detects more in an entry leaves the ids of other alerts unchanged."""

from __future__ import annotations

from services.geofence.domain.alerts import Alert
from services.geofence.domain.decisions import AlertDraft, Decisions
from services.geofence.domain.demands import AlertKind, AlertType
from services.geofence.domain.entries import Case, Demand, Ring, Target
from services.geofence.domain.geometry import PERSON
from services.geofence.domain.state import CaseState, State

TARGET = Target("person", True, ("app",), PERSON)
RING = Ring(100_000, Demand.RESPOND)


def case_state() -> CaseState:
    return CaseState(Case("case", 1, "order", "wearer", ("tag",), (TARGET,), (RING,), 0, 10**15))


def decided(*found: tuple[AlertKind, Demand, Ring | None], sequence: int = 7, stamp_ms: int = 1_000) -> list[Alert]:
    decisions = Decisions(State(partition=0, log_id="log"), sequence, stamp_ms)
    case = case_state()
    for kind, demand, ring in found:
        decisions.alert(case, AlertDraft(AlertType(kind, demand), 1_000, target=TARGET, ring=ring))
    return [alert for alert in decisions.out if isinstance(alert, Alert)]


ENTERED = (AlertKind.RING_ENTERED, Demand.RESPOND, RING)
MORE = (AlertKind.LOW_BATTERY, Demand.RECORD, None)


def test_other_detections_of_an_entry_change_no_id() -> None:
    (alone,) = decided(ENTERED)
    more, same = decided(MORE, ENTERED)
    assert (same.alert_id, same.episode_id, same.incident_id) == (alone.alert_id, alone.episode_id, alone.incident_id)
    assert more.alert_id != alone.alert_id


def test_no_two_alerts_share_an_id() -> None:
    found = decided(ENTERED, ENTERED, MORE, MORE) + decided(ENTERED, sequence=8)
    assert len({alert.alert_id for alert in found}) == len(found)


def test_an_entry_at_a_reused_sequence_has_new_ids() -> None:
    (lost,), (new,) = decided(ENTERED), decided(ENTERED, stamp_ms=1_001)
    assert not {lost.alert_id, lost.episode_id, lost.incident_id} & {new.alert_id, new.episode_id, new.incident_id}
