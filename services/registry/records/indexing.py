"""Store records by their version: an older version changes nothing, the same version must have the same content."""

from __future__ import annotations

import sqlalchemy as sa

from services.registry.domain import Order, Wearer
from services.registry.matching import similarity
from services.registry.reconciliation import domain
from services.registry.records import versions
from services.registry.records.store import Record, Records
from services.registry.records.versions import PutOutcome


async def store_record(records: Records, table: sa.Table, record_id: str, *, record: Record, new: bool = False) -> None:
    await records.put(table, record_id, record, new=new)
    await index_record(records, record, new)


async def index_record(records: Records, record: Record, new: bool = False) -> None:
    """Store the digest and the match keys of a record. A `new` record has no older ones to replace."""
    await records.reviews.put_digest(domain.listed(record))
    if isinstance(record, Wearer):
        keys = similarity.match_keys(record)
        await records.reviews.put_match_keys(similarity.WEARER_SIDE, record.wearer_id, keys, new=new)
    elif isinstance(record, Order):
        keys = similarity.match_keys(record.respondent)
        await records.reviews.put_match_keys(similarity.ORDER_SIDE, record.order_id, keys, new=new)


async def read_and_decide(records: Records, table: sa.Table, record_id: str, *, record: Record) -> PutOutcome:
    return decide_record(records, await records.stored(table, record_id), record)


def decide_record(records: Records, stored: tuple[int, bytes] | None, record: Record) -> PutOutcome:
    stored_version, stored_digest = stored or (None, None)
    return versions.decide_put(stored_version, stored_digest, record.source_version, digest=records.digest_of(record))
