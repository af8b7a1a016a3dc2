"""Finds people and orders by name, telephone number or id. Each record that is found is disclosed, with a row of the ledger."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import sqlalchemy as sa

from services.common.privacy.grounds import Grounds, RecordKind
from services.common.rpc.errors import FailedPrecondition, NotFound
from services.common.rpc.identity import Caller
from services.registry.cases.tables import cases
from services.registry.disclosure.service import DisclosedRecord, Disclosures
from services.registry.domain import Order, ProtectedPerson, Wearer
from services.registry.keys.vault import Vault
from services.registry.records import store as records
from services.registry.records import tables
from services.registry.records.kinds import ORDERS, PERSONS, WEARERS, RecordType
from services.registry.search.domain import MAX_FOUND, RecordQuery
from services.registry.transactions import Transactions
from services.registry.working_set.working_set import WorkingSet

TOO_MANY = "search_too_many"
PERSONS_BATCH = 200
"""Number of protected persons that are read together. They have no match keys, so their names are compared one by one."""


@dataclass(frozen=True, slots=True)
class FoundRecord:
    """A record that was found, whole, and what belongs to it."""

    kind: RecordType[Any]
    record: Wearer | ProtectedPerson | Order
    record_id: str
    order_ids: tuple[str, ...]
    device_ids: tuple[str, ...]
    """Devices of the person that are in use."""


class RecordSearch:
    """Finds records of the kinds whose names a caller may see."""

    def __init__(self, disclosures: Disclosures, transactions: Transactions) -> None:
        self._disclosures, self._transactions = disclosures, transactions

    def kinds_for(self, who: Caller, allowed: frozenset[RecordKind], query: RecordQuery) -> list[RecordType[Any]]:
        """Kinds of records that a search can find, an article allows to disclose, and whose names the caller's role sees."""
        return [
            kind
            for kind in (WEARERS, PERSONS, ORDERS)
            if kind.ledger_kind in allowed
            and "name" in kind.shows.get(who.role, ())
            and (kind is not PERSONS or query.finds_persons)
        ]

    async def find(
        self, who: Caller, grounds: Grounds, query: RecordQuery, *, kinds: Sequence[RecordType[Any]]
    ) -> tuple[list[FoundRecord], list[str]]:
        """Records, and the ids of their rows in the ledger. Raises FailedPrecondition if more than MAX_FOUND match."""
        candidates = await self._candidates(query, kinds)
        if sum(map(len, candidates.values())) > MAX_FOUND:
            raise FailedPrecondition(
                f"more than {MAX_FOUND} records match: state the date of birth, or search by telephone number", TOO_MANY
            )
        reading = partial(_read, vault=self._transactions.vault, candidates=candidates)
        return await self._disclosures.disclose(reading, who, grounds)

    async def _candidates(
        self, query: RecordQuery, kinds: Sequence[RecordType[Any]]
    ) -> dict[RecordType[Any], list[str]]:
        """Ids of the records that match, by kind. Nothing is disclosed yet.

        It reads snapshots: a search by name opens the records of all protected persons, and no new order may wait for that.
        """
        if query.record_id:
            return {kind: [query.record_id] for kind in kinds}
        vault = self._transactions.vault
        hashes = [vault.index(f"match key {key}") for key in query.keys]
        matched = [kind for kind in kinds if kind.side is not None]

        def by_key(connection: sa.Connection) -> dict[RecordType[Any], list[str]]:
            working = WorkingSet(connection, vault)
            found: dict[RecordType[Any], list[str]] = {}
            for kind in matched:
                ids = working.match_keys.sharing(kind.side, hashes) if kind.side is not None and hashes else set()
                found[kind] = [
                    id_ for id_, record in working.records.opened(kind, ids).items() if _is_born(record, query)
                ]
            return found

        async with self._transactions.database.reading() as connection:
            candidates = await connection.run_sync(by_key)
        if PERSONS in kinds:
            candidates[PERSONS] = await self._persons_named(query)
        return candidates

    async def _persons_named(self, query: RecordQuery) -> list[str]:
        """Ids of the protected persons with a name, at most one more than an answer may have."""
        found: list[str] = []
        after = ""
        while len(found) <= MAX_FOUND:
            async with self._transactions.database.reading() as connection:
                batch = await connection.run_sync(_persons_after, self._transactions.vault, after)
            if not batch:
                break
            found += [person_id for person_id, name in batch if name and query.matches(name)]
            after = batch[-1][0]
            await asyncio.sleep(0)
        return found


def _persons_after(connection: sa.Connection, vault: Vault, after: str) -> list[tuple[str, str]]:
    """Ids and names of the next protected persons by id. The name of a destroyed record is empty."""
    key = PERSONS.key
    ids = connection.scalars(sa.select(key).where(key > after).order_by(key).limit(PERSONS_BATCH)).all()
    persons = WorkingSet(connection, vault).records.opened(PERSONS, ids)
    return [(id_, persons[id_].name if id_ in persons else "") for id_ in ids]


def _stored(connection: sa.Connection, vault: Vault, kind: RecordType[Any], *, record_id: str) -> Any:
    """A record; None if it isn't stored or was destroyed."""
    try:
        return records.read(connection, vault, kind, record_id=record_id)
    except NotFound:
        return None


def _is_born(record: Wearer | Order, query: RecordQuery) -> bool:
    person = record.respondent if isinstance(record, Order) else record
    return query.birth_date is None or person.birth_date == query.birth_date


def _read(
    connection: sa.Connection,
    *,
    vault: Vault,
    candidates: dict[RecordType[Any], list[str]],
) -> tuple[list[FoundRecord], list[DisclosedRecord]]:
    found = [
        FoundRecord(
            kind=kind,
            record=record,
            record_id=id_,
            order_ids=tuple(_orders_of(connection, kind, id_)),
            device_ids=tuple(_devices_of(connection, kind, id_)),
        )
        for kind, ids in candidates.items()
        for id_ in ids
        if (record := _stored(connection, vault, kind, record_id=id_)) is not None
    ]
    return found, [DisclosedRecord(row.kind, row.record_id) for row in found]


def _orders_of(connection: sa.Connection, kind: RecordType[Any], record_id: str) -> list[str]:
    if kind is ORDERS:
        return [record_id]
    if kind is WEARERS:
        query = sa.select(cases.c.order_id).where(cases.c.wearer_id == record_id, cases.c.withdrawn_at_ms.is_(None))
    else:
        query = sa.select(tables.order_persons.c.order_id).where(tables.order_persons.c.person_id == record_id)
    return sorted(set(connection.scalars(query)))


def _devices_of(connection: sa.Connection, kind: RecordType[Any], record_id: str) -> list[str]:
    if kind is ORDERS:
        return []
    table = tables.tags if kind is WEARERS else tables.devices
    owner = table.c.wearer_id if kind is WEARERS else table.c.person_id
    query = sa.select(table.c.device_id).where(owner == record_id, table.c.removed_at_ms.is_(None))
    return sorted(connection.scalars(query))
