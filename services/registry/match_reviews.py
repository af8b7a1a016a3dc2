"""What people and time do: decisions about uncertain matches, pages where nobody decides, proof that nothing is missing."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from prometheus_client import Gauge

from services.common.clock import MeshClock
from services.common.observability.telemetry import logger
from services.common.rpc.errors import FailedPrecondition, NotFound, Unavailable
from services.registry import reconcile, review, tables
from services.registry.domain import Order, Wearer
from services.registry.handlers import Registry
from services.registry.reconcile import KINDS_OF, Agency, Difference, Listed
from services.registry.review import Decision, Event, Review, ReviewState
from services.registry.store_review import ReconciliationStatus, StoredEvent

CHECK_INTERVAL_S = 1.0
"""Wall time."""
REVIEWS_BATCH = 100
PAGED_BATCH = 100

_UNPROVEN_S = Gauge(
    "tandem_registry_unproven_seconds",
    "Mesh time since an agency's full list was last the same as what is stored, or since the registry first awaited it",
    ["agency"],
)
_TOLD = {Decision.CONFIRM: Event.CONFIRMED, Decision.REJECT: Event.REJECTED, Decision.UNDO: Event.UNDONE}


@dataclass(frozen=True, slots=True)
class Compared:
    """What came of the comparison of an agency's list."""

    differences: Sequence[Difference]
    listed_root: bytes
    stored_root: bytes
    listed: int
    stored: int
    compared_at_ms: int


class MatchReviews:
    """Reviews and reconciliation. Each method is one transaction."""

    def __init__(self, registry: Registry, clock: MeshClock) -> None:
        self._registry = registry
        self._clock = clock

    # ── reviews ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def list_reviews(self, states: Sequence[ReviewState], after_case_id: str) -> list[Review]:
        """Reviews in some states, by the id of their case."""
        async with self._registry.transaction() as records:
            return await records.reviews.reviews_in(states, after_case_id, REVIEWS_BATCH)

    async def decide(self, case_id: str, decision: Decision, reason: str, seen: bytes, by: str) -> Review:
        """Does what a person decides. Raises NotFound, FailedPrecondition where the evidence is another by now."""
        now_ms = self._clock.now_ms()
        cases = self._registry.cases
        async with self._registry.changing() as records:
            before = await records.reviews.review(case_id)
            if before is None:
                raise NotFound("case_id: no such review")
            order = await records.find(tables.orders, Order, before.order_id)
            wearer = await records.find(tables.wearers, Wearer, before.wearer_id)
            level, _ = cases.look(records, order, wearer, before)
            after = review.decided(before, decision, level, seen, by, now_ms)
            await records.reviews.put_review(after)
            await records.reviews.add_decision(after, decision, by, reason, now_ms)
            case = await records.case(case_id)
            await cases.tell(records, after, _TOLD[decision], case)
            await cases.apply(records, order, wearer, after.enforced, case)
        logger().info("review_decided", case_id=case_id, decision=decision.value, by=by)
        return after

    async def events_after(self, sequence: int, only_matches: bool, limit: int) -> list[StoredEvent]:
        """Events from after a sequence on."""
        async with self._registry.transaction() as records:
            return await records.reviews.events_after(sequence, only_matches, limit)

    async def resume(self, sequence: int, only_matches: bool, limit: int) -> list[StoredEvent]:
        """Events from after a resume token on. Raises FailedPrecondition where what follows it is older than is kept."""
        async with self._registry.transaction() as records:
            horizon = await records.reviews.last_event_before(self._clock.now_ms() - review.TOKENS_KEPT_MS)
            if 0 < sequence < horizon:
                raise FailedPrecondition("after_sequence: expired, tokens are kept for 7 days; begin again from 0")
            return await records.reviews.events_after(sequence, only_matches, limit)

    # ── reconciliation ───────────────────────────────────────────────────────────────────────────────────────────────

    async def compare(self, agency: Agency, listed: Sequence[Listed]) -> Compared:
        """Compares an agency's full list with what is stored, and keeps the outcome."""
        now_ms = self._clock.now_ms()
        async with self._registry.reading() as records:
            stored = await records.reviews.listed(KINDS_OF[agency])
        # Outside of a transaction: sorting and hashing long lists takes a while, so it isn't done on the loop either.
        differences, roots = await asyncio.to_thread(_compare, listed, stored)
        async with self._registry.changing() as records:
            await records.reviews.standing(agency, now_ms)
            values: dict[str, object] = {"compared_at_ms": now_ms, "differences": len(differences)}
            if not differences:
                values |= {"proven_at_ms": now_ms, "root": roots[1], "alarmed_at_ms": None}
            await records.reviews.put_standing(agency, **values)
        logger().info("reconciled", agency=agency.value, records=len(stored), **reconcile.summary_counts(differences))
        return Compared(differences, *roots, len(listed), len(stored), now_ms)

    async def standings(self) -> list[tuple[ReconciliationStatus, bool]]:
        """How each agency stands, and whether proof is overdue."""
        now_ms = self._clock.now_ms()
        async with self._registry.transaction() as records:
            found = [await records.reviews.standing(agency, now_ms) for agency in Agency]
        return [(one, reconcile.overdue(one.since_ms, one.proven_at_ms, now_ms)) for one in found]

    # ── what goes on by itself ───────────────────────────────────────────────────────────────────────────────────────

    async def run(self) -> None:
        """Looks for what nobody has done in time, for ever."""
        while True:
            try:
                await self.alarm()
                await self.page()
            except Unavailable:
                pass  # the database has said in the log what is wrong with it; what is due stays due
            await asyncio.sleep(CHECK_INTERVAL_S)

    async def alarm(self) -> None:
        """Alarms once for each time that an agency goes without proof for too long."""
        now_ms = self._clock.now_ms()
        for standing, overdue in await self.standings():
            proven_ms = standing.since_ms if standing.proven_at_ms is None else standing.proven_at_ms
            _UNPROVEN_S.labels(standing.agency.value).set((now_ms - proven_ms) / 1000)
            if overdue and standing.alarmed_at_ms is None:
                async with self._registry.transaction() as records:
                    first = await records.reviews.mark_alarmed(standing.agency, now_ms)
                if first:
                    logger().error(
                        "reconciliation_overdue", agency=standing.agency.value, differences=standing.differences
                    )

    async def page(self) -> None:
        """Pages both agencies, once for each review that nobody has answered in time."""
        now_ms = self._clock.now_ms()
        async with self._registry.transaction() as records:
            late = await records.reviews.unanswered(now_ms - review.ANSWER_WITHIN_MS, PAGED_BATCH)
        if not late:
            return
        async with self._registry.changing() as records:
            for one in late:
                if await records.reviews.mark_paged(one, now_ms):
                    case = await records.case(one.case_id)
                    await self._registry.cases.tell(records, one, Event.REVIEW_UNANSWERED, case)
                    records.afterwards.append(partial(logger().error, "review_unanswered", case_id=one.case_id))


def _compare(listed: Sequence[Listed], stored: Sequence[Listed]) -> tuple[list[Difference], tuple[bytes, bytes]]:
    return reconcile.compare(listed, stored), (reconcile.root(listed), reconcile.root(stored))
