"""Records about the wearing of tags in memory."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from services.registry.keys.vault import DataKey
from services.registry.wearing.domain import TagRecord, TagRecordKind
from services.registry.wearing.tables import tag_records
from services.registry.working_set.cached_rows import CachedRows, Lookup


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
