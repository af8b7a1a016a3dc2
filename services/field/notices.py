"""News of notices: follows the warning leg, and wakes the pages and phones that a notice is for."""

from __future__ import annotations

import asyncio

import grpc.aio

from services.common import times
from services.common.clock import MeshClock
from services.field.followed import NOTICES, FollowedNews
from services.field.mesh import FieldMesh
from services.field.metrics import FieldMetrics
from services.field.push.messages import PushClient
from services.field.push.store import PushAddresses
from services.field.push.waking import PageWaker
from tandem.dispatch.v1 import phone_notice_pb2


class NoticeNews(PageWaker):
    """Wakes those who wait for a device's notices."""

    def __init__(
        self, mesh: FieldMesh, addresses: PushAddresses, push: PushClient, *, clock: MeshClock, metrics: FieldMetrics
    ) -> None:
        super().__init__(addresses, push, clock=clock, metrics=metrics)
        self._mesh, self._followed = mesh, FollowedNews(NOTICES)

    @property
    def away(self) -> str:
        """Reason why the warning leg isn't followed; empty while it is."""
        return self._followed.away

    async def run(self) -> None:
        """Follows the warning leg until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                reason = "ended"
                try:
                    await self._follow(tasks)
                except grpc.aio.AioRpcError as error:
                    reason = error.code().name
                await asyncio.sleep(self._followed.lost(reason))

    async def _follow(self, tasks: asyncio.TaskGroup) -> None:
        request = phone_notice_pb2.WatchPhoneNoticesRequest()
        async for due in self._mesh.notices.WatchPhoneNotices(request, metadata=self._mesh.to_warning):
            self._followed.found()
            if not due.notice_id:
                continue
            self.wake(due.device_id)
            self.push_about(tasks, due.device_id, due.notice_id, expires_ms=times.from_timestamp(due.expires_at))
