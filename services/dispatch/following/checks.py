"""Check of one destination: whether the leg needs an update of its target, and when the next check is due without news. Neither reads
a clock nor does I/O."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from services.common.geometry import LatLon, great_circle_m
from services.dispatch.domain.assignment import Assignment
from services.dispatch.domain.following import RETARGET_MS, TargetUpdate
from services.dispatch.domain.incident import Incident
from services.dispatch.domain.race import Approach, Sighting, approach, approach_by_ring, won_at_ms
from services.dispatch.domain.roster import POSITION_MAX_AGE_MS, UnitReport
from services.dispatch.following.target import FollowedTarget
from services.dispatch.roster.last_known_positions import KNOWN_FOR_MS

MOVED_FAR_M = 300.0
"""Distance from its anchor at which a target counts as moved far, metres. A unit needs most of a minute for that distance."""
RACE_INTERVAL_MS = 5_000
"""Minimum time between two checks of a race for which only the unit moved, milliseconds of mesh time."""


@dataclass(frozen=True, slots=True)
class Scene:
    """Facts about one destination, for its check."""

    incident: Incident
    assignment: Assignment
    wearer: FollowedTarget | None
    target: FollowedTarget | None
    """The destination itself; the wearer for a leg that goes to the wearer."""
    point: LatLon | None
    """Position of the destination, if it isn't outdated."""
    unit: UnitReport | None
    """Last report of the assigned unit."""
    may_locate_person: bool
    """Whether the leg may use the protected person's position."""
    now_ms: int
    """Mesh time."""


class _Inputs(NamedTuple):
    """Values for one destination. If one of them changes, the destination is checked again."""

    offer_number: int
    state: int
    wearer_ms: int | None
    """Time of the wearer's newest position."""
    target_ms: int | None
    """Time of the target's newest position."""
    losing: bool
    """Whether the record says that the race is being lost. Another process of the leg may have recorded it."""


@dataclass(frozen=True, slots=True)
class Check:
    """Last check of a destination."""

    anchor: LatLon | None
    """Position of the target when the unit was chosen or last notified of a move."""
    at_ms: int
    """When an update was last due, mesh time."""
    inputs: _Inputs
    unit_ms: int | None
    """Time of the unit's position at that update."""
    next_ms: int | None
    """When time alone requires the next check, mesh time; None if it doesn't."""


def check(scene: Scene, before: Check | None) -> tuple[Check, TargetUpdate | None]:
    """Checks a destination. Returns the check, and the update that the leg needs, if any. `before` is the last check."""
    assignment, now_ms = scene.assignment, scene.now_ms
    anchor = before.anchor if before and before.inputs.offer_number == assignment.offer_number else None
    far_m = _far_m(anchor, scene.point)
    may_notify_ms = None if assignment.retargeted_ms is None else assignment.retargeted_ms + RETARGET_MS
    moved_m = far_m if may_notify_ms is None or may_notify_ms <= now_ms else 0
    was_unknown = assignment.choice is not None and assignment.choice.travel_s is None
    found = bool(scene.point and was_unknown and not (before and before.anchor))
    inputs = _Inputs(
        offer_number=assignment.offer_number,
        state=int(assignment.state),
        wearer_ms=_newest_ms(scene.wearer),
        target_ms=_newest_ms(scene.target),
        losing=assignment.losing,
    )
    unit_ms = scene.unit.position_ms if scene.unit else None
    track = _recent(scene.wearer, now_ms)
    next_approach = _approach(scene, track)
    moments = _moments(scene, track, next_approach)
    if far_m and not moved_m:
        moments.append(may_notify_ms)
    if before and not (moved_m or found or _is_due(before, inputs, unit_ms, now_ms=now_ms)):
        if unit_ms != before.unit_ms:
            moments.append(before.at_ms + RACE_INTERVAL_MS)
        return replace(before, next_ms=_first_after(now_ms, moments)), None
    update = TargetUpdate(
        incident_id=scene.incident.incident_id,
        assignment_id=assignment.assignment_id,
        subject_id=assignment.subject_id,
        approach=next_approach,
        moved_m=moved_m,
        found=found,
    )
    checked = Check(
        anchor=scene.point if moved_m else anchor or scene.point,
        at_ms=now_ms,
        inputs=inputs,
        unit_ms=unit_ms,
        next_ms=_first_after(now_ms, moments),
    )
    return checked, update


def _is_due(before: Check, inputs: _Inputs, unit_ms: int | None, *, now_ms: int) -> bool:
    """Whether the race must be checked although the target hasn't moved far."""
    unit_moved = unit_ms != before.unit_ms and now_ms - before.at_ms >= RACE_INTERVAL_MS
    return before.inputs != inputs or unit_moved or (before.next_ms is not None and before.next_ms <= now_ms)


def _moments(scene: Scene, track: Sequence[Sighting], next_approach: Approach) -> list[int | None]:
    """When time alone changes the race: a position becomes outdated, or the responder's estimated time shrinks."""
    target_ms, unit = _newest_ms(scene.target), scene.unit
    return [
        track[0].at_ms + KNOWN_FOR_MS + 1 if track else None,
        None if target_ms is None else target_ms + KNOWN_FOR_MS + 1,
        None if unit is None or unit.position_ms is None else unit.position_ms + POSITION_MAX_AGE_MS + 1,
        won_at_ms(scene.assignment, next_approach.wearer_s),
    ]


def _approach(scene: Scene, track: Sequence[Sighting]) -> Approach:
    if scene.may_locate_person and track and scene.point:
        return approach(track, scene.point, _place_radius_m(scene.target))
    return approach_by_ring(track, scene.incident.ring_m(scene.assignment.assignment_id))


def _recent(wearer: FollowedTarget | None, now_ms: int) -> list[Sighting]:
    return [sighting for sighting in wearer.track if now_ms - sighting.at_ms <= KNOWN_FOR_MS] if wearer else []


def _far_m(anchor: LatLon | None, point: LatLon | None) -> int:
    """Distance of the target from its anchor, metres; 0 if it isn't far."""
    far_m = round(great_circle_m(point, anchor)) if point and anchor else 0
    return far_m if far_m > MOVED_FAR_M else 0


def _first_after(now_ms: int, moments: Iterable[int | None]) -> int | None:
    return min((at_ms for at_ms in moments if at_ms is not None and at_ms > now_ms), default=None)


def _place_radius_m(target: FollowedTarget | None) -> float:
    """Radius of a protected place, metres; 0 for a person. Only the position of a place has no time."""
    position = target.position if target else None
    return position.accuracy_m if position is not None and not position.HasField("fix_time") else 0.0


def _newest_ms(target: FollowedTarget | None) -> int | None:
    return target.track[-1].at_ms if target and target.track else None
