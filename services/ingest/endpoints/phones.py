"""Parts that both phone protocols share: Traccar's alarm names, and the default accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from services.common import times
from services.common.rpc.errors import InvalidField
from services.ingest.domain import EquipmentEvent, Position
from tandem.common.v1 import log_pb2

DEFAULT_ACCURACY_M = 50.0
"""Accuracy assumed for a position without one, metres: about that of a phone between high buildings, and worse than in the open.

A smaller value would claim more than the phone said. A much larger one would enlarge every ring and send officers out for nothing.
"""
MAX_ALARMS = 16
"""Maximum number of alarms in a request."""

ALARMS: Mapping[str, log_pb2.EquipmentKind.ValueType] = {
    "sos": log_pb2.PANIC_BUTTON,
    "lowBattery": log_pb2.BATTERY_LOW,
    "tampering": log_pb2.CASE_OPEN,
    "removing": log_pb2.STRAP_OPEN,
    "powerOff": log_pb2.SHUTDOWN,
    "powerOn": log_pb2.STARTED,
    "powerCut": log_pb2.CHARGER_REMOVED,
    "powerRestored": log_pb2.CHARGER_CONNECTED,
    "jamming": log_pb2.JAMMING_SUSPECTED,
}
"""Traccar's alarms (Position.java, ALARM_...) that match an equipment event. The others, such as overspeed, are refused."""

Said: TypeAlias = Position | EquipmentEvent | InvalidField
"""Report of a phone, or the error in it."""


@dataclass(frozen=True, slots=True)
class PhoneRequest:
    """Reports of one request of a phone."""

    device_id: str
    """Device that the request names."""
    said: list[Said]
    """The position, if the request has one, and then the alarms. At least one report or error."""


def position(
    device_id: str, report_id: str, fix_time_ms: int, *, lat_deg: float, lon_deg: float, accuracy_m: float
) -> Position:
    """Makes a position of checked values, quantised as the log keeps it.

    Phones send an accuracy of 0 if they don't know the accuracy, so 0 counts as missing.
    """
    accuracy_mm = max(1, round((accuracy_m or DEFAULT_ACCURACY_M) * 1000))
    return Position(
        device_id=device_id,
        report_id=report_id,
        fix_time_ms=fix_time_ms,
        lat_e7=round(lat_deg * 1e7),
        lon_e7=round(lon_deg * 1e7),
        accuracy_mm=accuracy_mm,
    )


def moment_ms(field: str, ms: int) -> int:
    """Checks that the log can hold a time, milliseconds since 1970 UTC. Raises InvalidField."""
    if not times.MIN_MS <= ms <= times.MAX_MS:
        raise InvalidField(field, "must be between the years 1 and 9999")
    return ms


def alarms(
    field: str, names: str, device_id: str, *, report_id: str, time_ms: int | InvalidField | None, received_ms: int
) -> list[Said]:
    """Reads the alarms of a request, which Traccar separates by commas. Each becomes a report besides the position.

    If the time is missing, unreadable or in the future, the time of receipt counts, so that no panic is lost because of its time.
    """
    at_ms = min(time_ms, received_ms) if isinstance(time_ms, int) else received_ms
    listed = list(dict.fromkeys(names.split(",")))
    if len(listed) > MAX_ALARMS:
        return [InvalidField(field, f"has more than {MAX_ALARMS} alarms: send the others in another request")]
    return [
        EquipmentEvent(device_id=device_id, report_id=f"{report_id}-{name}", event=ALARMS[name], event_time_ms=at_ms)
        if name in ALARMS
        else InvalidField(field, f"is none of {', '.join(ALARMS)}: other alarms are not accepted")
        for name in listed
    ]
