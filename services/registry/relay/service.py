"""Publish committed outbox messages in the order of their commits, and retry until they are in their streams."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from prometheus_client import Gauge

from services.common.clock import MeshClock
from services.common.messaging.bus import PUBLISH_RETRY, Bus, PubAck
from services.common.messaging.lost_publications import CHECK_INTERVAL_S
from services.common.observability.telemetry import logger
from services.common.retrying import retried
from services.common.rpc.errors import RetryableError, Unavailable
from services.registry.cases.renewal import Renewal
from services.registry.outbox.store import OutboxRow
from services.registry.relay.flights import flights
from services.registry.relay.publications import Publications
from services.registry.traces.store import StoredVersion
from services.registry.transactions import Transactions

BATCH = 256
"""Maximum number of messages that are published before they are marked as sent. After a crash at most this many are resent;
nats-server drops duplicates for ten minutes."""
RENEW_INTERVAL_S = 5.0
"""How often the relay checks whether routes or cases must be renewed today, seconds of wall time. Renewal isn't urgent, and a check
costs as much as a put."""
POLL_S = 0.25
"""Maximum delay before the relay notices a commit of another process, seconds. Commits of this process wake it at once."""
SOLE_POLL_S = 1.0
"""As POLL_S where no other process writes to the database. Only the renewal and the comparison with the streams wait for it."""
RETRY_DELAY_S = 1.0
UNABLE_AFTER_S = 10.0
"""How long messages may wait while none is published before the registry reports that it isn't ready, seconds."""


class Relay:
    """Publishes outbox rows in flights, and marks them as sent after the server's acknowledgement.

    If the process dies before it marks a row, the row is published again with the same message id. After a start, the first
    batch is one message, the next two, then four and so on. So even a process that crashes repeatedly makes progress. Of several
    processes on one database, only one publishes at a time, so that the order of commits is the order in the log.
    """

    def __init__(
        self,
        transactions: Transactions,
        renewal: Renewal,
        bus: Bus,
        *,
        clock: MeshClock,
        age_s: Gauge,
        partitions: int = 1,
    ) -> None:
        self._transactions = transactions
        self._renewal = renewal
        self._publications = Publications(transactions.database, bus, partitions)
        self._compared: tuple[int, float] | None = None
        """Number of reconnects and time of the loop's clock, seconds, at the last comparison with the streams."""
        self._bus = bus
        self._clock = clock
        self._batch = 1
        self._renew_at_s = 0.0
        self._failing_since_s: float | None = None
        self._stuck_since_s: float | None = None
        """Since when messages have waited and none was published."""
        age_s.set_function(lambda: time.monotonic() - (self._stuck_since_s or time.monotonic()))

    def unable(self) -> str:
        """Reason why committed messages don't reach the log; empty if they do."""
        now_s = time.monotonic()
        if self._failing_since_s is not None and now_s - self._failing_since_s > UNABLE_AFTER_S:
            return f"the outbox hasn't been read for {now_s - self._failing_since_s:.0f} s"
        if self._stuck_since_s is not None and now_s - self._stuck_since_s > UNABLE_AFTER_S:
            return f"messages to the log wait, and none was published for {now_s - self._stuck_since_s:.0f} s"
        return ""

    def _stand_by(self) -> None:
        """Notes that another process reads the outbox, so this one has nothing to report as failing."""
        self._failing_since_s = self._stuck_since_s = None

    async def run(self) -> None:
        """Publish until cancelled. A commit wakes the relay, and polling finds commits of other processes."""
        poll_s = POLL_S if self._transactions.database.is_shared else SOLE_POLL_S
        while True:
            try:
                async with self._transactions.database.alone("relay", self._stand_by) as still_alone:
                    while True:
                        change = self._transactions.signal.next_change()
                        await still_alone()
                        await self._compare()
                        busy = await self._publish_some(still_alone) or await self._renew_some()
                        self._failing_since_s = None
                        if not busy:
                            await self._transactions.signal.wait_for(change, poll_s)
            except Unavailable as error:
                # No message is lost, because the rows stay in the outbox.
                if self._failing_since_s is None:
                    logger().error("relay_waits", reason=error.reason)
                    self._failing_since_s = time.monotonic()
                await asyncio.sleep(min(error.retry_after_s, RETRY_DELAY_S))

    async def _compare(self) -> None:
        """Check that the streams still hold the sent messages: after each connect before publishing, then every 10 s."""
        now_s, reconnects = asyncio.get_running_loop().time(), self._bus.reconnects
        if self._compared and self._compared[0] == reconnects and now_s < self._compared[1] + CHECK_INTERVAL_S:
            return
        await self._publications.compare()
        self._compared = reconnects, now_s

    async def _publish_some(self, still_alone: Callable[[], Awaitable[None]]) -> bool:
        """Publish a batch. Raises Unavailable if another process has taken over; that process publishes the batch again."""
        async with self._transactions.open() as work:
            rows = await work.outbox.unsent(self._batch)
        if not rows:
            self._stuck_since_s = None
            return False
        self._stuck_since_s = self._stuck_since_s or time.monotonic()
        versions: list[StoredVersion] = []
        stored: dict[int, int] = {}
        for flight in flights(rows):
            await still_alone()  # a flight may have taken minutes, while the server was away
            acks = await self._publish(flight)
            self._stuck_since_s = time.monotonic()
            for row, ack in zip(flight, acks, strict=True):
                stored[row.id] = ack.seq
                case_id, _, version = row.msg_id.partition(":")
                # A daily renewal has a day in its message id and isn't recorded: its version was stored in the log before.
                if row.subject.endswith(".case") and version.isdecimal():
                    versions.append(StoredVersion(case_id, int(version), ack.seq))
        async with self._transactions.open() as work:
            now_ms = self._clock.now_ms()
            await work.outbox.mark_sent([row.id for row in rows], now_ms, stored)
            await work.traces.note_versions(versions, now_ms)
        self._batch = min(2 * self._batch, BATCH)
        logger().info("outbox_published", messages=len(rows))
        return True

    async def _publish(self, flight: Sequence[OutboxRow]) -> list[PubAck]:
        """Publish messages together. Those that fail are retried one after another, in their order."""
        publications = [partial(self._bus.publish, row.subject, row.payload, msg_id=row.msg_id) for row in flight]
        outcomes = await asyncio.gather(*(publish() for publish in publications), return_exceptions=True)
        acks = []
        for publish, outcome in zip(publications, outcomes, strict=True):
            if isinstance(outcome, RetryableError):
                acks.append(await retried(publish, PUBLISH_RETRY, event="publish_retried"))
            elif isinstance(outcome, BaseException):
                raise outcome
            else:
                acks.append(outcome)
        return acks

    async def _renew_some(self) -> bool:
        now_s = asyncio.get_running_loop().time()
        if now_s < self._renew_at_s:
            return False
        if await self._renewal.renew_some():
            return True
        self._renew_at_s = now_s + RENEW_INTERVAL_S
        return False
