"""The way out of the outbox: what was committed is published until it is in the log, in the order of commits."""

from __future__ import annotations

import asyncio
import time

from prometheus_client import Gauge

from services.common.clock import MeshClock
from services.common.messaging.bus import Bus
from services.common.messaging.published import CHECK_INTERVAL_S
from services.common.observability.telemetry import logger
from services.common.rpc.errors import Unavailable
from services.registry.handlers import Registry
from services.registry.publications import Publications

BATCH = 64
"""Messages between two marks at the most: so many go out again after a crash, and the server knows them again for ten minutes."""
RENEW_INTERVAL_S = 1.0
"""How often it looks for what wasn't sent today, wall time; nobody waits for that, and a look costs as much as a put."""
POLL_S = 0.25
"""How long a commit of another process may go unnoticed; our own wake the relay at once."""
RETRY_DELAY_S = 1.0
UNABLE_AFTER_S = 10.0
"""How long messages may wait before the registry says that it can't do its work."""

_AGE_S = Gauge(
    "tandem_registry_outbox_age_seconds", "Since when messages to the log have been waiting; 0 where none is"
)


class Relay:
    """Publishes waiting rows, one after the other, and marks them once the server has acknowledged them.

    A row that was published but not marked, because the process died, goes out again under the same message id. After a start
    it marks after one message, then after two, four and so on: however short its lives are, each gets further than the one
    before. Of several processes on one database one publishes at a time, so that the order of commits is the order in the log.
    """

    def __init__(self, registry: Registry, bus: Bus, clock: MeshClock, partitions: int = 1) -> None:
        self._registry = registry
        self._publications = Publications(registry, bus, partitions)
        self._compared: tuple[int, float] | None = None
        """After which connection, and when by the loop's clock, the streams were compared last."""
        self._bus = bus
        self._clock = clock
        self._batch = 1
        self._renew_at_s = 0.0
        self._failing_since_s: float | None = None
        self._waiting_since_s: float | None = None
        _AGE_S.set_function(lambda: time.monotonic() - (self._waiting_since_s or time.monotonic()))

    def unable(self) -> str:
        """Why what is committed doesn't come into the log, or nothing."""
        now_s = time.monotonic()
        if self._failing_since_s is not None and now_s - self._failing_since_s > UNABLE_AFTER_S:
            return f"the outbox hasn't been read for {now_s - self._failing_since_s:.0f} s"
        if self._waiting_since_s is not None and now_s - self._waiting_since_s > UNABLE_AFTER_S:
            return f"messages to the log have been waiting for {now_s - self._waiting_since_s:.0f} s"
        return ""

    async def run(self) -> None:
        """Works for ever; a commit wakes it, a poll catches what was missed."""
        while True:
            try:
                async with self._registry.database.alone("relay") as still_alone:
                    while True:
                        change = self._registry.next_change()
                        await still_alone()
                        await self._compare()
                        busy = await self._publish_some() or await self._renew_some()
                        self._failing_since_s = None
                        if not busy:
                            await self._registry.wait_for(change, POLL_S)
            except Unavailable as error:
                # Nothing is lost: the rows wait.
                if self._failing_since_s is None:
                    logger().error("relay_waits", reason=error.reason)
                    self._failing_since_s = time.monotonic()
                await asyncio.sleep(min(error.retry_after_s, RETRY_DELAY_S))

    async def _compare(self) -> None:
        """Looks whether the streams still hold what was sent: after each connection before anything more is, and every 10 s."""
        now_s, reconnects = asyncio.get_running_loop().time(), self._bus.reconnects
        if self._compared and self._compared[0] == reconnects and now_s < self._compared[1] + CHECK_INTERVAL_S:
            return
        await self._publications.compare()
        self._compared = reconnects, now_s

    async def _publish_some(self) -> bool:
        async with self._registry.transaction() as records:
            rows = await records.unsent(self._batch)
        if not rows:
            self._waiting_since_s = None
            return False
        if self._waiting_since_s is None:
            self._waiting_since_s = time.monotonic()
        versions: list[tuple[str, int, int]] = []
        stored: dict[int, int] = {}
        for row in rows:
            ack = await self._bus.publish_until_stored(row.subject, row.payload, msg_id=row.msg_id)
            if ack:
                stored[row.id] = ack.seq
            case_id, _, version = row.msg_id.partition(":")
            # Not what is only sent again each day: its version came into the log before.
            if ack and row.subject.endswith(".case") and version.isdecimal():
                versions.append((case_id, int(version), ack.seq))
        async with self._registry.transaction() as records:
            now_ms = self._clock.now_ms()
            await records.mark_sent([row.id for row in rows], now_ms, stored)
            for case_id, number, sequence in versions:
                await records.traces.note_version(case_id, number, sequence, now_ms)
        self._batch = min(2 * self._batch, BATCH)
        logger().info("outbox_published", messages=len(rows))
        return True

    async def _renew_some(self) -> bool:
        now_s = asyncio.get_running_loop().time()
        if now_s < self._renew_at_s:
            return False
        if await self._registry.renew_some():
            return True
        self._renew_at_s = now_s + RENEW_INTERVAL_S
        return False
