"""A record with the values that its storage needs and that don't depend on the database: digests, hashes and match keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic

from services.registry.keys.vault import Vault
from services.registry.matching import similarity
from services.registry.reconciliation.domain import Listed
from services.registry.records.kinds import R, RecordType, list_entry, type_of


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
        keys = similarity.match_keys(kind.person(record))
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
