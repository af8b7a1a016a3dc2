"""Targets of a live page, followed only while a browser views the page, so that positions are shared only when needed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

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
    """Follows the targets of the leg's incidents that demand a response, over one stream."""

    def __init__(self, mesh: MeshClient, role: Role, page: LivePage, *, viewers: Viewers) -> None:
        self._mesh, self._role, self._page, self._viewers = mesh, role, page, viewers
        self._followed: dict[str, None] = {}
        """Incidents whose targets the page shows."""
        self._asked: set[str] = set()
        """Incidents that the leg was asked for over the present stream."""
        self._refused: dict[str, float] = {}
        """Incidents that the leg doesn't follow, with the time of the next request, seconds of the event loop's clock."""

    async def run(self) -> None:
        """Follows targets until cancelled."""
        while True:
            while not self._viewers or not self._wanted():
                await self._viewers.next(CHECK_INTERVAL_S)
            await self._follow()
            await asyncio.sleep(RETRY_DELAY_S)

    def _wanted(self) -> list[str]:
        return self._page.responding(self._followed, MAX_FOLLOWED) if self._viewers else []

    async def _follow(self) -> None:
        """Follows over one stream until it breaks, or until nobody views the page."""
        targets = self._mesh.leg_of(self._role).following.FollowTargets(metadata=self._mesh.own_identity(self._role))
        reading = asyncio.create_task(self._read(targets))
        try:
            while not reading.done() and self._viewers:
                if request := self._changes():
                    await targets.write(request)
                await asyncio.wait([reading], timeout=CHECK_INTERVAL_S)
            if reading.done():
                await reading
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            code = error.code().name if isinstance(error, grpc.aio.AioRpcError) else "BROKEN"
            logger().info("targets_not_followed", role=self._role.value, code=code)
        finally:
            targets.cancel()
            reading.cancel()
            if not self._viewers:
                self._keep([])
            self._asked.clear()
            self._refused.clear()

    def _changes(self) -> following_pb2.FollowTargetsRequest | None:
        """The incidents to add and to remove now; None if there are none."""
        now_s, wanted = asyncio.get_running_loop().time(), self._wanted()
        self._keep(wanted)
        removes = self._asked.difference(wanted)
        adds = [id_ for id_ in wanted if id_ not in self._asked and self._refused.get(id_, now_s) <= now_s]
        self._asked = self._asked.difference(removes).union(adds)
        if not adds and not removes:
            return None
        return following_pb2.FollowTargetsRequest(remove_incident_ids=removes, add_incident_ids=adds)

    def _keep(self, wanted: Iterable[str]) -> None:
        """Shows the targets of these incidents and no others."""
        kept = dict.fromkeys(wanted)
        for incident_id in self._followed.keys() - kept.keys():
            self._page.drop_targets(incident_id)
        self._followed = kept

    async def _read(self, targets: Any) -> None:
        async for message in targets:
            for event in message.events:
                if event.incident_id not in self._asked:
                    continue
                if event.HasField("target"):
                    self._page.put_target(event.incident_id, translate.target(event.incident_id, event.target))
                else:
                    self._asked.remove(event.incident_id)
                    self._refused[event.incident_id] = asyncio.get_running_loop().time() + RETRY_DELAY_S
