"""Reads and writes of the registry's tables within one transaction."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from pydantic import TypeAdapter
from sqlalchemy.ext.asyncio import AsyncConnection

from services.common.rpc.errors import FailedPrecondition, NotFound
from services.common.storage import db
from services.registry.device_tokens.store import TokenRecords
from services.registry.disclosure import domain
from services.registry.domain import Device, Order, ProtectedPerson, Tag, Wearer
from services.registry.keys.store import SEALED_TABLES, KeyRecords
from services.registry.keys.vault import DataKey, Vault
from services.registry.ledger.store import Ledger
from services.registry.ledger.tables import data_keys
from services.registry.records import tables
from services.registry.reviews.store import ReviewRecords
from services.registry.traces.store import TraceRecords

MIGRATIONS = Path(__file__).parents[1] / "migrations"
PAYLOAD_MAX_BYTES = 900_000
"""Maximum payload of an outbox message, below nats-server's limit of 1 MB: a rejected message would block the outbox."""

_NO_SEQUENCES: Mapping[int, int] = {}

Record = Wearer | Tag | ProtectedPerson | Device | Order
_R = TypeVar("_R", Wearer, ProtectedPerson, Order)

_CODECS: Mapping[type[Record], TypeAdapter[Any]] = {
    Wearer: TypeAdapter(Wearer),
    Tag: TypeAdapter(Tag),
    ProtectedPerson: TypeAdapter(ProtectedPerson),
    Device: TypeAdapter(Device),
    Order: TypeAdapter(Order),
}

_KINDS: Mapping[str, type[Any]] = {
    tables.wearers.name: Wearer,
    tables.protected_persons.name: ProtectedPerson,
    tables.orders.name: Order,
}


@dataclass(frozen=True, slots=True)
class StoredCase:
    """A joint case as a row of the table `cases`."""

    sequence: int
    """Number of the match, in the order of matching."""
    case_id: str
    order_id: str
    wearer_id: str
    version: int
    """Version of the last snapshot."""
    matched_at_ms: int
    withdrawn_at_ms: int | None
    """When the match was withdrawn, mesh time; None while the match holds."""
    entry: bytes
    """Last snapshot, serialised as a log entry."""


@dataclass(frozen=True, slots=True)
class OutboxRow:
    """A message in the outbox."""

    id: int
    subject: str
    msg_id: str
    payload: bytes


