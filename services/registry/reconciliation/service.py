"""Reconciliation: comparison of the stored records with the agencies' lists, and alarms for missing proof."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

from prometheus_client import Gauge

from services.common.clock import MeshClock
from services.common.observability.telemetry import logger
from services.common.rpc.errors import Unavailable
from services.registry.reconciliation import domain as reconcile
from services.registry.reconciliation.domain import Agency, Difference, Listed
from services.registry.reconciliation.store import ReconciliationStatus
from services.registry.reconciliation.store import statuses as read_statuses
from services.registry.records.kinds import LISTED_BY
from services.registry.transactions import Transactions

CHECK_INTERVAL_S = 1.0
"""How often overdue reconciliations are checked, seconds of wall time."""


@dataclass(frozen=True, slots=True)
class Compared:
    """Result of comparing an agency's list with the stored records."""

    differences: Sequence[Difference]
    listed_root: bytes
    stored_root: bytes
    listed: int
    stored: int
    compared_at_ms: int


class ReconciliationService:
    """Compares lists with the stored records, and raises an alarm if an agency's list isn't proven equal in time."""

    def __init__(self, transactions: Transactions, clock: MeshClock, unproven_s: Gauge) -> None:
        self._transactions = transactions
        self._clock = clock
        self._unproven_s = unproven_s
        self._comparing = asyncio.Lock()

    async def compare(self, agency: Agency, listed: Sequence[Listed]) -> Compared:
        """Compare an agency's full list with the stored records, and store the result."""
        # One comparison at a time, because each holds all stored records of the agency in memory.
        async with self._comparing:
            now_ms = self._clock.now_ms()
            async with self._transactions.reading() as work:
                stored = await work.reconciliation.listed(LISTED_BY[agency])
            # In a thread and outside a transaction, because sorting and hashing long lists would block other calls.
            differences, listed_root, stored_root = await asyncio.to_thread(_compare, listed, stored)
        async with self._transactions.changing() as work:
            await work.reconciliation.begin(now_ms)
            values: dict[str, object] = {"compared_at_ms": now_ms, "differences": len(differences)}
            if not differences:
                values |= {"proven_at_ms": now_ms, "root": stored_root, "alarmed_at_ms": None}
            await work.reconciliation.update(agency, **values)
        logger().info("reconciled", agency=agency.value, records=len(stored), **reconcile.summary_counts(differences))
        return Compared(
            differences=differences,
            listed_root=listed_root,
            stored_root=stored_root,
            listed=len(listed),
            stored=len(stored),
            compared_at_ms=now_ms,
        )

    async def statuses(self) -> list[tuple[ReconciliationStatus, bool]]:
        """Reconciliation status of each agency, and whether its proof is overdue."""
        now_ms = self._clock.now_ms()
        statuses = await self._transactions.database.visit(read_statuses)
        if len(statuses) < len(Agency):
            async with self._transactions.open() as work:
                await work.reconciliation.begin(now_ms)
            statuses = await self._transactions.database.visit(read_statuses)
        return [(status, reconcile.overdue(status.since_ms, status.proven_at_ms, now_ms)) for status in statuses]

    async def run(self) -> None:
        """Check for overdue reconciliations until cancelled."""
        while True:
            with contextlib.suppress(Unavailable):  # logged by the database layer; the next check finds the same work
                await self.alarm()
            await asyncio.sleep(CHECK_INTERVAL_S)

    async def alarm(self) -> None:
        """Raise one alarm per period in which an agency's list isn't proven equal in time."""
        now_ms = self._clock.now_ms()
        for status, overdue in await self.statuses():
            proven_ms = status.since_ms if status.proven_at_ms is None else status.proven_at_ms
            self._unproven_s.labels(status.agency.value).set((now_ms - proven_ms) / 1000)
            if overdue and status.alarmed_at_ms is None:
                async with self._transactions.open() as work:
                    first = await work.reconciliation.mark_alarmed(status.agency, now_ms)
                if first:
                    logger().error("reconciliation_overdue", agency=status.agency.value, differences=status.differences)


def _compare(listed: Sequence[Listed], stored: Sequence[Listed]) -> tuple[list[Difference], bytes, bytes]:
    """The differences, the root of the list and the root of the stored records."""
    return reconcile.compare(listed, stored), reconcile.root(listed), reconcile.root(stored)
