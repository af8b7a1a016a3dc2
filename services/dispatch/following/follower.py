"""Follows the targets of a leg's open incidents. The leg gets an update when a target has moved far or was found.

The leg's record determines the targets. So a restarted process, or a second process on the same store, follows the same targets. The
target's position when a unit was chosen is kept in memory only. After a restart each target is checked again, and the record prevents
duplicate steps.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from services.common.clock import MeshClock
from services.common.geometry import LatLon, great_circle_m
from services.common.ids import PlaceId
from services.common.retrying import retried
from services.dispatch.domain.assignment import ACCEPTED, OVER, UNANSWERED, Assignment
from services.dispatch.domain.following import RETARGET_MS, TargetUpdate
from services.dispatch.domain.incident import Incident
from services.dispatch.domain.race import approach, approach_by_ring
from services.dispatch.following.targets import FollowedTarget, TargetKey, Targets
from services.dispatch.leg.service import LegService
from services.dispatch.roster.last_known_positions import KNOWN_FOR_MS
from tandem.geofence.v1 import positions_pb2

CHECK_INTERVAL_S = 1.0
"""Maximum interval between two checks of an incident, seconds of wall time."""
UPDATE_COALESCE_S = 0.25
"""Delay between a new position and the next check, seconds of wall time, so that several positions share one check."""
MOVED_FAR_M = 300.0
"""Distance from its anchor at which a target counts as moved far, metres. A unit needs most of a minute for that distance."""
RACE_INTERVAL_MS = 5_000
"""Interval at which the race for a destination is checked although no target moved, milliseconds of mesh time. Units move too."""


class _Inputs(NamedTuple):
    """Values for one destination. If one of them changes, the destination is checked again."""

    offer_number: int
    state: int
    wearer_ms: int | None
    """Time of the wearer's newest position."""
    target_ms: int | None
    """Time of the target's newest position."""


@dataclass(frozen=True, slots=True)
class _Check:
    """Last check of a destination."""

    anchor: LatLon | None
    """Position of the target when the unit was chosen or last notified of a move."""
    at_ms: int
    inputs: _Inputs