class Records:
    """The registry's tables as one transaction sees them."""

    def __init__(self, connection: AsyncConnection, vault: Vault) -> None:
        self._connection = connection
        self._vault = vault
        self.reviews = ReviewRecords(connection, vault)
        """Reconciliation, reviews and match events."""
        self.keys = KeyRecords(connection, vault)
        """Keys that encrypt the records."""
        self.tokens = TokenRecords(connection)
        """Tokens of the devices."""
        self.ledger = Ledger(connection)
        """The ledger of disclosures, in the same transaction."""
        self.traces = TraceRecords(connection)
        """Facts about incidents for their traces."""
        self.after_commit: list[Callable[[], None]] = []
        """Callbacks to run after the commit, such as writing a log line."""

    async def _rows(self, statement: sa.Executable) -> Sequence[sa.Row[Any]]:
        return (await self._connection.execute(statement)).all()

    async def _save(self, table: sa.Table, row_id: str, values: Mapping[str, object]) -> None:
        (key,) = table.primary_key
        await db.upsert(self._connection, table, {key.name: row_id}, values=values)

    # ── records of the agencies ──────────────────────────────────────────────────────────────────────────────────────

    async def stored(self, table: sa.Table, record_id: str) -> tuple[int, bytes] | None:
        """Version and digest of a stored record; None if there is none."""
        (key,) = table.primary_key
        rows = await self._rows(sa.select(table.c.source_version, table.c.digest).where(key == record_id))
        return (rows[0].source_version, rows[0].digest) if rows else None

    def digest_of(self, record: Record) -> bytes:
        """Keyed digest of a record's content."""
        return self._vault.digest(_content(record))

    async def put(self, table: sa.Table, record_id: str, record: Record, *, new: bool = False) -> None:
        """Store a record in its table. Replaces an older version unless the record is `new`."""
        values: dict[str, object] = {"source_version": record.source_version, "digest": self.digest_of(record)}
        match record:
            case Tag():
                values |= {"wearer_id": record.wearer_id, **_device_columns(record)}
            case Device():
                values |= {"person_id": record.person_id, **_device_columns(record)}
            case _:
                values["sealed"] = await self._sealed(f"{table.name}/{record_id}", record)
        match record:
            case Wearer():
                values["national_hash"] = self._vault.index(record.national_id)
            case Order():
                values["national_hash"] = self._vault.index(record.respondent.national_id)
        await self._save(table, record_id, values)
        if isinstance(record, Order):
            await self._put_order_persons(record, new)

    async def _sealed(self, owner: str, record: Wearer | ProtectedPerson | Order) -> bytes:
        """The record, encrypted with a new key that only this record uses."""
        destroy_at_ms = domain.destroy_at_ms(record)
        return self._vault.seal(owner, _content(record), await self.keys.make(owner, destroy_at_ms))

    async def complete_keys(self, limit: int) -> bool:
        """Encrypt a batch of older records with a separate key each; false if every record has its key."""
        for table in SEALED_TABLES:
            (key,) = table.primary_key
            ids = await self.keys.without(table, limit)
            for record in await self.all_of(table, ids):
                record_id = getattr(record, key.name)
                sealed = await self._sealed(f"{table.name}/{record_id}", record)
                await self._connection.execute(sa.update(table).where(key == record_id).values(sealed=sealed))
            if ids:
                return True
        return False

    async def _put_order_persons(self, order: Order, new: bool) -> None:
        named = tables.order_persons
        if not new:
            await self._connection.execute(sa.delete(named).where(named.c.order_id == order.order_id))
        rows = [{"order_id": order.order_id, "person_id": person_id} for person_id in order.protected_person_ids]
        if rows:
            await self._connection.execute(sa.insert(named), rows)

    async def _unsealed(self, table: sa.Table, kind: type[_R], condition: sa.ColumnElement[bool]) -> list[_R]:
        (key,) = table.primary_key
        keyed = table.outerjoin(data_keys, data_keys.c.owner == sa.literal(f"{table.name}/").concat(key))
        statement = sa.select(key, table.c.sealed, data_keys.c.ring, data_keys.c.wrapped).select_from(keyed)
        alive = data_keys.c.destroyed_at_ms.is_(None)
        unsealed = []
        for row in await self._rows(statement.where(condition, alive).order_by(key)):
            data_key = DataKey(row.ring, row.wrapped) if row.ring else None  # None: stored before records had keys
            unsealed.append(
                _CODECS[kind].validate_json(self._vault.unseal(f"{table.name}/{row[0]}", row.sealed, data_key))
            )
        return unsealed

    async def wearer(self, wearer_id: str) -> Wearer:
        """A stored wearer."""
        (wearer,) = await self._unsealed(tables.wearers, Wearer, tables.wearers.c.wearer_id == wearer_id)
        return wearer

    async def order(self, order_id: str) -> Order:
        """A stored order."""
        (order,) = await self._unsealed(tables.orders, Order, tables.orders.c.order_id == order_id)
        return order

    async def find(self, table: sa.Table, kind: type[_R], record_id: str) -> _R:
        """A wearer, protected person or order. Raises NotFound if it isn't stored or was destroyed."""
        (key,) = table.primary_key
        records = await self._unsealed(table, kind, key == record_id)
        if not records:
            raise NotFound("no such record")
        return records[0]

    async def orders_protecting(self, person_id: str) -> list[Order]:
        """Orders that protect a person."""
        named = tables.order_persons
        ids = sa.select(named.c.order_id).where(named.c.person_id == person_id)
        return await self._unsealed(tables.orders, Order, tables.orders.c.order_id.in_(ids))

    async def all_of(self, table: sa.Table, ids: Sequence[str]) -> list[Any]:
        """The records of a table with these ids, by id. Ids that aren't stored, or were destroyed, are omitted."""
        if not ids:
            return []
        (key,) = table.primary_key
        if table is tables.tags:
            return await self._tags(key.in_(ids))
        if table is tables.devices:
            return await self._devices(key.in_(ids))
        return await self._unsealed(table, _KINDS[table.name], key.in_(ids))

    async def wearers_with_number(self, national_id: str) -> list[Wearer]:
        """Wearers with this national number."""
        condition = tables.wearers.c.national_hash == self._vault.index(national_id)
        return await self._unsealed(tables.wearers, Wearer, condition)

    async def orders_against(self, national_id: str) -> list[Order]:
        """Orders whose respondent has this national number."""
        condition = tables.orders.c.national_hash == self._vault.index(national_id)
        return await self._unsealed(tables.orders, Order, condition)

    async def tag(self, device_id: str) -> Tag | None:
        """A tag by its device id; None if it isn't stored."""
        tags = await self._tags(tables.tags.c.device_id == device_id)
        return tags[0] if tags else None

    async def tags_on(self, wearer_id: str) -> list[Tag]:
        """Tags on a wearer."""
        return await self._tags(tables.tags.c.wearer_id == wearer_id)

    async def _tags(self, condition: sa.ColumnElement[bool]) -> list[Tag]:
        rows = await self._rows(sa.select(tables.tags).where(condition))
        return [
            Tag(
                device_id=row.device_id,
                wearer_id=row.wearer_id,
                source_version=row.source_version,
                removed_at_ms=row.removed_at_ms,
                vendor_id=row.vendor_id,
            )
            for row in rows
        ]

    async def device(self, device_id: str) -> Device | None:
        """A protective device by its device id; None if it isn't stored."""
        devices = await self._devices(tables.devices.c.device_id == device_id)
        return devices[0] if devices else None

    async def devices_of(self, person_ids: Sequence[str]) -> list[Device]:
        """Protective devices of these persons, by id."""
        if not person_ids:
            return []
        return await self._devices(tables.devices.c.person_id.in_(person_ids))

    async def _devices(self, condition: sa.ColumnElement[bool]) -> list[Device]:
        rows = await self._rows(sa.select(tables.devices).where(condition).order_by(tables.devices.c.device_id))
        return [
            Device(
                device_id=row.device_id,
                person_id=row.person_id,
                source_version=row.source_version,
                removed_at_ms=row.removed_at_ms,
                vendor_id=row.vendor_id,
            )
            for row in rows
        ]

    async def persons_of_order(self, order_id: str) -> list[str]:
        """Ids of the persons whom a stored order protects."""
        named = tables.order_persons
        return [row.person_id for row in await self._rows(sa.select(named).where(named.c.order_id == order_id))]

    # ── joint cases ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def _cases(self, statement: sa.Select[Any]) -> list[StoredCase]:
        return [
            StoredCase(
                sequence=row.sequence,
                case_id=row.case_id,
                order_id=row.order_id,
                wearer_id=row.wearer_id,
                version=row.version,
                matched_at_ms=row.matched_at_ms,
                withdrawn_at_ms=row.withdrawn_at_ms,
                entry=row.entry,
            )
            for row in await self._rows(statement)
        ]

    async def case(self, case_id: str) -> StoredCase | None:
        """A joint case by its id; None if it isn't stored."""
        cases = await self._cases(sa.select(tables.cases).where(tables.cases.c.case_id == case_id))
        return cases[0] if cases else None

    async def cases_of_wearer(self, wearer_id: str) -> list[StoredCase]:
        """Joint cases of a wearer."""
        return await self._cases(sa.select(tables.cases).where(tables.cases.c.wearer_id == wearer_id))

    async def cases_of_order(self, order_id: str) -> list[StoredCase]:
        """Joint cases of an order."""
        return await self._cases(sa.select(tables.cases).where(tables.cases.c.order_id == order_id))

    async def cases_of_person(self, person_id: str) -> list[StoredCase]:
        """Joint cases whose order protects a person."""
        named = tables.order_persons
        joined = tables.cases.join(named, named.c.order_id == tables.cases.c.order_id)
        return await self._cases(sa.select(tables.cases).select_from(joined).where(named.c.person_id == person_id))

    async def put_case(self, case_id: str, values: Mapping[str, object], new: bool) -> None:
        """Store columns of a joint case in the table `cases`. Updates the row unless the case is `new`."""
        cases = tables.cases
        if new:
            await self._connection.execute(sa.insert(cases).values(case_id=case_id, **values))
        else:
            await self._connection.execute(sa.update(cases).where(cases.c.case_id == case_id).values(values))

    async def mark_case_sent(self, case_id: str, day: int) -> None:
        """Store the day of mesh time on which the snapshot of a case was sent last."""
        await self._connection.execute(
            sa.update(tables.cases).where(tables.cases.c.case_id == case_id).values(sent_day=day)
        )

    async def cases_not_sent_on(self, day: int, valid_after_ms: int, limit: int) -> list[StoredCase]:
        """Joint cases that end after `valid_after_ms` and whose snapshot wasn't sent on this day of mesh time."""
        cases = tables.cases
        due = sa.and_(cases.c.sent_day < day, cases.c.valid_until_ms > valid_after_ms)
        return await self._cases(sa.select(cases).where(due).order_by(cases.c.sequence).limit(limit))

    # ── routes ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def route(self, device_id: str) -> tuple[int, bytes] | None:
        """Version and value of the last route that was sent for a device."""
        rows = await self._rows(sa.select(tables.routes).where(tables.routes.c.device_id == device_id))
        return (rows[0].version, rows[0].route) if rows else None

    async def put_route(self, device_id: str, version: int, route: bytes, *, day: int) -> None:
        """Store the last route that was sent for a device, and the day of mesh time on which it was sent."""
        await self._save(tables.routes, device_id, {"version": version, "route": route, "sent_day": day})

    async def routes_not_sent_on(self, day: int, limit: int) -> list[str]:
        """Ids of devices whose route wasn't sent on this day of mesh time."""
        statement = sa.select(tables.routes.c.device_id).where(tables.routes.c.sent_day < day).limit(limit)
        return [row.device_id for row in await self._rows(statement)]

    async def begin_new_log(self) -> None:
        """Mark every route and case as not sent, and empty the outbox: its messages were meant for the previous log."""
        await self._connection.execute(sa.delete(tables.outbox))
        await self._connection.execute(sa.update(tables.routes).values(sent_day=0))
        await self._connection.execute(sa.update(tables.cases).values(sent_day=0))

    # ── outbox ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def enqueue(self, subject: str, msg_id: str, payload: bytes) -> None:
        """Add a message to the outbox. Raises FailedPrecondition if the payload is larger than PAYLOAD_MAX_BYTES."""
        if len(payload) > PAYLOAD_MAX_BYTES:
            raise FailedPrecondition(
                f"the message for this record would be {len(payload)} bytes, and at most {PAYLOAD_MAX_BYTES} fit: "
                "shorten its places, persons or encounters"
            )
        await self._connection.execute(sa.insert(tables.outbox).values(subject=subject, msg_id=msg_id, payload=payload))

    async def unsent(self, limit: int) -> list[OutboxRow]:
        """The first messages that aren't sent yet, in order."""
        # Selected by state, because a cursor would skip a row that was committed late.
        waiting = tables.outbox.c.sent_at_ms.is_(None)
        rows = await self._rows(sa.select(tables.outbox).where(waiting).order_by(tables.outbox.c.id).limit(limit))
        return [OutboxRow(id=row.id, subject=row.subject, msg_id=row.msg_id, payload=row.payload) for row in rows]

    async def mark_sent(self, row_ids: Sequence[int], at_ms: int, stored: Mapping[int, int] = _NO_SEQUENCES) -> None:
        """Mark messages as sent. `stored` has the stream sequence of each message by its row id."""
        await self._connection.execute(
            sa.update(tables.outbox).where(tables.outbox.c.id.in_(row_ids)).values(sent_at_ms=at_ms)
        )
        for row_id, sequence in stored.items():
            await self._connection.execute(_STORED, {"row_id": row_id, "sequence": sequence})

    async def drop_sent_before(self, at_ms: int) -> None:
        """Delete messages that were sent before a moment; they are in the log."""
        await self._connection.execute(sa.delete(tables.outbox).where(tables.outbox.c.sent_at_ms < at_ms))

    # ── metadata of the database ─────────────────────────────────────────────────────────────────────────────────────

    async def meta_value(self, name: str) -> bytes | None:
        """A value of the table `meta`; None if it isn't set."""
        rows = await self._rows(sa.select(tables.meta.c.value).where(tables.meta.c.name == name))
        return bytes(rows[0].value) if rows else None

    async def set_meta_value(self, name: str, value: bytes) -> None:
        """Set a value of the table `meta`."""
        await self._save(tables.meta, name, {"value": value})


_STORED = (
    sa.update(tables.outbox)
    .where(tables.outbox.c.id == sa.bindparam("row_id"))
    .values(stored_sequence=sa.bindparam("sequence"))
)


def _device_columns(record: Tag | Device) -> Mapping[str, object]:
    return {"removed_at_ms": record.removed_at_ms, "vendor_id": record.vendor_id}


def _content(record: Record) -> bytes:
    content: bytes = _CODECS[type(record)].dump_json(record, exclude_defaults=True)
    return content
