"""Find outbox messages that their stream has lost, and mark them as not sent, so that the relay resends them in their order.

Otherwise nobody would enforce a case whose snapshot the log lost, until the next daily renewal. Readers identify a case by its
version, so a resent snapshot does no harm. For each device only the last route is compared, so that an older route never
follows a newer one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import sqlalchemy as sa

from services.common.messaging import flow, lost_publications
from services.common.messaging.bus import Bus
from services.common.messaging.lost_publications import Publication, StreamComparison
from services.common.observability.telemetry import logger
from services.common.storage.db import Database
from services.registry.cases.tables import cases
from services.registry.outbox.tables import outbox
from services.registry.routes.tables import routes

_KV_PREFIX = flow.ROUTES.subject.partition("{")[0]
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
            stream, _SentMessages(database, _KV_PREFIX, last_of_subject=True), lost_publications.by_subject(bus, stream)
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
