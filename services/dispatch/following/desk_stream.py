"""The incidents that one desk follows, and the events that its stream sends. It works when a target changed, not at intervals."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from services.common import times
from services.common.clock import MeshClock
from services.common.moments import Moments
from services.dispatch.following.follower import TargetFollower
from services.dispatch.following.target import FollowedTarget, TargetKey
from services.dispatch.roster.last_known_positions import KNOWN_FOR_MS
from tandem.dispatch.v1 import following_pb2
from tandem.geofence.v1 import positions_pb2

INCIDENTS_PER_RESPONSE = 100
"""Incidents that are checked for one response."""


class _SentState(NamedTuple):
    """State of a target that was last sent to the desk."""

    position: positions_pb2.LivePosition | None
    interrupted: bool
    unknown: bool


class DeskStream:
    """The incidents of one desk's stream. A slow desk gets the newest position of each target; nothing is queued."""

    def __init__(self, follower: TargetFollower, clock: MeshClock) -> None:
        self._follower, self._clock = follower, clock
        self._sent: dict[str, dict[TargetKey, _SentState]] = {}
        """States that were last sent, by followed incident."""
        self._new: set[str] = set()
        """Incidents that the follower may not know yet."""
        self._changed: dict[str, None] = {}
        self._refused: dict[str, None] = {}
        self._moments: Moments[str] = Moments()
        """When a position of each incident becomes outdated."""
        self._wake = asyncio.Event()
        self._is_ended = False
        self._failure: Exception | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Gets the changes of targets inside the block."""
        stop = self._follower.watch(self._mark)
        try:
            yield
        finally:
            stop()

    def __contains__(self, incident_id: str) -> bool:
        return incident_id in self._sent

    def __len__(self) -> int:
        return len(self._sent)

    def add(self, incident_id: str) -> None:
        """Follows an incident that is open in the leg."""
        self._sent[incident_id] = {}
        self._new.add(incident_id)
        self._changed[incident_id] = None
        self._wake.set()

    def refuse(self, incident_id: str) -> None:
        """Tells the desk that an incident isn't open."""
        self._refused[incident_id] = None
        self._wake.set()

    def remove(self, incident_id: str) -> None:
        """Follows an incident no longer."""
        self._sent.pop(incident_id, None)
        self._changed.pop(incident_id, None)
        self._moments.drop(incident_id)

    def finish(self, failure: Exception | None) -> None:
        """Notes that the desk adds nothing more. The stream ends with its last incident, or at once with a failure."""
        self._is_ended, self._failure = True, failure
        self._wake.set()

    def _mark(self, incident_id: str) -> None:
        if incident_id in self._sent:
            self._new.discard(incident_id)
            self._changed[incident_id] = None
            self._wake.set()

    async def responses(self) -> AsyncIterator[following_pb2.FollowTargetsResponse]:
        """Yields events until the desk has finished and no incident is left. Raises the failure that `finish` got."""
        while self._sent or self._refused or not self._is_ended:
            if self._failure is not None:
                raise self._failure
            for incident_id in self._moments.pop_due(self._clock.now_ms()):
                self._changed[incident_id] = None
            incident_ids = [id_ for id_, _ in zip(self._changed, range(INCIDENTS_PER_RESPONSE), strict=False)]
            events = [event for id_ in incident_ids for event in self._events(id_)]
            events += [_not_followed(id_) for id_ in self._refused]
            self._refused.clear()
            if events:
                yield following_pb2.FollowTargetsResponse(events=events)
            elif self._changed:
                await asyncio.sleep(0)  # marks without changes must not hold up the leg
            else:
                await self._wait()
        if self._failure is not None:
            raise self._failure

    def _events(self, incident_id: str) -> Iterable[following_pb2.TargetEvent]:
        """The changes of an incident's targets since they were sent."""
        del self._changed[incident_id]
        if not self._follower.is_open(incident_id):
            if incident_id not in self._new:
                self.remove(incident_id)
                yield _not_followed(incident_id)
            return
        sent, now_ms, outdated_ms = self._sent[incident_id], self._clock.now_ms(), []
        for key, target in self._follower.targets_of(incident_id).items():
            age_ms = _age_ms(target, now_ms)
            # `unknown` is only as recent as the evaluator's last message. A position that was known then may be outdated now.
            is_outdated = age_ms is not None and age_ms > KNOWN_FOR_MS
            unknown = target.position is None or target.position.unknown or is_outdated
            if age_ms is not None and not unknown:
                outdated_ms.append(now_ms - age_ms + KNOWN_FOR_MS + 1)
            state = _SentState(target.position, target.interrupted, unknown)
            if sent.get(key) != state:
                sent[key] = state
                yield _target_event(key, state, age_ms)
        if outdated_ms:
            self._moments.set(incident_id, min(outdated_ms))
        else:
            self._moments.drop(incident_id)

    async def _wait(self) -> None:
        if await self._moments.sleep(self._wake, self._clock):
            self._wake.clear()


def _age_ms(target: FollowedTarget, now_ms: int) -> int | None:
    """Age of a target's position by mesh time; None without a position, or for a place."""
    position = target.position
    if position is None or not position.HasField("fix_time"):
        return None
    return max(0, now_ms - times.from_timestamp(position.fix_time))


def _target_event(key: TargetKey, state: _SentState, age_ms: int | None) -> following_pb2.TargetEvent:
    event = following_pb2.TargetEvent(incident_id=key.incident_id)
    target, position = event.target, state.position
    target.subject_id, target.is_wearer = key.subject_id, key.kind == positions_pb2.WEARER
    target.interrupted, target.unknown = state.interrupted, state.unknown
    if position is not None and position.HasField("lat_deg"):
        target.lat_deg, target.lon_deg, target.accuracy_m = position.lat_deg, position.lon_deg, position.accuracy_m
        if age_ms is not None:
            target.fix_time.CopyFrom(position.fix_time)
            target.age_s = age_ms / 1000
    return event


def _not_followed(incident_id: str) -> following_pb2.TargetEvent:
    return following_pb2.TargetEvent(incident_id=incident_id, not_followed=following_pb2.NotFollowed())
