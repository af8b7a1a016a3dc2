"""Publish the outbox: committed messages go to their streams in order, each until its stream holds it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import groupby

import sqlalchemy as sa
from prometheus_client import Gauge

from services.common.clock import MeshClock
from services.common.errors import RetryableError, Unavailable
from services.common.messaging import flow, lost_publications
from services.common.messaging.bus import PUBLISH_RETRY, Bus, PubAck
from services.common.messaging.lost_publications import CHECK_INTERVAL_S, Publication, StreamComparison
from services.common.observability.telemetry import logger
from services.common.retrying import retried
from services.common.runs import runs
from services.common.storage.db import Database
from services.registry.cases.service import Renewal
from services.registry.tables import cases, outbox, routes
from services.registry.traces.service import StoredVersion, TraceRepository
from services.registry.transactions import Transactions
from services.registry.unit_of_work import OutboxRow

_ROUTES_PREFIX = flow.ROUTES.subject.partition("{")[0]
_HEAD_PREFIX = "ledger."
_PAGE = 500


class _SentMessages:
    """Messages of the outbox that were sent to one stream."""

    def __init__(self, database: Database, prefix: str, last_of_subject: bool = False) -> None:
        self._database = database
        sent = sa.and_(
            outbox.c.subject.startswith(prefix, autoescape=True),
            outbox.c.sent_at_ms.is_not(None),
            outbox.c.stored_sequence.is_not(None),
        )
        if last_of_subject:
            last = sa.select(sa.func.max(outbox.c.id)).where(outbox.c.subject.startswith(prefix, autoescape=True))
            sent = sa.and_(sent, outbox.c.id.in_(last.group_by(outbox.c.subject)))
        # Built once: the relay asks for each of its streams at each connection and every 10 s.
        query = sa.select(outbox.c.id, outbox.c.stored_sequence, outbox.c.subject, outbox.c.msg_id).where(sent)
        newest = query.where(outbox.c.id < sa.bindparam("before")).order_by(outbox.c.id.desc())
        self._newest = newest.limit(sa.bindparam("most"))
        highest = query.where(outbox.c.id <= sa.bindparam("up_to")).order_by(outbox.c.stored_sequence.desc())
        self._highest = highest.limit(1)

    async def newest(self, before: int, limit: int) -> list[Publication]:
        """The last sent messages among the rows with a smaller id, newest first. Implements PublicationRecords."""
        return await self._read(self._newest, {"before": before, "most": limit})

    async def highest(self, up_to: int) -> Publication | None:
        """The sent message with the greatest sequence, among the rows up to an id. Implements PublicationRecords."""
        publications = await self._read(self._highest, {"up_to": up_to})
        return publications[0] if publications else None

    async def _read(self, query: sa.Select[int, int, str, str], values: Mapping[str, int]) -> list[Publication]:
        async with self._database.reading() as connection:  # a snapshot, so that no put waits for this read
            return [Publication._make(row) for row in (await connection.execute(query, values)).all()]


class Publications:
    """The registry's publications on the streams of one mesh, compared with the streams."""

    def __init__(self, database: Database, bus: Bus, partitions: int) -> None:
        self._database, self._bus = database, bus
        self._comparisons: list[tuple[_SentMessages, StreamComparison]] = []
        for partition in range(partitions):
            stream = flow.log_stream(partition)
            sent = _SentMessages(database, flow.log_subject(partition, ""))
            subjects = (flow.log_subject(partition, "case"),)
            self._add(stream, sent, lost_publications.by_sequence(bus, stream, subjects))
        stream = flow.ROUTES.stream
        self._add(
            stream,
            _SentMessages(database, _ROUTES_PREFIX, last_of_subject=True),
            lost_publications.by_subject(bus, stream),
        )
        stream = flow.LEDGER.name
        self._add(stream, _SentMessages(database, _HEAD_PREFIX), lost_publications.by_sequence(bus, stream))

    def _add(self, stream: str, sent: _SentMessages, lost_among: lost_publications.LostAmong) -> None:
        self._comparisons.append((sent, StreamComparison(self._bus, stream, records=sent, lost_among=lost_among)))

    async def compare(self) -> None:
        """Compare the outbox with the streams and mark lost messages as not sent. Raises Unavailable."""
        for sent, comparison in self._comparisons:
            lost = await comparison.lost()
            if lost:
                await self._mark_unsent([publication.position for publication in lost])
                if not await sent.newest(lost_publications.ABOVE_ALL, 1):
                    # The stream lost all messages of the last day. So it may also have lost older ones that the outbox no longer has.
                    await self._renew_all()

    async def _mark_unsent(self, row_ids: Sequence[int]) -> None:
        async with self._database.transaction() as connection:
            for first in range(0, len(row_ids), _PAGE):
                page = outbox.c.id.in_(row_ids[first : first + _PAGE])
                await connection.execute(sa.update(outbox).where(page).values(sent_at_ms=None, stored_sequence=None))

    async def _renew_all(self) -> None:
        logger().critical("full_resend_scheduled")
        async with self._database.transaction() as connection:
            await connection.execute(sa.update(routes).values(sent_day=0))
            await connection.execute(sa.update(cases).values(sent_day=0))


MAX_FLIGHT = 16
"""Number of messages in flight. A stream writes one message after another to the disk, so a live report waits for a flight at most,
also while agencies renew all their records."""
MAX_FLIGHT_BYTES = 1 << 20
"""Size of the messages in flight after which the next message waits, bytes."""


def flights(rows: Iterable[OutboxRow]) -> list[list[OutboxRow]]:
    """Groups of messages in the order in which the groups are published. The messages of a group are in flight together.

    No group holds two messages of one device or one case, so that an older route or case never follows a newer one, even if the
    server refuses the older message at first. Routes come before all other messages, so that reports reach a case's partition by the
    time the fold knows the case.
    """
    ordered = sorted(rows, key=_is_after_routes)
    return [
        flight
        for _, part in groupby(ordered, _is_after_routes)
        for flight in runs(part, _key, at_most=MAX_FLIGHT, size=_size_bytes, max_size=MAX_FLIGHT_BYTES)
    ]


def _is_after_routes(row: OutboxRow) -> bool:
    return not row.subject.startswith(_ROUTES_PREFIX)


def _size_bytes(row: OutboxRow) -> int:
    return len(row.payload)


def _key(row: OutboxRow) -> str:
    """The case of a case's snapshot, and the subject of any other message."""
    return row.msg_id.partition(":")[0] if row.subject.endswith(".case") else row.subject


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
            await TraceRepository(work.connection).note_versions(versions, now_ms)
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
