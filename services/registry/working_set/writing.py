"""Write the changes of a working set: each table once, with all its rows."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, TypeAlias

import sqlalchemy as sa
from sqlalchemy import Connection

from services.common.storage import rows
from services.common.storage.rows import RowTarget
from services.registry.cases.tables import cases
from services.registry.device_tokens.tables import device_tokens
from services.registry.keys.store import KeyOwner
from services.registry.keys.tables import data_keys
from services.registry.keys.vault import Vault
from services.registry.outbox.tables import outbox
from services.registry.reconciliation.store import masked
from services.registry.reconciliation.tables import record_digests
from services.registry.records import tables
from services.registry.records.kinds import RECORD_TYPES, RecordType
from services.registry.records.prepared import PreparedRecord
from services.registry.reviews import agreements
from services.registry.reviews.tables import match_events, match_keys, review_comparisons, reviews
from services.registry.routes.tables import routes
from services.registry.wearing.tables import tag_records
from services.registry.working_set.working_set import WorkingSet

Row: TypeAlias = tuple[object, ...]


def _replacing(table: sa.Table) -> RowTarget:
    """Target for complete rows. A row replaces the stored row with the same primary key."""
    return RowTarget(table, tuple(column.name for column in table.columns if not column.primary_key))


_RECORDS = {kind.table.name: _replacing(kind.table) for kind in RECORD_TYPES}
_CASE_COLUMNS = tuple(column.name for column in cases.columns if column.name not in ("sequence", "case_id"))
# Rows that others refer to come first.
_TARGETS = (
    _replacing(data_keys),
    *(_RECORDS[table.name] for table in (tables.wearers, tables.tags, tables.protected_persons)),
    _replacing(tag_records),
    *(_RECORDS[table.name] for table in (tables.devices, tables.wearer_units, tables.person_units, tables.orders)),
    RowTarget(tables.order_persons, ()),  # a person who was removed and named again is stored still
    _replacing(tables.order_stages),
    _replacing(record_digests),
    RowTarget(match_keys),
    RowTarget(cases, _CASE_COLUMNS, generated="sequence", unique="case_id"),
    _replacing(reviews),
    RowTarget(match_events, generated="sequence"),
    RowTarget(review_comparisons, generated="id"),
    RowTarget(device_tokens, generated="id"),
    _replacing(routes),
    RowTarget(outbox, generated="id"),
)


def write(connection: Connection, changes: WorkingSet, now_ms: int) -> None:
    """Write all changes of a working set, as recorded at this moment of mesh time."""
    _delete(connection, changes)
    put = list(changes.records.put_records.items())
    keys, sealed = _sealed(changes.vault, put, now_ms)
    tag_keys, tag_rows = _tag_rows(changes)
    by_table: dict[str, list[Row]] = {
        data_keys.name: keys + tag_keys,
        tag_records.name: tag_rows,
        **{kind.table.name: [] for kind in RECORD_TYPES},
        tables.order_persons.name: list(changes.records.persons.changed),
        tables.order_stages.name: [
            (stage.order_id, stage.source_version, stage.stage.value, stage.end_reason, stage.at_ms)
            for stage in changes.records.stages.values()
        ],
        record_digests.name: [_digest_row(changes.vault, prepared) for _, prepared in put],
        match_keys.name: [
            (prepared.kind.side.value, key, prepared.record_id)
            for _, prepared in put
            if prepared.kind.side is not None
            for key in prepared.match_keys
        ],
        **_case_rows(changes),
        **_device_rows(changes),
        outbox.name: [(*message, None, None) for message in changes.messages],
    }
    for owner, prepared in put:
        by_table[owner.table].append(_record_row(prepared, sealed.get(owner), now_ms))
    used = [target for target in _TARGETS if by_table[target.table.name]]
    if used:
        rows.write(connection, _TARGETS, [by_table[target.table.name] for target in _TARGETS])


def _case_rows(changes: WorkingSet) -> dict[str, list[Row]]:
    return {
        cases.name: [
            (
                sent.case.case_id,
                sent.case.order_id,
                sent.case.wearer_id,
                sent.case.version,
                sent.case.matched_at_ms,
                sent.case.withdrawn_at_ms,
                sent.valid_until_ms,
                sent.entry,
                sent.sent_day,
            )
            for sent in changes.cases.sent.values()
        ],
        reviews.name: [
            (
                review.case_id,
                review.order_id,
                review.wearer_id,
                review.state.value,
                review.enforced,
                review.evidence.digest,
                review.evidence.weight_bits,
                agreements.dump(review.evidence.agreements),
                review.since_ms,
                review.decided_by,
                review.paged_at_ms,
                review.legal_basis,
            )
            for review in changes.reviews.rows.changed.values()
        ],
        match_events.name: [(event.event.value, *event[1:]) for event in changes.events],
        review_comparisons.name: [
            (*comparison[:-1], agreements.dump(comparison.agreements)) for comparison in changes.comparisons
        ],
    }


def _device_rows(changes: WorkingSet) -> dict[str, list[Row]]:
    return {
        device_tokens.name: [
            (device_id, token.sha256, token.valid_until_ms)
            for device_id, valid in changes.tokens.replaced.items()
            for token in valid
        ],
        routes.name: [
            (device_id, route.version, route.route, day) for device_id, (route, day) in changes.routes.sent.items()
        ],
    }


def _tag_rows(changes: WorkingSet) -> tuple[list[Row], list[Row]]:
    """Rows of the new keys of records about tags, and of the records."""
    keys: list[Row] = []
    written: list[Row] = []
    for stored in changes.tag_records.rows.changed.values():
        record = stored.record
        if stored.new_key is not None:
            owner = KeyOwner(tag_records.name, record.record_id)
            keys.append((owner.text, stored.new_key.ring, stored.new_key.wrapped, None, None))
        values = {
            **{name: getattr(record, name) for name in record.__dataclass_fields__},
            "kind": record.kind.value,
            "digest": stored.digest,
            "sealed_reason": stored.sealed_reason,
        }
        written.append(tuple(values[column.name] for column in tag_records.columns))
    return keys, written


def _sealed(
    vault: Vault, put: Iterable[tuple[KeyOwner, PreparedRecord[Any]]], now_ms: int
) -> tuple[list[Row], dict[KeyOwner, bytes]]:
    """Rows of new keys, and the encrypted content of each record by its owner.

    A new key replaces the previous key of a record, so that older copies of the record can't be decrypted.
    """
    keys: list[Row] = []
    sealed: dict[KeyOwner, bytes] = {}
    for owner, prepared in put:
        if prepared.kind.ledger_kind is not None:
            key, sealed[owner] = vault.seal_with_new_key(owner.text, prepared.content)
            destroy_at_ms = prepared.kind.destroy_at_ms(prepared.record, now_ms)
            keys.append((owner.text, key.ring, key.wrapped, destroy_at_ms, None))
    return keys, sealed


def _record_row(prepared: PreparedRecord[Any], sealed: bytes | None, now_ms: int) -> Row:
    kind: RecordType[Any] = prepared.kind
    values = kind.columns(prepared.record) | {"digest": prepared.digest, "sealed": sealed, "recorded_ms": now_ms}
    return tuple(values[column.name] for column in kind.table.columns)


def _digest_row(vault: Vault, prepared: PreparedRecord[Any]) -> Row:
    listed = prepared.listed
    return listed.kind.value, listed.record_id, listed.source_version, masked(vault, listed)


# ── deletions ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _delete(connection: Connection, changes: WorkingSet) -> None:
    """Delete the rows that no changed row replaces."""
    for owner_kind in RECORD_TYPES:
        if owner_kind.side is not None:
            ids = [owner.record_id for owner in changes.records.replaced if owner.table == owner_kind.table.name]
            _delete_where(connection, match_keys.c.record_id, ids, match_keys.c.side == owner_kind.side.value)
    for order_id, person_ids in _removed_persons(changes).items():
        mine = tables.order_persons.c.order_id == order_id
        _delete_where(connection, tables.order_persons.c.person_id, person_ids, mine)
    _delete_where(connection, device_tokens.c.device_id, list(changes.tokens.replaced))


def _removed_persons(changes: WorkingSet) -> dict[str, list[str]]:
    removed: dict[str, list[str]] = {}
    for row in changes.records.persons.removed:
        removed.setdefault(row.order_id, []).append(row.person_id)
    return removed


def _delete_where(
    connection: Connection, column: sa.Column[Any], values: Collection[str], *also: sa.ColumnElement[bool]
) -> None:
    if values:
        connection.execute(sa.delete(column.table).where(column.in_(values), *also))
