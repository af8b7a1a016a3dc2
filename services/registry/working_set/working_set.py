"""The rows that the commands of one transaction read and change, in memory.

A command reads through the working set, which asks the database once for each row, and changes rows in memory only. The changes of
all commands are written together at the end, each table once. So the commands of a batch share their statements, and a later command
sees the changes of an earlier one exactly as if each had its own transaction.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import sqlalchemy as sa
from sqlalchemy import Connection

from services.common.storage import rows
from services.common.storage.rows import RowTarget
from services.registry import tables
from services.registry.domain.cases import StoredRoute
from services.registry.domain.device_tokens import DeviceToken
from services.registry.domain.reviews import MatchEvent, ReviewComparison, Side, agreements_to_json
from services.registry.keys import KeyOwner, Vault
from services.registry.records.kinds import ORDERS, RECORD_TYPES, WEARERS, RecordType
from services.registry.records.store import PreparedRecord, masked
from services.registry.tables import (
    cases,
    data_keys,
    device_tokens,
    match_events,
    match_keys,
    outbox,
    record_digests,
    review_comparisons,
    reviews,
    routes,
    tag_records,
)
from services.registry.unit_of_work import OutboxMessage
from services.registry.working_set.cached_rows import Lookup, read_rows
from services.registry.working_set.rows import CaseRows, RecordRows, ReviewRows, TagRecordRows

_KEY_HASH = Lookup("key_hash", "BYTEA")


class MatchKeyRows:
    """The match keys as one transaction sees them."""

    def __init__(self, connection: Connection) -> None:
        self._sides = {side: _SideRows(connection, side) for side in Side}

    def sharing(self, side: Side, keys: Iterable[bytes]) -> set[str]:
        """Ids of the records of a side that share at least one of these match keys."""
        return self._sides[side].sharing(tuple(keys))

    def put(self, side: Side, prepared: PreparedRecord[Any]) -> None:
        """Replace the match keys of a record."""
        self._sides[side].put(prepared.record_id, prepared.match_keys)


class _SideRows:
    """The match keys of one side."""

    def __init__(self, connection: Connection, side: Side) -> None:
        self._connection = connection
        self._select = f"SELECT key_hash, record_id FROM match_keys WHERE side = '{side.value}' AND"  # noqa: S608  # an enum's value
        self._record_ids: dict[bytes, set[str]] = defaultdict(set)
        """Ids of the records that share a key. Complete for the keys in `_complete`."""
        self._complete: set[bytes] = set()
        self._keys_of: dict[str, set[bytes]] = defaultdict(set)
        """Keys in memory of each record."""
        self._put: set[str] = set()
        """Ids of the records whose keys are put."""

    def sharing(self, keys: Sequence[bytes]) -> set[str]:
        """Ids of the records that share at least one of these match keys."""
        unknown = [key for key in dict.fromkeys(keys) if key not in self._complete]
        if unknown:
            for key, record_id in read_rows(self._connection, self._select, _KEY_HASH, values=unknown):
                # The keys in the database of a record that is put are outdated.
                if record_id not in self._put:
                    self._add(key, record_id)
            self._complete.update(unknown)
        return {record_id for key in keys for record_id in self._record_ids.get(key, ())}

    def put(self, record_id: str, keys: Iterable[bytes]) -> None:
        """Replace the match keys of a record."""
        for key in self._keys_of.pop(record_id, ()):
            self._record_ids[key].discard(record_id)
        self._put.add(record_id)
        for key in keys:
            self._add(key, record_id)

    def _add(self, key: bytes, record_id: str) -> None:
        self._record_ids[key].add(record_id)
        self._keys_of[record_id].add(key)


_DEVICE_ID = Lookup("device_id")


class RouteRows:
    """The last sent routes as one transaction sees them."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._routes: dict[str, StoredRoute | None] = {}
        self.sent: dict[str, tuple[StoredRoute, int]] = {}
        """Routes that are sent, each with the day of mesh time, by device id."""

    def last_sent(self, device_ids: Collection[str]) -> dict[str, StoredRoute]:
        """The last sent routes of these devices, by device id. Devices without a route are omitted."""
        unknown = [device_id for device_id in dict.fromkeys(device_ids) if device_id not in self._routes]
        if unknown:
            self._routes |= dict.fromkeys(unknown)
            select = "SELECT device_id, version, route FROM routes WHERE"
            for device_id, version, route in read_rows(self._connection, select, _DEVICE_ID, values=unknown):
                self._routes[device_id] = StoredRoute(version, bytes(route))
        return {device_id: route for device_id in device_ids if (route := self._routes[device_id])}

    def put(self, sent: Mapping[str, StoredRoute], day: int) -> None:
        """Put the last sent routes by device id, and the day of mesh time on which they are sent."""
        self._routes |= sent
        self.sent |= {device_id: (route, day) for device_id, route in sent.items()}


