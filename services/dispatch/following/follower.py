"""Follows the targets of a leg's open incidents, and gives the leg an update when a target has moved or was found.

The leg's record determines the targets, so a restarted process or a second process on the same store follows the same targets. The
position at the time of a unit's choice is kept in memory only. After a restart each target is checked again, and the record prevents
duplicate steps.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from services.common.clock import MeshClock
from services.common.geometry import LatLon, great_circle_m
from services.dispatch.domain.assignment import ACCEPTED, OVER, UNANSWERED, Assignment
from services.dispatch.domain.following import RETARGET_MS, TargetUpdate
from services.dispatch.domain.incident import Incident
from services.dispatch.domain.race import Approach, approach, approach_by_ring
from services.dispatch.following.targets import FollowedTarget, Key, Targets
from services.dispatch.leg.service import LegService
from services.dispatch.retrying import retried
from services.dispatch.roster.last_known_positions import KNOWN_FOR_MS
from tandem.geofence.v1 import positions_pb2

CHECK_INTERVAL_S = 1.0
"""Maximum interval between two checks of an incident, seconds of wall time."""
UPDATE_COALESCE_S = 0.25
"""Delay between a new position and the check, seconds of wall time: several positions share one check."""
MOVED_FAR_M = 300.0
"""Distance from its anchor at which a target counts as moved, metres. A unit needs most of a minute for it."""
RACE_INTERVAL_MS = 5_000
"""Interval at which the race for a destination is checked if no target moved, milliseconds of mesh time: units move, too."""


@dataclass(slots=True)
class _Check:
    """State of a destination at its last check."""

    offer_number: int
    anchor: LatLon | None
    """Position of the target when the unit was chosen or last notified of a move."""
    at_ms: int
    inputs: tuple[int, ...]
    """Values whose change requires another check."""


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

    async def shown(self, incident_id: str, by: str) -> AsyncIterator[list[tuple[Key, FollowedTarget]]]:
        """Yields the targets of an incident whenever they may have changed, until the incident is no longer open.

        Raises FailedPrecondition if it isn't open at the start.
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

    def _wanted(self) -> Collection[Key]:
        keys = set()
        for incident in self._open.values():
            if not incident.wearer_id:
                continue
            keys.add((incident.incident_id, positions_pb2.WEARER, incident.wearer_id))
            if self._leg.name.policy.may_locate_person:
                keys |= {
                    _key(incident, assignment)
                    for assignment in incident.assignments.values()
                    if assignment.state not in OVER
                }
        return keys

    def _updates(self, incident: Incident) -> list[TargetUpdate]:
        """Returns the updates for the destinations of an incident."""
        wearer = self._targets.get((incident.incident_id, positions_pb2.WEARER, incident.wearer_id))
        now_ms, updates = self._clock.now_ms(), []
        for id_, assignment in incident.assignments.items():
            if assignment.state not in UNANSWERED | ACCEPTED:
                continue
            target = wearer if self._leg.name.policy.goes_to_wearer else self._targets.get(_key(incident, assignment))
            point = self._leg.last_known_positions.of([assignment.subject_id], now_ms).get(assignment.subject_id)
            before = self._checked.get(id_)
            anchor = before.anchor if before and before.offer_number == assignment.offer_number else None
            moved_m = round(great_circle_m(point, anchor)) if point and anchor else 0
            notified_lately = assignment.retargeted_ms is not None and now_ms - assignment.retargeted_ms < RETARGET_MS
            if moved_m <= MOVED_FAR_M or notified_lately:
                moved_m = 0
            found_now = bool(
                point and assignment.choice and assignment.choice.travel_s is None and not (before and before.anchor)
            )
            inputs = (assignment.offer_number, int(assignment.state), _newest_ms(wearer), _newest_ms(target))
            is_new = before is None or before.inputs != inputs or now_ms - before.at_ms >= RACE_INTERVAL_MS
            if not (moved_m or found_now or is_new):
                continue
            self._checked[id_] = _Check(
                offer_number=assignment.offer_number,
                anchor=point if moved_m else anchor or point,
                at_ms=now_ms,
                inputs=inputs,
            )
            next_approach = self._approach(incident, id_, wearer, target=target, point=point, now_ms=now_ms)
            updates.append(
                TargetUpdate(
                    incident_id=incident.incident_id,
                    assignment_id=id_,
                    subject_id=assignment.subject_id,
                    approach=next_approach,
                    moved_m=moved_m,
                    found=found_now,
                )
            )
        return updates

    def _approach(
        self,
        incident: Incident,
        id_: str,
        wearer: FollowedTarget | None,
        *,
        target: FollowedTarget | None,
        point: LatLon | None,
        now_ms: int,
    ) -> Approach:
        track = [sighting for sighting in wearer.track if now_ms - sighting.at_ms <= KNOWN_FOR_MS] if wearer else []
        if self._leg.name.policy.may_locate_person and track and point:
            is_place = target is not None and target.position is not None and not target.position.HasField("fix_time")
            reach_m = target.position.accuracy_m if is_place and target and target.position else 0.0
            return approach(track, point, reach_m)
        return approach_by_ring(track, incident.ring_m(id_))


def _key(incident: Incident, assignment: Assignment) -> Key:
    place = "/" in assignment.subject_id
    kind = positions_pb2.PROTECTED_PLACE if place else positions_pb2.PROTECTED_PERSON
    return incident.incident_id, kind, assignment.subject_id


def _newest_ms(target: FollowedTarget | None) -> int:
    return target.track[-1].at_ms if target and target.track else 0
