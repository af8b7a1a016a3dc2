"""Retention: the fold destroys the positions that no decision needs any more.

Most fixes leave a track as newer ones arrive (`hot_loop.forget_old`). Once an hour the fold also drops the positions that no report
pushes out: those of devices that no case names, of ended cases, and of devices that fell silent. It drops presences that aren't
repeated, too. The next checkpoint holds none of them.
"""

from __future__ import annotations

from services.geofence.domain import hot_loop
from services.geofence.domain.detectors.anomalies import DEPARTED
from services.geofence.domain.kinematics.track import WINDOW_MS
from services.geofence.domain.state import State

INTERVAL_MS = 3_600_000
"""Interval between two sweeps over all devices, 1 h."""

_AS_OF_THE_HOUR_VERSION = 14


def pass_time(state: State, before_ms: int, now_ms: int) -> None:
    """Destroys old positions if a full hour of mesh time lies between two moments.

    What is old follows from the last full hour, so it doesn't matter how long after that hour the log has its next entry: an amendment
    in that entry may name a device whose last position still counts.
    """
    if now_ms // INTERVAL_MS == before_ms // INTERVAL_MS:
        return
    hour_ms = now_ms - now_ms % INTERVAL_MS if state.log_version >= _AS_OF_THE_HOUR_VERSION else now_ms
    horizon_ms = hour_ms - WINDOW_MS
    # In a country the fold stops for this sweep, so the devices are found in one expression.
    old_ids = [
        device_id
        for device_id, track in state.tracks.items()
        if track.recent and track.recent[-1][0] < horizon_ms  # of all others the next reports push out the older fixes
    ]
    for device_id in old_ids:
        case_ids = state.cases_of.get(device_id)
        if case_ids:
            hot_loop.forget_old(state, device_id, case_ids)
        else:
            del state.tracks[device_id]
    _drop_presences(state, horizon_ms)
    for case_state in state.cases.values():
        if case_state.ended:
            case_state.of_case.pop(DEPARTED.name, None)


def _drop_presences(state: State, horizon_ms: int) -> None:
    for device_id, stay in list(state.stays.items()):
        if stay.seen_ms < horizon_ms:
            del state.stays[device_id]
    for unit_id, until_ms in list(state.distrusted_units.items()):
        if until_ms <= state.now_ms:
            del state.distrusted_units[unit_id]
