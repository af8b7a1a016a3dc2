"""Follows the targets of a leg's open incidents. The leg gets an update when a target has moved far or was found.

The leg's record determines the targets. So a restarted process, or a second process on the same store, follows the same targets. The
target's position when a unit was chosen is kept in memory only. After a restart each target is checked again, and the record prevents
duplicate steps.

An incident is checked when there is news: its record changed, a target or an assigned unit moved, or a moment came at which time alone
changes the result. An open incident without news costs nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial

from services.common.clock import MeshClock
from services.common.ids import PlaceId
from services.common.moments import Moments
from services.common.retrying import retried
from services.dispatch.domain.assignment import ACCEPTED, OVER, UNANSWERED, Assignment
from services.dispatch.domain.enums import Task
from services.dispatch.domain.following import TargetUpdate
from services.dispatch.domain.incident import Incident
from services.dispatch.following.checks import Check, Scene, check
from services.dispatch.following.target import FollowedTarget, TargetKey
from services.dispatch.following.targets import Targets
from services.dispatch.leg.service import LegService
from tandem.geofence.v1 import positions_pb2

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
                checked[id_], update = check(self._scene(incident, assignment, now_ms), before.get(id_))
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
        to_wearer = policy.goes_to_wearer or assignment.task is Task.CHECK
        target = wearer if to_wearer else self._targets.get(_key(incident, assignment))
        points = self._leg.last_known_positions.of([assignment.subject_id], now_ms)
        return Scene(
            incident=incident,
            assignment=assignment,
            wearer=wearer,
            target=target,
            point=points.get(assignment.subject_id),
            unit=self._leg.unit_report(assignment.unit_id),
            # A unit that goes to the wearer runs no race against the wearer.
            may_locate_person=policy.may_locate_person and assignment.task is not Task.CHECK,
            now_ms=now_ms,
        )


def _units(incident: Incident | None) -> set[str]:
    """The units of an incident's open assignments."""
    assignments = incident.assignments.values() if incident else ()
    return {assignment.unit_id for assignment in assignments if assignment.unit_id}


def _wearer_key(incident: Incident) -> TargetKey:
    return TargetKey(incident.incident_id, positions_pb2.WEARER, incident.wearer_id)


def _key(incident: Incident, assignment: Assignment) -> TargetKey:
    if assignment.task is Task.CHECK:
        return _wearer_key(incident)
    is_place = PlaceId.parse(assignment.subject_id) is not None
    kind = positions_pb2.PROTECTED_PLACE if is_place else positions_pb2.PROTECTED_PERSON
    return TargetKey(incident.incident_id, kind, assignment.subject_id)
