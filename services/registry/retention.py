"""Destruction of records when their time is over, and rewrapping of their keys with the current master key, in the background."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from functools import partial
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from services.common import ids
from services.common.clock import MeshClock
from services.common.errors import Unavailable
from services.common.observability.telemetry import logger
from services.common.privacy.grounds import Purpose
from services.registry.cases.service import CaseService
from services.registry.cctv.service import key_owners
from services.registry.domain.disclosure import CORRECTABLE_MS, KEPT_AFTER_END_MS, Deed
from services.registry.domain.ledger import Disclosure
from services.registry.domain.records import Device, Tag
from services.registry.domain.reviews import TOKENS_KEPT_MS
from services.registry.findings import forget_findings_of_case
from services.registry.keys import KeyOwner, Vault
from services.registry.ledger import LedgerRepository
from services.registry.records.kinds import (
    DEVICE_TYPES,
    DEVICES,
    ORDERS,
    PERSONS,
    TAGS,
    UNIT_TYPES,
    WEARERS,
    RecordType,
    type_in,
)
from services.registry.records.store import owner_of, read_record
from services.registry.reviews.service import decision_owner, delete_events
from services.registry.tables import (
    case_versions,
    cases,
    data_keys,
    match_events,
    match_keys,
    order_persons,
    order_stages,
    outbox,
    record_digests,
    review_comparisons,
    review_decisions,
    reviews,
    tag_records,
    tags,
)
from services.registry.transactions import Transactions
from services.registry.unit_of_work import Repository
from services.registry.working_set.working_set import WorkingSet


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
                order = await self._connection.run_sync(read_record, self._vault, ORDERS, record_id=record.record_id)
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
            of_texts = list(await self._connection.run_sync(key_owners, record_id))
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
        await self._connection.run_sync(forget_findings_of_case, case_id)

    async def _drop_match_events(self, now_ms: int) -> None:
        """Delete the match events of destroyed records once no valid resume token can reach them."""
        over = sa.and_(data_keys.c.destroy_at_ms <= now_ms, data_keys.c.destroyed_at_ms.is_not(None))
        for row in await self._rows(sa.select(data_keys.c.owner).where(over)):
            table, record_id = KeyOwner.parse(row.owner)
            await self._connection.run_sync(delete_events, match_events.c[type_in(table).key.name] == record_id)
            done = sa.update(data_keys).where(data_keys.c.owner == row.owner).values(destroy_at_ms=None)
            await self._connection.execute(done)


KEYS_BATCH = 50
POLL_S = 60.0
"""How often due records are destroyed, seconds of wall time. A check scans all wearers, so it runs rarely."""
REGISTRY_IDENTITY = "spiffe://tandem/registry"
_LEGAL_BASIS = "TAG_16_2"


class KeyRetention:
    """Rewraps and destroys the keys of the records. A record without its key can't be decrypted (crypto-shredding)."""

    def __init__(self, transactions: Transactions, cases: CaseService, vault: Vault, *, clock: MeshClock) -> None:
        self._transactions = transactions
        self._cases = cases
        self._vault = vault
        self._clock = clock

    async def run(self) -> None:
        """Rewrap all keys once, then destroy due keys until cancelled. Master keys change only with a restart."""
        wrapped = False
        while True:
            try:
                if not wrapped and not await self.rewrap_some():
                    wrapped = True
                    *unused, current = self._vault.rings
                    logger().info("keys_wrapped", current=current, unused=tuple(unused))
                if wrapped and not await self.destroy_some():
                    await asyncio.sleep(POLL_S)
            except Unavailable as error:
                await asyncio.sleep(error.retry_after_s)

    async def rewrap_some(self) -> bool:
        """Rewrap a batch of record keys with the current master key; false if none was left."""
        async with self._transactions.open() as work:
            return await work.keys.rewrap(KEYS_BATCH)

    async def destroy_some(self) -> bool:
        """Destroy a batch of due records, with all data that only they needed; false if none was left.

        A backup still holds the wrapped key of a destroyed record. So the record stays readable in the backup until the master key
        is rotated and the older master key is destroyed.
        """
        now_ms = self._clock.now_ms()
        async with self._transactions.open() as work:
            destruction = DestructionRepository(work.connection, work.vault)
            destroyed = await destruction.destroy_due(now_ms, KEYS_BATCH)
            await LedgerRepository(work.connection).append(_row(record, now_ms) for record in destroyed)
            await self._transactions.change_within(work, partial(self._revoke_routes, destroyed=destroyed))
            await destruction.drop_devices(destroyed)  # after the revocation, which reads them
        for record in destroyed:
            logger().info("record_destroyed", kind=record.table, record_id=record.record_id)
        return bool(destroyed)

    def _revoke_routes(self, working: WorkingSet, destroyed: list[KeyOwner]) -> None:
        """Send the routes of the tags and devices of destroyed wearers and persons, and of destroyed units."""
        wearers = [owner.record_id for owner in destroyed if owner.table == WEARERS.table.name]
        persons = [owner.record_id for owner in destroyed if owner.table == PERSONS.table.name]
        devices: list[Tag | Device] = [
            *working.records.owned(TAGS, wearers),
            *working.records.owned(DEVICES, persons),
        ]
        unit_tables = {kind.table.name for kind in UNIT_TYPES}
        unit_ids = [owner.record_id for owner in destroyed if owner.table in unit_tables]
        if not devices and not unit_ids:
            return
        effects = self._cases.begin_routes(working, devices, unit_ids)
        for unit_id in unit_ids:
            effects.resend_route(unit_id, revoked=True)
        for owner in destroyed:
            for device in devices:
                if owner_of(device) == owner:
                    effects.send_route(device)
        self._cases.apply(working, effects)


def _row(destroyed: KeyOwner, now_ms: int) -> Disclosure:
    return Disclosure(
        disclosure_id=ids.hash_id("destroyed", destroyed.table, destroyed.record_id, now_ms),
        at_ms=now_ms,
        deed=Deed.DESTROYED.value,
        who=REGISTRY_IDENTITY,
        legal_basis=_LEGAL_BASIS,
        purpose=Purpose.RETENTION.value,
        reference="",
        record_kind=type_in(destroyed.table).required_ledger_kind.value,
        record_id=destroyed.record_id,
        order_id="",
        recipient="",
        expires_at_ms=0,
        positions=None,
    )
