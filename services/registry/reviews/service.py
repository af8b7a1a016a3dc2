"""Match reviews: decisions on uncertain matches, the stream of match events, and pages for late decisions."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from services.common.clock import MeshClock
from services.common.errors import FailedPrecondition, InvalidField, NotFound, Unavailable
from services.common.observability.telemetry import logger
from services.common.storage.statements import Prepared
from services.registry.cases.service import CaseRepository, CaseService
from services.registry.domain.cases import MatchPair, compare_pair, decide_pair
from services.registry.domain.reviews import (
    ALARMS_MAX,
    ANSWER_WITHIN_MS,
    TOKENS_KEPT_MS,
    Decision,
    Event,
    MatchEvent,
    Review,
    ReviewQueue,
    ReviewState,
    SeenReview,
    decided_review,
    is_repeated_decision,
)
from services.registry.keys import KeyOwner, Vault
from services.registry.metrics import ReviewGauges
from services.registry.records.kinds import ORDERS, WEARERS
from services.registry.tables import match_events, review_decisions, reviews
from services.registry.transactions import Transactions
from services.registry.unit_of_work import KeyRepository, Repository, read_meta, write_meta
from services.registry.working_set.rows import parse_review
from services.registry.working_set.working_set import WorkingSet

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


def read_queue(connection: sa.Connection) -> ReviewQueue:
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

    def __init__(self, connection: AsyncConnection, vault: Vault) -> None:
        super().__init__(connection)
        self._vault = vault
        self._keys = KeyRepository(connection, vault)

    # ── reviews ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _reviews(
        self,
        condition: sa.ColumnElement[bool],
        limit: int | None = None,
        *,
        order_by: Sequence[sa.Column[Any]] = (reviews.c.case_id,),
    ) -> list[Review]:
        statement = sa.select(reviews).where(condition).order_by(*order_by).limit(limit)
        return [parse_review(row) for row in await self._rows(statement)]

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
        return await self._connection.run_sync(read_queue)

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
        key = await self._keys.create_key(owner)
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


CHECK_INTERVAL_S = 1.0
"""How often overdue reviews are checked, seconds of wall time."""
CLOSE_INTERVAL_S = 60.0
"""How often reviews with an alarm are compared again, seconds of wall time."""
REVIEWS_BATCH = 100
PAGED_BATCH = 100

_EVENTS = {Decision.CONFIRM: Event.CONFIRMED, Decision.REJECT: Event.REJECTED, Decision.UNDO: Event.UNDONE}


class ReviewService:
    """Commands and background checks for reviews."""

    def __init__(
        self, transactions: Transactions, cases: CaseService, clock: MeshClock, *, gauges: ReviewGauges
    ) -> None:
        self._transactions = transactions
        self._cases = cases
        self._clock = clock
        self._gauges = gauges

    async def list_reviews(self, states: Sequence[ReviewState], after_case_id: str) -> list[Review]:
        """Reviews in some states, sorted by case id, after the case id `after_case_id`."""
        async with self._transactions.reading() as work:
            return await ReviewRepository(work.connection, work.vault).in_states(states, after_case_id, REVIEWS_BATCH)

    async def queue(self) -> ReviewQueue:
        """The reviews that wait for a person, with those that are alarmed."""
        async with self._transactions.reading() as work:
            reviews = ReviewRepository(work.connection, work.vault)
            counted = await reviews.queue()
            alarms = await reviews.alarms(ALARMS_MAX) if counted.alarmed else []
        return counted._replace(alarms=tuple(alarms))

    async def decide(self, case_id: str, decision: Decision, reason: str, *, seen: SeenReview, by: str) -> Review:
        """Apply a person's decision on a review. The same confirmation or rejection of the same person, sent again, changes nothing.

        Raises NotFound, FailedPrecondition (the evidence or the state has changed since the person saw it).
        """

        def apply(working: WorkingSet) -> Review | None:
            pair, before = pair_of(working, case_id)
            if is_repeated_decision(before, decision, seen=seen, by=by):
                return None
            effects = self._cases.begin(working, [pair])
            level, _ = compare_pair(pair, effects.terms)
            now_ms = effects.terms.now_ms
            after = decided_review(before, decision, level, seen=seen, by=by, now_ms=now_ms)
            effects.reviews[case_id] = after
            effects.add_event(pair, _EVENTS[decision])
            effects.set_case(pair, after.enforced)
            effects.log(logging.INFO, "review_decided", case_id=case_id, decision=decision.value, by=by)
            self._cases.apply(working, effects)
            return after

        async with self._transactions.changing() as work:
            reviews = ReviewRepository(work.connection, work.vault)
            decided = await self._transactions.change_within(work, apply)
            if decided is None:
                return await reviews.read(case_id)
            await reviews.add_decision(decided, decision, by=by, reason=reason, at_ms=decided.since_ms)
        return decided

    async def events_after(self, sequence: int, limit: int, *, only_matches: bool) -> list[StoredEvent]:
        """Match events with a greater sequence, in order."""
        # A snapshot: any number of watchers read after each commit, and no put may wait for them.
        async with self._transactions.reading() as work:
            return await ReviewRepository(work.connection, work.vault).events_after(
                sequence, limit, only_matches=only_matches
            )

    async def resume(self, sequence: int, limit: int, *, only_matches: bool) -> list[StoredEvent]:
        """Match events after a resume token.

        Raises InvalidField if the token is beyond the newest event, FailedPrecondition if events after it are older than 7 days.
        """
        async with self._transactions.reading() as work:
            reviews = ReviewRepository(work.connection, work.vault)
            newest = await reviews.newest_event()
            if sequence > newest:
                # After a restore from a backup the registry counts on from an earlier event. The watcher would miss the next ones.
                raise InvalidField("after_sequence", f"is beyond the newest event, {newest}; start again with 0")
            horizon = await reviews.last_event_before(self._clock.now_ms() - TOKENS_KEPT_MS)
            if 0 < sequence < horizon:
                raise FailedPrecondition("after_sequence: expired, tokens are kept for 7 days; start again with 0")
            return await reviews.events_after(sequence, limit, only_matches=only_matches)

    # ── background work ──────────────────────────────────────────────────────────────────────────────────────────────

    async def run(self) -> None:
        """Check for overdue reviews until cancelled."""
        close_at_s = 0.0
        while True:
            now_s = asyncio.get_running_loop().time()
            with contextlib.suppress(Unavailable):  # logged by the database layer; the next check finds the same work
                counted = await self._transactions.database.visit(read_queue)
                if counted.open > counted.alarmed:
                    await self.page()
                if now_s >= close_at_s:
                    await self.close_lapsed()
                    close_at_s = now_s + CLOSE_INTERVAL_S
                self._gauges.set(counted, self._clock.now_ms())
            await asyncio.sleep(CHECK_INTERVAL_S)

    async def close_lapsed(self) -> None:
        """Compare the pairs of reviews with an alarm again, because an order that has ended meanwhile needs no review."""
        async with self._transactions.open() as work:
            case_ids = [
                alarmed.case_id for alarmed in await ReviewRepository(work.connection, work.vault).alarms(ALARMS_MAX)
            ]
        for start in range(0, len(case_ids), PAGED_BATCH):
            await self._transactions.change(partial(self._close, case_ids=case_ids[start : start + PAGED_BATCH]))

    def _close(self, working: WorkingSet, case_ids: Sequence[str]) -> None:
        """Close those of these open reviews that the records don't call for any more."""
        pairs = [pair for case_id in case_ids if (pair := _find_pair(working, case_id)) is not None]
        effects = self._cases.begin(working, pairs)
        for pair in pairs:
            compared = decide_pair(pair, effects.terms)
            if compared.closes_review:
                effects.settle(compared)
        self._cases.apply(working, effects)

    async def page(self) -> None:
        """Page both agencies once for each review that is still open after ANSWER_WITHIN_MS."""
        now_ms = self._clock.now_ms()
        async with self._transactions.open() as work:
            late = await ReviewRepository(work.connection, work.vault).unanswered(
                now_ms - ANSWER_WITHIN_MS, PAGED_BATCH
            )
        if not late:
            return
        await self._transactions.change(partial(self._close, case_ids=[late_review.case_id for late_review in late]))
        async with self._transactions.changing() as work:
            reviews = ReviewRepository(work.connection, work.vault)
            paged = [late_review for late_review in late if await reviews.mark_paged(late_review, now_ms)]
            cases = await CaseRepository(work.connection).some([paged_review.case_id for paged_review in paged])
            await reviews.add_events(
                MatchEvent(
                    event=Event.REVIEW_UNANSWERED,
                    case_id=paged_review.case_id,
                    order_id=paged_review.order_id,
                    wearer_id=paged_review.wearer_id,
                    matched_at_ms=case.matched_at_ms if (case := cases.get(paged_review.case_id)) else now_ms,
                    at_ms=now_ms,
                )
                for paged_review in paged
            )
            work.after_commit += [
                partial(logger().error, "review_unanswered", case_id=paged_review.case_id) for paged_review in paged
            ]


def pair_of(working: WorkingSet, case_id: str) -> tuple[MatchPair, Review]:
    """The pair of a review, and the review. Raises NotFound."""
    pair = _find_pair(working, case_id)
    if pair is None or pair.review is None:
        raise NotFound("case_id: no such review")
    return pair, pair.review


def _find_pair(working: WorkingSet, case_id: str) -> MatchPair | None:
    """The pair of a review; None if there is no such review, or if a record was destroyed."""
    stored = working.reviews.some((case_id,)).get(case_id)
    if stored is None:
        return None
    order = working.records.opened(ORDERS, (stored.order_id,)).get(stored.order_id)
    wearer = working.records.opened(WEARERS, (stored.wearer_id,)).get(stored.wearer_id)
    if order is None or wearer is None:
        return None
    return MatchPair(order=order, wearer=wearer, review=stored, case=working.cases.find(case_id))
