"""What a presence at a home unit or beacon says about a wearer without a position, and for how long."""

from __future__ import annotations

from collections.abc import Mapping

from services.geofence.domain.entries import Case, EquipmentKind, UnitPlace, UnitPlaceKind
from services.geofence.domain.kinematics.reachability import AtUnit, Unseen
from services.geofence.domain.kinematics.track import OVERDUE_AFTER_MS, UNKNOWN_AFTER_MS, Track
from services.geofence.domain.state import State
from services.geofence.domain.tracks.fixes import Fix
from services.geofence.domain.tracks.stays import UnitStay

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


def known_ms(unit: UnitPlace) -> int:
    """How long a presence at a unit stays known without another report, ms: 3 minutes, or 30 s longer than the unit's interval."""
    return max(UNKNOWN_AFTER_MS, unit.interval_ms + OVERDUE_AFTER_MS)


def is_tampered_with(state: State, unit_id: str) -> bool:
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
    if not unit.is_installed(stay.seen_ms) or is_tampered_with(state, unit.unit_id):
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
    return Unseen(track, seen_ms + (LEFT_KNOWN_MS if has_left else known_ms(unit)), AtUnit(fix, rested_ms))
