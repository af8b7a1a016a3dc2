"""Anomalies: alerts about positions that can't be accepted at face value.

Each anomaly gives an alert at most once an hour, and the positions still count.
"""

from __future__ import annotations

from services.geofence.domain import demands
from services.geofence.domain.alerts import AnomalyKind, CausingReport
from services.geofence.domain.decisions import Decisions
from services.geofence.domain.demands import Detection
from services.geofence.domain.detectors import approach
from services.geofence.domain.kinematics.track import UNKNOWN_AFTER_MS, Fix, Track

FIXES_PER_CHECK = 32
"""Number of fixes of a device between two checks of its whole track."""
UNDATED_AFTER_MS = 60_000
"""How long all reports of a device must be dated too far off before the alert; a backlog of hours soon ends with the present."""


def jumped(decisions: Decisions, fix: Fix, case_ids: list[str], *, cause: CausingReport) -> None:
    """Emits an alert for a jump that no movement explains. A jump near a target may be true, so it notifies the desks."""
    at_ms = fix.time_ms
    for case_id in case_ids:
        if approach.is_near(decisions.state, decisions.state.cases[case_id], cause.device_id, fix=fix):
            _emit(
                decisions,
                Detection.JUMPED_NEAR,
                AnomalyKind.JUMP,
                about=f"{cause.device_id} {case_id}",
                case_ids=[case_id],
                at_ms=at_ms,
                cause=cause,
            )
        else:
            _emit(
                decisions,
                Detection.JUMPED,
                AnomalyKind.JUMP,
                about=f"{case_id} {cause.device_id}",
                case_ids=[case_id],
                at_ms=at_ms,
                cause=cause,
            )


def check_track(decisions: Decisions, track: Track, case_ids: list[str], *, cause: CausingReport) -> None:
    """Emits an alert for positions that no working receiver gives: frozen or copied ones."""
    at_ms = track.fixes[-1].time_ms
    if track.is_frozen():
        _emit(
            decisions,
            Detection.FROZEN,
            AnomalyKind.FROZEN,
            about=cause.device_id,
            case_ids=case_ids,
            at_ms=at_ms,
            cause=cause,
        )
    elif track.is_copied():
        _emit(
            decisions,
            Detection.COPIED,
            AnomalyKind.COPIED,
            about=cause.device_id,
            case_ids=case_ids,
            at_ms=at_ms,
            cause=cause,
        )


def undated(decisions: Decisions, device_ids: set[str]) -> None:
    """Emits an alert for devices that are heard, but whose reports are all dated too far off to locate them."""
    state = decisions.state
    for device_id in sorted(device_ids):
        track = state.tracks.get(device_id)
        if track and track.fixes and state.now_ms - track.fixes[-1].time_ms <= UNKNOWN_AFTER_MS:
            continue
        since_ms = state.undated_ms.setdefault(device_id, state.now_ms)
        case_ids = state.cases_of.get(device_id)
        if case_ids and state.now_ms - since_ms >= UNDATED_AFTER_MS:
            cause = CausingReport(device_id, "", 0)
            _emit(
                decisions,
                Detection.UNDATED,
                AnomalyKind.CLOCK,
                about=device_id,
                case_ids=case_ids,
                at_ms=state.now_ms,
                cause=cause,
            )


def _emit(
    decisions: Decisions,
    detection: Detection,
    anomaly: AnomalyKind,
    *,
    about: str,
    case_ids: list[str],
    at_ms: int,
    cause: CausingReport,
) -> None:
    """Emits an alert about a device in each case in force, at most once an hour."""
    state = decisions.state
    in_force = [
        case_state
        for case_state in map(state.cases.__getitem__, case_ids)
        if case_state.case.valid_from_ms <= state.now_ms
    ]
    if not in_force or state.was_just_emitted(anomaly, about, at_ms):
        return
    kind, demand = demands.DETECTIONS[detection]
    for case_state in in_force:
        target = next((t for t in case_state.case.targets if cause.device_id in t.device_ids), None)
        reported_cause = cause if cause.report_id else None
        decisions.alert(case_state, kind, demand, at_ms=at_ms, target=target, cause=reported_cause, anomaly=anomaly)
    decisions.end_all_if_quiet(in_force)
