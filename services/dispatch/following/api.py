"""gRPC service of target following: a leg's desk sees the live positions of the targets that its units go to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio

from services.common import fields
from services.common.clock import MeshClock
from services.common.observability.telemetry import logger
from services.common.rpc import server
from services.common.rpc.errors import InvalidField, Unavailable
from services.dispatch.following.desk_stream import DeskStream
from services.dispatch.following.follower import TargetFollower
from services.dispatch.leg.api import admit
from services.dispatch.leg.service import LegService
from tandem.dispatch.v1 import following_pb2, following_pb2_grpc

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
