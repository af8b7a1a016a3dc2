"""The way out of the outbox: what was committed is published until it is in the log, in the order of commits."""

from __future__ import annotations

import asyncio
import contextlib

from services.common.bus import Bus
from services.common.clock import MeshClock
from services.common.errors import Unavailable
from services.common.telemetry import logger
from services.registry.handlers import Registry

BATCH = 64
POLL_S = 1.0


class Relay:
    """Publishes waiting rows, one after the other, and marks them once the server has acknowledged them.

    A row that was published but not marked, because the process died, goes out again under the same message id.
    """

    def __init__(self, registry: Registry, bus: Bus, clock: MeshClock) -> None:
        self._registry = registry
        self._bus = bus
        self._clock = clock

    async def run(self) -> None:
        """Works for ever; a commit wakes it, a poll catches what was missed."""
        while True:
            change = self._registry.next_change()
            try:
                if await self._publish_some() or await self._registry.renew_some():
                    continue
            except Unavailable as error:  # the database's: nothing is lost, the rows wait
                logger().warning("outbox_retried", reason=error.reason)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_S):
                    await change.wait()

    async def _publish_some(self) -> bool:
        async with self._registry.transaction() as records:
            rows = await records.unsent(BATCH)
        if not rows:
            return False
        for row in rows:
            await self._bus.publish_until_stored(row.subject, row.payload, msg_id=row.msg_id)
        async with self._registry.transaction() as records:
            await records.mark_sent([row.id for row in rows], self._clock.now_ms())
        logger().info("outbox_published", messages=len(rows))
        return True
