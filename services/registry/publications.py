"""Messages of the outbox that were sent and that their stream has lost since: they wait in the outbox again, in order.

A case snapshot that the log lost is the gap that this system closes: nobody would enforce the case until the next daily renewal.
Readers know a case by its version. Of a device's routes the last alone is looked at, so that no older one comes behind a newer one.
"""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from services.common.messaging import flow, published
from services.common.messaging.bus import Bus
from services.common.messaging.published import Publication, StreamComparison
from services.common.observability.telemetry import logger
from services.registry.handlers import Registry
from services.registry.tables import cases, outbox, routes

_KV_PREFIX = flow.ROUTES.subject.partition("{")[0]
_HEAD_PREFIX = "ledger."
_PAGE = 500


class _Sent:
    """Sent messages of the outbox that went to one stream."""

    def __init__(self, registry: Registry, prefix: str, last_of_subject: bool = False) -> None:
        self._registry = registry
        mine = sa.and_(
            outbox.c.subject.startswith(prefix, autoescape=True),
            outbox.c.sent_at_ms.is_not(None),
            outbox.c.stored_sequence.is_not(None),
        )
        if last_of_subject:
            last = sa.select(sa.func.max(outbox.c.id)).where(outbox.c.subject.startswith(prefix, autoescape=True))
            mine = sa.and_(mine, outbox.c.id.in_(last.group_by(outbox.c.subject)))
        self._query = sa.select(outbox.c.id, outbox.c.stored_sequence, outbox.c.subject, outbox.c.msg_id).where(mine)

    async def newest(self, before: int | None, limit: int) -> list[Publication]:
        """See Notes."""
        query = self._query.order_by(outbox.c.id.desc()).limit(limit)
        return await self._read(query if before is None else query.where(outbox.c.id < before))

    async def furthest(self, up_to: int) -> Publication | None:
        """See Notes."""
        query = self._query.where(outbox.c.id <= up_to).order_by(outbox.c.stored_sequence.desc()).limit(1)
        found = await self._read(query)
        return found[0] if found else None

    async def _read(self, query: sa.Select[int, int, str, str]) -> list[Publication]:
        async with self._registry.database.reading() as connection:  # it holds up nobody who puts
            return [Publication(*row) for row in (await connection.execute(query)).all()]


class Publications:
    """What the registry has published on the streams of one mesh."""

    def __init__(self, registry: Registry, bus: Bus, partitions: int) -> None:
        self._registry = registry
        self._compared: list[tuple[_Sent, StreamComparison]] = []
        for partition in range(partitions):
            stream = flow.log_stream(partition)
            self._add(stream, _Sent(registry, flow.log_subject(partition, "")), published.by_sequence(bus, stream))
        stream = flow.ROUTES.stream
        self._add(stream, _Sent(registry, _KV_PREFIX, last_of_subject=True), published.by_subject(bus, stream))
        stream = flow.LEDGER.name
        self._add(stream, _Sent(registry, _HEAD_PREFIX), published.by_sequence(bus, stream))

    def _add(self, stream: str, sent: _Sent, is_there: published.IsThere) -> None:
        self._compared.append((sent, StreamComparison(stream, sent, is_there)))

    async def compare(self) -> None:
        """Compares the outbox with the streams: what one has lost waits to be sent again. Raises Unavailable."""
        for sent, comparison in self._compared:
            lost = await comparison.lost()
            if lost:
                await self._unsend([one.recorded for one in lost])
                if not await sent.newest(None, 1):
                    # Not one is there that was sent since yesterday, so older ones may be gone, too.
                    await self._renew_all()

    async def _unsend(self, row_ids: Sequence[int]) -> None:
        async with self._registry.database.transaction() as connection:
            for first in range(0, len(row_ids), _PAGE):
                mine = outbox.c.id.in_(row_ids[first : first + _PAGE])
                await connection.execute(sa.update(outbox).where(mine).values(sent_at_ms=None, stored_sequence=None))

    async def _renew_all(self) -> None:
        logger().critical("everything_is_sent_again")
        async with self._registry.database.transaction() as connection:
            await connection.execute(sa.update(routes).values(sent_day=0))
            await connection.execute(sa.update(cases).values(sent_day=0))
