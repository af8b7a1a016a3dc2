"""Match reviews: decisions on uncertain matches, the stream of match events, and pages for late decisions."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from functools import partial

from services.common.clock import MeshClock
from services.common.observability.telemetry import logger
from services.common.rpc.errors import FailedPrecondition, InvalidField, NotFound, Unavailable
from services.registry.cases.domain import MatchPair, compare, decide
from services.registry.cases.service import CaseService
from services.registry.metrics import ReviewGauges
from services.registry.records.kinds import ORDERS, WEARERS
from services.registry.reviews import domain as review
from services.registry.reviews.domain import (
    Decision,
    Event,
    MatchEvent,
    Review,
    ReviewQueue,
    ReviewState,
    SeenReview,
)
from services.registry.reviews.store import StoredEvent
from services.registry.reviews.store import queue as read_queue
from services.registry.transactions import Transactions
from services.registry.working_set.working_set import WorkingSet

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
            return await work.reviews.in_states(states, after_case_id, REVIEWS_BATCH)

    async def queue(self) -> ReviewQueue:
        """The reviews that wait for a person, with those that are alarmed."""
        async with self._transactions.reading() as work:
            counted = await work.reviews.queue()
            alarms = await work.reviews.alarms(review.ALARMS_MAX) if counted.alarmed else []
        return counted._replace(alarms=tuple(alarms))

    async def decide(self, case_id: str, decision: Decision, reason: str, *, seen: SeenReview, by: str) -> Review:
        """Apply a person's decision on a review. The same confirmation or rejection of the same person, sent again, changes nothing.

        Raises NotFound, FailedPrecondition (the evidence or the state has changed since the person saw it).
        """

        def apply(working: WorkingSet) -> Review | None:
            pair, before = pair_of(working, case_id)
            if review.is_repeated(before, decision, seen=seen, by=by):
                return None
            effects = self._cases.begin(working, [pair])
            level, _ = compare(pair, effects.terms)
            now_ms = effects.terms.now_ms
            after = review.decided(before, decision, level, seen=seen, by=by, now_ms=now_ms)
            effects.reviews[case_id] = after
            effects.add_event(pair, _EVENTS[decision])
            effects.set_case(pair, after.enforced)
            effects.log(logging.INFO, "review_decided", case_id=case_id, decision=decision.value, by=by)
            self._cases.apply(working, effects)
            return after

        async with self._transactions.changing() as work:
            decided = await work.change(apply)
            if decided is None:
                return await work.reviews.read(case_id)
            await work.reviews.add_decision(decided, decision, by=by, reason=reason, at_ms=decided.since_ms)
        return decided

    async def events_after(self, sequence: int, limit: int, *, only_matches: bool) -> list[StoredEvent]:
        """Match events with a greater sequence, in order."""
        # A snapshot: any number of watchers read after each commit, and no put may wait for them.
        async with self._transactions.reading() as work:
            return await work.reviews.events_after(sequence, limit, only_matches=only_matches)

    async def resume(self, sequence: int, limit: int, *, only_matches: bool) -> list[StoredEvent]:
        """Match events after a resume token.

        Raises InvalidField if the token is beyond the newest event, FailedPrecondition if events after it are older than 7 days.
        """
        async with self._transactions.reading() as work:
            newest = await work.reviews.newest_event()
            if sequence > newest:
                # After a restore from a backup the registry counts on from an earlier event. The watcher would miss the next ones.
                raise InvalidField("after_sequence", f"is beyond the newest event, {newest}; start again with 0")
            horizon = await work.reviews.last_event_before(self._clock.now_ms() - review.TOKENS_KEPT_MS)
            if 0 < sequence < horizon:
                raise FailedPrecondition("after_sequence: expired, tokens are kept for 7 days; start again with 0")
            return await work.reviews.events_after(sequence, limit, only_matches=only_matches)

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
            case_ids = [alarmed.case_id for alarmed in await work.reviews.alarms(review.ALARMS_MAX)]
        for start in range(0, len(case_ids), PAGED_BATCH):
            await self._transactions.change(partial(self._close, case_ids=case_ids[start : start + PAGED_BATCH]))

    def _close(self, working: WorkingSet, case_ids: Sequence[str]) -> None:
        """Close those of these open reviews that the records don't call for any more."""
        pairs = [pair for case_id in case_ids if (pair := _find_pair(working, case_id)) is not None]
        effects = self._cases.begin(working, pairs)
        for pair in pairs:
            compared = decide(pair, effects.terms)
            if compared.closes_review:
                effects.settle(compared)
        self._cases.apply(working, effects)

    async def page(self) -> None:
        """Page both agencies once for each review that is still open after ANSWER_WITHIN_MS."""
        now_ms = self._clock.now_ms()
        async with self._transactions.open() as work:
            late = await work.reviews.unanswered(now_ms - review.ANSWER_WITHIN_MS, PAGED_BATCH)
        if not late:
            return
        await self._transactions.change(partial(self._close, case_ids=[late_review.case_id for late_review in late]))
        async with self._transactions.changing() as work:
            paged = [late_review for late_review in late if await work.reviews.mark_paged(late_review, now_ms)]
            cases = await work.cases.some([paged_review.case_id for paged_review in paged])
            await work.reviews.add_events(
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