class TargetFollower:
    """Follows the targets of one leg."""

    def __init__(self, leg: LegService, targets: Targets, clock: MeshClock) -> None:
        self._leg = leg
        self._targets = targets
        self._clock = clock
        self._open: Mapping[str, Incident] = {}
        self._checked: dict[str, _Check] = {}
        self._rescan = asyncio.Event()

    async def run(self) -> None:
        """Follows targets until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._targets.follow(self._wanted, self._rescan))
            tasks.create_task(self._check_until_cancelled())

    async def shown(self, incident_id: str, by: str) -> AsyncIterator[list[tuple[TargetKey, FollowedTarget]]]:
        """Yields the targets of an incident whenever they may have changed, until the incident is no longer open.

        Raises FailedPrecondition if the incident isn't open at the start.
        """
        await self._leg.show_targets(incident_id, by)
        if incident_id not in self._open:
            await self._refresh()
        while incident_id in self._open:
            yield list(self._targets.of(incident_id).items())
            with suppress(TimeoutError):
                async with asyncio.timeout(CHECK_INTERVAL_S):
                    await self._targets.changed()

    async def _check_until_cancelled(self) -> None:
        while True:
            await retried(self._refresh)
            updates = [
                update for incident in self._open.values() if incident.wearer_id for update in self._updates(incident)
            ]
            if updates:
                await retried(partial(self._leg.follow_targets, updates))
            with suppress(TimeoutError):
                async with asyncio.timeout(CHECK_INTERVAL_S):
                    await self._targets.changed()
            await asyncio.sleep(UPDATE_COALESCE_S)

    async def _refresh(self) -> None:
        self._open = {incident.incident_id: incident for incident in await self._leg.record.open_incidents()}
        open_ids = {id_ for incident in self._open.values() for id_ in incident.assignments}
        self._checked = {id_: check for id_, check in self._checked.items() if id_ in open_ids}
        self._rescan.set()

    def _wanted(self) -> Collection[TargetKey]:
        keys: set[TargetKey] = set()
        for incident in self._open.values():
            if not incident.wearer_id:
                continue
            keys.add(_wearer_key(incident))
            if self._leg.name.policy.may_locate_person:
                keys |= {
                    _key(incident, assignment)
                    for assignment in incident.assignments.values()
                    if assignment.state not in OVER
                }
        return keys

    def _updates(self, incident: Incident) -> list[TargetUpdate]:
        """Returns the updates for the destinations of an incident."""
        wearer = self._targets.get(_wearer_key(incident))
        now_ms = self._clock.now_ms()
        open_assignments = [
            assignment for assignment in incident.assignments.values() if assignment.state in UNANSWERED | ACCEPTED
        ]
        updates = (self._update(incident, assignment, wearer, now_ms=now_ms) for assignment in open_assignments)
        return [update for update in updates if update]

    def _update(
        self, incident: Incident, assignment: Assignment, wearer: FollowedTarget | None, *, now_ms: int
    ) -> TargetUpdate | None:
        id_, subject_id = assignment.assignment_id, assignment.subject_id
        target = wearer if self._leg.name.policy.goes_to_wearer else self._targets.get(_key(incident, assignment))
        point = self._leg.last_known_positions.of([subject_id], now_ms).get(subject_id)
        before = self._checked.get(id_)
        anchor = before.anchor if before and before.inputs.offer_number == assignment.offer_number else None
        moved_m = _moved_far_m(assignment, anchor, point, now_ms=now_ms)
        was_unknown = assignment.choice is not None and assignment.choice.travel_s is None
        found = bool(point and was_unknown and not (before and before.anchor))
        inputs = _Inputs(
            offer_number=assignment.offer_number,
            state=int(assignment.state),
            wearer_ms=_newest_ms(wearer),
            target_ms=_newest_ms(target),
        )
        is_due = before is None or before.inputs != inputs or now_ms - before.at_ms >= RACE_INTERVAL_MS
        if not (moved_m or found or is_due):
            return None
        self._checked[id_] = _Check(point if moved_m else anchor or point, now_ms, inputs)
        track = [sighting for sighting in wearer.track if now_ms - sighting.at_ms <= KNOWN_FOR_MS] if wearer else []
        if self._leg.name.policy.may_locate_person and track and point:
            next_approach = approach(track, point, _place_radius_m(target))
        else:
            next_approach = approach_by_ring(track, incident.ring_m(id_))
        return TargetUpdate(
            incident_id=incident.incident_id,
            assignment_id=id_,
            subject_id=subject_id,
            approach=next_approach,
            moved_m=moved_m,
            found=found,
        )


def _moved_far_m(assignment: Assignment, anchor: LatLon | None, point: LatLon | None, *, now_ms: int) -> int:
    """Distance that the target has moved from its anchor, metres; 0 if it isn't far or the unit was notified lately."""
    notified_lately = assignment.retargeted_ms is not None and now_ms - assignment.retargeted_ms < RETARGET_MS
    if point is None or anchor is None or notified_lately:
        return 0
    moved_m = round(great_circle_m(point, anchor))
    return moved_m if moved_m > MOVED_FAR_M else 0


def _place_radius_m(target: FollowedTarget | None) -> float:
    """Radius of a protected place, metres; 0 for a person. Only the position of a place has no time."""
    position = target.position if target else None
    return position.accuracy_m if position is not None and not position.HasField("fix_time") else 0.0


def _wearer_key(incident: Incident) -> TargetKey:
    return TargetKey(incident.incident_id, positions_pb2.WEARER, incident.wearer_id)


def _key(incident: Incident, assignment: Assignment) -> TargetKey:
    is_place = PlaceId.parse(assignment.subject_id) is not None
    kind = positions_pb2.PROTECTED_PLACE if is_place else positions_pb2.PROTECTED_PERSON
    return TargetKey(incident.incident_id, kind, assignment.subject_id)


def _newest_ms(target: FollowedTarget | None) -> int | None:
    return target.track[-1].at_ms if target and target.track else None
