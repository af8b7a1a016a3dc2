"""Records of the agencies in memory: stored versions, and the versions that a transaction puts."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

from sqlalchemy import Connection

from services.common.rpc.errors import Conflict
from services.registry.domain import Order, RoutedDevice
from services.registry.keys.store import KeyOwner
from services.registry.keys.tables import data_keys
from services.registry.keys.vault import Vault
from services.registry.records.kinds import (
    DEVICES,
    ORDERS,
    PERSON_UNITS,
    PERSONS,
    RECORD_TYPES,
    TAGS,
    WEARER_UNITS,
    WEARERS,
    R,
    RecordType,
)
from services.registry.records.lifecycle import OrderStage
from services.registry.records.prepared import PreparedRecord
from services.registry.records.store import StoredRecord, owner_of, stored_record
from services.registry.records.versions import PutOutcome, decide_put
from services.registry.working_set.cached_rows import CachedRows, Lookup


class OrderPerson(NamedTuple):
    """A protected person whom an order names."""

    order_id: str
    person_id: str


class Stage(NamedTuple):
    """A stage of an order's life cycle."""

    order_id: str
    source_version: int
    stage: OrderStage
    end_reason: str
    at_ms: int


class RecordRows:
    """The records as one transaction sees them."""

    def __init__(self, connection: Connection, vault: Vault) -> None:
        self._rows: dict[RecordType[Any], CachedRows[str, StoredRecord[Any]]] = {
            kind: _rows_of(kind, connection, vault) for kind in RECORD_TYPES
        }
        self.persons = CachedRows[OrderPerson, OrderPerson](
            connection,
            "SELECT order_id, person_id FROM order_persons WHERE",
            key=Lookup("order_id"),
            key_of=lambda row: row,
            parse=OrderPerson._make,
            lookups={
                "order_id": (Lookup("order_id"), lambda row: row.order_id),
                "person_id": (Lookup("person_id"), lambda row: row.person_id),
            },
        )
        """Persons whom the orders name."""
        self.dependents: dict[RecordType[Any], list[tuple[CachedRows[Any, Any], str]]] = {
            WEARERS: [(self._rows[TAGS], "owner"), (self._rows[WEARER_UNITS], "owner")],
            PERSONS: [
                (self._rows[DEVICES], "owner"),
                (self._rows[PERSON_UNITS], "owner"),
                (self.persons, "person_id"),
            ],
            ORDERS: [(self.persons, "order_id")],
        }
        """Rows that refer to the records of a kind, each with the name of the lookup. A record that isn't stored has none."""
        self.put_records: dict[KeyOwner, PreparedRecord[Any]] = {}
        """Last version of each record that is put."""
        self.stages: dict[tuple[str, int], Stage] = {}
        """Stages that are added, by order id and version."""
        self.replaced: set[KeyOwner] = set()
        """Records that were stored before this transaction."""

    # ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def some(self, kind: RecordType[R], ids: Iterable[str]) -> dict[str, StoredRecord[R]]:
        """The stored records with these ids, by id. Ids without a record are omitted."""
        wanted = tuple(ids)
        found = self._rows[kind].get(wanted)
        if len(found) < len(wanted):
            for rows, name in self.dependents.get(kind, ()):
                rows.know_none(name, (record_id for record_id in wanted if record_id not in found))
        return found

    def find(self, kind: RecordType[R], record_id: str) -> StoredRecord[R] | None:
        """The stored record with this id; None if there is none."""
        return self.some(kind, (record_id,)).get(record_id)

    def opened(self, kind: RecordType[R], ids: Iterable[str]) -> dict[str, R]:
        """The records with these ids, by id. Ids without a record and destroyed records are omitted."""
        found = self.some(kind, ids)
        return {id_: record for id_ in sorted(found) if (record := found[id_].open()) is not None}

    def owned(self, kind: RecordType[R], owner_ids: Collection[str]) -> list[R]:
        """Records that belong to these owners, sorted by id."""
        stored = self._rows[kind].by("owner", owner_ids) if owner_ids else []
        return [record for row in sorted(stored, key=_by_id) if (record := row.open()) is not None]

    def orders_protecting(self, person_id: str) -> list[Order]:
        """Orders that protect a person, sorted by id."""
        named = self.persons.by("person_id", (person_id,))
        return list(self.opened(ORDERS, [row.order_id for row in named]).values())

    # ── changing ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def decide(self, stored: StoredRecord[Any] | None, prepared: PreparedRecord[Any]) -> PutOutcome:
        """Outcome of putting a record over the stored one. Raises Conflict if the same version has other content, or was destroyed."""
        if stored is not None and stored.is_destroyed and stored.source_version == prepared.record.source_version:
            raise Conflict(
                f"version {stored.source_version} of this record was destroyed, as its time was over; take it off the list, or send it "
                "with a greater version if it is needed"
            )
        version, stored_digest = (stored.source_version, stored.digest) if stored else (None, None)
        return decide_put(version, stored_digest, version=prepared.record.source_version, digest=prepared.digest)

    def put(self, prepared: PreparedRecord[Any]) -> None:
        """Put a record, which replaces an older version."""
        kind, record = prepared.kind, prepared.record
        owner = KeyOwner(kind.table.name, prepared.record_id)
        if owner not in self.put_records and self.find(kind, prepared.record_id) is not None:
            self.replaced.add(owner)
        self.put_records[owner] = prepared
        self._rows[kind].put(
            StoredRecord(
                kind,
                prepared.record_id,
                record.source_version,
                digest=prepared.digest,
                has_ended=kind.has_ended(record),
                record=record,
            )
        )
        if isinstance(record, Order):
            self._put_order_persons(record)

    def _put_order_persons(self, order: Order) -> None:
        for row in self.persons.by("order_id", (order.order_id,)):
            if row.person_id not in order.protected_person_ids:
                self.persons.remove(row)
        known = {row.person_id for row in self.persons.by("order_id", (order.order_id,))}
        for person_id in order.protected_person_ids:
            if person_id not in known:
                self.persons.put(OrderPerson(order.order_id, person_id))

    def add_stage(self, order: Order, stage: OrderStage, at_ms: int) -> None:
        """Add a stage of an order's life cycle. The stages are deleted together with the order."""
        reason = order.end.reason.value if order.end else ""
        self.stages[order.order_id, order.source_version] = Stage(
            order.order_id, order.source_version, stage, end_reason=reason, at_ms=at_ms
        )


