"""Reads and writes of the tables in tables_review.py within one transaction: reconciliation, reviews and match events."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from services.common.storage import db
from services.registry.domain import EXERCISE_IDS
from services.registry.keys.store import decision_owner
from services.registry.keys.vault import Vault
from services.registry.ledger.tables import data_keys
from services.registry.reconciliation.domain import Agency, Listed, ListedKind
from services.registry.records.lifecycle import OrderStage
from services.registry.reviews import tables
from services.registry.reviews.domain import Decision, Event, MatchEvidence, Review, ReviewState

LISTED_BATCH = 1000


@dataclass(frozen=True, slots=True)
class ReconciliationStatus:
    """State of the reconciliation between an agency's list and the stored records."""

    agency: Agency
    since_ms: int
    """When the registry began to expect lists from the agency, mesh time."""
    compared_at_ms: int | None
    differences: int
    proven_at_ms: int | None
    """When the list and the stored records were last equal, mesh time."""
    root: bytes
    alarmed_at_ms: int | None


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """A stored event of the stream of matches."""

    sequence: int
    event: Event
    case_id: str
    order_id: str
    wearer_id: str
    matched_at_ms: int
    at_ms: int


class ReviewRecords:
    """The tables for reconciliation, reviews and match events as one transaction sees them."""

    def __init__(self, connection: AsyncConnection, vault: Vault) -> None:
        self._connection = connection
        self._vault = vault

    async def _rows(self, statement: sa.Executable) -> Sequence[sa.Row[Any]]:
        return (await self._connection.execute(statement)).all()

    # ── reconciliation ───────────────────────────────────────────────────────────────────────────────────────────────

    async def put_digest(self, listed: Listed) -> None:
        """Store the digest of a record for the comparison with its agency's list."""
        key = {"kind": listed.kind.value, "record_id": listed.record_id}
        values = {"source_version": listed.source_version, "masked": self._masked(listed)}
        await db.upsert(self._connection, tables.record_digests, key, values=values)

    async def listed(self, kinds: Iterable[ListedKind]) -> list[Listed]:
        """All records of some kinds, as their agency would list them. Reads page by page, so that other tasks get a turn."""
        digests, records = tables.record_digests, list[Listed]()
        for kind in kinds:
            after = ""
            while True:
                # No agency lists the synthetic records of exercises.
                is_live = ~digests.c.record_id.startswith(EXERCISE_IDS, autoescape=True)
                wanted = sa.and_(digests.c.kind == kind.value, digests.c.record_id > after, is_live)
                page = sa.select(digests).where(wanted).order_by(digests.c.record_id).limit(LISTED_BATCH)
                rows = await self._rows(page)
                records += map(self._unmasked, rows)
                if len(rows) < LISTED_BATCH:
                    break
                after = rows[-1].record_id
        return records

    def _unmasked(self, row: sa.Row[Any]) -> Listed:
        masked = Listed(
            kind=ListedKind(row.kind), record_id=row.record_id, source_version=row.source_version, digest=row.masked
        )
        return replace(masked, digest=self._masked(masked))

    def _masked(self, listed: Listed) -> bytes:
        """Mask a digest with a one-time pad, or unmask a masked digest. A version has one content, so no pad is reused."""
        pad = self._vault.index(f"record digest {listed.kind.value} {listed.record_id} {listed.source_version}")
        return (int.from_bytes(listed.digest) ^ int.from_bytes(pad)).to_bytes(len(pad))

    async def without_digest(self, kind: ListedKind, key: sa.Column[Any], after: str, *, limit: int) -> list[str]:
        """Ids of records that have no digest yet, in order, after the id `after`."""
        digests = tables.record_digests
        # `not in` would make PostgreSQL scan all digests for each record once they outgrow its memory.
        known = sa.exists().where(digests.c.kind == kind.value, digests.c.record_id == key)
        wanted = sa.and_(key > after, ~known)
        rows = await self._rows(sa.select(key).where(wanted).order_by(key).limit(limit))
        return [row[0] for row in rows]

    async def reconciliation_status(self, agency: Agency, now_ms: int) -> ReconciliationStatus:
        """Reconciliation status of an agency. The first call sets `since_ms` to `now_ms`."""
        table = tables.reconciliations
        await db.insert_once(self._connection, table, {"agency": agency.value, "since_ms": now_ms, "differences": 0})
        (row,) = await self._rows(sa.select(table).where(table.c.agency == agency.value))
        return ReconciliationStatus(
            agency=agency,
            since_ms=row.since_ms,
            compared_at_ms=row.compared_at_ms,
            differences=row.differences,
            proven_at_ms=row.proven_at_ms,
            root=row.root or b"",
            alarmed_at_ms=row.alarmed_at_ms,
        )

    async def update_reconciliation(self, agency: Agency, **values: object) -> None:
        """Update columns of an agency's row in the table `reconciliations`."""
        table = tables.reconciliations
        await self._connection.execute(sa.update(table).where(table.c.agency == agency.value).values(**values))

    async def mark_alarmed(self, agency: Agency, at_ms: int) -> bool:
        """Store that the alarm about the missing proof was raised; false if it was raised already."""
        table = tables.reconciliations
        due = sa.and_(table.c.agency == agency.value, table.c.alarmed_at_ms.is_(None))
        marked = await self._connection.execute(sa.update(table).where(due).values(alarmed_at_ms=at_ms))
        return marked.rowcount > 0

    # ── match keys ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def put_match_keys(self, side: str, record_id: str, keys: Iterable[str], *, new: bool) -> None:
        """Store the match keys of a record. Replaces its older keys unless the record is `new`."""
        table = tables.match_keys
        if not new:
            mine = sa.and_(table.c.side == side, table.c.record_id == record_id)
            await self._connection.execute(sa.delete(table).where(mine))
        rows = [{"side": side, "key_hash": key_hash, "record_id": record_id} for key_hash in self._hashed(keys)]
        if rows:
            await self._connection.execute(sa.insert(table), rows)

    async def sharing_a_key(self, side: str, keys: Iterable[str]) -> set[str]:
        """Ids of the records of one side that share at least one of these match keys."""
        table = tables.match_keys
        wanted = sa.and_(table.c.side == side, table.c.key_hash.in_(self._hashed(keys)))
        return {row.record_id for row in await self._rows(sa.select(table.c.record_id).where(wanted).distinct())}

    def _hashed(self, keys: Iterable[str]) -> list[bytes]:
        return sorted({self._vault.index(f"match key {key}") for key in keys})

    # ── reviews ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def evidence_digest(self, evidence: str) -> bytes:
        """Keyed digest of the data that two records were compared by."""
        return self._vault.digest(evidence.encode())

    async def _reviews(self, condition: sa.ColumnElement[bool], limit: int | None = None) -> list[Review]:
        statement = sa.select(tables.reviews).where(condition).order_by(tables.reviews.c.case_id).limit(limit)
        return [
            Review(
                case_id=row.case_id,
                order_id=row.order_id,
                wearer_id=row.wearer_id,
                state=ReviewState(row.state),
                enforced=row.enforced,
                evidence=MatchEvidence(row.evidence, row.weight_bits, tuple(json.loads(row.reasons))),
                since_ms=row.since_ms,
                decided_by=row.decided_by,
                paged_at_ms=row.paged_at_ms,
            )
            for row in await self._rows(statement)
        ]

    async def review(self, case_id: str) -> Review | None:
        """The review of a pair of order and wearer, by case id; None if there is none."""
        reviews = await self._reviews(tables.reviews.c.case_id == case_id)
        return reviews[0] if reviews else None

    async def reviews_of_wearer(self, wearer_id: str) -> list[Review]:
        """Reviews of a wearer."""
        return await self._reviews(tables.reviews.c.wearer_id == wearer_id)

    async def reviews_of_order(self, order_id: str) -> list[Review]:
        """Reviews of an order."""
        return await self._reviews(tables.reviews.c.order_id == order_id)

    async def reviews_in(self, states: Iterable[ReviewState], after_case_id: str, limit: int) -> list[Review]:
        """Reviews in some states, by case id, after the case id `after_case_id`."""
        table = tables.reviews
        wanted = table.c.state.in_([state.value for state in states])
        return await self._reviews(sa.and_(wanted, table.c.case_id > after_case_id), limit)

    async def unanswered(self, since_ms: int, limit: int) -> list[Review]:
        """Open reviews without a page whose `since_ms` is at or before the given moment, mesh time."""
        table = tables.reviews
        due = sa.and_(
            table.c.state == ReviewState.OPEN.value, table.c.paged_at_ms.is_(None), table.c.since_ms <= since_ms
        )
        return await self._reviews(due, limit)

    async def put_review(self, review: Review) -> None:
        """Store a review, or replace the stored one."""
        values = {
            "order_id": review.order_id,
            "wearer_id": review.wearer_id,
            "state": review.state.value,
            "enforced": review.enforced,
            "evidence": review.evidence.digest,
            "weight_bits": review.evidence.weight_bits,
            "reasons": json.dumps(review.evidence.reasons),
            "since_ms": review.since_ms,
            "decided_by": review.decided_by,
            "paged_at_ms": review.paged_at_ms,
        }
        await db.upsert(self._connection, tables.reviews, {"case_id": review.case_id}, values=values)

    async def mark_paged(self, review: Review, at_ms: int) -> bool:
        """Store that both agencies are paged for a review; false if the review changed or was paged meanwhile."""
        table = tables.reviews
        due = sa.and_(
            table.c.case_id == review.case_id,
            table.c.state == ReviewState.OPEN.value,
            table.c.since_ms == review.since_ms,
            table.c.paged_at_ms.is_(None),
        )
        marked = await self._connection.execute(sa.update(table).where(due).values(paged_at_ms=at_ms))
        return marked.rowcount > 0

    async def add_decision(
        self, review: Review, decision: Decision, decided_by: str, *, reason: str, at_ms: int
    ) -> None:
        """Store a person's decision. Its reason is encrypted with a separate key."""
        owner = decision_owner(review.case_id, at_ms)
        key = self._vault.make_key(owner)
        await db.upsert(
            self._connection, data_keys, {"owner": owner}, values={"ring": key.ring, "wrapped": key.wrapped}
        )
        values = {
            "case_id": review.case_id,
            "decision": decision.value,
            "decided_by": decided_by,
            "evidence": review.evidence.digest,
            "sealed_reason": self._vault.seal(owner, reason.encode(), key),
            "at_ms": at_ms,
        }
        await self._connection.execute(sa.insert(tables.review_decisions).values(values))

    # ── events ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def add_event(
        self, event: Event, case_id: str, order_id: str, *, wearer_id: str, matched_at_ms: int, at_ms: int
    ) -> None:
        """Add an event to the stream of matches."""
        values = {
            "event": event.value,
            "case_id": case_id,
            "order_id": order_id,
            "wearer_id": wearer_id,
            "matched_at_ms": matched_at_ms,
            "at_ms": at_ms,
        }
        await self._connection.execute(sa.insert(tables.match_events).values(values))

    async def events_after(self, sequence: int, only_matches: bool, limit: int) -> list[StoredEvent]:
        """Events with a greater sequence, in order."""
        table = tables.match_events
        wanted = table.c.sequence > sequence
        if only_matches:
            wanted = sa.and_(wanted, table.c.event == Event.MATCHED.value)
        rows = await self._rows(sa.select(table).where(wanted).order_by(table.c.sequence).limit(limit))
        return [
            StoredEvent(
                sequence=row.sequence,
                event=Event(row.event),
                case_id=row.case_id,
                order_id=row.order_id,
                wearer_id=row.wearer_id,
                matched_at_ms=row.matched_at_ms,
                at_ms=row.at_ms,
            )
            for row in rows
        ]

    async def last_event_before(self, at_ms: int) -> int:
        """Sequence of the last event before a moment; 0 if there is none."""
        table = tables.match_events
        (row,) = await self._rows(sa.select(sa.func.max(table.c.sequence)).where(table.c.at_ms < at_ms))
        return row[0] or 0

    # ── stages of orders ─────────────────────────────────────────────────────────────────────────────────────────────

    async def add_stage(
        self, order_id: str, source_version: int, stage: OrderStage, *, end_reason: str, at_ms: int
    ) -> None:
        """Store a stage of an order's life cycle. The stages are deleted together with the order."""
        key = {"order_id": order_id, "source_version": source_version}
        values = {"stage": stage.value, "end_reason": end_reason, "at_ms": at_ms}
        await db.upsert(self._connection, tables.order_stages, key, values=values)
