"""How well a tag reports: the interval that it keeps, and whether the accuracy that it states can be true. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

from services.geofence.domain.kinematics.accuracy import CONTRADICTION, SCATTER_FIXES, observed_error_mm
from services.geofence.domain.kinematics.track import Track
from services.geofence.domain.state import State
from services.geofence.domain.tracks.stays import UnitStay

SLOW_MS = 150_000
"""Kept interval from which on silence and the end of an incident are noticed late. ingest lists devices by the same limit."""


@dataclass(frozen=True, slots=True)
class TagQuality:
    """Measures of one tag. None has a position."""

    kept_interval_ms: int | None
    """Interval between fixes that the tag was seen to keep, ms; None if there are too few fixes."""
    stated_mm: float
    """Median of the accuracies that the tag stated for its newest fixes, mm."""
    observed_mm: int | None
    """Radius that holds 68 % of the errors by the scatter of these fixes, mm; None if there are too few."""
    last_fix_ms: int
    last_source: int
    """Where the newest fix comes from, a number of `entries.PositionSource`."""
    stay: UnitStay | None
    """Newest presence at a home unit or beacon; None if there is none."""

    @property
    def is_slow(self) -> bool:
        """Whether the tag keeps SLOW_MS or longer."""
        return self.kept_interval_ms is not None and self.kept_interval_ms >= SLOW_MS

    @property
    def is_contradicted(self) -> bool:
        """Whether the scatter shows that the stated accuracy can't be true."""
        return self.observed_mm is not None and self.observed_mm > CONTRADICTION * self.stated_mm


def tag_ids(state: State) -> set[str]:
    """Ids of the tags of all cases that have reported a position."""
    tags = {id_ for case_state in state.cases.values() for id_ in case_state.case.tag_device_ids}
    return {id_ for id_ in tags if id_ in state.tracks and state.tracks[id_].recent}


def quality_of(track: Track, stay: UnitStay | None = None) -> TagQuality:
    """Measures a tag by its track, which must have a fix, with its newest presence at a unit."""
    return TagQuality(
        kept_interval_ms=track.kept_interval_ms(),
        stated_mm=median(fix.accuracy_mm for fix in track.newest(SCATTER_FIXES)),
        observed_mm=observed_error_mm(track),
        last_fix_ms=track.recent[-1].time_ms,
        last_source=track.recent[-1].source,
        stay=stay,
    )
