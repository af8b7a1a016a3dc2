"""gRPC service of target following: a leg's desk sees the live positions of the targets that its units go to.

A desk's stream works when a target changed, not at intervals.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import grpc.aio

from services.common import fields, times
from services.common.clock import MeshClock, Moments
from services.common.errors import InvalidField, Unavailable
from services.common.observability.telemetry import logger
from services.common.rpc import server
from services.dispatch.following.follower import TargetFollower
from services.dispatch.following.targets import FollowedTarget, TargetKey
from services.dispatch.leg.api import admit
from services.dispatch.leg.availability import KNOWN_FOR_MS
from services.dispatch.leg.service import LegService
from tandem.dispatch.v1 import following_pb2, following_pb2_grpc
from tandem.geofence.v1 import positions_pb2

MAX_INCIDENTS = 10_000
"""Maximum number of incidents that one stream follows."""

Requests = AsyncIterator[following_pb2.FollowTargetsRequest]


class FollowingApi(following_pb2_grpc.FollowingServiceServicer):
    """FollowingService of one leg."""

    def __init__(self, leg: LegService, follower: TargetFollower | None, clock: MeshClock) -> None:
        self._leg = leg
        self._follower = follower
        self._clock = clock

    async def FollowTargets(
        self, requests: Requests, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[following_pb2.FollowTargetsResponse]:
        """Streams the positions of incidents' targets to the leg's desk."""
        admit(self._leg.name)
        if self._follower is None:
            raise Unavailable(
                "this leg has no target positions: TANDEM_GEOFENCE isn't set (example: dns:///geofence:7403)",
                retry_after_s=60.0,
            )
        stream = DeskStream(self._follower, self._clock)
        with stream.watching():
            reading = asyncio.create_task(self._read(requests, stream))
            try:
                async for response in stream.responses():
                    yield response
            finally:
                reading.cancel()

    async def _read(self, requests: Requests, stream: DeskStream) -> None:
        failure: Exception | None = None
        try:
            async for request in requests:
                for incident_id in request.remove_incident_ids:
                    stream.remove(incident_id)
                await self._add(request, stream)
        except Exception as error:  # `responses` raises it in the call
            failure = error
        stream.finish(failure)

    async def _add(self, request: following_pb2.FollowTargetsRequest, stream: DeskStream) -> None:
        for i, incident_id in enumerate(request.add_incident_ids):
            fields.required_id(f"add_incident_ids[{i}]", incident_id)
        new = [incident_id for incident_id in dict.fromkeys(request.add_incident_ids) if incident_id not in stream]
        if not new:
            return
        if len(stream) + len(new) > MAX_INCIDENTS:
            raise InvalidField("add_incident_ids", f"a stream follows at most {MAX_INCIDENTS} incidents")
        shown = await self._leg.show_targets(new, server.caller().spiffe_id)
        for incident_id in new:
            if incident_id in shown:
                logger().info("targets_shown", incident_id=incident_id)
                stream.add(incident_id)
            else:
                stream.refuse(incident_id)


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
        sent = self._sent[incident_id]
        now_ms = self._clock.now_ms()
        outdated_ms = []
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
    target.subject_id, target.kind = key.subject_id, key.kind
    target.interrupted, target.unknown = state.interrupted, state.unknown
    if position is not None and position.HasField("lat_deg"):
        target.lat_deg = position.lat_deg
        target.lon_deg = position.lon_deg
        target.accuracy_m = position.accuracy_m
        if age_ms is not None:
            target.fix_time.CopyFrom(position.fix_time)
            target.age_s = age_ms / 1000
    return event


def _not_followed(incident_id: str) -> following_pb2.TargetEvent:
    return following_pb2.TargetEvent(incident_id=incident_id, not_followed=following_pb2.NotFollowed())
