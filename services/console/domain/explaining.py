"""Explains each alert of an incident from a leg's copy of the evidence: figures, and the known positions of both sides. Pure.

It only reads the copy. `tandem explain` and `tandem evidence verify` check that the decision can be reproduced.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

SHOWN = 3
LOOK_BACK_MS = 600_000


@dataclass(frozen=True, slots=True)
class TrackPoint:
    """Position that a device reported; times in milliseconds since 1970 UTC."""

    time_ms: int
    arrived_ms: int
    lat_deg: float
    lon_deg: float
    accuracy_m: float
    sequence: int
    source: str = "UNSPECIFIED"
    """Where the position comes from: GNSS, WIFI, CELL or UNSPECIFIED."""


@dataclass(frozen=True, slots=True)
class DeviceTrack:
    """Positions of one device, in the order of the log."""

    device_id: str
    subject_id: str
    of_wearer: bool
    points: tuple[TrackPoint, ...]


@dataclass(frozen=True, slots=True)
class DeviceSide:
    """Positions of one device that were known at a decision."""

    device_id: str
    of_wearer: bool
    last: tuple[TrackPoint, ...]
    """Last positions before the decision, at most SHOWN."""
    silence_ms: int | None
    """Longest time without a position in the 10 minutes before the decision, in ms; None if there was no position at all. Before the
    first position of the copy nothing counts, as the device may have had no owner then."""


def sides(tracks: Iterable[DeviceTrack], sequence: int, decided_ms: int) -> list[DeviceSide]:
    """Returns each device's positions that were in the log up to the deciding entry."""
    result = []
    for track in tracks:
        known = [point for point in track.points if point.sequence <= sequence]
        from_ms = decided_ms - LOOK_BACK_MS
        moments = [max(from_ms, point.arrived_ms) for point in known if point.arrived_ms <= decided_ms]
        silence_ms = longest_gap_ms([*moments, decided_ms]) if moments else None
        result.append(
            DeviceSide(
                device_id=track.device_id, of_wearer=track.of_wearer, last=tuple(known[-SHOWN:]), silence_ms=silence_ms
            )
        )
    return result


def longest_gap_ms(moments: Sequence[int]) -> int:
    """Returns the longest time between two successive moments, in ms; 0 for less than two moments."""
    return max((after - before for before, after in pairwise(moments)), default=0)
