"""Keys of the records within one transaction: create, rewrap and destroy them, with all data that depends on a record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from services.common.storage import db
from services.registry.disclosure.domain import KEPT_AFTER_END_MS
from services.registry.keys.vault import DataKey, Vault
from services.registry.ledger.tables import data_keys
from services.registry.matching import similarity
from services.registry.reconciliation.domain import ListedKind
from services.registry.records import tables
from services.registry.reviews import tables as tables_review
from services.registry.reviews.domain import TOKENS_KEPT_MS
from services.registry.traces.tables import case_versions

SEALED_TABLES = (tables.wearers, tables.protected_persons, tables.orders)
_KINDS = {"wearers": ListedKind.WEARER, "protected_persons": ListedKind.PROTECTED_PERSON, "orders": ListedKind.ORDER}
_COLUMNS = {"wearers": "wearer_id", "orders": "order_id"}
_SIDES = {"wearers": similarity.WEARER_SIDE, "orders": similarity.ORDER_SIDE}


def decision_owner(case_id: str, at_ms: int) -> str:
    """Owner name of the key that encrypts a decision's reason."""
    return f"review_decisions/{case_id}/{at_ms}"


@dataclass(frozen=True, slots=True)
class DestroyedRecord:
    """A record whose key was destroyed."""

    table: str
    record_id: str


