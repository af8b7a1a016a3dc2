"""The gRPC edge of following: a leg's desk sees where those are whom its units go to."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio

from services.common import fields, times
from services.common.clock import MeshClock
from services.common.observability.telemetry import logger
from services.common.rpc import server
from services.common.rpc.errors import Unavailable
from services.dispatch.following.follower import TargetFollower
from services.dispatch.following.targets import FollowedTarget, Key
from services.dispatch.leg.api import DESKS, admit
from services.dispatch.leg.service import LegService
from services.dispatch.roster.last_known_positions import KNOWN_FOR_MS
from tandem.dispatch.v1 import following_pb2, following_pb2_grpc
from tandem.geofence.v1 import positions_pb2

AGE_INTERVAL_S = 3.0
"""How often a desk is told how old a position is of which there is no newer one."""


class FollowingApi(following_pb2_grpc.FollowingServiceServicer):
    """FollowingService of one leg."""

    def __init__(self, leg: LegService, follower: TargetFollower | None, clock: MeshClock) -> None:
        self._leg = leg
        self._follower = follower
        self._clock = clock

    async def WatchTargets(
        self, request: following_pb2.WatchTargetsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[following_pb2.WatchTargetsResponse]:
        """Streams positions to the leg's desk."""
        admit(self._leg.name, DESKS[self._leg.name])
        incident_id = fields.required_id("incident_id", request.incident_id)
        if self._follower is None:
            raise Unavailable("this leg follows nobody: no evaluators are configured", retry_after_s=60.0)
        logger().info("targets_shown", incident_id=incident_id)
        told: dict[Key, tuple[Any, bool]] = {}
        told_s: dict[Key, float] = {}
        async for targets in self._follower.shown(incident_id, server.caller().spiffe_id):
            now_s = time.monotonic()
            for key, one in targets:
                state = (one.position, one.interrupted)
                if told.get(key) != state or now_s - told_s[key] >= AGE_INTERVAL_S:
                    told[key], told_s[key] = state, now_s
                    yield self._message(key, one)

    def _message(self, key: Key, followed_target: FollowedTarget) -> following_pb2.WatchTargetsResponse:
        _, kind, subject_id = key
        message = following_pb2.WatchTargetsResponse(
            subject_id=subject_id, is_wearer=kind == positions_pb2.WEARER, interrupted=followed_target.interrupted
        )
        position = followed_target.position
        message.unknown = position is None or position.unknown
        if position is not None and position.HasField("lat_deg"):
            message.lat_deg, message.lon_deg, message.accuracy_m = (
                position.lat_deg,
                position.lon_deg,
                position.accuracy_m,
            )
            if position.HasField("fix_time"):
                message.fix_time.CopyFrom(position.fix_time)
                age_ms = max(0, self._clock.now_ms() - times.from_timestamp(position.fix_time))
                message.age_s = age_ms / 1000
                # The evaluator's word is as old as its stream: what it called known may be unknown by now.
                message.unknown |= age_ms > KNOWN_FOR_MS
        return message
