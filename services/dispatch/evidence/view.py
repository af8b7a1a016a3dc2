"""Converts a copy of evidence to a message that a map can draw: tracks, cases and alerts. Nothing but the copy is read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from services.common.clock import MeshClock
from services.common.messaging import flow
from services.dispatch.evidence.model import MARK_SUBJECT, Evidence, StoredMessage
from services.dispatch.evidence.redaction import entry_of
from services.dispatch.roster.tracks import UnitPosition
from tandem.common.v1 import alert_pb2, log_pb2, presence_pb2
from tandem.dispatch.v1 import evidence_pb2, unit_track_pb2


def view(evidence: Evidence, clock: MeshClock) -> evidence_pb2.ReadEvidenceResponse:
    """Converts a copy of evidence to a response. The times in the response are mesh time."""
    response = evidence_pb2.ReadEvidenceResponse(whole=evidence.whole, ended=evidence.ended)
    cases: dict[str, log_pb2.CaseSnapshot] = {}
    points: dict[str, dict[str, evidence_pb2.TrackPoint]] = {}
    for record in sorted(evidence.of(flow.log_stream(evidence.partition)), key=lambda record: record.sequence):
        if record.subject == MARK_SUBJECT:
            continue
        entry = entry_of(record.data)
        match entry.WhichOneof("body"):
            case "case":
                cases[entry.case.case_id] = _without_contacts(entry.case)
            case "rules":
                response.rules.CopyFrom(entry.rules)
            case "positions":
                _add_points(points, entry.positions, record, arrived_ms=clock.to_mesh_ms(record.stamp_ms))
    response.cases.extend(cases.values())
    owners = _owners(cases.values())
    for device_id, by_report in points.items():
        subject_id, of_wearer = owners.get(device_id, ("", False))
        response.tracks.add(device_id=device_id, subject_id=subject_id, of_wearer=of_wearer, points=by_report.values())
    alerts = [alert_pb2.Alert.FromString(record.data) for record in evidence.of(flow.ALERTS.name)]
    mine = [alert for alert in alerts if alert.incident_id == evidence.incident_id]
    response.alerts.extend(sorted(mine, key=lambda alert: (alert.sequence, alert.ordinal)))
    known = {alert.alert_id for alert in mine}
    measures = (alert_pb2.Measure.FromString(record.data) for record in evidence.of(flow.MEASURES.name))
    response.measures.extend(measure for measure in measures if measure.alert_id in known)
    return response


def unit_tracks(units: Mapping[str, Sequence[UnitPosition]]) -> list[unit_track_pb2.UnitTrack]:
    """Converts the positions of units, by unit id, to messages."""
    return [
        unit_track_pb2.UnitTrack(
            unit_id=unit_id,
            points=[
                unit_track_pb2.UnitTrackPoint(time_ms=at.at_ms, lat_deg=at.point.lat_deg, lon_deg=at.point.lon_deg)
                for at in positions
            ],
        )
        for unit_id, positions in units.items()
    ]


def _add_points(
    points: dict[str, dict[str, evidence_pb2.TrackPoint]],
    batch: log_pb2.PositionBatch,
    record: StoredMessage,
    *,
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
                source=batch.source[i] if batch.source else presence_pb2.POSITION_SOURCE_UNSPECIFIED,
            )
            report_id = batch.report_id[i]
        except IndexError:
            return  # columns of different lengths: the fold made the batch a dead letter
        points.setdefault(device_id, {}).setdefault(report_id, point)


def _owners(cases: Iterable[log_pb2.CaseSnapshot]) -> dict[str, tuple[str, bool]]:
    """Returns the owner of each device, by device id: the owner's id, and whether the owner is the wearer."""
    owners: dict[str, tuple[str, bool]] = {}
    for case in cases:
        owners |= {id_: (case.wearer_id, True) for id_ in case.tag_device_ids}
        owners |= {id_: (person.person_id, False) for person in case.persons for id_ in person.device_ids}
    return owners


def _without_contacts(case: log_pb2.CaseSnapshot) -> log_pb2.CaseSnapshot:
    kept = log_pb2.CaseSnapshot()
    kept.CopyFrom(case)
    for person in kept.persons:
        person.ClearField("sealed_contact")
    return kept
