"""What a report says, as the log keeps it. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from services.common.errors import InvalidField

FUTURE_MS = 120_000
"""A time by the device more than 2 minutes ahead of the mesh is refused."""
BATCH_MOST = 1_000
"""Most reports in one batch."""
ACCURACY_MOST_M = 100_000.0


@dataclass(frozen=True, slots=True)
class Position:
    """A position of a device, quantised as the log keeps it."""

    device_id: str
    report_id: str
    fix_time_ms: int
    lat_e7: int
    lon_e7: int
    accuracy_mm: int


@dataclass(frozen=True, slots=True)
class Equipment:
    """Something that a device says about itself; `event` is the number of the protos' EquipmentKind."""

    device_id: str
    report_id: str
    event: int
    event_time_ms: int


def check_not_ahead(field: str, time_ms: int, now_ms: int) -> None:
    """Raises InvalidField where a device's time is more than 2 minutes ahead of the mesh."""
    if time_ms > now_ms + FUTURE_MS:
        raise InvalidField(field, "is more than 2 minutes in the future")
