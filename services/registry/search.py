"""Find people and orders by name, telephone number or id. Each record that is found is disclosed, with a row of the ledger."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from typing import Any

import grpc.aio
import sqlalchemy as sa

from services.common import fields
from services.common.clock import MeshClock
from services.common.errors import FailedPrecondition, InvalidField, NotFound
from services.common.privacy.grounds import LEGAL_BASES, Grounds, RecordKind
from services.common.rpc.identity import Caller, Role
from services.common.rpc.server import caller
from services.common.running import completed
from services.registry import tables
from services.registry.disclosure.service import DisclosedRecord, Disclosures
from services.registry.disclosure.translate import parse_grounds
from services.registry.domain.records import Order, ProtectedPerson, Wearer
from services.registry.keys import Vault
from services.registry.matching import blocking
from services.registry.matching.compare import Person
from services.registry.records.kinds import ORDERS, PERSONS, WEARERS, RecordType
from services.registry.records.store import read_record
from services.registry.records.translate import NAME_MAX_CHARS, PHONE_MAX_CHARS
from services.registry.tables import cases
from services.registry.transactions import Transactions
from services.registry.working_set.working_set import WorkingSet
from tandem.registry.v1 import record_search_pb2, record_search_pb2_grpc

MAX_FOUND = 20
"""Maximum number of records of an answer. Each one is a disclosure, so a search must be narrow."""


@dataclass(frozen=True, slots=True)
class RecordQuery:
    """A search: exactly one of name, phone and record id is set."""

    name: str = ""
    birth_date: date | None = None
    """Only with a name: the date of birth that a record must have."""
    phone: str = ""
    record_id: str = ""

    @property
    def finds_persons(self) -> bool:
        """Whether the search can find protected persons: their records have no date of birth and no searchable telephone number."""
        return bool(self.record_id) or (bool(self.name) and self.birth_date is None)

    @property
    def keys(self) -> frozenset[str]:
        """Match keys of the name or telephone number; at least one of them is among the keys of a record that is found."""
        prefix = "name:" if self.name else "phone:"
        person = Person(names=(self.name,) if self.name else (), phones=(self.phone,) if self.phone else ())
        return frozenset(key for key in blocking.keys(person) if key.startswith(prefix))

    def matches(self, name: str) -> bool:
        """Whether a name is the one that is searched, also in another spelling."""
        return bool(self.keys & blocking.keys(Person(names=(name,))))


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
        return read_record(connection, vault, kind, record_id=record_id)
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


_KINDS = {
    WEARERS: record_search_pb2.FOUND_KIND_WEARER,
    PERSONS: record_search_pb2.FOUND_KIND_PROTECTED_PERSON,
    ORDERS: record_search_pb2.FOUND_KIND_ORDER,
}
_OWN_DEVICES = {WEARERS: Role.ROLE_MOJ_DESK, PERSONS: Role.ROLE_NPA_DESK}
"""Role that sees the devices of each kind's person."""
_Context = grpc.aio.ServicerContext[Any, Any]


class RecordSearchServicer(record_search_pb2_grpc.RecordSearchServiceServicer):
    """Answers searches for people and orders."""

    def __init__(self, search: RecordSearch, clock: MeshClock) -> None:
        self._search, self._clock = search, clock

    async def SearchRecords(
        self, request: record_search_pb2.SearchRecordsRequest, context: _Context
    ) -> record_search_pb2.SearchRecordsResponse:
        query, who = parse_query(request), caller()
        grounds = self._grounds(request)
        basis = next(basis for basis in LEGAL_BASES if basis.code == grounds.legal_basis)
        kinds = self._search.kinds_for(who, basis.kinds, query)
        found, disclosure_ids = await completed(self._search.find(who, grounds, query, kinds=kinds))
        return record_search_pb2.SearchRecordsResponse(
            records=[
                _row(record, who.role, disclosure_id)
                for record, disclosure_id in zip(found, disclosure_ids, strict=True)
            ],
            searched=[_KINDS[kind] for kind in kinds],
        )

    def _grounds(self, request: record_search_pb2.SearchRecordsRequest) -> Grounds:
        """Parses the grounds. An article that allows to read any record of a person will do: others aren't searched then."""
        return parse_grounds(request.grounds, RecordKind.WEARER, now_ms=self._clock.now_ms())


def parse_query(request: record_search_pb2.SearchRecordsRequest) -> RecordQuery:
    """Parses a search. Raises InvalidField."""
    given = [field for field in ("name", "phone", "record_id") if getattr(request, field)]
    if len(given) != 1:
        raise InvalidField(given[1] if given else "name", "must be the only one of name, phone and record_id")
    if request.birth_date and not request.name:
        raise InvalidField("birth_date", "goes with a name only")
    if request.record_id:
        return RecordQuery(record_id=fields.required_id("record_id", request.record_id))
    if request.phone:
        query = RecordQuery(phone=request.phone)
        if len(request.phone) > PHONE_MAX_CHARS or not query.keys:
            raise InvalidField(
                "phone", f"must be at most {PHONE_MAX_CHARS} characters with 7 to 15 digits (example: 010-1234-5678)"
            )
        return query
    name = request.name.strip()
    if not 2 <= len(name) <= NAME_MAX_CHARS:
        raise InvalidField("name", f"must be 2 to {NAME_MAX_CHARS} characters")
    query = RecordQuery(name=name, birth_date=_birth_date(request.birth_date) if request.birth_date else None)
    if not query.keys:
        raise InvalidField("name", "must be a family name and a given name, in Hangul or Latin letters")
    return query


def _birth_date(text: str) -> date:
    try:
        if re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text):
            return date.fromisoformat(text)
    except ValueError:
        pass
    raise InvalidField("birth_date", "is no date (example: 1980-02-29)")


def _row(found: FoundRecord, role: Role.ValueType, disclosure_id: str) -> record_search_pb2.FoundRecord:
    visible, record = found.kind.shows.get(role, frozenset()), found.record
    row = record_search_pb2.FoundRecord(
        kind=_KINDS[found.kind],
        record_id=found.record_id,
        order_ids=found.order_ids,
        disclosure_id=disclosure_id,
        device_ids=found.device_ids if _may_see_devices(found.kind, role) else (),
    )
    if isinstance(record, ProtectedPerson):
        row.name = record.name if "name" in visible else ""
        return row
    person = record.respondent if isinstance(record, Order) else record
    row.name = person.name if "name" in visible else ""
    row.phone = person.phone if "phone" in visible else ""
    if "birth_date" in visible:
        row.birth_date = person.birth_date.isoformat()
    return row


def _may_see_devices(kind: RecordType[Any], role: Role.ValueType) -> bool:
    return _OWN_DEVICES.get(kind) == role
