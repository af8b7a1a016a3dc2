"""Reviews with the decisions of people, and the stream of match events."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from services.common.rpc.errors import NotFound
from services.common.storage.statements import Prepared
from services.registry.keys.store import KeyOwner, KeyRepository
from services.registry.keys.vault import Vault
from services.registry.repository import Repository, read_meta, write_meta
from services.registry.reviews import agreements
from services.registry.reviews.domain import (
    Decision,
    Event,
    MatchEvent,
    MatchEvidence,
    Review,
    ReviewQueue,
    ReviewState,
)
from services.registry.reviews.tables import match_events, review_decisions, reviews

_NEWEST_DELETED = "newest_deleted_match_event"
"""Name of the value in the table `meta` that holds the sequence of the newest match event that was deleted."""


def decision_owner(case_id: str, at_ms: int) -> KeyOwner:
    """Owner of the key that encrypts a decision's reason."""
    return KeyOwner(review_decisions.name, f"{case_id}/{at_ms}")


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """An event of the stream of matches, with its sequence."""

    sequence: int
    match: MatchEvent


def queue(connection: sa.Connection) -> ReviewQueue:
    """The reviews that wait for a person. Read within a visit."""
    [(waiting, since_ms, alarmed)] = _QUEUE.fetch(connection)
    return ReviewQueue(open=waiting, oldest_since_ms=since_ms, alarmed=alarmed)


_QUEUE = Prepared(
    sa.select(sa.func.count(), sa.func.min(reviews.c.since_ms), sa.func.count(reviews.c.paged_at_ms)).where(
        reviews.c.state == ReviewState.OPEN.value
    )
)


class ReviewRepository(Repository):
    """The reviews and match events as one transaction sees them."""

    def __init__(self, connection: AsyncConnection, vault: Vault, keys: KeyRepository) -> None:
        super().__init__(connection)
        self._vault = vault
        self._keys = keys

    # ── reviews ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _reviews(
        self,
        condition: sa.ColumnElement[bool],
        limit: int | None = None,
        *,
        order_by: Sequence[sa.Column[Any]] = (reviews.c.case_id,),
    ) -> list[Review]:
        statement = sa.select(reviews).where(condition).order_by(*order_by).limit(limit)
        return [
            Review(
                case_id=row.case_id,
                order_id=row.order_id,
                wearer_id=row.wearer_id,
                state=ReviewState(row.state),
                enforced=row.enforced,
                evidence=MatchEvidence(row.evidence, row.weight_bits, agreements.parse(row.agreements)),
                since_ms=row.since_ms,
                decided_by=row.decided_by,
                paged_at_ms=row.paged_at_ms,
                legal_basis=row.legal_basis,
            )
            for row in await self._rows(statement)
        ]

    async def in_states(self, states: Iterable[ReviewState], after_case_id: str, limit: int) -> list[Review]:
        """Reviews in some states, sorted by case id, after the case id `after_case_id`."""
        wanted = reviews.c.state.in_([state.value for state in states])
        return await self._reviews(sa.and_(wanted, reviews.c.case_id > after_case_id), limit)

    async def read(self, case_id: str) -> Review:
        """The review of a case. Raises NotFound."""
        found = await self._reviews(reviews.c.case_id == case_id)
        if not found:
            raise NotFound("case_id: no such review")
        return found[0]

    async def unanswered(self, since_ms: int, limit: int) -> list[Review]:
        """Reviews that have been open since a moment (mesh time) or longer, and for which nobody was paged yet."""
        due = sa.and_(
            reviews.c.state == ReviewState.OPEN.value, reviews.c.paged_at_ms.is_(None), reviews.c.since_ms <= since_ms
        )
        return await self._reviews(due, limit)

    async def alarms(self, limit: int) -> list[Review]:
        """Open reviews for which both agencies were paged, the longest waiting first."""
        paged = sa.and_(reviews.c.state == ReviewState.OPEN.value, reviews.c.paged_at_ms.is_not(None))
        return await self._reviews(paged, limit, order_by=(reviews.c.since_ms, reviews.c.case_id))

    async def queue(self) -> ReviewQueue:
        """The reviews that wait for a person."""
        return await self._connection.run_sync(queue)

    async def mark_paged(self, review: Review, at_ms: int) -> bool:
        """Store that both agencies are paged for a review; false if the review changed or was paged meanwhile."""
        due = sa.and_(
            reviews.c.case_id == review.case_id,
            reviews.c.state == ReviewState.OPEN.value,
            reviews.c.since_ms == review.since_ms,
            reviews.c.paged_at_ms.is_(None),
        )
        marked = await self._connection.execute(sa.update(reviews).where(due).values(paged_at_ms=at_ms))
        return marked.rowcount > 0

    async def add_decision(self, review: Review, decision: Decision, *, by: str, reason: str, at_ms: int) -> None:
        """Store a person's decision. The reason is encrypted with a separate key."""
        owner = decision_owner(review.case_id, at_ms)
        key = await self._keys.make(owner)
        values = {
            "case_id": review.case_id,
            "decision": decision.value,
            "decided_by": by,
            "evidence": review.evidence.digest,
            "sealed_reason": self._vault.seal(owner.text, reason.encode(), key),
            "at_ms": at_ms,
        }
        await self._connection.execute(sa.insert(review_decisions).values(values))

    # ── match events ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def add_events(self, events: Iterable[MatchEvent]) -> None:
        """Add events to the stream of matches, in their order."""
        rows = [{**event._asdict(), "event": event.event.value} for event in events]
        await self._write(sa.insert(match_events), rows)

    async def events_after(self, sequence: int, limit: int, *, only_matches: bool) -> list[StoredEvent]:
        """Events with a greater sequence, in order."""
        wanted = match_events.c.sequence > sequence
        if only_matches:
            wanted = sa.and_(wanted, match_events.c.event == Event.MATCHED.value)
        statement = sa.select(match_events).where(wanted).order_by(match_events.c.sequence).limit(limit)
        return [
            StoredEvent(
                row.sequence,
                MatchEvent(
                    event=Event(row.event),
                    case_id=row.case_id,
                    order_id=row.order_id,
                    wearer_id=row.wearer_id,
                    matched_at_ms=row.matched_at_ms,
                    at_ms=row.at_ms,
                ),
            )
            for row in await self._rows(statement)
        ]

    async def newest_event(self) -> int:
        """Sequence of the newest event, even if it was deleted; 0 if there was none."""
        [row] = await self._rows(sa.select(sa.func.max(match_events.c.sequence)))
        return max(row[0] or 0, await self._connection.run_sync(newest_deleted_event))

    async def last_event_before(self, at_ms: int) -> int:
        """Sequence of the last event before a moment; 0 if there is none."""
        last = sa.select(sa.func.max(match_events.c.sequence)).where(match_events.c.at_ms < at_ms)
        (row,) = await self._rows(last)
        return row[0] or 0


def newest_deleted_event(connection: sa.Connection) -> int:
    """Sequence of the newest match event that was deleted; 0 if none was."""
    return int(read_meta(connection, _NEWEST_DELETED) or 0)


def delete_events(connection: sa.Connection, mine: sa.ColumnElement[bool]) -> None:
    """Delete match events, and note the newest, so that it stays a valid position to resume from."""
    newest = connection.execute(sa.select(sa.func.max(match_events.c.sequence)).where(mine)).scalar()
    if newest is not None:
        write_meta(connection, _NEWEST_DELETED, str(max(newest, newest_deleted_event(connection))).encode())
        connection.execute(sa.delete(match_events).where(mine))
