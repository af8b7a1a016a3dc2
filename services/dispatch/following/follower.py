"""Follows the targets of a leg's open incidents: what is known of them becomes looks, of which the leg makes steps.

The leg's own record says who is followed, so a restart, or a second process on the same store, follows the same. Where a target was
when its unit was chosen is kept in memory: after a restart it is looked at once more, and nothing happens twice since the record
says what did.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from services.common.clock import MeshClock
from services.dispatch.domain.areas import LatLon, great_circle_m
from services.dispatch.domain.following import RETARGET_MS, TargetUpdate
from services.dispatch.domain.incident import OVER, TAKEN, UNANSWERED, Assignment, Incident
from services.dispatch.domain.race import Approach, approach, approach_by_ring
from services.dispatch.following.targets import FollowedTarget, Key, Targets
from services.dispatch.leg.service import LegService
from services.dispatch.retrying import retried
from services.dispatch.roster.last_known_positions import KNOWN_FOR_MS
from tandem.geofence.v1 import positions_pb2

CHECK_INTERVAL_S = 1.0
"""How often incidents are looked at at least, wall time; something new of a target is looked at ..."""
LOOK_SOON_S = 0.25
"""... so soon."""
MOVED_FAR_M = 300.0
"""A target that is so far from where it was has moved: a unit needs most of a minute for that."""
RACE_EVERY_MS = 5_000
"""How often the race for a destination is looked at, where nothing moved: units move, and time passes."""


@dataclass(slots=True)
class _Looked:
    """How a destination was when it was looked at last."""

    offer_number: int
    anchor: LatLon | None
    """Where the target was when the unit was chosen or told the last time."""
    at_ms: int
    seen: tuple[int, ...]
    """What, when it changes, is worth another look."""


class TargetFollower:
    """Follows for one leg."""

    def __init__(self, leg: LegService, targets: Targets, clock: MeshClock) -> None:
        self._leg = leg
        self._targets = targets
        self._clock = clock
        self._open: Mapping[str, Incident] = {}
        self._looked: dict[str, _Looked] = {}
        self._again = asyncio.Event()

    async def run(self) -> None:
        """Follows for ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._targets.follow(self._wanted, self._again))
            tasks.create_task(self._look_for_ever())

    async def shown(self, incident_id: str, by: str) -> AsyncIterator[list[tuple[Key, FollowedTarget]]]:
        """An incident's targets, each time there may be something new, until nobody has anything to do in it.

        Raises FailedPrecondition where that is so from the beginning.
        """
        await self._leg.show_targets(incident_id, by)
        if incident_id not in self._open:
            await self._refresh()
        while incident_id in self._open:
            yield list(self._targets.of(incident_id).items())
            with suppress(TimeoutError):
                async with asyncio.timeout(CHECK_INTERVAL_S):
                    await self._targets.changed()

    async def _look_for_ever(self) -> None:
        while True:
            await retried(self._refresh)
            looks = [look for incident in self._open.values() if incident.wearer_id for look in self._looks(incident)]
            if looks:
                await retried(partial(self._leg.follow_targets, looks))
            with suppress(TimeoutError):
                async with asyncio.timeout(CHECK_INTERVAL_S):
                    await self._targets.changed()
            await asyncio.sleep(LOOK_SOON_S)

    async def _refresh(self) -> None:
        self._open = {
            open_incident.incident_id: open_incident for open_incident in await self._leg.record.open_incidents()
        }
        open_ids = {id_ for one in self._open.values() for id_ in one.assignments}
        self._looked = {id_: one for id_, one in self._looked.items() if id_ in open_ids}
        self._again.set()

    def _wanted(self) -> Collection[Key]:
        keys = set()
        for incident in self._open.values():
            if not incident.wearer_id:
                continue
            keys.add((incident.incident_id, positions_pb2.WEARER, incident.wearer_id))
            if self._leg.name == "police":
                keys |= {
                    _key(incident, assignment)
                    for assignment in incident.assignments.values()
                    if assignment.state not in OVER
                }
        return keys

    def _looks(self, incident: Incident) -> list[TargetUpdate]:
        """What is new of an incident's destinations."""
        wearer = self._targets.get((incident.incident_id, positions_pb2.WEARER, incident.wearer_id))
        now_ms, found = self._clock.now_ms(), []
        for id_, assignment in incident.assignments.items():
            if assignment.state not in UNANSWERED | TAKEN:
                continue
            target = wearer if self._leg.name == "probation" else self._targets.get(_key(incident, assignment))
            point = self._leg.last_known_positions.of([assignment.subject_id], now_ms).get(assignment.subject_id)
            before = self._looked.get(id_)
            anchor = before.anchor if before and before.offer_number == assignment.offer_number else None
            moved_m = round(great_circle_m(point, anchor)) if point and anchor else 0
            told_lately = assignment.retargeted_ms is not None and now_ms - assignment.retargeted_ms < RETARGET_MS
            if moved_m <= MOVED_FAR_M or told_lately:
                moved_m = 0
            found_now = bool(
                point and assignment.choice and assignment.choice.travel_s is None and not (before and before.anchor)
            )
            seen = (assignment.offer_number, int(assignment.state), _newest_ms(wearer), _newest_ms(target))
            is_new = before is None or before.seen != seen or now_ms - before.at_ms >= RACE_EVERY_MS
            if not (moved_m or found_now or is_new):
                continue
            self._looked[id_] = _Looked(assignment.offer_number, point if moved_m else anchor or point, now_ms, seen)
            how = self._approach(incident, id_, wearer, target, point, now_ms)
            found.append(TargetUpdate(incident.incident_id, id_, assignment.subject_id, how, moved_m, found_now))
        return found

    def _approach(
        self,
        incident: Incident,
        id_: str,
        wearer: FollowedTarget | None,
        target: FollowedTarget | None,
        point: LatLon | None,
        now_ms: int,
    ) -> Approach:
        track = [one for one in wearer.track if now_ms - one.at_ms <= KNOWN_FOR_MS] if wearer else []
        if self._leg.name == "police" and track and point:
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
