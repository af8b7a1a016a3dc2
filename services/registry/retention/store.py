"""Destruction of records: the key of a record, and all data that depends on the record."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from services.registry.cases.tables import cases
from services.registry.cctv import store as cctv
from services.registry.disclosure.domain import CORRECTABLE_MS, KEPT_AFTER_END_MS
from services.registry.findings import store as findings
from services.registry.keys.store import KeyOwner
from services.registry.keys.tables import data_keys
from services.registry.keys.vault import Vault
from services.registry.outbox.tables import outbox
from services.registry.reconciliation.tables import record_digests
from services.registry.records.kinds import DEVICE_TYPES, ORDERS, PERSONS, UNIT_TYPES, WEARERS, RecordType, type_in
from services.registry.records.store import read
from services.registry.records.tables import order_persons, order_stages, tags
from services.registry.repository import Repository
from services.registry.reviews.domain import TOKENS_KEPT_MS
from services.registry.reviews.store import decision_owner, delete_events
from services.registry.reviews.tables import match_events, match_keys, review_comparisons, review_decisions, reviews
from services.registry.traces.tables import case_versions
from services.registry.wearing.tables import tag_records


class DestructionRepository(Repository):
    """Destroys records in one transaction."""

    def __init__(self, connection: AsyncConnection, vault: Vault) -> None:
        super().__init__(connection)
        self._vault = vault

    async def destroy_due(self, now_ms: int, limit: int) -> list[KeyOwner]:
        """Destroy a batch of due records, and the protected persons whom no remaining order names.

        An order that is destroyed at once takes no protected person with it: the law asks for that of a wearer's data alone, so the
        person's record stays until the police end it.
        """
        await self._drop_match_events(now_ms)
        prefix, named = f"{PERSONS.table.name}/", sa.exists()
        person_id = sa.func.substr(data_keys.c.owner, len(prefix) + 1)
        is_person = data_keys.c.owner.startswith(prefix, autoescape=True)
        needed = sa.and_(is_person, named.where(order_persons.c.person_id == person_id))
        over = sa.and_(data_keys.c.destroy_at_ms <= now_ms, data_keys.c.destroyed_at_ms.is_(None), ~needed)
        due = await self._rows(sa.select(data_keys.c.owner).where(over).limit(limit))
        records = [KeyOwner.parse(row.owner) for row in due]
        records += [KeyOwner(WEARERS.table.name, wearer_id) for wearer_id in await self._wearers_over(now_ms, limit)]
        for record in list(records):
            if record.table == ORDERS.table.name:
                order = await self._connection.run_sync(read, self._vault, ORDERS, record_id=record.record_id)
                persons = await self._only_named_by(record.record_id)
                if not ORDERS.at_once(order):
                    records += [KeyOwner(PERSONS.table.name, person_id) for person_id in persons]
        for record in list(records):
            records += await self._units_of(record)
        records = list(dict.fromkeys(records))
        for record in records:
            await self._destroy(record, now_ms)
        return records

    async def drop_devices(self, owners: Collection[KeyOwner]) -> None:
        """Delete the tags and protective devices of destroyed wearers and persons, and their places in the agencies' lists."""
        for kind in DEVICE_TYPES:
            ids = [owner.record_id for owner in owners if kind.owned_by and owner.table == kind.owned_by.table.name]
            if not ids:
                continue
            mine = sa.select(kind.key).where(kind.owner.in_(ids))
            listed = sa.and_(record_digests.c.kind == kind.listed_kind.value, record_digests.c.record_id.in_(mine))
            await self._connection.execute(sa.delete(record_digests).where(listed))
            await self._connection.execute(sa.delete(kind.table).where(kind.owner.in_(ids)))

    async def _units_of(self, owner: KeyOwner) -> list[KeyOwner]:
        """Home units and beacons of a wearer or protected person that aren't destroyed yet."""
        found: list[KeyOwner] = []
        for kind in UNIT_TYPES:
            if kind.owned_by is None or kind.owned_by.table.name != owner.table:
                continue
            key = sa.literal(f"{kind.table.name}/").concat(kind.key)
            alive = sa.and_(data_keys.c.owner == key, data_keys.c.destroyed_at_ms.is_(None))
            statement = sa.select(data_keys.c.owner).select_from(kind.table.join(data_keys, alive))
            rows = await self._rows(statement.where(kind.owner == owner.record_id))
            found += [KeyOwner.parse(row.owner) for row in rows]
        return found

    async def _wearers_over(self, now_ms: int, limit: int) -> list[str]:
        """Ids of wearers whose last tag was taken off at least KEPT_AFTER_END_MS ago, as was recorded at least CORRECTABLE_MS ago."""
        owner = sa.literal(f"{WEARERS.table.name}/").concat(tags.c.wearer_id)
        alive = sa.and_(data_keys.c.owner == owner, data_keys.c.destroyed_at_ms.is_(None))
        statement = (
            sa.select(tags.c.wearer_id)
            .select_from(tags.join(data_keys, alive))
            .group_by(tags.c.wearer_id)
            .having(sa.func.count(tags.c.removed_at_ms) == sa.func.count())
            .having(sa.func.max(tags.c.removed_at_ms) <= now_ms - KEPT_AFTER_END_MS)
            .having(sa.func.max(tags.c.recorded_ms) <= now_ms - CORRECTABLE_MS)
        )
        return [row.wearer_id for row in await self._rows(statement.limit(limit))]

    async def _only_named_by(self, order_id: str) -> list[str]:
        """Delete the links from an order to its persons; returns the ids of persons whom no other order protects."""
        mine, named = order_persons.c.order_id == order_id, order_persons.c.person_id
        persons = [row.person_id for row in await self._rows(sa.select(named).where(mine))]
        await self._connection.execute(sa.delete(order_persons).where(mine))
        still_protected = {row.person_id for row in await self._rows(sa.select(named).where(named.in_(persons)))}
        return [person_id for person_id in persons if person_id not in still_protected]

    async def _destroy(self, destroyed: KeyOwner, now_ms: int) -> None:
        kind, record_id = type_in(destroyed.table), destroyed.record_id
        emptied = {name: b"" for name in ("sealed", "digest") if name in kind.table.c}
        await self._connection.execute(sa.update(kind.table).where(kind.key == record_id).values(emptied))
        events_until_ms = now_ms + TOKENS_KEPT_MS if kind.side else None
        values = {"wrapped": b"", "destroy_at_ms": events_until_ms, "destroyed_at_ms": now_ms}
        await self._connection.execute(sa.update(data_keys).where(data_keys.c.owner == destroyed.text).values(values))
        listed = sa.and_(record_digests.c.kind == kind.listed_kind.value, record_digests.c.record_id == record_id)
        await self._connection.execute(sa.delete(record_digests).where(listed))
        if kind.side:
            await self._drop_tag_records(kind, record_id)
            await self._drop_cases(kind, record_id)
            hashed = sa.and_(match_keys.c.side == kind.side.value, match_keys.c.record_id == record_id)
            await self._connection.execute(sa.delete(match_keys).where(hashed))

    async def _drop_cases(self, kind: RecordType[Any], record_id: str) -> None:
        """Delete the cases, reviews, decisions, comparisons and keys that involve a record. Messages that aren't sent yet stay."""
        for table in (cases, reviews):
            mine = table.c[kind.key.name] == record_id
            for row in await self._rows(sa.select(table.c.case_id).where(mine)):
                await self._drop_case(row.case_id)
            await self._connection.execute(sa.delete(table).where(mine))
        if kind is ORDERS:
            await self._connection.execute(sa.delete(order_stages).where(order_stages.c.order_id == record_id))

    async def _drop_tag_records(self, kind: RecordType[Any], record_id: str) -> None:
        """Delete what officers recorded about the tags of a wearer, or under an order, and the keys of all texts."""
        mine = tag_records.c[kind.key.name] == record_id
        rows = await self._rows(sa.select(tag_records.c.record_id).where(mine))
        owners = [KeyOwner(tag_records.name, row.record_id).text for row in rows]
        await self._connection.execute(sa.delete(data_keys).where(data_keys.c.owner.in_(owners)))
        await self._connection.execute(sa.delete(tag_records).where(mine))
        if kind is WEARERS:
            # The entries stay, as a proof that the wearer was told; nothing opens their texts any more.
            of_texts = list(await self._connection.run_sync(cctv.key_owners, record_id))
            await self._connection.execute(sa.delete(data_keys).where(data_keys.c.owner.in_(of_texts)))

    async def _drop_case(self, case_id: str) -> None:
        decisions = review_decisions.c.case_id == case_id
        rows = await self._rows(sa.select(review_decisions.c.at_ms).where(decisions))
        owners = [decision_owner(case_id, row.at_ms).text for row in rows]
        sent = sa.and_(outbox.c.msg_id.startswith(f"{case_id}:"), outbox.c.sent_at_ms.is_not(None))
        await self._connection.execute(sa.delete(data_keys).where(data_keys.c.owner.in_(owners)))
        await self._connection.execute(sa.delete(review_decisions).where(decisions))
        await self._connection.execute(sa.delete(review_comparisons).where(review_comparisons.c.case_id == case_id))
        await self._connection.execute(sa.delete(outbox).where(sent))
        await self._connection.execute(sa.delete(case_versions).where(case_versions.c.case_id == case_id))
        await self._connection.run_sync(findings.forget_case, case_id)

    async def _drop_match_events(self, now_ms: int) -> None:
        """Delete the match events of destroyed records once no valid resume token can reach them."""
        over = sa.and_(data_keys.c.destroy_at_ms <= now_ms, data_keys.c.destroyed_at_ms.is_not(None))
        for row in await self._rows(sa.select(data_keys.c.owner).where(over)):
            table, record_id = KeyOwner.parse(row.owner)
            await self._connection.run_sync(delete_events, match_events.c[type_in(table).key.name] == record_id)
            done = sa.update(data_keys).where(data_keys.c.owner == row.owner).values(destroy_at_ms=None)
            await self._connection.execute(done)
