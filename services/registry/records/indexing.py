"""Store a record together with its digest for reconciliation and its keys for matching."""

from __future__ import annotations

from services.registry.matching import similarity
from services.registry.records.kinds import Record, list_entry, type_of
from services.registry.unit_of_work import UnitOfWork


async def store(work: UnitOfWork, record: Record, *, new: bool = False) -> None:
    """Store a record and index it. A `new` record has no older version to replace."""
    await work.records.put(record, new=new)
    await index(work, record, new=new)


async def index(work: UnitOfWork, record: Record, *, new: bool = False) -> None:
    """Store the digest and the match keys of a record. A `new` record has no older match keys to replace."""
    await work.reconciliation.put_digest(list_entry(record))
    kind = type_of(record)
    if kind.side is not None and kind.person is not None:
        keys = similarity.match_keys(kind.person(record))
        await work.match_keys.put(kind.side, kind.id_of(record), keys, new=new)
