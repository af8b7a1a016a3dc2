"""What both forms of the phones' protocol share: Traccar's names of alarms, and what stands in for an accuracy that isn't said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from services.common import times
from services.common.rpc.errors import InvalidField
from services.ingest.domain import EquipmentEvent, Position
from tandem.common.v1 import log_pb2

ACCURACY_UNSAID_M = 50.0
"""Stands in for an accuracy that isn't said: about what a phone has in a street of high houses, and worse than it has in the open.

A smaller one would claim to know more than was said; a much larger one would make each ring larger, and officers ride for nothing.
"""
MAX_ALARMS = 16
"""Most alarms in one request."""

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
"""Traccar's alarms (Position.java, ALARM_...) that say what an equipment event says. Its others, such as overspeed, are refused."""

Said: TypeAlias = Position | EquipmentEvent | InvalidField
"""A report, or why it can't be one."""


@dataclass(frozen=True, slots=True)
class PhoneRequest:
    """What a phone sent at once."""

    device_id: str
    """The device that it names."""
    said: list[Said]
    """Its position, if it gave one, and then its alarms; at least one."""


def position(
    device_id: str, report_id: str, fix_time_ms: int, lat_deg: float, lon_deg: float, accuracy_m: float
) -> Position:
    """A position of values that were checked, quantised as the log keeps it.

    Phones give an accuracy of 0 where they don't know it; it is no claim to be exact.
    """
    accuracy_mm = max(1, round((accuracy_m or ACCURACY_UNSAID_M) * 1000))
    return Position(device_id, report_id, fix_time_ms, round(lat_deg * 1e7), round(lon_deg * 1e7), accuracy_mm)


def moment_ms(field: str, ms: int) -> int:
    """A time that the log can hold, milliseconds since 1970 UTC."""
    if not times.MIN_MS <= ms <= times.MAX_MS:
        raise InvalidField(field, "must be between the years 1 and 9999")
    return ms


def alarms(
    field: str, names: str, device_id: str, report_id: str, time_ms: int | InvalidField | None, received_ms: int
) -> list[Said]:
    """The alarms of a request, which Traccar separates by commas; each is a report of its own beside the position's.

    A panic isn't lost for a time that can't be read, nor for a clock that is ahead: it has happened when it is received.
    """
    at_ms = min(time_ms, received_ms) if isinstance(time_ms, int) else received_ms
    listed = list(dict.fromkeys(names.split(",")))
    if len(listed) > MAX_ALARMS:
        return [InvalidField(field, f"has more than {MAX_ALARMS} alarms")]
    return [
        EquipmentEvent(device_id, f"{report_id}-{name}", ALARMS[name], at_ms)
        if name in ALARMS
        else InvalidField(field, f"is none of {', '.join(ALARMS)}")
        for name in listed
    ]
