"""Live positions of targets. Each target of each incident has a stream from an evaluator, which is reopened if it breaks.

Positions are kept in memory only. A refused request is retried, since another evaluator may have the position, and a unit is on the
way.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Collection, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import NamedTuple

import grpc.aio

from services.common import times
from services.common.clock import MeshClock
from services.common.geometry import LatLon
from services.common.messaging.permissions import SERVICE
from services.common.observability.telemetry import logger
from services.common.retrying import Backoff
from services.common.rpc import client, server
from services.dispatch.domain.leg import Leg
from services.dispatch.domain.race import PACE_OVER_MS, Sighting
from services.dispatch.following.metrics import FollowingMetrics
from services.dispatch.roster.last_known_positions import LastKnownPositions
from services.dispatch.settings import DispatchSettings
from tandem.geofence.v1 import positions_pb2, positions_pb2_grpc

FOLLOWING_BASES = {Leg.PROBATION: "TAG_16_2", Leg.POLICE: "TAG_DECREE_23_10"}
"""Legal basis, by leg, for following a target during an incident. Probation: the Ministry's own use of its tags' data.
Police: the notification of a breach or of the risk of a breach."""
CALLERS = {leg: f"{SERVICE}dispatch-{leg}" for leg in FOLLOWING_BASES}
"""Identity of each leg towards other services. A leg shows no more than its desk may see."""
SHARED_FOR_MS = 3_600_000
"""Lifetime of a requested share, milliseconds of mesh time."""
STREAMS_PER_CONNECTION = 256
"""Streams over one connection. A server accepts 512."""
NEWEST_FIRST = (("grpc.http2.lookahead_bytes", 256), ("grpc.http2.bdp_probe", 0), ("grpc.use_local_subchannel_pool", 1))
"""Options of a gRPC channel. Buffers are small, so that a slow reader gets the newest positions. Channels share no connection."""
RETRY = Backoff(0.2, 5.0)
"""Delays before a stream is reopened, seconds of wall time."""


class TargetKey(NamedTuple):
    """Key of a target. It has the incident too, since the same person may be the target in several incidents."""

    incident_id: str
    kind: positions_pb2.SubjectKind.ValueType
    subject_id: str


@dataclass(slots=True)
class FollowedTarget:
    """A target with its last position and recent track."""

    task: asyncio.Task[None] | None = None
    position: positions_pb2.LivePosition | None = None
    interrupted: bool = True
    """Whether no positions arrive at present, since the target's stream is new or broken."""
    track: deque[Sighting] = field(default_factory=deque)
    """Positions of the last minute, mesh time."""


class Targets:
    """Targets of one leg, each with an open stream."""

    def __init__(
        self, settings: DispatchSettings, last_known_positions: LastKnownPositions, metrics: FollowingMetrics
    ) -> None:
        self._settings, self._metrics = settings, metrics
        self._clock: MeshClock = settings.clock
        self._last_known_positions = last_known_positions
        self._basis = FOLLOWING_BASES[settings.leg]
        self._targets: dict[TargetKey, FollowedTarget] = {}
        self._connections: list[_Connection] = []
        self._changed = asyncio.Event()

    def of(self, incident_id: str) -> Mapping[TargetKey, FollowedTarget]:
        """Returns the targets of an incident."""
        return {key: target for key, target in self._targets.items() if key.incident_id == incident_id}

    def get(self, key: TargetKey) -> FollowedTarget | None:
        """Returns a target; None if it isn't followed."""
        return self._targets.get(key)

    async def changed(self) -> None:
        """Waits for a change of any target."""
        self._changed.clear()
        await self._changed.wait()

    async def follow(self, wanted: Callable[[], Collection[TargetKey]], rescan: asyncio.Event) -> None:
        """Keeps a stream open for each target that `wanted` returns, until cancelled. Calls `wanted` again when `rescan` is set."""
        async with AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
            while True:
                rescan.clear()
                keys = set(wanted())
                for key in self._targets.keys() - keys:
                    task = self._targets.pop(key).task
                    if task:
                        task.cancel()
                for key in keys - self._targets.keys():
                    connection = await self._connection(stack)
                    followed_target = self._targets[key] = FollowedTarget()
                    followed_target.task = tasks.create_task(self._keep(key, followed_target, connection))
                    connection.streams += 1
                    followed_target.task.add_done_callback(connection.release)
                await rescan.wait()

    async def _connection(self, stack: AsyncExitStack) -> _Connection:
        """Returns a connection with a free stream, opening one if necessary."""
        for known in self._connections:
            if known.streams < STREAMS_PER_CONNECTION:
                return known
        caller = CALLERS[self._settings.leg]
        opened = client.connection(self._settings, self._settings.geofence, caller, *NEWEST_FIRST)
        channel, metadata = await stack.enter_async_context(opened)
        self._connections.append(_Connection(positions_pb2_grpc.PositionServiceStub(channel), metadata))
        return self._connections[-1]

    async def _keep(self, key: TargetKey, followed_target: FollowedTarget, connection: _Connection) -> None:
        failures = 0
        while True:
            before = followed_target.position
            ended, code = False, "ended"
            try:
                ended = await self._read(key, followed_target, connection)
            except grpc.aio.AioRpcError as error:
                code = error.code().name
            followed_target.interrupted = True
            self._changed.set()
            failures = 0 if followed_target.position is not before else failures + 1
            self._metrics.streams_broken.labels(code).inc()
            if failures:
                logger().warning("target_stream_broke", incident_id=key.incident_id, code=code)
            # Add jitter: when an evaluator stops, a thousand streams break together.
            wait_s = RETRY.delay_s(failures) * random.uniform(0.5, 1.0)  # noqa: S311  # no secret
            await asyncio.sleep(RETRY.last_s if ended else wait_s)

    async def _read(self, key: TargetKey, followed_target: FollowedTarget, connection: _Connection) -> bool:
        """Reads a stream to its end. Returns True if the evaluator ended the share before it expired."""
        request = positions_pb2.WatchPositionsRequest(
            incident_id=key.incident_id,
            legal_basis=self._basis,
            subjects=[positions_pb2.Subject(kind=key.kind, subject_id=key.subject_id)],
            expires_at=times.to_timestamp(self._clock.now_ms() + SHARED_FOR_MS),
        )
        call = connection.stub.WatchPositions(request, metadata=connection.metadata)
        try:
            async for response in call:
                if response.HasField("end"):
                    return response.end.reason != positions_pb2.EXPIRED
                self._accept(key, followed_target, response.position)
        finally:
            call.cancel()
        return False

    def _accept(self, key: TargetKey, followed_target: FollowedTarget, position: positions_pb2.LivePosition) -> None:
        followed_target.position, followed_target.interrupted = position, False
        if position.HasField("lat_deg"):
            point = LatLon(position.lat_deg, position.lon_deg)
            at_ms = times.from_timestamp(position.fix_time) if position.HasField("fix_time") else None
            self._last_known_positions.put(key.subject_id, point, at_ms)
            if at_ms is not None and (not followed_target.track or at_ms > followed_target.track[-1].at_ms):
                followed_target.track.append(Sighting(at_ms, point))
                while followed_target.track[0].at_ms < at_ms - PACE_OVER_MS:
                    followed_target.track.popleft()
        self._changed.set()


@dataclass(slots=True)
class _Connection:
    stub: positions_pb2_grpc.PositionServiceStub
    metadata: server.Metadata
    streams: int = 0

    def release(self, _: asyncio.Task[None]) -> None:
        """Frees the stream of a finished task."""
        self.streams -= 1
