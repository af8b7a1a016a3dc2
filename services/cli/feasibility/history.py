"""A wearer's past days as entries of a log, and the time that they cover. No I/O, no clock."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from services.geofence.domain.entries import Body, Positions
from services.geofence.domain.kinematics.geometry import ecef_mm
from services.geofence.domain.kinematics.intervals import Stretch
from services.geofence.domain.kinematics.track import Track
from services.geofence.domain.tracks.fixes import Fix

DAY_MS = 86_400_000
BREAK_MS = DAY_MS
"""Longest gap between two positions of the wearer that counts as silence, ms. A longer one is a break of the history, for which
nothing can be expected."""


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """What arrived at one moment of a history, as an entry of a log."""

    stamp_ms: int
    """When it arrived, milliseconds since 1970 UTC."""
    body: Body


@dataclass(frozen=True, slots=True)
class History:
    """Reports of a wearer's tags, and perhaps of protective devices, in order of arrival."""

    entries: tuple[HistoryEntry, ...]
    tag_ids: tuple[str, ...]
    """Tags of the wearer."""

    def tracks(self) -> dict[str, Track]:
        """Returns the track of each device that reported a position."""
        tracks: dict[str, Track] = {}
        for entry in self.entries:
            if isinstance(entry.body, Positions):
                for device_id, fix in _fixes(entry.body, entry.stamp_ms):
                    tracks.setdefault(device_id, Track()).add(fix)
        return tracks

    def tag_fixes(self) -> list[Fix]:
        """Returns the positions of all tags, in order of time."""
        tracks = self.tracks()
        return sorted(fix for tag_id in self.tag_ids if tag_id in tracks for fix in tracks[tag_id].fixes)


@dataclass(frozen=True, slots=True)
class Coverage:
    """The time for which a history says something."""

    from_ms: int
    until_ms: int
    breaks: tuple[Stretch, ...]
    """Gaps of more than BREAK_MS between two positions of the wearer."""

    @property
    def days(self) -> float:
        """Length without the breaks, days."""
        broken_ms = sum(until_ms - from_ms for from_ms, until_ms in self.breaks)
        return (self.until_ms - self.from_ms - broken_ms) / DAY_MS

    def includes(self, at_ms: int) -> bool:
        """Returns whether a moment is covered."""
        if not self.from_ms <= at_ms <= self.until_ms:
            return False
        return not any(from_ms < at_ms < until_ms for from_ms, until_ms in self.breaks)


def coverage_of(fixes: Sequence[Fix]) -> Coverage:
    """The time that the wearer's positions cover. There must be at least one."""
    breaks = tuple(
        (before.time_ms, fix.time_ms) for before, fix in pairwise(fixes) if fix.time_ms - before.time_ms > BREAK_MS
    )
    return Coverage(fixes[0].time_ms, fixes[-1].time_ms, breaks)


def _fixes(batch: Positions, stamp_ms: int) -> Iterator[tuple[str, Fix]]:
    for i, device_id in enumerate(batch.device_ids):
        fix_ms = batch.fix_times_ms[i]
        x_mm, y_mm, z_mm = ecef_mm(batch.lat_e7[i], batch.lon_e7[i])
        yield (
            device_id,
            Fix(
                time_ms=min(fix_ms, stamp_ms),
                fix_ms=fix_ms,
                report_id=batch.report_ids[i],
                x_mm=x_mm,
                y_mm=y_mm,
                z_mm=z_mm,
                accuracy_mm=batch.accuracy_mm[i],
            ),
        )
