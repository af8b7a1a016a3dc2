"""Match reviews and reconciliation: decisions on uncertain matches, pages for late decisions, comparison with agencies' lists."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from prometheus_client import Gauge

from services.common.clock import MeshClock
from services.common.observability.telemetry import logger
from services.common.rpc.errors import FailedPrecondition, NotFound, Unavailable
from services.registry.domain import Order, Wearer
from services.registry.reconciliation import domain as reconcile
from services.registry.reconciliation.domain import KINDS_OF, Agency, Difference, Listed
from services.registry.records import tables
from services.registry.records.service import Registry
from services.registry.reviews import domain as review
from services.registry.reviews.domain import Decision, Event, Review, ReviewState
from services.registry.reviews.store import ReconciliationStatus, StoredEvent

CHECK_INTERVAL_S = 1.0
"""How often overdue reviews and reconciliations are checked, seconds of wall time."""
REVIEWS_BATCH = 100
PAGED_BATCH = 100

_UNPROVEN_S = Gauge(
    "tandem_registry_unproven_seconds",
    "Mesh time since an agency's full list last equalled the stored records, or since the registry first expected a list",
    ["agency"],
)
_EVENTS = {Decision.CONFIRM: Event.CONFIRMED, Decision.REJECT: Event.REJECTED, Decision.UNDO: Event.UNDONE}


@dataclass(frozen=True, slots=True)
class Compared:
    """Result of comparing an agency's list with the stored records."""

    differences: Sequence[Difference]
    listed_root: bytes
    stored_root: bytes
    listed: int
    stored: int
    compared_at_ms: int


class MatchReviews:
    """Commands and background checks for reviews and reconciliation."""

    def __init__(self, registry: Registry, clock: MeshClock) -> None:
        self._registry = registry
        self._clock = clock

    # ── reviews ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def list_reviews(self, states: Sequence[ReviewState], after_case_id: str) -> list[Review]:
        """Reviews in some states, by case id, after the case id `after_case_id`."""
        async with self._registry.transaction() as records:
            return await records.reviews.reviews_in(states, after_case_id, REVIEWS_BATCH)

    async def decide(self, case_id: str, decision: Decision, reason: str, *, seen_digest: bytes, by: str) -> Review:
        """Apply a person's decision on a review. Raises NotFound, FailedPrecondition (the evidence has changed)."""
        now_ms = self._clock.now_ms()
        cases = self._registry.cases
        async with self._registry.changing() as records:
            before = await records.reviews.review(case_id)
            if before is None:
                raise NotFound("case_id: no such review")
            order = await records.find(tables.orders, Order, before.order_id)
            wearer = await records.find(tables.wearers, Wearer, before.wearer_id)
            level, _ = cases.compare(records, order, wearer, before=before)
            after = review.decided(before, decision, level, seen_digest=seen_digest, by=by, now_ms=now_ms)
            await records.reviews.put_review(after)
            await records.reviews.add_decision(after, decision, by, reason=reason, at_ms=now_ms)
            case = await records.case(case_id)
            await cases.add_event(records, after, _EVENTS[decision], case=case)
            await cases.apply(records, order, wearer, holds=after.enforced, before=case)
        logger().info("review_decided", case_id=case_id, decision=decision.value, by=by)
        return after

    async def events_after(self, sequence: int, only_matches: bool, limit: int) -> list[StoredEvent]:
        """Match events with a greater sequence, in order."""
        async with self._registry.transaction() as records:
            return await records.reviews.events_after(sequence, only_matches, limit)

    async def resume(self, sequence: int, only_matches: bool, limit: int) -> list[StoredEvent]:
        """Match events after a resume token. Raises FailedPrecondition if events after it are older than 7 days."""
        async with self._registry.transaction() as records:
            horizon = await records.reviews.last_event_before(self._clock.now_ms() - review.TOKENS_KEPT_MS)
            if 0 < sequence < horizon:
                raise FailedPrecondition("after_sequence: expired, tokens are kept for 7 days; start again with 0")
            return await records.reviews.events_after(sequence, only_matches, limit)

    # ── reconciliation ───────────────────────────────────────────────────────────────────────────────────────────────

    async def compare(self, agency: Agency, listed: Sequence[Listed]) -> Compared:
        """Compare an agency's full list with the stored records, and store the result."""
        now_ms = self._clock.now_ms()
        async with self._registry.reading() as records:
            stored = await records.reviews.listed(KINDS_OF[agency])
        # In a thread and outside a transaction, because sorting and hashing long lists would block other calls.
        differences, roots = await asyncio.to_thread(_compare, listed, stored)
        async with self._registry.changing() as records:
            await records.reviews.reconciliation_status(agency, now_ms)
            values: dict[str, object] = {"compared_at_ms": now_ms, "differences": len(differences)}
            if not differences:
                values |= {"proven_at_ms": now_ms, "root": roots[1], "alarmed_at_ms": None}
            await records.reviews.update_reconciliation(agency, **values)
        logger().info("reconciled", agency=agency.value, records=len(stored), **reconcile.summary_counts(differences))
        return Compared(differences, *roots, len(listed), len(stored), now_ms)

    async def reconciliation_statuses(self) -> list[tuple[ReconciliationStatus, bool]]:
        """Reconciliation status of each agency, and whether its proof is overdue."""
        now_ms = self._clock.now_ms()
        async with self._registry.transaction() as records:
            statuses = [await records.reviews.reconciliation_status(agency, now_ms) for agency in Agency]
        return [(status, reconcile.overdue(status.since_ms, status.proven_at_ms, now_ms)) for status in statuses]

    # ── background work ──────────────────────────────────────────────────────────────────────────────────────────────

    async def run(self) -> None:
        """Check for overdue reconciliations and reviews until cancelled."""
        while True:
            try:
                await self.alarm()
                await self.page()
            except Unavailable:
                pass  # the database layer has logged the reason, and the next check finds the same overdue work
            await asyncio.sleep(CHECK_INTERVAL_S)

    async def alarm(self) -> None:
        """Raise one alarm per period in which an agency's list isn't proven equal in time."""
        now_ms = self._clock.now_ms()
        for status, overdue in await self.reconciliation_statuses():
            proven_ms = status.since_ms if status.proven_at_ms is None else status.proven_at_ms
            _UNPROVEN_S.labels(status.agency.value).set((now_ms - proven_ms) / 1000)
            if overdue and status.alarmed_at_ms is None:
                async with self._registry.transaction() as records:
                    first = await records.reviews.mark_alarmed(status.agency, now_ms)
                if first:
                    logger().error("reconciliation_overdue", agency=status.agency.value, differences=status.differences)

    async def page(self) -> None:
        """Page both agencies once for each review that is still open after ANSWER_WITHIN_MS."""
        now_ms = self._clock.now_ms()
        async with self._registry.transaction() as records:
            late = await records.reviews.unanswered(now_ms - review.ANSWER_WITHIN_MS, PAGED_BATCH)
        if not late:
            return
        async with self._registry.changing() as records:
            for late_review in late:
                if await records.reviews.mark_paged(late_review, now_ms):
                    case_id = late_review.case_id
                    case = await records.case(case_id)
                    await self._registry.cases.add_event(records, late_review, Event.REVIEW_UNANSWERED, case=case)
                    records.after_commit.append(partial(logger().error, "review_unanswered", case_id=case_id))


def _compare(listed: Sequence[Listed], stored: Sequence[Listed]) -> tuple[list[Difference], tuple[bytes, bytes]]:
    return reconcile.compare(listed, stored), (reconcile.root(listed), reconcile.root(stored))
