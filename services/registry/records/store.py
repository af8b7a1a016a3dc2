"""Records of the agencies: read with one statement for all requested ids, and encrypted if they hold personal data."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from typing import Any, Generic, assert_never

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from services.common.rpc.errors import NotFound
from services.registry.domain import Device, Order, Tag
from services.registry.keys.store import KeyOwner, KeyRepository
from services.registry.keys.tables import data_keys
from services.registry.keys.vault import DataKey, Vault
from services.registry.records import tables
from services.registry.records.kinds import ORDERS, PERSONS, SEALED_TYPES, WEARERS, R, Record, RecordType, type_of
from services.registry.records.lifecycle import OrderStage
from services.registry.records.versions import PutOutcome, decide_put
from services.registry.repository import Repository


@dataclass(frozen=True, slots=True)
class StoredRecord(Generic[R]):
    """A stored record, as its row. The row stays when the record is destroyed."""

    kind: RecordType[R]
    row: sa.Row[Any]
    vault: Vault

    @property
    def key_owner(self) -> KeyOwner:
        """Owner of the key that encrypts the record."""
        return KeyOwner(self.kind.table.name, self.row[0])

    @property
    def has_ended(self) -> bool:
        """Whether an encrypted record has ended or was destroyed."""
        return self.row.destroy_at_ms is not None or self.row.destroyed_at_ms is not None

    def open(self) -> R | None:
        """The record, decrypted; None if it was destroyed."""
        row = self.row
        if self.kind.ledger_kind is None:
            return self.kind.of_row(row)
        if row.destroyed_at_ms is not None:
            return None
        data_key = DataKey(row.ring, row.wrapped) if row.ring else None  # None: stored before records had keys
        return self.kind.parse(self.vault.unseal(self.key_owner.text, row.sealed, data_key))


class RecordRepository(Repository):
    """The records of the agencies as one transaction sees them."""

    def __init__(self, connection: AsyncConnection, vault: Vault, keys: KeyRepository) -> None:
        super().__init__(connection)
        self._vault = vault
        self._keys = keys

    # ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _stored(self, kind: RecordType[R], condition: sa.ColumnElement[bool]) -> list[StoredRecord[R]]:
        return [StoredRecord(kind, row, self._vault) for row in await self._rows(_select(kind).where(condition))]

    async def some(self, kind: RecordType[R], ids: Collection[str]) -> dict[str, StoredRecord[R]]:
        """The rows with these ids, by id. Ids without a row are omitted."""
        if not ids:
            return {}
        return {stored.row[0]: stored for stored in await self._stored(kind, kind.key.in_(ids))}

    async def find(self, kind: RecordType[R], record_id: str) -> StoredRecord[R] | None:
        """The row with this id; None if there is none."""
        return next(iter(await self._stored(kind, kind.key == record_id)), None)

    async def opened(self, kind: RecordType[R], ids: Collection[str]) -> dict[str, R]:
        """The records with these ids, by id. Ids without a row and destroyed records are omitted."""
        found = await self.some(kind, ids)
        return {id_: record for id_ in sorted(found) if (record := found[id_].open()) is not None}

    async def read(self, kind: RecordType[R], record_id: str) -> R:
        """The record with this id. Raises NotFound if it isn't stored or was destroyed."""
        return await self._connection.run_sync(read, self._vault, kind, record_id=record_id)

    async def candidates(self, kind: RecordType[R], ids: Collection[str], national_id: str) -> list[R]:
        """The records with this national number or one of these ids: first those with the number, each group sorted by id.

        An empty number matches no record.
        """
        with_number = kind.table.c.national_hash == self._vault.index(national_id) if national_id else sa.false()
        if not ids and not national_id:
            return []
        stored = await self._stored(kind, sa.or_(kind.key.in_(ids), with_number) if ids else with_number)
        records = [record for row in stored if (record := row.open()) is not None]
        return sorted(records, key=lambda record: (kind.national_id(record) != national_id, kind.id_of(record)))

    async def orders_protecting(self, person_id: str) -> list[Order]:
        """Orders that protect a person, sorted by id."""
        return await self._connection.run_sync(orders_protecting, self._vault, person_id)

    async def owned(self, kind: RecordType[R], owner_ids: Collection[str], *, without: str | None = None) -> list[R]:
        """Records that belong to these owners, sorted by id, except for the record with the id `without`."""
        if not owner_ids:
            return []
        mine = kind.owner.in_(owner_ids)
        stored = await self._stored(kind, mine if without is None else sa.and_(mine, kind.key != without))
        records = [record for row in stored if (record := row.open()) is not None]
        return sorted(records, key=kind.id_of)

    # ── writing ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def decide(self, stored: StoredRecord[Any] | None, record: Record) -> PutOutcome:
        """Outcome of putting a record over the stored one. Raises Conflict if the same version is stored with different content."""
        digest = self._vault.digest(type_of(record).content(record))
        version, stored_digest = (stored.row.source_version, stored.row.digest) if stored else (None, None)
        return decide_put(version, stored_digest, version=record.source_version, digest=digest)

    async def put(self, record: Record, *, new: bool = False) -> None:
        """Store a record in its table. Replaces an older version unless the record is `new`."""
        kind, content = type_of(record), type_of(record).content(record)
        row = kind.columns(record) | {"digest": self._vault.digest(content)}
        if kind.ledger_kind is not None:
            row["sealed"] = await self._sealed(kind, record, content)
        if kind.person is not None:
            row["national_hash"] = self._vault.index(kind.national_id(record))
        await self._upsert(kind.table, [row])
        if isinstance(record, Order):
            await self._put_order_persons(record, new)

    async def _sealed(self, kind: RecordType[Any], record: Record, content: bytes) -> bytes:
        """The record, encrypted with a new key that only this record uses."""
        owner = KeyOwner(kind.table.name, kind.id_of(record))
        return self._vault.seal(owner.text, content, await self._keys.make(owner, kind.destroy_at_ms(record)))

    async def _put_order_persons(self, order: Order, new: bool) -> None:
        named = tables.order_persons
        if not new:
            await self._connection.execute(sa.delete(named).where(named.c.order_id == order.order_id))
        rows = [{"order_id": order.order_id, "person_id": person_id} for person_id in order.protected_person_ids]
        await self._write(sa.insert(named), rows)

    async def add_stage(self, order: Order, stage: OrderStage, at_ms: int) -> None:
        """Store a stage of an order's life cycle. The stages are deleted together with the order."""
        reason = order.end.reason.value if order.end else ""
        row = {"order_id": order.order_id, "source_version": order.source_version, "stage": stage.value}
        await self._upsert(tables.order_stages, [{**row, "end_reason": reason, "at_ms": at_ms}])

    async def complete_keys(self, limit: int) -> bool:
        """Encrypt a batch of older records with a separate key each; false if every record has its key."""
        for kind in SEALED_TYPES:
            keyless = _select(kind).where(data_keys.c.owner.is_(None)).limit(limit)
            stored = [StoredRecord(kind, row, self._vault) for row in await self._rows(keyless)]
            for record in filter(None, (row.open() for row in stored)):
                sealed = await self._sealed(kind, record, kind.content(record))
                mine = kind.key == kind.id_of(record)
                await self._connection.execute(sa.update(kind.table).where(mine).values(sealed=sealed))
            if stored:
                return True
        return False


