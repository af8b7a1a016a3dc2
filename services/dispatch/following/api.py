"""gRPC service of target following: a leg's desk sees the live positions of the targets that its units go to."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import grpc.aio

from services.common import fields, times
from services.common.clock import MeshClock
from services.common.observability.telemetry import logger
from services.common.rpc import server
from services.common.rpc.errors import Unavailable
from services.dispatch.following.follower import TargetFollower
from services.dispatch.following.targets import FollowedTarget, TargetKey
from services.dispatch.leg.api import admit
from services.dispatch.leg.service import LegService
from services.dispatch.roster.last_known_positions import KNOWN_FOR_MS
from tandem.dispatch.v1 import following_pb2, following_pb2_grpc
from tandem.geofence.v1 import positions_pb2

AGE_INTERVAL_S = 3.0
"""Interval at which the age of an unchanged position is sent to a desk, seconds."""


class _SentState(NamedTuple):
    """State of a target that was last sent to the desk."""

    position: positions_pb2.LivePosition | None
    interrupted: bool


class FollowingApi(following_pb2_grpc.FollowingServiceServicer):
    """FollowingService of one leg."""

    def __init__(self, leg: LegService, follower: TargetFollower | None, clock: MeshClock) -> None:
        self._leg = leg
        self._follower = follower
        self._clock = clock

    async def WatchTargets(
        self, request: following_pb2.WatchTargetsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[following_pb2.WatchTargetsResponse]:
        """Streams the positions of an incident's targets to the leg's desk."""
        admit(self._leg.name)
        incident_id = fields.required_id("incident_id", request.incident_id)
        if self._follower is None:
            raise Unavailable(
                "this leg has no target positions: TANDEM_GEOFENCE isn't set (example: dns:///geofence:7403)",
                retry_after_s=60.0,
            )
        logger().info("targets_shown", incident_id=incident_id)
        sent: dict[TargetKey, _SentState] = {}
        sent_s: dict[TargetKey, float] = {}
        async for targets in self._follower.shown(incident_id, server.caller().spiffe_id):
            now_s = time.monotonic()
            for key, target in targets:
                state = _SentState(target.position, target.interrupted)
                if sent.get(key) != state or now_s - sent_s[key] >= AGE_INTERVAL_S:
                    sent[key], sent_s[key] = state, now_s
                    yield self._message(key, target)

    def _message(self, key: TargetKey, followed_target: FollowedTarget) -> following_pb2.WatchTargetsResponse:
        message = following_pb2.WatchTargetsResponse(
            subject_id=key.subject_id,
            is_wearer=key.kind == positions_pb2.WEARER,
            interrupted=followed_target.interrupted,
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
                # `unknown` is only as recent as the evaluator's last message. A position that was known then may be outdated now.
                message.unknown |= age_ms > KNOWN_FOR_MS
        return message
