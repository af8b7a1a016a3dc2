"""A copy of evidence as it can be drawn: tracks, cases, alerts. It decides nothing and reads nothing but the copy."""

from __future__ import annotations

from collections.abc import Iterable

from services.common.clock import MeshClock
from services.common.messaging import flow
from services.dispatch.evidence.model import MARK_SUBJECT, Evidence, StoredMessage
from services.dispatch.evidence.redaction import entry_of
from tandem.common.v1 import alert_pb2, log_pb2
from tandem.dispatch.v1 import evidence_pb2


def view(found: Evidence, clock: MeshClock) -> evidence_pb2.ReadEvidenceResponse:
    """The copy as a message; times are the mesh's."""
    answer = evidence_pb2.ReadEvidenceResponse(whole=found.whole, ended=found.ended)
    cases: dict[str, log_pb2.CaseSnapshot] = {}
    points: dict[str, dict[str, evidence_pb2.TrackPoint]] = {}
    for record in sorted(found.of(flow.log_stream(found.partition)), key=lambda one: one.sequence):
        if record.subject == MARK_SUBJECT:
            continue
        entry = entry_of(record.data)
        match entry.WhichOneof("body"):
            case "case":
                cases[entry.case.case_id] = _without_contacts(entry.case)
            case "rules":
                answer.rules.CopyFrom(entry.rules)
            case "positions":
                _add_points(points, entry.positions, record, clock.to_mesh_ms(record.stamp_ms))
    answer.cases.extend(cases.values())
    owners = _owners(cases.values())
    for device_id, by_report in points.items():
        subject_id, of_wearer = owners.get(device_id, ("", False))
        answer.tracks.add(device_id=device_id, subject_id=subject_id, of_wearer=of_wearer, points=by_report.values())
    alerts = [alert_pb2.Alert.FromString(one.data) for one in found.of(flow.ALERTS.name)]
    mine = [alert for alert in alerts if alert.incident_id == found.incident_id]
    answer.alerts.extend(sorted(mine, key=lambda one: (one.sequence, one.ordinal)))
    known = {one.alert_id for one in mine}
    measures = (alert_pb2.Measure.FromString(one.data) for one in found.of(flow.MEASURES.name))
    answer.measures.extend(measure for measure in measures if measure.alert_id in known)
    return answer


def _add_points(
    points: dict[str, dict[str, evidence_pb2.TrackPoint]],
    batch: log_pb2.PositionBatch,
    record: StoredMessage,
    arrived_ms: int,
) -> None:
    for i, device_id in enumerate(batch.device_id):
        try:
            point = evidence_pb2.TrackPoint(
                time_ms=min(batch.fix_time_ms[i], arrived_ms),
                arrived_ms=arrived_ms,
                lat_deg=batch.lat_e7[i] / 1e7,
                lon_deg=batch.lon_e7[i] / 1e7,
                accuracy_m=batch.accuracy_mm[i] / 1000,
                sequence=record.sequence,
            )
            report_id = batch.report_id[i]
        except IndexError:
            return  # columns that don't fit: the fold has set the batch aside
        points.setdefault(device_id, {}).setdefault(report_id, point)


def _owners(cases: Iterable[log_pb2.CaseSnapshot]) -> dict[str, tuple[str, bool]]:
    """By device: whose it is, and whether that is the wearer."""
    found: dict[str, tuple[str, bool]] = {}
    for case in cases:
        found |= {id_: (case.wearer_id, True) for id_ in case.tag_device_ids}
        found |= {id_: (person.person_id, False) for person in case.persons for id_ in person.device_ids}
    return found


def _without_contacts(case: log_pb2.CaseSnapshot) -> log_pb2.CaseSnapshot:
    kept = log_pb2.CaseSnapshot()
    kept.CopyFrom(case)
    for person in kept.persons:
        person.ClearField("sealed_contact")
    return kept