class TokenRows:
    """The tokens of the devices as one transaction sees them."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._tokens: dict[str, list[DeviceToken]] = {}
        self.replaced: dict[str, Sequence[DeviceToken]] = {}
        """All tokens of the devices whose tokens change, by device id."""

    def of_devices(self, device_ids: Iterable[str]) -> dict[str, list[DeviceToken]]:
        """Tokens of these devices, oldest first, including expired ones, by device id. Devices without tokens are omitted."""
        wanted = list(dict.fromkeys(device_ids))
        unknown = [device_id for device_id in wanted if device_id not in self._tokens]
        if unknown:
            self._tokens |= {device_id: [] for device_id in unknown}
            select = "SELECT device_id, id, sha256, valid_until_ms FROM device_tokens WHERE"
            rows = read_rows(self._connection, select, _DEVICE_ID, values=unknown)
            for device_id, _, sha256, valid_until_ms in sorted(rows, key=lambda row: int(row[1])):
                self._tokens[device_id].append(DeviceToken(bytes(sha256), valid_until_ms))
        return {device_id: list(tokens) for device_id in wanted if (tokens := self._tokens[device_id])}

    def put(self, tokens: Mapping[str, Sequence[DeviceToken]]) -> None:
        """Replace all tokens of devices with these tokens, oldest first, by device id."""
        self._tokens |= {device_id: list(valid) for device_id, valid in tokens.items()}
        self.replaced |= tokens


class WorkingSet:
    """The registry's tables as the commands of one transaction see them."""

    def __init__(self, connection: Connection, vault: Vault) -> None:
        self.vault = vault
        self.records = RecordRows(connection, vault)
        self.match_keys = MatchKeyRows(connection)
        self.cases = CaseRows(connection, self.records)
        self.reviews = ReviewRows(connection)
        self.tag_records = TagRecordRows(connection)
        self.records.dependents[WEARERS].append((self.tag_records.rows, "wearer_id"))
        for kind, name in ((ORDERS, "order_id"), (WEARERS, "wearer_id")):
            self.records.dependents[kind] += [(self.cases.rows, name), (self.reviews.rows, name)]
        self.routes = RouteRows(connection)
        self.tokens = TokenRows(connection)
        self.events: list[MatchEvent] = []
        """Events for the stream of matches, in order."""
        self.comparisons: list[ReviewComparison] = []
        """Comparisons for the histories of reviewed pairs, in order."""
        self.messages: list[OutboxMessage] = []
        """Messages for the outbox, in order."""
        self.after_commit: list[Callable[[], None]] = []
        """Callbacks to run after the commit, such as writing a log line."""

    def put(self, prepared: PreparedRecord[Any]) -> None:
        """Put a record with its digest for reconciliation and its keys for matching."""
        self.records.put(prepared)
        if prepared.kind.side is not None:
            self.match_keys.put(prepared.kind.side, prepared)


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


def write_changes(connection: Connection, changes: WorkingSet, now_ms: int) -> None:
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
                agreements_to_json(review.evidence.agreements),
                review.since_ms,
                review.decided_by,
                review.paged_at_ms,
                review.legal_basis,
            )
            for review in changes.reviews.rows.changed.values()
        ],
        match_events.name: [(event.event.value, *event[1:]) for event in changes.events],
        review_comparisons.name: [
            (*comparison[:-1], agreements_to_json(comparison.agreements)) for comparison in changes.comparisons
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
