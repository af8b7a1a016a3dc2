"""Anomalies: alerts about positions that can't be accepted at face value.

Each anomaly gives an alert at most once an hour, and the positions still count. A departure of positions that repeat earlier ones or
each other gives no alert of its own: the all-clear is withheld (`withheld_clearing.py`).
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Any, NamedTuple

from services.geofence.domain.alerts import AnomalyKind, CausingReport
from services.geofence.domain.decisions import AlertDraft, Decisions
from services.geofence.domain.demands import Detection
from services.geofence.domain.kinematics import plausibility, rings
from services.geofence.domain.kinematics.fixes import Fix
from services.geofence.domain.kinematics.rings import AGREEING_FIXES
from services.geofence.domain.kinematics.track import Track, is_recent
from services.geofence.domain.pairs import Apart, apart
from services.geofence.domain.state import AnomalyKey, CasePart, CaseState, State

FIXES_PER_CHECK = 32
"""Number of fixes of a device between two checks of its whole track."""
FROZEN_MS = 600_000
"""Minimum duration of a frozen position: fixes that are equal to the digit for this long."""
MIN_COPIED = 16
"""Minimum number of fixes of a frozen position or of a copied stretch. So many different fixes don't equal earlier ones by accident."""
UNDATED_AFTER_MS = 60_000
"""How long all reports of a device must be dated too far off before the alert is emitted. A backlog of hours reaches the present
sooner."""
MAX_DEPARTED = 256
"""Number of positions of earlier departures that are kept of a tag: 3 to 15 departures."""


class Departed(NamedTuple):
    """A position of an earlier departure."""

    time_ms: int
    x_mm: int
    y_mm: int
    z_mm: int


def _departed_of(content: dict[str, Any]) -> dict[str, list[Departed]]:
    return {tag_id: [Departed._make(position) for position in known] for tag_id, known in content.items()}


DEPARTED: CasePart[dict[str, list[Departed]]] = CasePart(
    "departed", new=dict, encode=lambda departed: departed, decode=_departed_of, outlives_episode=True
)
"""Positions of each tag's earlier departures from rings, by tag, oldest first. The tracks have dropped them after 2 h, but a tag's
departure of yesterday can be copied today."""


def jumped(decisions: Decisions, fix: Fix, case_ids: list[str], *, cause: CausingReport) -> None:
    """Emits an alert for a jump that no movement explains. A jump near a target may be true, so it notifies the desks."""
    for case_id in case_ids:
        if _is_near(decisions.state, decisions.state.cases[case_id], cause.device_id, fix=fix):
            anomaly = _Anomaly(
                Detection.JUMPED_NEAR, AnomalyKey(AnomalyKind.JUMP, (cause.device_id, case_id)), fix.time_ms
            )
        else:
            anomaly = _Anomaly(Detection.JUMPED, AnomalyKey(AnomalyKind.JUMP, (case_id, cause.device_id)), fix.time_ms)
        _emit(decisions, anomaly, [case_id], device_id=cause.device_id, cause=cause)


def _is_near(state: State, case_state: CaseState, device_id: str, *, fix: Fix) -> bool:
    """Whether a fix allows that the wearer is within the ring that demands a response. The other side is assumed at the last known
    position."""
    case = case_state.case
    ring = case.response_ring
    if ring is None:
        return False
    for target in case.targets:
        if device_id in case.tag_device_ids:
            found = apart(state, fix, target)
        elif device_id in target.device_ids and (here := state.last_fix(case.tag_device_ids)):
            found = Apart(rings.apart_mm(here, fix, target.shape), here)
        else:
            continue
        if found and found.mm <= ring.radius_mm + fix.accuracy_mm + (found.there.accuracy_mm if found.there else 0):
            return True
    return False


def check_track(decisions: Decisions, track: Track, case_ids: list[str], *, cause: CausingReport) -> None:
    """Emits an alert for positions that no working receiver gives: frozen or copied ones."""
    at_ms, about = track.recent[-1].time_ms, (cause.device_id,)
    if _is_frozen(track):
        anomaly = _Anomaly(Detection.FROZEN, AnomalyKey(AnomalyKind.FROZEN, about), at_ms)
    elif _is_copied(track):
        anomaly = _Anomaly(Detection.COPIED, AnomalyKey(AnomalyKind.COPIED, about), at_ms)
    else:
        return
    _emit(decisions, anomaly, case_ids, device_id=cause.device_id, cause=cause)


def _is_frozen(track: Track) -> bool:
    """Whether the newest fixes are equal to the digit for 10 minutes, and no earlier fix equals the one before it.

    The positions of a standing device jitter. A receiver that pins its position at every standstill has done so before, so its
    positions don't count as frozen.
    """
    newest = track.recent[-2:]
    if len(newest) < 2 or newest[0][3:6] != newest[1][3:6]:
        return False  # nearly always
    fixes = track.backwards()
    last = next(fixes)
    pinned = 1
    since_ms = last.time_ms
    moving = None
    for fix in fixes:
        if fix[3:6] != last[3:6]:
            moving = fix
            break
        pinned, since_ms = pinned + 1, fix.time_ms
    if moving is None or pinned < MIN_COPIED or last.time_ms - since_ms < FROZEN_MS:
        return False
    earlier = 1
    for fix in fixes:
        if fix[3:6] == moving[3:6]:
            return False
        earlier, moving = earlier + 1, fix
    return earlier >= MIN_COPIED


