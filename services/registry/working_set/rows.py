"""Records, joint cases and reviews in memory, as one transaction sees them: the stored rows, and those that it puts."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from sqlalchemy import Connection

from services.common.errors import Conflict
from services.registry.domain.cases import CaseUpdate, StoredCase
from services.registry.domain.lifecycle import OrderStage, PutOutcome, decide_put
from services.registry.domain.records import Order, RoutedDevice
from services.registry.domain.reviews import MatchEvidence, Review, ReviewState, agreements_from_json
from services.registry.domain.wearing import TagRecord, TagRecordKind
from services.registry.keys import DataKey, KeyOwner, Vault
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
from services.registry.records.store import PreparedRecord, StoredRecord, owner_of, stored_record
from services.registry.tables import data_keys, reviews, tag_records
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


@dataclass(frozen=True, slots=True)
class StoredTagRecord:
    """A record about a tag, as its row holds it."""

    record: TagRecord
    digest: bytes
    """Keyed digest of what the caller sent, by which a repeated record is recognised."""
    sealed_reason: bytes
    new_key: DataKey | None = None
    """Key that encrypts the reason; None if it is stored already."""


class TagRecordRows:
    """The records about the wearing of tags as one transaction sees them."""

    def __init__(self, connection: Connection) -> None:
        self.rows = CachedRows[str, StoredTagRecord](
            connection,
            f"SELECT {', '.join(tag_records.c.keys())} FROM tag_records WHERE",  # noqa: S608  # names of the code's own table
            key=Lookup("record_id"),
            key_of=lambda stored: stored.record.record_id,
            parse=_stored,
            lookups={"wearer_id": (Lookup("wearer_id"), lambda stored: stored.record.wearer_id)},
        )

    def find(self, record_id: str) -> StoredTagRecord | None:
        """A record by its id; None if there is none."""
        return self.rows.get((record_id,)).get(record_id)

    def of_wearers(self, wearer_ids: Collection[str]) -> dict[str, list[TagRecord]]:
        """The records about these wearers' tags by wearer id, in the order in which they were recorded."""
        found: dict[str, list[TagRecord]] = {}
        stored = self.rows.by("wearer_id", wearer_ids) if wearer_ids else []
        for row in sorted(stored, key=lambda row: (row.record.recorded_ms, row.record.record_id)):
            found.setdefault(row.record.wearer_id, []).append(row.record)
        return found

    def put(self, stored: StoredTagRecord) -> None:
        """Put a record, new or with its early end."""
        self.rows.put(stored)


def _stored(row: Sequence[Any]) -> StoredTagRecord:
    values = dict(zip(tag_records.c.keys(), row, strict=True))
    digest, sealed_reason = bytes(values.pop("digest")), bytes(values.pop("sealed_reason"))
    values["kind"], values["afterwards"] = TagRecordKind(values["kind"]), bool(values["afterwards"])
    return StoredTagRecord(TagRecord(**values), digest, sealed_reason)


_FIRST_NEW_SEQUENCE = 1 << 62
"""Sequence of the first new case in memory, greater than all sequences in the database. The database numbers the new cases later."""


class SentCase(NamedTuple):
    """A changed joint case with its last snapshot."""

    case: StoredCase
    valid_until_ms: int | None
    entry: bytes
    """Snapshot, serialised as a log entry."""
    sent_day: int
    """Day of mesh time on which the snapshot is sent."""