class KeyRecords:
    """The keys of the records as one transaction sees them."""

    def __init__(self, connection: AsyncConnection, vault: Vault) -> None:
        self._connection = connection
        self._vault = vault

    async def _rows(self, statement: sa.Executable) -> Sequence[sa.Row[Any]]:
        return (await self._connection.execute(statement)).all()

    async def make(self, owner: str, destroy_at_ms: int | None = None) -> DataKey:
        """Create a key for a record and replace its previous key, so that older copies of the record can't be decrypted."""
        key = self._vault.make_key(owner)
        values = {"ring": key.ring, "wrapped": key.wrapped, "destroy_at_ms": destroy_at_ms, "destroyed_at_ms": None}
        await db.upsert(self._connection, data_keys, {"owner": owner}, values=values)
        return key

    async def rewrap(self, limit: int) -> bool:
        """Rewrap a batch of keys with the current key of the ring; false if none was left."""
        old = sa.and_(data_keys.c.ring != self._vault.current, data_keys.c.destroyed_at_ms.is_(None))
        rows = await self._rows(sa.select(data_keys).where(old).limit(limit))
        for row in rows:
            key = self._vault.rewrap(row.owner, DataKey(row.ring, row.wrapped))
            await self._connection.execute(
                sa.update(data_keys).where(data_keys.c.owner == row.owner).values(ring=key.ring, wrapped=key.wrapped)
            )
        return bool(rows)

    async def lacking(self) -> frozenset[str]:
        """Ids of ring keys that wrap stored keys but are missing from the ring."""
        used = sa.select(data_keys.c.ring).where(data_keys.c.destroyed_at_ms.is_(None)).distinct()
        return frozenset(row.ring for row in await self._rows(used)) - set(self._vault.rings)

    async def is_over(self, table: sa.Table, record_id: str) -> bool:
        """Whether the record of a wearer or protected person has ended or was destroyed."""
        ended = sa.or_(data_keys.c.destroy_at_ms.is_not(None), data_keys.c.destroyed_at_ms.is_not(None))
        mine = data_keys.c.owner == f"{table.name}/{record_id}"
        return bool(await self._rows(sa.select(data_keys.c.owner).where(mine, ended)))

    async def without(self, table: sa.Table, limit: int) -> list[str]:
        """Ids of a batch of records that were stored before each record had a key."""
        (key,) = table.primary_key
        keyed = table.outerjoin(data_keys, data_keys.c.owner == sa.literal(f"{table.name}/").concat(key))
        statement = sa.select(key).select_from(keyed).where(data_keys.c.owner.is_(None))
        return [row[0] for row in await self._rows(statement.limit(limit))]

    # ── destruction ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def destroy_due(self, now_ms: int, limit: int) -> list[DestroyedRecord]:
        """Destroy a batch of due records, and the protected persons whom no remaining order names."""
        await self._drop_match_events(now_ms)
        named, person = tables.order_persons, sa.func.substr(data_keys.c.owner, len("protected_persons/") + 1)
        needed = sa.and_(
            data_keys.c.owner.like("protected\\_persons/%", escape="\\"), sa.exists().where(named.c.person_id == person)
        )
        over = sa.and_(data_keys.c.destroy_at_ms <= now_ms, data_keys.c.destroyed_at_ms.is_(None), ~needed)
        due = await self._rows(sa.select(data_keys.c.owner).where(over).limit(limit))
        records = [DestroyedRecord(*row.owner.split("/", 1)) for row in due]
        records += [DestroyedRecord("wearers", wearer_id) for wearer_id in await self._wearers_over(now_ms, limit)]
        for record in list(records):
            if record.table == "orders":
                persons = await self._only_named_by(record.record_id)
                records += [DestroyedRecord("protected_persons", person) for person in persons]
        records = list(dict.fromkeys(records))
        for record in records:
            await self._destroy(record, now_ms)
        return records

    async def _wearers_over(self, now_ms: int, limit: int) -> list[str]:
        """Ids of wearers whose last tag was taken off at least KEPT_AFTER_END_MS ago."""
        tags, owner = tables.tags, sa.literal("wearers/").concat(tables.tags.c.wearer_id)
        statement = (
            sa.select(tags.c.wearer_id)
            .select_from(
                tags.join(data_keys, sa.and_(data_keys.c.owner == owner, data_keys.c.destroyed_at_ms.is_(None)))
            )
            .group_by(tags.c.wearer_id)
            .having(sa.func.count(tags.c.removed_at_ms) == sa.func.count())
            .having(sa.func.max(tags.c.removed_at_ms) <= now_ms - KEPT_AFTER_END_MS)
        )
        return [row.wearer_id for row in await self._rows(statement.limit(limit))]

    async def _drop_cases(self, destroyed: DestroyedRecord) -> None:
        """Delete the cases, reviews, decisions and keys that involve a record. Messages that aren't sent yet stay."""
        column = _COLUMNS[destroyed.table]
        outbox, decisions = tables.outbox, tables_review.review_decisions
        for table in (tables.cases, tables_review.reviews):
            mine = sa.select(table.c.case_id).where(table.c[column] == destroyed.record_id)
            for row in await self._rows(mine):
                rows = await self._rows(sa.select(decisions.c.at_ms).where(decisions.c.case_id == row.case_id))
                owners = [decision_owner(row.case_id, decision.at_ms) for decision in rows]
                sent = sa.and_(outbox.c.msg_id.startswith(f"{row.case_id}:"), outbox.c.sent_at_ms.is_not(None))
                await self._connection.execute(sa.delete(data_keys).where(data_keys.c.owner.in_(owners)))
                await self._connection.execute(sa.delete(decisions).where(decisions.c.case_id == row.case_id))
                await self._connection.execute(sa.delete(outbox).where(sent))
                await self._connection.execute(sa.delete(case_versions).where(case_versions.c.case_id == row.case_id))
            await self._connection.execute(sa.delete(table).where(table.c[column] == destroyed.record_id))
        if destroyed.table == "orders":
            stages = tables_review.order_stages
            await self._connection.execute(sa.delete(stages).where(stages.c.order_id == destroyed.record_id))

    async def _drop_match_events(self, now_ms: int) -> None:
        """Delete the match events of destroyed records once no valid resume token can reach them."""
        over = sa.and_(data_keys.c.destroy_at_ms <= now_ms, data_keys.c.destroyed_at_ms.is_not(None))
        events = tables_review.match_events
        for row in await self._rows(sa.select(data_keys.c.owner).where(over)):
            table, record_id = row.owner.split("/", 1)
            await self._connection.execute(sa.delete(events).where(events.c[_COLUMNS[table]] == record_id))
            done = sa.update(data_keys).where(data_keys.c.owner == row.owner).values(destroy_at_ms=None)
            await self._connection.execute(done)

    async def _only_named_by(self, order_id: str) -> list[str]:
        """Delete the links from an order to its persons; returns the ids of persons whom no other order protects."""
        named = tables.order_persons
        persons = [row.person_id for row in await self._rows(sa.select(named).where(named.c.order_id == order_id))]
        await self._connection.execute(sa.delete(named).where(named.c.order_id == order_id))
        others = sa.select(named.c.person_id).where(named.c.person_id.in_(persons))
        still_protected = {row.person_id for row in await self._rows(others)}
        return [person_id for person_id in persons if person_id not in still_protected]

    async def _destroy(self, destroyed: DestroyedRecord, now_ms: int) -> None:
        table = tables.metadata.tables[destroyed.table]
        (key_column,) = table.primary_key
        emptied = {name: b"" for name in ("sealed", "digest", "national_hash") if name in table.c}
        await self._connection.execute(sa.update(table).where(key_column == destroyed.record_id).values(emptied))
        events_until_ms = now_ms + TOKENS_KEPT_MS if destroyed.table in _COLUMNS else None
        values = {"wrapped": b"", "destroy_at_ms": events_until_ms, "destroyed_at_ms": now_ms}
        owner = f"{destroyed.table}/{destroyed.record_id}"
        await self._connection.execute(sa.update(data_keys).where(data_keys.c.owner == owner).values(values))
        digests, keys = tables_review.record_digests, tables_review.match_keys
        mine = sa.and_(digests.c.kind == _KINDS[destroyed.table].value, digests.c.record_id == destroyed.record_id)
        await self._connection.execute(sa.delete(digests).where(mine))
        if destroyed.table in _SIDES:
            await self._drop_cases(destroyed)
            hashed = sa.and_(keys.c.side == _SIDES[destroyed.table], keys.c.record_id == destroyed.record_id)
            await self._connection.execute(sa.delete(keys).where(hashed))