@cache
def _select(kind: RecordType[Any]) -> sa.Select[Any]:
    """Query of a kind's rows: the id first, then the columns that `StoredRecord` needs."""
    if kind.ledger_kind is None:
        return sa.select(kind.table)
    columns = (kind.key, kind.table.c.source_version, kind.table.c.digest, kind.table.c.sealed)
    owner = sa.literal(f"{kind.table.name}/").concat(kind.key)
    keys = (data_keys.c.ring, data_keys.c.wrapped, data_keys.c.destroy_at_ms, data_keys.c.destroyed_at_ms)
    return sa.select(*columns, *keys).select_from(kind.table.outerjoin(data_keys, data_keys.c.owner == owner))


# ── reading within a visit ───────────────────────────────────────────────────────────────────────────────────────────


def read(connection: sa.Connection, vault: Vault, kind: RecordType[R], *, record_id: str) -> R:
    """The record with this id. Raises NotFound if it isn't stored or was destroyed."""
    row = connection.execute(_by_id(kind), {"id": record_id}).first()
    record = StoredRecord(kind, row, vault).open() if row else None
    if record is None:
        raise NotFound("no such record")
    return record


def orders_protecting(connection: sa.Connection, vault: Vault, person_id: str) -> list[Order]:
    """Orders that protect a person, sorted by id."""
    rows = connection.execute(_of_protected_person(), {"id": person_id})
    orders = [order for row in rows if (order := StoredRecord(ORDERS, row, vault).open()) is not None]
    return sorted(orders, key=ORDERS.id_of)


@cache
def _by_id(kind: RecordType[Any]) -> sa.Select[Any]:
    return _select(kind).where(kind.key == sa.bindparam("id"))


@cache
def _of_protected_person() -> sa.Select[Any]:
    named = tables.order_persons
    ids = sa.select(named.c.order_id).where(named.c.person_id == sa.bindparam("id"))
    return _select(ORDERS).where(ORDERS.key.in_(ids))


def owner_of(device: Tag | Device) -> KeyOwner:
    """Key owner of a device: the record of the wearer of a tag, or of the person with a protective device."""
    match device:
        case Tag():
            return KeyOwner(WEARERS.table.name, device.wearer_id)
        case Device():
            return KeyOwner(PERSONS.table.name, device.person_id)
        case _:
            assert_never(device)
