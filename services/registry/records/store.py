"""Stored records of the agencies: how a record is prepared and encrypted for its row, read from it, and checked against it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Generic, TypeVar, assert_never

import sqlalchemy as sa

from services.common.errors import InvalidField, NotFound
from services.registry import tables
from services.registry.domain import reviews
from services.registry.domain.reconciliation import Listed
from services.registry.domain.records import Device, Order, PersonUnit, RoutedDevice, Tag, Wearer, WearerUnit
from services.registry.keys import DataKey, KeyOwner, Vault
from services.registry.records.kinds import ORDERS, PERSONS, WEARERS, R, RecordType, list_entry, type_of
from services.registry.tables import data_keys


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
        return vault.unseal(f"{kind.table.name}/{record_id}", sealed, DataKey(ring, wrapped))

    has_ended = destroy_at_ms is not None or destroyed_at_ms is not None
    return StoredRecord(
        kind, record_id, source_version, digest=digest, has_ended=has_ended, unseal=unseal, owner_id="".join(owner)
    )


@cache
def _select(kind: RecordType[Any]) -> sa.Select[Any]:
    """Query of a kind's rows: the id first, then the columns that `stored_record` needs."""
    if kind.ledger_kind is None:
        return sa.select(kind.table)
    columns = (kind.key, kind.table.c.source_version, kind.table.c.digest, kind.table.c.sealed)
    owner = sa.literal(f"{kind.table.name}/").concat(kind.key)
    keys = (data_keys.c.ring, data_keys.c.wrapped, data_keys.c.destroy_at_ms, data_keys.c.destroyed_at_ms)
    owners = () if kind.owned_by is None else (kind.owner,)
    return sa.select(*columns, *keys, *owners).select_from(kind.table.join(data_keys, data_keys.c.owner == owner))


# ── reading within a visit ───────────────────────────────────────────────────────────────────────────────────────────


def read_record(connection: sa.Connection, vault: Vault, kind: RecordType[R], *, record_id: str) -> R:
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


_E = TypeVar("_E", Wearer, Order)


def require_opened(stored: StoredRecord[R] | None, error_text: str) -> tuple[StoredRecord[R], R]:
    """A stored record and its content. Raises NotFound if there is no record (with `error_text`) or if it was destroyed."""
    if stored is None:
        raise NotFound(error_text)
    record = stored.open()
    if record is None:
        raise NotFound("no such record")
    return stored, record


def require_kept(records: Mapping[str, StoredRecord[Any]], record_id: str, error_text: str) -> None:
    """Require that a record is stored and wasn't destroyed: its row stays, but nothing would be enforced for it. Raises NotFound."""
    stored = records.get(record_id)
    if stored is None or stored.is_destroyed:
        raise NotFound(error_text)


def require_same_exercise(field: str, record: _E, before: _E | None) -> None:
    """Require that a record isn't switched between live and exercise. Raises InvalidField if it is."""
    if before is not None and before.exercise is not record.exercise:
        raise InvalidField(field, "can't change: a record can't be switched between live and exercise")


def owners_before_and_after(device: RoutedDevice, stored: StoredRecord[Any] | None) -> list[str]:
    """Ids of a device's previous and current owner, in the order in which their joint cases must be renewed.

    In this order, the cases of the previous owner drop the device before those of the current owner name it.
    """
    before = stored.open() if stored else None
    return list(dict.fromkeys(owner_of(version).record_id for version in (before, device) if version))


@dataclass(frozen=True, slots=True)
class PreparedRecord(Generic[R]):
    """A record that is ready to be stored."""

    record: R
    kind: RecordType[R]
    record_id: str
    content: bytes
    """The record as JSON."""
    digest: bytes
    """Keyed digest of the content."""
    listed: Listed
    """The list entry for reconciliation."""
    match_keys: tuple[bytes, ...]
    """Keyed hashes of the match keys, sorted. Empty if the record isn't matched."""


def prepare(record: R, vault: Vault) -> PreparedRecord[R]:
    """Prepare a record. It takes some 0.1 ms, so a batch is prepared in a thread, before its transaction begins."""
    kind: RecordType[Any] = type_of(record)
    content = kind.content(record)
    match_keys = tuple[bytes, ...]()
    if kind.person is not None:
        keys = reviews.match_keys(kind.person(record))
        match_keys = tuple(sorted({vault.index(f"match key {key}") for key in keys}))
    return PreparedRecord(
        record=record,
        kind=kind,
        record_id=kind.id_of(record),
        content=content,
        digest=vault.digest(content),
        listed=list_entry(record),
        match_keys=match_keys,
    )


def masked(vault: Vault, listed: Listed) -> bytes:
    """Mask a digest with a one-time pad, or unmask a masked digest. A version has one content, so no pad is reused."""
    pad = vault.index(f"record digest {listed.kind.value} {listed.record_id} {listed.source_version}")
    return (int.from_bytes(listed.digest) ^ int.from_bytes(pad)).to_bytes(len(pad))