class CaseRows:
    """The joint cases as one transaction sees them."""

    def __init__(self, connection: Connection, records: RecordRows) -> None:
        self._records = records
        self.rows = CachedRows[str, StoredCase](
            connection,
            "SELECT sequence, case_id, order_id, wearer_id, version, matched_at_ms, withdrawn_at_ms FROM cases WHERE",
            key=Lookup("case_id"),
            key_of=lambda case: case.case_id,
            parse=_stored_case,
            lookups={
                "order_id": (Lookup("order_id"), lambda case: case.order_id),
                "wearer_id": (Lookup("wearer_id"), lambda case: case.wearer_id),
            },
        )
        self.sent: dict[str, SentCase] = {}
        """Changed cases with their last snapshots, by case id."""
        self._new = itertools.count(_FIRST_NEW_SEQUENCE)

    def find(self, case_id: str) -> StoredCase | None:
        """A joint case by its id; None if there is none."""
        return self.rows.get((case_id,)).get(case_id)

    def of_wearers(self, wearer_ids: Collection[str]) -> list[StoredCase]:
        """Joint cases of these wearers, in the order of matching."""
        return sorted(self.rows.by("wearer_id", wearer_ids), key=lambda case: case.sequence)

    def of_orders(self, order_ids: Collection[str]) -> list[StoredCase]:
        """Joint cases of these orders, in the order of matching."""
        return sorted(self.rows.by("order_id", order_ids), key=lambda case: case.sequence)

    def of_person(self, person_id: str) -> list[StoredCase]:
        """Joint cases whose order protects a person, in the order of matching."""
        return self.of_orders([row.order_id for row in self._records.persons.by("person_id", (person_id,))])

    def kept_away(self, person_ids: Collection[str], *, without: Collection[str]) -> dict[str, set[str]]:
        """Ids of the wearers whom joint cases keep away from these persons, by person id.

        Withdrawn cases don't count, nor do the cases with the ids `without`.
        """
        named = self._records.persons.by("person_id", person_ids)
        cases: dict[str, list[StoredCase]] = defaultdict(list)
        for case in self.rows.by("order_id", {row.order_id for row in named}):
            cases[case.order_id].append(case)
        found: dict[str, set[str]] = defaultdict(set)
        for order_id, person_id in named:
            for case in cases.get(order_id, ()):
                if case.withdrawn_at_ms is None and case.case_id not in without:
                    found[person_id].add(case.wearer_id)
        return found

    def put(self, updates: Iterable[CaseUpdate], entries: Mapping[str, bytes], day: int) -> None:
        """Put joint cases. `entries` are their snapshots by case id, and `day` is the day of mesh time on which they are sent."""
        for update in updates:
            case = replace(update.case, sequence=next(self._new)) if update.is_new else update.case
            self.rows.put(case)
            entry = entries[case.case_id]
            self.sent[case.case_id] = SentCase(case, update.valid_until_ms, entry, sent_day=day)


class ReviewRows:
    """The reviews as one transaction sees them."""

    def __init__(self, connection: Connection) -> None:
        self.rows = CachedRows[str, Review](
            connection,
            f"SELECT {', '.join(reviews.c.keys())} FROM reviews WHERE",  # noqa: S608  # names of the code's own table
            key=Lookup("case_id"),
            key_of=lambda review: review.case_id,
            parse=parse_review,
            lookups={
                "order_id": (Lookup("order_id"), lambda review: review.order_id),
                "wearer_id": (Lookup("wearer_id"), lambda review: review.wearer_id),
            },
        )

    def some(self, case_ids: Iterable[str]) -> dict[str, Review]:
        """Reviews by case id. Cases without a review are omitted."""
        return self.rows.get(case_ids)

    def of_wearer(self, wearer_id: str) -> list[Review]:
        """Reviews of a wearer."""
        return self.rows.by("wearer_id", (wearer_id,))

    def of_order(self, order_id: str) -> list[Review]:
        """Reviews of an order."""
        return self.rows.by("order_id", (order_id,))

    def put(self, changed: Iterable[Review]) -> None:
        """Put reviews. A review replaces the review of the same case."""
        for review in changed:
            self.rows.put(review)


def _stored_case(row: Sequence[Any]) -> StoredCase:
    sequence, case_id, order_id, wearer_id, version, matched_at_ms, withdrawn_at_ms = row
    return StoredCase(
        sequence=sequence,
        case_id=case_id,
        order_id=order_id,
        wearer_id=wearer_id,
        version=version,
        matched_at_ms=matched_at_ms,
        withdrawn_at_ms=withdrawn_at_ms,
    )


def parse_review(row: Sequence[Any]) -> Review:
    """The review of a complete row of its table."""
    values = dict(zip(reviews.c.keys(), row, strict=True))
    evidence = MatchEvidence(
        bytes(values["evidence"]), values["weight_bits"], agreements_from_json(values["agreements"])
    )
    return Review(
        case_id=values["case_id"],
        order_id=values["order_id"],
        wearer_id=values["wearer_id"],
        state=ReviewState(values["state"]),
        enforced=bool(values["enforced"]),
        evidence=evidence,
        since_ms=values["since_ms"],
        decided_by=values["decided_by"],
        paged_at_ms=values["paged_at_ms"],
        legal_basis=values["legal_basis"],
    )