def _by_id(stored: StoredRecord[Any]) -> str:
    return stored.record_id


def _rows_of(kind: RecordType[Any], connection: Connection, vault: Vault) -> CachedRows[str, StoredRecord[Any]]:
    table, key = kind.table, f"{kind.table.name}.{kind.key.name}"
    if kind.ledger_kind is None:
        select = f"SELECT {', '.join(table.c.keys())} FROM {table.name} WHERE"  # noqa: S608  # names of the code's own tables
    else:
        named = ("source_version", "digest", "sealed")
        columns = [key, *(f"{table.name}.{name}" for name in named)]
        columns += [f"{data_keys.name}.{name}" for name in ("ring", "wrapped", "destroy_at_ms", "destroyed_at_ms")]
        columns += [] if kind.owned_by is None else [f"{table.name}.{kind.owner.name}"]
        joined = f"{table.name} LEFT JOIN {data_keys.name} ON {data_keys.name}.owner = '{table.name}/' || {key}"
        select = f"SELECT {', '.join(columns)} FROM {joined} WHERE"  # noqa: S608  # names of the code's own tables
    owners = {} if kind.owned_by is None else {"owner": (Lookup(kind.owner.name), _owner_id)}
    return CachedRows(
        connection,
        select,
        key=Lookup(key),
        key_of=_by_id,
        parse=lambda row: stored_record(kind, row, vault),
        lookups=owners,
    )


def _owner_id(stored: StoredRecord[Any]) -> str:
    if stored.owner_id:
        return stored.owner_id
    device: RoutedDevice | None = stored.open()
    if device is None:
        raise LookupError(f"{stored.record_id} isn't a device")
    return owner_of(device).record_id
