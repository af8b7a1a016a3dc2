"""Follows the targets of a leg's open incidents. The leg gets an update when a target has moved far or was found.

The leg's record determines the targets. So a restarted process, or a second process on the same store, follows the same targets. The
target's position when a unit was chosen is kept in memory only. After a restart each target is checked again, and the record prevents
duplicate steps.

An incident is checked when there is news: its record changed, a target or an assigned unit moved, or a moment came at which time alone
changes the result. An open incident without news costs nothing. A check of one destination says whether the leg needs an update of its
target, and when the next check is due without news. It neither reads a clock nor does I/O.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

from services.common.clock import MeshClock, Moments
from services.common.geometry import LatLon, great_circle_m
from services.common.ids import PlaceId
from services.common.retrying import retried
from services.dispatch.domain.assignment import ACCEPTED, OVER, UNANSWERED, Assignment
from services.dispatch.domain.enums import SubjectKind
from services.dispatch.domain.following import (
    RETARGET_MS,
    Approach,
    Sighting,
    TargetUpdate,
    approach,
    approach_by_ring,
    won_at_ms,
)
from services.dispatch.domain.incident import Incident
from services.dispatch.domain.roster import POSITION_MAX_AGE_MS, UnitReport
from services.dispatch.following.targets import FollowedTarget, TargetKey, Targets
from services.dispatch.leg.availability import KNOWN_FOR_MS
from services.dispatch.leg.service import LegService
from tandem.common.v1 import subject_pb2

UPDATE_COALESCE_S = 0.25
"""Delay between a new position and the next check, seconds of wall time, so that several positions share one check."""


class TargetFollower:
    """Follows the targets of one leg."""

    def __init__(self, leg: LegService, targets: Targets, clock: MeshClock) -> None:
        self._leg = leg
        self._targets = targets
        self._clock = clock
        self._open: dict[str, Incident] = {}
        self._engaged: dict[str, set[str]] = {}
        """Ids of the open incidents of each assigned unit."""
        self._checked: dict[str, dict[str, Check]] = {}
        """Last check of each destination, by incident and assignment id."""
        self._due: set[str] = set()
        """Ids of the incidents to check."""
        self._moments: Moments[str] = Moments()
        """When time alone requires a check of each incident."""
        self._wake = asyncio.Event()
        self._watchers: list[Callable[[str], None]] = []
        targets.on_changed(self._note)

    async def run(self) -> None:
        """Follows targets until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._targets.run())
            tasks.create_task(self._follow_record())
            tasks.create_task(self._check_until_cancelled())

    def is_open(self, incident_id: str) -> bool:
        """Whether an incident has an open assignment."""
        return incident_id in self._open

    def targets_of(self, incident_id: str) -> Mapping[TargetKey, FollowedTarget]:
        """The targets of an incident, with their positions."""
        return self._targets.of(incident_id)

    def watch(self, watcher: Callable[[str], None]) -> Callable[[], None]:
        """Has a function called with the id of each incident that ended or whose targets changed. Returns the function that ends
        this."""
        self._watchers.append(watcher)
        return lambda: self._watchers.remove(watcher)

    # ── news ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _follow_record(self) -> None:
        async with self._leg.record.changes() as changes:
            while True:
                incidents, units = await changes.next()
                for incident in incidents.values():
                    self._apply(incident)
                for unit_id in units & self._engaged.keys():
                    self._due |= self._engaged[unit_id]
                self._wake.set()

    def _apply(self, incident: Incident) -> None:
        """Follows the targets that an incident has now."""
        incident_id = incident.incident_id
        self._engage(self._open.pop(incident_id, None), incident)
        if all(assignment.state in OVER for assignment in incident.assignments.values()):
            self._checked.pop(incident_id, None)
            self._moments.drop(incident_id)
            self._due.discard(incident_id)
            self._targets.want(incident_id, ())
            self._notify(incident_id)
            return
        self._open[incident_id] = incident
        if incident.wearer_id:
            self._targets.want(incident_id, self._keys(incident))
            self._due.add(incident_id)

    def _engage(self, before: Incident | None, now: Incident) -> None:
        for unit_id in _units(before) - _units(now):
            self._engaged[unit_id].discard(now.incident_id)
            if not self._engaged[unit_id]:
                del self._engaged[unit_id]
        for unit_id in _units(now):
            self._engaged.setdefault(unit_id, set()).add(now.incident_id)

    def _note(self, incident_id: str) -> None:
        """Notes that a target of an incident moved or was lost."""
        if incident_id in self._open:
            self._due.add(incident_id)
            self._wake.set()
        self._notify(incident_id)

    def _notify(self, incident_id: str) -> None:
        for watcher in self._watchers:
            watcher(incident_id)

    def _keys(self, incident: Incident) -> set[TargetKey]:
        keys = {_wearer_key(incident)}
        if self._leg.name.policy.may_locate_person:
            assignments = incident.assignments.values()
            keys |= {_key(incident, assignment) for assignment in assignments if assignment.state not in OVER}
        return keys

    # ── checks ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _check_until_cancelled(self) -> None:
        while True:
            await self._wait()
            await asyncio.sleep(UPDATE_COALESCE_S)
            now_ms = self._clock.now_ms()
            self._due.update(self._moments.pop_due(now_ms))
            due, self._due = self._due, set()
            incidents = [self._open[id_] for id_ in sorted(due) if id_ in self._open]
            updates = [update for incident in incidents for update in self._updates(incident, now_ms)]
            if updates:
                await retried(partial(self._leg.follow_targets, updates))

    async def _wait(self) -> None:
        """Returns when an incident is due."""
        while not self._due:
            self._wake.clear()
            if not await self._moments.sleep(self._wake, self._clock):
                return

    def _updates(self, incident: Incident, now_ms: int) -> list[TargetUpdate]:
        """Returns the updates for the destinations of an incident, and sets the moment of its next check."""
        before = self._checked.get(incident.incident_id, {})
        checked: dict[str, Check] = {}
        updates = []
        for id_, assignment in incident.assignments.items():
            if assignment.state in UNANSWERED | ACCEPTED:
                checked[id_], update = check_destination(self._scene(incident, assignment, now_ms), before.get(id_))
                updates += [update] if update else []
        self._checked[incident.incident_id] = checked
        moments = [each.next_ms for each in checked.values() if each.next_ms is not None]
        if moments:
            self._moments.set(incident.incident_id, min(moments))
        else:
            self._moments.drop(incident.incident_id)
        return updates

    def _scene(self, incident: Incident, assignment: Assignment, now_ms: int) -> Scene:
        policy = self._leg.name.policy
        wearer = self._targets.get(_wearer_key(incident))
        is_to_wearer = assignment.subject_kind is SubjectKind.WEARER
        target = wearer if is_to_wearer else self._targets.get(_key(incident, assignment))
        points = self._leg.last_known_positions.of([assignment.subject_id], now_ms)
        return Scene(
            incident=incident,
            assignment=assignment,
            wearer=wearer,
            target=target,
            point=points.get(assignment.subject_id),
            unit=self._leg.unit_report(assignment.responding_unit_id),
            # A unit that goes to the wearer runs no race against the wearer.
            may_locate_person=policy.may_locate_person and not is_to_wearer,
            now_ms=now_ms,
        )


def _units(incident: Incident | None) -> set[str]:
    """The units that have an incident's open assignments or their present offers."""
    assignments = incident.assignments.values() if incident else ()
    return {assignment.responding_unit_id for assignment in assignments} - {""}


def _wearer_key(incident: Incident) -> TargetKey:
    return TargetKey(incident.incident_id, subject_pb2.WEARER, incident.wearer_id)


def _key(incident: Incident, assignment: Assignment) -> TargetKey:
    if assignment.subject_kind is SubjectKind.WEARER:
        return _wearer_key(incident)
    is_place = PlaceId.parse(assignment.subject_id) is not None
    kind = subject_pb2.PROTECTED_PLACE if is_place else subject_pb2.PROTECTED_PERSON
    return TargetKey(incident.incident_id, kind, assignment.subject_id)


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


def check_destination(scene: Scene, before: Check | None) -> tuple[Check, TargetUpdate | None]:
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
