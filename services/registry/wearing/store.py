"""Reads of the records about the wearing of tags, with their reasons."""

from __future__ import annotations

from typing import NamedTuple

import sqlalchemy as sa

from services.common.rpc.errors import NotFound
from services.registry.keys.store import KeyOwner
from services.registry.keys.tables import data_keys
from services.registry.keys.vault import DataKey, Vault
from services.registry.records.tables import wearers
from services.registry.wearing.domain import TagRecord, TagRecordKind
from services.registry.wearing.tables import tag_records


class ReasonedRecord(NamedTuple):
    """A record about a tag with its reason."""

    record: TagRecord
    reason: str


def owner_of(record_id: str) -> KeyOwner:
    """Owner of the key that encrypts the reason of a record."""
    return KeyOwner(tag_records.name, record_id)


def records_about(connection: sa.Connection, vault: Vault, wearer_id: str) -> list[ReasonedRecord]:
    """All records about a wearer's tags, in the order in which they were recorded. Raises NotFound if the wearer is unknown."""
    if connection.execute(sa.select(wearers.c.wearer_id).where(wearers.c.wearer_id == wearer_id)).first() is None:
        raise NotFound("wearer_id: no such wearer")
    owner = sa.literal(f"{tag_records.name}/").concat(tag_records.c.record_id)
    joined = tag_records.join(data_keys, data_keys.c.owner == owner)
    rows = connection.execute(
        sa.select(tag_records, data_keys.c.ring, data_keys.c.wrapped)
        .select_from(joined)
        .where(tag_records.c.wearer_id == wearer_id)
        .order_by(tag_records.c.recorded_ms, tag_records.c.record_id)
    )
    return [_reasoned(row, vault) for row in rows]


def _reasoned(row: sa.Row[tuple[object, ...]], vault: Vault) -> ReasonedRecord:
    values = dict(row._mapping)
    key = DataKey(values.pop("ring"), values.pop("wrapped"))
    sealed, _ = values.pop("sealed_reason"), values.pop("digest")
    values["kind"], values["afterwards"] = TagRecordKind(values["kind"]), bool(values["afterwards"])
    record = TagRecord(**values)
    return ReasonedRecord(record, vault.unseal(owner_of(record.record_id).text, sealed, key).decode())
