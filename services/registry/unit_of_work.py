"""One transaction on the registry's database: the base of the repositories, single values, the keys of the records, and the outbox."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from services.common.errors import FailedPrecondition
from services.common.storage import db
from services.common.storage import rows as storage
from services.common.storage.rows import RowTarget
from services.common.storage.statements import Prepared
from services.registry.keys import DataKey, KeyOwner, Vault
from services.registry.tables import data_keys, meta, outbox

_META = RowTarget(meta, changing=("value",))
_SELECT_META = sa.select(meta.c.value).where(meta.c.name == sa.bindparam("name"))


class Repository:
    """The tables of a capability as one transaction sees them."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def _rows(self, statement: sa.Executable) -> Sequence[sa.Row[Any]]:
        return (await self._connection.execute(statement)).all()

    async def _write(self, statement: sa.Executable, rows: Iterable[Mapping[str, Any]]) -> None:
        """Execute a statement once with all rows, in their order. Without rows, nothing is sent to the database."""
        if parameters := list(rows):
            await self._connection.execute(statement, parameters)

    async def _upsert(self, table: sa.Table, rows: Iterable[Mapping[str, Any]]) -> None:
        """Insert complete rows. A row replaces the stored row with the same primary key."""
        await self._write(_upserts(table)[self._connection.dialect.name], rows)


@cache
def _upserts(table: sa.Table) -> Mapping[str, Any]:
    """Upsert statements of a table, by database dialect."""

    def upsert(insert: Any) -> Any:
        changed = {column.name: insert.excluded[column.name] for column in table.c if not column.primary_key}
        return insert.on_conflict_do_update(index_elements=list(table.primary_key), set_=changed)

    return db.insert_by_dialect(table, upsert)


def read_meta(connection: sa.Connection, name: str) -> bytes | None:
    """A single value of the database; None if it isn't set."""
    value = connection.execute(_SELECT_META, {"name": name}).scalar()
    return None if value is None else bytes(value)


def write_meta(connection: sa.Connection, name: str, value: bytes) -> None:
    """Set a single value of the database."""
    storage.write(connection, [_META], [[(name, value)]])


class MetaRepository(Repository):
    """Single values of the database, by name."""

    async def read_value(self, name: str) -> bytes | None:
        """A value; None if it isn't set."""
        return await self._connection.run_sync(read_meta, name)

    async def set_value(self, name: str, value: bytes) -> None:
        """Set a value."""
        await self._connection.run_sync(write_meta, name, value)


class KeyRepository(Repository):
    """The keys of the records as one transaction sees them."""

    def __init__(self, connection: AsyncConnection, vault: Vault) -> None:
        super().__init__(connection)
        self._vault = vault

    async def create_key(self, owner: KeyOwner, destroy_at_ms: int | None = None) -> DataKey:
        """Create a key for a record and replace its previous key, so that older copies of the record can't be decrypted."""
        key = self._vault.make_key(owner.text)
        row = {"owner": owner.text, "ring": key.ring, "wrapped": key.wrapped}
        await self._upsert(data_keys, [{**row, "destroy_at_ms": destroy_at_ms, "destroyed_at_ms": None}])
        return key

    async def rewrap(self, limit: int) -> bool:
        """Rewrap a batch of keys with the current master key; false if none was left."""
        old = sa.and_(data_keys.c.ring != self._vault.current, data_keys.c.destroyed_at_ms.is_(None))
        rows = await self._rows(sa.select(data_keys).where(old).limit(limit))
        rewrapped = [(row.owner, self._vault.rewrap(row.owner, DataKey(row.ring, row.wrapped))) for row in rows]
        await self._write(
            _REWRAP, [{"of": owner, "ring": key.ring, "wrapped": key.wrapped} for owner, key in rewrapped]
        )
        return bool(rows)

    async def lacking(self) -> frozenset[str]:
        """Ids of master keys that wrap stored keys but are missing from the key ring."""
        used = sa.select(data_keys.c.ring).where(data_keys.c.destroyed_at_ms.is_(None)).distinct()
        return frozenset(row.ring for row in await self._rows(used)) - set(self._vault.rings)

    async def ended(self, owners: Collection[KeyOwner]) -> frozenset[KeyOwner]:
        """The owners in `owners` that have ended or were destroyed."""
        if not owners:
            return frozenset()
        over = sa.or_(data_keys.c.destroy_at_ms.is_not(None), data_keys.c.destroyed_at_ms.is_not(None))
        mine = data_keys.c.owner.in_([owner.text for owner in owners])
        return frozenset(
            KeyOwner.parse(row.owner) for row in await self._rows(sa.select(data_keys.c.owner).where(mine, over))
        )


_REWRAP = sa.update(data_keys).where(data_keys.c.owner == sa.bindparam("of"))


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


class UnitOfWork:
    """One transaction on the registry's database. A capability's own repository is made of its connection."""

    def __init__(self, connection: AsyncConnection, vault: Vault) -> None:
        self.connection = connection
        self.vault = vault
        self.meta = MetaRepository(connection)
        self.keys = KeyRepository(connection, vault)
        self.outbox = OutboxRepository(connection)
        self.after_commit: list[Callable[[], None]] = []
        """Callbacks to run after the commit, such as writing a log line."""
