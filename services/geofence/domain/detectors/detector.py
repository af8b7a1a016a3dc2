"""A detector: one part of the decision about a case, and the hooks by which the fold asks it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from services.geofence.domain.alerts import CausingReport
from services.geofence.domain.decisions import CaseContext
from services.geofence.domain.demands import Detection
from services.geofence.domain.entries import Case
from services.geofence.domain.state import CasePart, CaseState, State


class Movement(NamedTuple):
    """A stretch of time in which a fix changes the known movement of a device."""

    device_id: str
    from_ms: int
    until_ms: int | None
    """None if the fix is the newest of its device."""


class Amendment(NamedTuple):
    """A new snapshot of a case, which replaces the old one after all detectors have seen both."""

    case: Case
    in_force: bool
    """Whether the new snapshot's order is already in force."""

    def watches(self, target_key: str) -> bool:
        """Whether the order is in force, and both the wearer and a target of it can be located."""
        targets = self.case.targets if self.in_force else ()
        return any(target.key == target_key and self.case.can_locate(target) for target in targets)


@dataclass(frozen=True, slots=True, kw_only=True)
class Detector:
    """The hooks of a detector; a hook that the detector doesn't need is None.

    `pipeline.DETECTORS` lists all detectors in the order in which each hook is called.
    """

    on_fix: Callable[[CaseContext, Movement], None] | None = None
    """A fix changes the known movement of a device of the case. The hook isn't called for a fix within a safe region: `range_mm` says
    which fixes the detector needs. When a case begins, the hook is called for the known position of each tag."""
    on_batch: Callable[[CaseContext, CausingReport | None], None] | None = None
    """All fixes of an entry are known, and a device of a case with an open episode moved. The second argument is the last report that
    was the newest of its device; None if there was none."""
    on_time: Callable[[CaseContext, int], Iterable[int]] | None = None
    """Time passed up to a moment. The hook returns the moments of the next checks: none if only a report can change anything."""
    on_amend: Callable[[CaseContext, Amendment], None] | None = None
    """A new snapshot is about to replace the case's current one. The hook closes everything that the new snapshot no longer asks
    for."""
    on_end: Callable[[CaseContext], None] | None = None
    """The order is no longer valid. The hook closes everything as of the end of the validity."""
    awaits_report: Callable[[CaseState], bool] | None = None
    """Whether `on_time` is called after each report of the case, because a report may change a decision that rests on time alone."""
    range_mm: Callable[[State, CaseState], float] | None = None
    """Distance from a place within which the detector needs each fix of a tag, mm; infinite where it needs all fixes of the case."""
    why: Mapping[Detection, str] = field(default_factory=dict)
    """Sentences for people who ask why an alert was emitted, for detections whose names don't say it."""
    parts: tuple[CasePart[Any], ...] = ()
    """The detector's memory of a case."""
