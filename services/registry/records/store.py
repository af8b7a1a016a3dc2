"""Records of the agencies: read with one statement for all requested ids, and encrypted if they hold personal data."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Generic, assert_never

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from services.common.rpc.errors import NotFound
from services.registry.domain import Device, Order, RoutedDevice, Tag
from services.registry.keys.store import KeyOwner
from services.registry.keys.tables import data_keys
from services.registry.keys.vault import DataKey, Vault
from services.registry.presence_units.domain import PersonUnit, WearerUnit
from services.registry.records import tables
from services.registry.records.kinds import ORDERS, PERSONS, SEALED_TYPES, WEARERS, R, Record, RecordType
from services.registry.repository import Repository


@dataclass(slots=True)
class StoredRecord(Generic[R]):
    """A stored record, decrypted when it is opened. The row stays when the record is destroyed."""

    kind: RecordType[R]
    record_id: str
    source_version: int
    digest: bytes
    has_ended: bool
    """Whether an encrypted record has ended or was destroyed."""
    unseal: Callable[[], bytes | None] | None = None
    """Decrypts the content of the record; None if it was destroyed. None if `record` is given."""
    record: R | None = None
    """The record, if it is known."""
    owner_id: str = ""
    """Id of the record's owner, if an encrypted record belongs to another."""

    @property
    def key_owner(self) -> KeyOwner:
        """Owner of the key that encrypts the record."""
        return KeyOwner(self.kind.table.name, self.record_id)

    @property
    def is_destroyed(self) -> bool:
        """Whether the record was destroyed, which empties its digest, too."""
        return not self.digest

    def open(self) -> R | None:
        """The record, decrypted at the first call; None if it was destroyed."""
        if self.unseal is not None:
            content, self.unseal = self.unseal(), None
            self.record = None if content is None else self.kind.parse(content)
        return self.record


def stored_record(kind: RecordType[R], row: Sequence[Any], vault: Vault) -> StoredRecord[R]:
    """The stored record of a row with the columns of `_select`."""
    if kind.ledger_kind is None:
        record_id, source_version, digest, *_ = row
        record = kind.of_values(row)
        return StoredRecord(kind, record_id, source_version, digest=digest, has_ended=False, record=record)
    record_id, source_version, digest, sealed, ring, wrapped, destroy_at_ms, destroyed_at_ms, *owner = row

    def unseal() -> bytes | None:
        if destroyed_at_ms is not None:
            return None
        data_key = DataKey(ring, wrapped) if ring else None  # None: stored before records had keys
        return vault.unseal(f"{kind.table.name}/{record_id}", sealed, data_key)

    has_ended = destroy_at_ms is not None or destroyed_at_ms is not None
    return StoredRecord(
        kind, record_id, source_version, digest=digest, has_ended=has_ended, unseal=unseal, owner_id="".join(owner)
    )


class RecordRepository(Repository):
    """The stored records as one transaction sees them. Commands read and change them through a working set."""

    def __init__(self, connection: AsyncConnection, vault: Vault) -> None:
        super().__init__(connection)
        self._vault = vault

    async def _stored(self, kind: RecordType[R], condition: sa.ColumnElement[bool]) -> list[StoredRecord[R]]:
        rows = await self._rows(_select(kind).where(condition))
        return [stored_record(kind, row, self._vault) for row in rows]

    async def find(self, kind: RecordType[R], record_id: str) -> StoredRecord[R] | None:
        """The stored record with this id; None if there is none."""
        return next(iter(await self._stored(kind, kind.key == record_id)), None)

    async def opened(self, kind: RecordType[R], ids: Collection[str]) -> dict[str, R]:
        """The records with these ids, by id. Ids without a row and destroyed records are omitted."""
        found = {stored.record_id: stored for stored in await self._stored(kind, kind.key.in_(ids))} if ids else {}
        return {id_: record for id_ in sorted(found) if (record := found[id_].open()) is not None}

    async def complete_keys(self, limit: int, now_ms: int) -> bool:
        """Encrypt a batch of older records with a separate key each, at this moment of mesh time; false if every record has its key."""
        for kind in SEALED_TYPES:
            keyless = _select(kind).where(data_keys.c.owner.is_(None)).limit(limit)
            stored = [stored_record(kind, row, self._vault) for row in await self._rows(keyless)]
            for record in filter(None, (row.open() for row in stored)):
                await self._seal(kind, record, now_ms)
            if stored:
                return True
        return False

    async def _seal(self, kind: RecordType[Any], record: Record, now_ms: int) -> None:
        """Encrypt a stored record with a new key that only this record uses."""
        owner = KeyOwner(kind.table.name, kind.id_of(record))
        key, sealed = self._vault.seal_with_new_key(owner.text, kind.content(record))
        row = {"owner": owner.text, "ring": key.ring, "wrapped": key.wrapped}
        destroy_at_ms = kind.destroy_at_ms(record, now_ms)
        await self._upsert(data_keys, [{**row, "destroy_at_ms": destroy_at_ms, "destroyed_at_ms": None}])
        mine = kind.key == owner.record_id
        await self._connection.execute(sa.update(kind.table).where(mine).values(sealed=sealed))


@cache
def _select(kind: RecordType[Any]) -> sa.Select[Any]:
    """Query of a kind's rows: the id first, then the columns that `stored_record` needs."""
    if kind.ledger_kind is None:
        return sa.select(kind.table)
    columns = (kind.key, kind.table.c.source_version, kind.table.c.digest, kind.table.c.sealed)
    owner = sa.literal(f"{kind.table.name}/").concat(kind.key)
    keys = (data_keys.c.ring, data_keys.c.wrapped, data_keys.c.destroy_at_ms, data_keys.c.destroyed_at_ms)
    owners = () if kind.owned_by is None else (kind.owner,)
    return sa.select(*columns, *keys, *owners).select_from(kind.table.outerjoin(data_keys, data_keys.c.owner == owner))


# ── reading within a visit ───────────────────────────────────────────────────────────────────────────────────────────


def read(connection: sa.Connection, vault: Vault, kind: RecordType[R], *, record_id: str) -> R:
    """The record with this id. Raises NotFound if it isn't stored or was destroyed."""
    row = connection.execute(_by_id(kind), {"id": record_id}).first()
    record = stored_record(kind, row, vault).open() if row else None
    if record is None:
        raise NotFound("no such record")
    return record


def orders_protecting(connection: sa.Connection, vault: Vault, person_id: str) -> list[Order]:
    """Orders that protect a person, sorted by id."""
    rows = connection.execute(_of_protected_person(), {"id": person_id})
    orders = [order for row in rows if (order := stored_record(ORDERS, row, vault).open()) is not None]
    return sorted(orders, key=ORDERS.id_of)


@cache
def _by_id(kind: RecordType[Any]) -> sa.Select[Any]:
    return _select(kind).where(kind.key == sa.bindparam("id"))


@cache
def _of_protected_person() -> sa.Select[Any]:
    named = tables.order_persons
    ids = sa.select(named.c.order_id).where(named.c.person_id == sa.bindparam("id"))
    return _select(ORDERS).where(ORDERS.key.in_(ids))


def owner_of(device: RoutedDevice) -> KeyOwner:
    """Key owner of a device: the record of the wearer of a tag or unit, or of the person with a protective device or unit."""
    match device:
        case Tag() | WearerUnit():
            return KeyOwner(WEARERS.table.name, device.wearer_id)
        case Device() | PersonUnit():
            return KeyOwner(PERSONS.table.name, device.person_id)
        case _:
            assert_never(device)