def _is_copied(track: Track) -> bool:
    """Whether the newest 16 fixes, all different, equal an earlier stretch to the digit and in order."""
    if track.count < 2 * MIN_COPIED:
        return False
    # Hardly any earlier fix equals the newest to the digit, so the others are compared only if one may. Only such a track is unpacked.
    if not track.may_hold_point(track.recent[-1][3:6], MIN_COPIED):
        return False
    newest = [fix[3:6] for fix in track.newest(MIN_COPIED)]
    if len(set(newest)) < MIN_COPIED:
        return False
    points = [fix[3:6] for fix in track.fixes]
    last = len(points) - MIN_COPIED
    ends = [end for end in range(MIN_COPIED, last + 1) if points[end - 1] == newest[-1]]
    return any(points[end - MIN_COPIED : end] == newest for end in ends)


def undated(decisions: Decisions, device_ids: set[str]) -> None:
    """Emits an alert for each device that is heard but can't be located, because all its reports are dated too far off."""
    state = decisions.state
    for device_id in sorted(device_ids):
        track = state.tracks.get(device_id)
        if track and track.recent and is_recent(track.recent[-1].time_ms, state.now_ms):
            continue
        since_ms = state.undated_ms.setdefault(device_id, state.now_ms)
        case_ids = state.cases_of.get(device_id)
        if case_ids and state.now_ms - since_ms >= UNDATED_AFTER_MS:
            anomaly = _Anomaly(Detection.UNDATED, AnomalyKey(AnomalyKind.CLOCK, (device_id,)), state.now_ms)
            _emit(decisions, anomaly, case_ids, device_id=device_id, cause=None)


def presence_contradicted(decisions: Decisions, case_ids: list[str], *, at_ms: int, cause: CausingReport) -> None:
    """Emits an alert for a presence of a device at a home unit or beacon that isn't believed."""
    anomaly = _Anomaly(Detection.PRESENCE_CONTRADICTED, AnomalyKey(AnomalyKind.PRESENCE, (cause.device_id,)), at_ms)
    _emit(decisions, anomaly, case_ids, device_id=cause.device_id, cause=cause)


def repeated_since_ms(
    case_state: CaseState, tag_id: str, track: Track, *, from_ms: int, was_notified: bool
) -> int | None:
    """Time, ms, of the first position after `from_ms` if the tag's positions since then repeat earlier ones or each other; else None.

    Once the desks were notified, four positions that repeat nothing end a copy.
    """
    index = bisect_left(track.fixes, (from_ms,))
    departure, before = track.fixes[index:], track.fixes[max(0, index - plausibility.KNOWN_FIXES) : index]
    if not departure:
        return None
    if plausibility.is_pinned(departure, before):
        return departure[0].time_ms
    since_ms = before[0].time_ms if before else from_ms
    departed = DEPARTED.of(case_state).get(tag_id, [])
    earlier = [position[1:] for position in departed if position.time_ms < since_ms] + [fix[3:6] for fix in before]
    copied = plausibility.last_copied(departure, earlier)
    if copied is None or (was_notified and copied < departure[-AGREEING_FIXES]):
        return None
    return departure[0].time_ms


def keep_departure(case_state: CaseState, tag_id: str, track: Track, *, from_ms: int) -> None:
    """Keeps the positions of a departure, from the last position before `from_ms` on."""
    known = DEPARTED.of(case_state).setdefault(tag_id, [])
    first_ms = max(from_ms, known[-1].time_ms + 1) if known else from_ms
    known += [
        Departed(time_ms=fix.time_ms, x_mm=fix.x_mm, y_mm=fix.y_mm, z_mm=fix.z_mm)
        for fix in track.since(first_ms)
        if fix.time_ms >= first_ms
    ]
    del known[:-MAX_DEPARTED]


class _Anomaly(NamedTuple):
    """A detected anomaly."""

    detection: Detection
    key: AnomalyKey
    at_ms: int


def _emit(
    decisions: Decisions, anomaly: _Anomaly, case_ids: list[str], *, device_id: str, cause: CausingReport | None
) -> None:
    """Emits an alert about a device in each case in force, at most once an hour."""
    state, at_ms = decisions.state, anomaly.at_ms
    in_force = [
        case_state
        for case_state in map(state.cases.__getitem__, case_ids)
        if case_state.case.valid_from_ms <= state.now_ms
    ]
    if not in_force or state.was_just_emitted(anomaly.key, at_ms):
        return
    for case_state in in_force:
        target = next((t for t in case_state.case.targets if device_id in t.device_ids), None)
        alert_type, kind = anomaly.detection.alert_type, anomaly.key.anomaly
        decisions.alert(case_state, AlertDraft(alert_type, at_ms, target=target, cause=cause, anomaly=kind))
    decisions.end_all_if_quiet(in_force)
