"""Why each alert of an incident was given, from a leg's copy of the evidence: figures, and what was known of both sides. Pure.

What it says is read off the copy; that the decision comes out the same again is for `tandem explain` and `tandem evidence verify`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

SHOWN = 3
LOOK_BACK_MS = 600_000


@dataclass(frozen=True, slots=True)
class TrackPoint:
    """A position that a device reported; times in milliseconds since 1970 UTC."""

    time_ms: int
    arrived_ms: int
    lat_deg: float
    lon_deg: float
    accuracy_m: float
    sequence: int


@dataclass(frozen=True, slots=True)
class DeviceTrack:
    """What one device reported, in the order of the log."""

    device_id: str
    subject_id: str
    of_wearer: bool
    points: tuple[TrackPoint, ...]


@dataclass(frozen=True, slots=True)
class DeviceSide:
    """What was known of one device when it was decided."""

    device_id: str
    of_wearer: bool
    last: tuple[TrackPoint, ...]
    """The last positions before it, at most SHOWN."""
    silence_ms: int | None
    """The longest stretch without a position in the 10 minutes before; None where there was none at all."""


def sides(tracks: Iterable[DeviceTrack], sequence: int, decided_ms: int) -> list[DeviceSide]:
    """Of each device, what had come into the log up to the entry that decided."""
    found = []
    for track in tracks:
        known = [point for point in track.points if point.sequence <= sequence]
        recent = [one.arrived_ms for one in known if decided_ms - LOOK_BACK_MS <= one.arrived_ms <= decided_ms]
        silence_ms = longest_gap_ms([*recent, decided_ms]) if recent else None
        found.append(DeviceSide(track.device_id, track.of_wearer, tuple(known[-SHOWN:]), silence_ms))
    return found


def longest_gap_ms(moments: Sequence[int]) -> int:
    """The longest time between two moments that follow each other; 0 for less than two."""
    return max((after - before for before, after in pairwise(moments)), default=0)
