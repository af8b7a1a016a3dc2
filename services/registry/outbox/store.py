"""Outbox: committed messages for the streams, which the relay publishes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import sqlalchemy as sa

from services.common.rpc.errors import FailedPrecondition
from services.common.storage.statements import Prepared
from services.registry.outbox.tables import outbox
from services.registry.repository import Repository

PAYLOAD_MAX_BYTES = 900_000
"""Maximum payload of an outbox message, below nats-server's limit of 1 MB: a rejected message would block the outbox."""

_NO_SEQUENCES: Mapping[int, int] = {}


class OutboxMessage(NamedTuple):
    """A message for the outbox, not yet enqueued."""

    subject: str
    msg_id: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class OutboxRow:
    """A message in the outbox, with the id of its row."""

    id: int
    subject: str
    msg_id: str
    payload: bytes


def check_size(message: OutboxMessage) -> None:
    """Check that the log accepts a message of this size. Raises FailedPrecondition."""
    if len(message.payload) > PAYLOAD_MAX_BYTES:
        raise FailedPrecondition(
            f"the message for this record would be {len(message.payload)} bytes, and at most {PAYLOAD_MAX_BYTES} "
            "fit: shorten its places, persons or encounters"
        )


class OutboxRepository(Repository):
    """The outbox as one transaction sees it."""

    async def enqueue(self, messages: Iterable[OutboxMessage]) -> None:
        """Add messages in their order. Raises FailedPrecondition if a payload is larger than PAYLOAD_MAX_BYTES."""
        rows = list(messages)
        for message in rows:
            check_size(message)
        await self._write(sa.insert(outbox), [message._asdict() for message in rows])

    async def unsent(self, limit: int) -> list[OutboxRow]:
        """The first messages that aren't sent yet, in order."""
        rows = await self._connection.run_sync(_UNSENT.fetch, {"most": limit})
        return [
            OutboxRow(id=row_id, subject=subject, msg_id=msg_id, payload=payload)
            for row_id, subject, msg_id, payload in rows
        ]

    async def waiting_behind(self, count: int) -> int | None:
        """Id of the first unsent message with `count` unsent messages before it; None if at most `count` messages are unsent."""
        query = sa.select(outbox.c.id).where(outbox.c.sent_at_ms.is_(None)).order_by(outbox.c.id)
        rows = await self._rows(query.offset(count).limit(1))
        return rows[0].id if rows else None

    async def mark_sent(self, row_ids: Sequence[int], at_ms: int, stored: Mapping[int, int] = _NO_SEQUENCES) -> None:
        """Mark messages as sent. `stored` has the stream sequence of each message by its row id."""
        await self._connection.execute(sa.update(outbox).where(outbox.c.id.in_(row_ids)).values(sent_at_ms=at_ms))
        await self._write(_STORED, [{"row_id": id_, "stored_sequence": sequence} for id_, sequence in stored.items()])

    async def drop_sent_before(self, at_ms: int) -> None:
        """Delete messages that were sent before a moment, since their streams hold them."""
        await self._connection.execute(sa.delete(outbox).where(outbox.c.sent_at_ms < at_ms))

    async def clear(self) -> None:
        """Delete all messages, sent or not."""
        await self._connection.execute(sa.delete(outbox))


# Selected by state, because a cursor would skip a row that was committed late.
_UNSENT = Prepared(
    sa.select(outbox.c.id, outbox.c.subject, outbox.c.msg_id, outbox.c.payload)
    .where(outbox.c.sent_at_ms.is_(None))
    .order_by(outbox.c.id)
    .limit(sa.bindparam("most", type_=sa.Integer))
)
_STORED = sa.update(outbox).where(outbox.c.id == sa.bindparam("row_id"))
