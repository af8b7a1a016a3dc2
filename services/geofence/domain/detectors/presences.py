"""Presences at home units and beacons: which reports are believed, and what they say about a wearer without a position.

A presence is weaker than a position. It puts off what silence would cause, as long as it is repeated; it never enters or clears a ring,
and it doesn't end a response (`silence.py`). Beacons can be carried away and copied, so a presence is compared with the positions round
it and with the presence before.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

from services.geofence.domain.alerts import CausingReport
from services.geofence.domain.decisions import Decisions
from services.geofence.domain.detectors import anomalies
from services.geofence.domain.detectors.reachability import AtUnit, Unseen
from services.geofence.domain.entries import (
    Case,
    EquipmentKind,
    PresenceReport,
    Presences,
    UnitPlace,
    UnitPlaceKind,
    unit_key,
)
from services.geofence.domain.geometry import Disc, Vector
from services.geofence.domain.kinematics.fixes import Fix
from services.geofence.domain.kinematics.track import OVERDUE_AFTER_MS, UNKNOWN_AFTER_MS, WINDOW_MS, Track
from services.geofence.domain.safe_region import ACCURACY_TIMES
from services.geofence.domain.state import State, UnitStay

DISTRUST_MS = 3_600_000
"""How long no presence at a unit is believed after one was contradicted, 1 h: a unit that was carried away stays away."""


def keep_believed(decisions: Decisions, batch: Presences) -> dict[str, CausingReport]:
    """Keeps the believed presences of a batch. Returns the cases to check, each with the last report that concerns it."""
    concerned: dict[str, CausingReport] = {}
    set_aside: Counter[str] = Counter()
    for report in batch.reports:
        cause = CausingReport(report.device_id, report.report_id, batch.received_wall_us)
        case_ids = decisions.state.cases_of.get(report.device_id)
        if not case_ids:
            continue  # no order restrains or protects the holder: nothing rests on the presence
        reason = _keep(decisions, report, case_ids, cause=cause)
        if reason:
            set_aside[reason] += 1
        else:
            concerned.update(dict.fromkeys(case_ids, cause))
    for reason, number in set_aside.items():
        decisions.dead_letter(f"{number} presences {reason}")
    return concerned


def _keep(decisions: Decisions, report: PresenceReport, case_ids: list[str], *, cause: CausingReport) -> str:
    """Keeps a presence if it is believed. Returns the reason why it is set aside; empty if it is well formed."""
    state, device_id = decisions.state, report.device_id
    seen_ms = min(report.seen_ms, state.now_ms)
    if seen_ms < state.now_ms - WINDOW_MS:
        return "older than 2 h"
    if seen_ms < state.owned_since.get(device_id, seen_ms):
        return "from before their device changed hands"
    unit = _unit(state, device_id, report.unit_id, case_ids=case_ids)
    if unit is None:
        return "at a unit that no case names for the holder of the device"
    if not unit.is_installed(seen_ms):
        return "from a time in which the unit wasn't installed"
    if state.now_ms < state.distrusted_units.get(unit.unit_id, 0) or _is_tampered_with(state, unit.unit_id):
        return ""
    known = state.stays.get(device_id)
    other = _unit(state, device_id, known.unit_id, case_ids=case_ids) if known else None
    contradicting = _contradicting(state, unit, seen_ms, device_id=device_id, known=known, other=other)
    if contradicting:
        for contradicted in contradicting:
            state.distrusted_units[contradicted.unit_id] = state.now_ms + DISTRUST_MS
        state.stays.pop(device_id, None)
        anomalies.presence_contradicted(decisions, case_ids, at_ms=seen_ms, cause=cause)
    elif known is None or (seen_ms, report.left) > (known.seen_ms, known.left):
        goes_on = known if known and other and _goes_on(known, other, unit, seen_ms=seen_ms) else None
        since_ms = _since_ms(state, report, unit, seen_ms=seen_ms, goes_on=goes_on)
        state.stays[device_id] = UnitStay(unit_id=unit.unit_id, since_ms=since_ms, seen_ms=seen_ms, left=report.left)
    return ""


def _unit(state: State, device_id: str, unit_id: str, *, case_ids: list[str]) -> UnitPlace | None:
    units = (unit_of(state.cases[case_id].case, device_id, unit_id) for case_id in case_ids)
    return next((unit for unit in units if unit), None)


def _contradicting(
    state: State,
    unit: UnitPlace,
    seen_ms: int,
    *,
    device_id: str,
    known: UnitStay | None,
    other: UnitPlace | None,
) -> tuple[UnitPlace, ...]:
    """The units of which at least one is wrong: this unit if a position contradicts it, both if the presence before does. Empty if the
    presence contradicts nothing."""
    if known and other and other.unit_id != unit.unit_id:
        took_ms = seen_ms - known.seen_ms
        if _is_too_far(state, other.place, unit.place.centre, took_ms=took_ms, vague_mm=unit.place.radius_mm):
            return unit, other
    track = state.tracks.get(device_id)
    for fix in track.round(seen_ms) if track and track.recent else ():
        if fix is not None:
            took_ms, vague_mm = seen_ms - fix.time_ms, ACCURACY_TIMES * fix.accuracy_mm
            if _is_too_far(state, unit.place, fix.point, took_ms=took_ms, vague_mm=vague_mm):
                return (unit,)
    return ()


def _is_too_far(state: State, place: Disc, point: Vector, *, took_ms: int, vague_mm: float) -> bool:
    """Whether no wearer can have moved between a place and a point in a time, by the speed bound."""
    return place.distance_bound_mm(point) - vague_mm > state.rules.reach_mps * abs(took_ms)


def _goes_on(known: UnitStay, other: UnitPlace, unit: UnitPlace, *, seen_ms: int) -> bool:
    """Whether a presence continues the one before: no report is missing, and the two units have a common place."""
    is_timely = not known.left and seen_ms - known.seen_ms <= _shown_for_ms(other)
    return (
        is_timely and math.dist(other.place.centre, unit.place.centre) <= other.place.radius_mm + unit.place.radius_mm
    )


def _since_ms(state: State, report: PresenceReport, unit: UnitPlace, *, seen_ms: int, goes_on: UnitStay | None) -> int:
    """Since when the device has been at the unit: as the sender says, as far as the record and the positions allow it, at most 2 h."""
    since_ms = min(report.since_ms, seen_ms)
    if goes_on:
        since_ms = min(since_ms, goes_on.since_ms)
    since_ms = max(since_ms, unit.installed_from_ms, seen_ms - WINDOW_MS, state.owned_since.get(report.device_id, 0))
    track = state.tracks.get(report.device_id)
    checked_ms = max(since_ms, goes_on.seen_ms) if goes_on else since_ms
    for fix in track.backwards() if track else ():
        if fix.time_ms < checked_ms:
            break
        away_mm = unit.place.distance_bound_mm(fix.point) - ACCURACY_TIMES * fix.accuracy_mm
        if fix.time_ms <= seen_ms and away_mm > 0:
            return fix.time_ms
    return since_ms


def end_at_unit(state: State, unit_id: str, cause: CausingReport) -> dict[str, CausingReport]:
    """Ends the presences at a unit that reports that it was opened or switched off. Returns the cases that rested on them, each with
    that report."""
    if not _is_tampered_with(state, unit_id):
        return {}
    case_ids = state.cases_of.get(unit_key(unit_id), ())
    for device_id in sorted({device_id for case_id in case_ids for device_id in state.cases[case_id].case.device_ids}):
        stay = state.stays.get(device_id)
        if stay and stay.unit_id == unit_id:
            del state.stays[device_id]
    return dict.fromkeys(case_ids, cause)


# ── a wearer at a unit ───────────────────────────────────────────────────────────────────────────────────────────────


MAX_ALONE_MS: Mapping[UnitPlaceKind, int] = {
    UnitPlaceKind.HOME_UNIT: 43_200_000,
    UnitPlaceKind.BLUETOOTH_BEACON: 1_200_000,
    UnitPlaceKind.WIFI_ACCESS_POINT: 1_200_000,
}
"""How long after the newest position a presence counts, ms: a night at a home unit, which reports its own opening and loss of power. A
beacon says nothing when it is carried along: with 1 h it hid three of four such approaches in the study of indoor wearers."""
LEFT_KNOWN_MS = 90_000
"""How long after a report that the wearer left the place counts as known: outdoors a tag has a position by then. He may have left in
any direction and by car, so no rest is assumed after that."""
TAMPERED_UNIT = (EquipmentKind.CASE_OPEN, EquipmentKind.SHUTDOWN, EquipmentKind.JAMMING_SUSPECTED)
"""Events that a home unit reports about itself after which it may be elsewhere, until it reports their end."""


def _shown_for_ms(unit: UnitPlace) -> int:
    """How long a presence at a unit stays known without another report, ms: 3 minutes, or 30 s longer than the unit's interval."""
    return max(UNKNOWN_AFTER_MS, unit.interval_ms + OVERDUE_AFTER_MS)


