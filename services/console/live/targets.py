"""Targets of a live page, followed only while a browser views the page, so that positions are shared only when needed."""

from __future__ import annotations

import asyncio

import grpc.aio

from services.common.observability.telemetry import logger
from services.console import translate
from services.console.domain.live_page import LivePage
from services.console.domain.people import Role
from services.console.live.viewers import Viewers
from services.console.mesh import MeshClient
from tandem.dispatch.v1 import following_pb2

MAX_FOLLOWED = 200
"""Maximum number of incidents whose targets are followed; the most urgent come first."""
CHECK_INTERVAL_S = 0.5
RETRY_DELAY_S = 2.0


class TargetReader:
    """Follows the targets of the leg's incidents that demand a response."""

    def __init__(self, mesh: MeshClient, role: Role, page: LivePage, *, viewers: Viewers) -> None:
        self._mesh, self._role, self._page, self._viewers = mesh, role, page, viewers

    async def run(self) -> None:
        """Follows targets until cancelled."""
        following: dict[str, asyncio.Task[None]] = {}
        try:
            while True:
                wanted = self._page.responding(following, MAX_FOLLOWED) if self._viewers else []
                for incident_id in following.keys() - set(wanted):
                    following.pop(incident_id).cancel()
                    self._page.drop_targets(incident_id)
                for incident_id in wanted:
                    if incident_id not in following:
                        following[incident_id] = asyncio.create_task(self._follow(incident_id))
                await self._viewers.next(CHECK_INTERVAL_S)
        finally:
            for task in following.values():
                task.cancel()

    async def _follow(self, incident_id: str) -> None:
        request = following_pb2.WatchTargetsRequest(incident_id=incident_id)
        following = self._mesh.leg_of(self._role).following
        while True:
            targets = following.WatchTargets(request, metadata=self._mesh.own_identity(self._role))
            try:
                async for message in targets:
                    self._page.put_target(incident_id, translate.target(incident_id, message))
            except grpc.aio.AioRpcError as error:
                logger().info("targets_not_followed", incident_id=incident_id, code=error.code().name)
            finally:
                targets.cancel()
            await asyncio.sleep(RETRY_DELAY_S)
