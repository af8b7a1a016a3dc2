"""Translates a leg's copy of the evidence into the content of the review page."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from services.common import times
from services.common.alert_phases import phase_of
from services.console.domain.explaining import DeviceTrack, TrackPoint
from services.console.translate import leg_name, source
from tandem.common.v1 import alert_pb2, geometry_pb2, log_pb2, notice_pb2
from tandem.dispatch.v1 import evidence_pb2


def tracks(copy: evidence_pb2.ReadEvidenceResponse) -> list[DeviceTrack]:
    """Returns the reported positions of each device."""
    return [
        DeviceTrack(
            device_id=track.device_id,
            subject_id=track.subject_id,
            of_wearer=track.of_wearer,
            points=tuple(
                TrackPoint(
                    time_ms=at.time_ms,
                    arrived_ms=at.arrived_ms,
                    lat_deg=at.lat_deg,
                    lon_deg=at.lon_deg,
                    accuracy_m=at.accuracy_m,
                    sequence=at.sequence,
                    source=source(at.source),
                )
                for at in track.points
            ),
        )
        for track in copy.tracks
    ]


def replay(copy: evidence_pb2.ReadEvidenceResponse) -> dict[str, Any]:
    """Returns the content of the map's replay: tracks, places and rings as far as the copy has them, and the alerts."""
    return {
        "tracks": [
            {
                "device": track.device_id,
                "subject": track.subject_id,
                "wearer": track.of_wearer,
                "points": [
                    [at.time_ms, at.lon_deg, at.lat_deg, at.accuracy_m, source(at.source)] for at in track.points
                ],
            }
            for track in copy.tracks
        ],
        "units": [
            {"unit": unit.unit_id, "points": [[at.time_ms, at.lon_deg, at.lat_deg] for at in unit.points]}
            for unit in copy.units
        ],
        "places": [place for case in copy.cases for place in _places(case)],
        "rings": sorted({ring.radius_m for case in copy.cases for ring in case.rings}),
        "alerts": [
            {
                "at": times.from_timestamp(alert.at),
                "kind": alert_pb2.AlertKind.Name(alert.kind),
                "phase": phase_of(alert).value,
                "ring": alert.ring_m,
            }
            for alert in copy.alerts
        ],
    }


def _places(case: log_pb2.CaseSnapshot) -> list[dict[str, Any]]:
    places: list[dict[str, Any]] = []
    for place in case.places:
        if place.HasField("circle"):
            circle = place.circle
            places.append(
                {"id": place.place_id, "lon": circle.lon_deg, "lat": circle.lat_deg, "radius": circle.radius_m}
            )
        else:
            holes = [_line(hole.vertices) for hole in place.polygon.holes]
            places.append({"id": place.place_id, "line": _line(place.polygon.vertices), "holes": holes})
    return places


def _line(vertices: Iterable[geometry_pb2.Point]) -> list[list[float]]:
    """Corners as longitude and latitude."""
    return [[vertex.lon_deg, vertex.lat_deg] for vertex in vertices]


def alerts(copy: evidence_pb2.ReadEvidenceResponse) -> list[dict[str, Any]]:
    """Returns the incident's alerts, with figures if the copy has them. A replaced account has the time of the valid one."""
    figures = {measure.alert_id: measure for measure in copy.measures}
    valid = {alert.amends: alert for alert in copy.alerts if alert.amends}
    shown = []
    for alert in copy.alerts:
        measure = figures.get(alert.alert_id)
        replaced_by = valid.get(alert.amends or alert.alert_id, alert)
        shown.append(
            {
                "id": alert.alert_id,
                "kind": alert_pb2.AlertKind.Name(alert.kind),
                "phase": phase_of(alert).value,
                "demand": geometry_pb2.Demand.Name(alert.demand),
                "order": alert.order_id,
                "target": alert.target_id,
                "ring": alert.ring_m,
                "at": times.from_timestamp(alert.at),
                "decided": times.from_timestamp(alert.decided_at),
                "sequence": alert.sequence,
                "late": alert.late,
                "report": f"{alert.cause.report_id} / {alert.cause.device_id}" if alert.HasField("cause") else "",
                "fold": alert.fold_version,
                "rules": alert.rules_id,
                "to": [(leg_name(to.leg), to.subject_id) for to in alert.destinations],
                "notice": notice_pb2.NoticeGround.Name(alert.ministry_notice.ground)
                if alert.HasField("ministry_notice")
                else "",
                "location": bool(measure and measure.location_allowed),
                "checks": [leg_name(check.leg) for check in alert.checks],
                "distance": measure.distance_m if measure and measure.HasField("distance_m") else None,
                "probability": measure.probability if measure and measure.HasField("probability") else None,
                "inside": [
                    (times.from_timestamp(getattr(stretch, "from")), times.from_timestamp(stretch.to))
                    for stretch in measure.inside
                ]
                if measure
                else [],
                "least": measure.min_distance_m if measure and measure.HasField("min_distance_m") else None,
                "least_assumed": bool(measure and measure.min_distance_assumed),
                "replaced_ms": times.from_timestamp(replaced_by.decided_at) if replaced_by is not alert else None,
            }
        )
    return shown


def rules(copy: evidence_pb2.ReadEvidenceResponse) -> dict[str, Any]:
    """Returns the rules that were set explicitly; the others have their defaults."""
    return {field.name: value for field, value in copy.rules.ListFields()}
