"""The records' keys within one transaction: wrapped anew, completed, destroyed with all that they open."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from services.common.storage import db
from services.registry import similarity, tables, tables_review
from services.registry.disclosure import KEPT_AFTER_END_MS
from services.registry.reconcile import ListedKind
from services.registry.review import TOKENS_KEPT_MS
from services.registry.tables_ledger import data_keys
from services.registry.tables_traces import case_versions
from services.registry.vault import DataKey, Vault

SEALED_TABLES = (tables.wearers, tables.protected_persons, tables.orders)
_KINDS = {"wearers": ListedKind.WEARER, "protected_persons": ListedKind.PROTECTED_PERSON, "orders": ListedKind.ORDER}
_COLUMNS = {"wearers": "wearer_id", "orders": "order_id"}
_SIDES = {"wearers": similarity.WEARER_SIDE, "orders": similarity.ORDER_SIDE}


def decision_owner(case_id: str, at_ms: int) -> str:
    """Whose the key of the reason of a decision is."""
    return f"review_decisions/{case_id}/{at_ms}"


@dataclass(frozen=True, slots=True)
class Destroyed:
    """A record whose key is gone."""

    table: str
    record_id: str


class KeyRecords:
    """The keys as one transaction sees them."""

    def __init__(self, connection: AsyncConnection, vault: Vault) -> None:
        self._connection = connection
        self._vault = vault

    async def _rows(self, statement: sa.Executable) -> Sequence[sa.Row[Any]]:
        return (await self._connection.execute(statement)).all()

    async def make(self, owner: str, destroy_at_ms: int | None = None) -> DataKey:
        """A new key for a record, in place of the one it had, so that nothing opens what was stored before."""
        key = self._vault.make_key(owner)
        values = {"ring": key.ring, "wrapped": key.wrapped, "destroy_at_ms": destroy_at_ms, "destroyed_at_ms": None}
        await db.upsert(self._connection, data_keys, {"owner": owner}, values)
        return key

    async def rewrap(self, limit: int) -> bool:
        """Wraps some keys of an older ring with its current key; false where none was left."""
        old = sa.and_(data_keys.c.ring != self._vault.current, data_keys.c.destroyed_at_ms.is_(None))
        rows = await self._rows(sa.select(data_keys).where(old).limit(limit))
        for row in rows:
            key = self._vault.rewrap(row.owner, DataKey(row.ring, row.wrapped))
            await self._connection.execute(
                sa.update(data_keys).where(data_keys.c.owner == row.owner).values(ring=key.ring, wrapped=key.wrapped)
            )
        return bool(rows)

    async def lacking(self) -> frozenset[str]:
        """Ids of keys that aren't in the ring although they wrap a key."""
        used = sa.select(data_keys.c.ring).where(data_keys.c.destroyed_at_ms.is_(None)).distinct()
        return frozenset(row.ring for row in await self._rows(used)) - set(self._vault.rings)

    async def is_over(self, table: sa.Table, record_id: str) -> bool:
        """Whether a wearer or protected person has ended or was destroyed."""
        ended = sa.or_(data_keys.c.destroy_at_ms.is_not(None), data_keys.c.destroyed_at_ms.is_not(None))
        mine = data_keys.c.owner == f"{table.name}/{record_id}"
        return bool(await self._rows(sa.select(data_keys.c.owner).where(mine, ended)))

    async def without(self, table: sa.Table, limit: int) -> list[str]:
        """Ids of some records that were sealed before records had keys of their own."""
        (key,) = table.primary_key
        keyed = table.outerjoin(data_keys, data_keys.c.owner == sa.literal(f"{table.name}/").concat(key))
        statement = sa.select(key).select_from(keyed).where(data_keys.c.owner.is_(None))
        return [row[0] for row in await self._rows(statement.limit(limit))]

    # ── the end ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def destroy_due(self, now_ms: int, limit: int) -> list[Destroyed]:
        """Destroys some of what is due, and what was kept for its sake only: the persons whom no order names any more."""
        await self._drop_told(now_ms)
        named, person = tables.order_persons, sa.func.substr(data_keys.c.owner, len("protected_persons/") + 1)
        needed = sa.and_(
            data_keys.c.owner.like("protected\\_persons/%", escape="\\"), sa.exists().where(named.c.person_id == person)
        )
        over = sa.and_(data_keys.c.destroy_at_ms <= now_ms, data_keys.c.destroyed_at_ms.is_(None), ~needed)
        due = await self._rows(sa.select(data_keys.c.owner).where(over).limit(limit))
        gone = [Destroyed(*row.owner.split("/", 1)) for row in due]
        gone += [Destroyed("wearers", wearer_id) for wearer_id in await self._wearers_over(now_ms, limit)]
        for one in list(gone):
            if one.table == "orders":
                gone += [Destroyed("protected_persons", person) for person in await self._only_named_by(one.record_id)]
        gone = list(dict.fromkeys(gone))
        for one in gone:
            await self._destroy(one, now_ms)
        return gone

    async def _wearers_over(self, now_ms: int, limit: int) -> list[str]:
        """Wearers whose last tag was taken off long enough ago."""
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

    async def _drop_cases(self, destroyed: Destroyed) -> None:
        """Deletes what joins a record with others, and what was said of it, with its keys. What waits to be sent is sent."""
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

    async def _drop_told(self, now_ms: int) -> None:
        """Deletes what was told of the matches of records that were destroyed, once no resume token reaches it any more."""
        over = sa.and_(data_keys.c.destroy_at_ms <= now_ms, data_keys.c.destroyed_at_ms.is_not(None))
        events = tables_review.match_events
        for row in await self._rows(sa.select(data_keys.c.owner).where(over)):
            table, record_id = row.owner.split("/", 1)
            await self._connection.execute(sa.delete(events).where(events.c[_COLUMNS[table]] == record_id))
            done = sa.update(data_keys).where(data_keys.c.owner == row.owner).values(destroy_at_ms=None)
            await self._connection.execute(done)

    async def _only_named_by(self, order_id: str) -> list[str]:
        """Forgets whom an order protects; returns those whom no other order does."""
        named = tables.order_persons
        persons = [row.person_id for row in await self._rows(sa.select(named).where(named.c.order_id == order_id))]
        await self._connection.execute(sa.delete(named).where(named.c.order_id == order_id))
        others = sa.select(named.c.person_id).where(named.c.person_id.in_(persons))
        still = {row.person_id for row in await self._rows(others)}
        return [person_id for person_id in persons if person_id not in still]

    async def _destroy(self, destroyed: Destroyed, now_ms: int) -> None:
        table = tables.metadata.tables[destroyed.table]
        (key_column,) = table.primary_key
        emptied = {name: b"" for name in ("sealed", "digest", "national_hash") if name in table.c}
        await self._connection.execute(sa.update(table).where(key_column == destroyed.record_id).values(emptied))
        told_until_ms = now_ms + TOKENS_KEPT_MS if destroyed.table in _COLUMNS else None
        values = {"wrapped": b"", "destroy_at_ms": told_until_ms, "destroyed_at_ms": now_ms}
        owner = f"{destroyed.table}/{destroyed.record_id}"
        await self._connection.execute(sa.update(data_keys).where(data_keys.c.owner == owner).values(values))
        digests, keys = tables_review.record_digests, tables_review.match_keys
        mine = sa.and_(digests.c.kind == _KINDS[destroyed.table].value, digests.c.record_id == destroyed.record_id)
        await self._connection.execute(sa.delete(digests).where(mine))
        if destroyed.table in _SIDES:
            await self._drop_cases(destroyed)
            hashed = sa.and_(keys.c.side == _SIDES[destroyed.table], keys.c.record_id == destroyed.record_id)
            await self._connection.execute(sa.delete(keys).where(hashed))