def _is_tampered_with(state: State, unit_id: str) -> bool:
    """Whether a unit reported that it was opened, jammed or switched off, and not yet that this is over."""
    active = state.active_events.get(unit_id, {})
    return any(event.value in active for event in TAMPERED_UNIT)


def unit_of(case: Case, device_id: str, unit_id: str) -> UnitPlace | None:
    """The unit that a case names for the holder of a device; None if it names none with this id."""
    holder = next((target.key for target in case.targets if device_id in target.device_ids), "")
    return next((unit for unit in case.units if (unit.unit_id, unit.holder) == (unit_id, holder)), None)


def unseen_at_unit(state: State, case: Case) -> Unseen | None:
    """The wearer as last shown by a home unit or beacon after the newest position; None if none did.

    The position counts as known until `from_ms`: as for a position, 3 minutes, or 30 s longer than the interval of the unit's
    reports; 90 s after a report that the wearer left.
    """
    track = state.last_track(case.tag_device_ids)
    if track is None:
        return None  # without any position nothing shows that the presence is true
    found: Unseen | None = None
    for tag_id in case.tag_device_ids:
        stay = state.stays.get(tag_id)
        unit = unit_of(case, tag_id, stay.unit_id) if stay else None
        shown = _shown(state, track, stay, unit=unit) if stay and unit else None
        if shown and (found is None or shown.last.time_ms > found.last.time_ms):
            found = shown
    return found


def _shown(state: State, track: Track, stay: UnitStay, *, unit: UnitPlace) -> Unseen | None:
    last = track.recent[-1]
    if not unit.is_installed(stay.seen_ms) or _is_tampered_with(state, unit.unit_id):
        return None
    seen_ms = min(stay.seen_ms, last.time_ms + MAX_ALONE_MS[unit.kind])
    if seen_ms <= last.time_ms:
        return None
    x_mm, y_mm, z_mm = map(round, unit.place.centre)
    fix = Fix(
        time_ms=seen_ms,
        fix_ms=seen_ms,
        report_id="",
        x_mm=x_mm,
        y_mm=y_mm,
        z_mm=z_mm,
        accuracy_mm=round(unit.place.radius_mm),
    )
    has_left = stay.left and seen_ms == stay.seen_ms
    rested_ms = 0 if has_left else max(0, seen_ms - stay.since_ms)
    return Unseen(track, seen_ms + (LEFT_KNOWN_MS if has_left else _shown_for_ms(unit)), AtUnit(fix, rested_ms))
