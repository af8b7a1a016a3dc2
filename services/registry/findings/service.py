"""Commands on findings, and the watch that follows them."""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial

import sqlalchemy as sa
from prometheus_client import Gauge

from services.common.clock import MeshClock
from services.common.observability.telemetry import logger
from services.common.rpc.errors import Conflict, NotFound, Unavailable
from services.registry.findings import domain, store
from services.registry.findings.domain import Closing, ReviewFinding
from services.registry.findings.tables import findings
from services.registry.transactions import Transactions

MAX_LISTED = 500
KEPT_MS = 3 * 365 * 86_400_000
"""Retention of a finding since it was entered, milliseconds: as long as that of the traces' facts, which findings are about."""
CHECK_INTERVAL_S = 60.0
"""How often old findings are deleted and overdue ones looked for, seconds of wall time."""


class ReviewFindings:
    """The findings of reviewers."""

    def __init__(self, transactions: Transactions, clock: MeshClock) -> None:
        self._transactions, self._clock = transactions, clock
        self._vault = transactions.vault

    async def put(self, finding: ReviewFinding) -> ReviewFinding:
        """Enter a finding, and return it as stored. A repeated one changes nothing.

        Raises NotFound if no alert of the incident is known, Conflict if the id has other content.
        """

        def apply(connection: sa.Connection) -> ReviewFinding:
            known = store.find(connection, self._vault, finding.finding_id)
            if known is not None:
                if not known.says(finding):
                    raise Conflict("finding_id: this id is stored with different content; findings can't be changed")
                return known
            if not store.is_known(connection, finding.incident_id):
                raise NotFound("incident_id: no alert of this incident is known; check the id")
            store.add(connection, self._vault, finding)
            return finding

        return await self._transactions.database.visit(apply)

    async def close(self, finding_id: str, closing: Closing) -> ReviewFinding:
        """Close a finding. A repeated closing changes nothing. Raises NotFound, FailedPrecondition."""

        def apply(connection: sa.Connection) -> ReviewFinding:
            known = store.find(connection, self._vault, finding_id)
            if known is None:
                raise NotFound("finding_id: no such finding")
            after = domain.closed(known, closing)
            if after is not known:
                store.close(connection, self._vault, finding_id, closing=closing)
            return after

        return await self._transactions.database.visit(apply)

    async def listed(self, incident_id: str = "", *, only_open: bool = False) -> tuple[list[ReviewFinding], bool]:
        """Findings in their order, at most MAX_LISTED, and whether there are more."""
        condition = sa.true() if not incident_id else findings.c.incident_id == incident_id
        if only_open:
            condition = sa.and_(condition, findings.c.closed_ms.is_(None))
        read = partial(store.select, vault=self._vault, condition=condition, limit=MAX_LISTED + 1)
        found = await self._transactions.database.visit(read)
        return found[:MAX_LISTED], len(found) > MAX_LISTED

    async def overdue(self) -> list[ReviewFinding]:
        """The overdue findings, at most MAX_LISTED, the longest overdue first."""
        now_ms = self._clock.now_ms()
        found, _ = await self.listed(only_open=True)
        return [finding for finding in found if finding.is_overdue(now_ms)]

    async def forget_old(self) -> None:
        """Delete the findings that were entered more than KEPT_MS ago."""
        made_ms = self._clock.now_ms() - KEPT_MS
        await self._transactions.database.visit(partial(store.forget_before, made_ms=made_ms))


class FindingWatch:
    """Deletes old findings, counts the overdue ones, and logs each of them once."""

    def __init__(self, service: ReviewFindings, overdue: Gauge) -> None:
        self._service, self._overdue = service, overdue
        self._logged: set[str] = set()

    async def run(self) -> None:
        """Check the findings until cancelled."""
        while True:
            with contextlib.suppress(
                Unavailable
            ):  # logged by the database layer; the next check finds the same findings
                await self.check()
            await asyncio.sleep(CHECK_INTERVAL_S)

    async def check(self) -> None:
        """Delete old findings, and look for overdue ones, once."""
        await self._service.forget_old()
        overdue = {finding.finding_id: finding for finding in await self._service.overdue()}
        self._overdue.set(len(overdue))
        for finding_id in sorted(overdue.keys() - self._logged):
            logger().warning("finding_overdue", finding_id=finding_id, incident_id=overdue[finding_id].incident_id)
        self._logged = set(overdue)
