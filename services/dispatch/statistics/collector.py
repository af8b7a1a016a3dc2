"""Background task of a leg that counts new steps into the figures. It is record work: offers and desks come first."""

from __future__ import annotations

import asyncio

from services.common.priority import PriorityGate
from services.common.retrying import retried
from services.common.rpc.errors import Unavailable
from services.dispatch.leg.store import Store
from services.dispatch.statistics import store as figures_store

CHECK_INTERVAL_S = 2.0
"""Interval at which new steps are looked for, seconds."""


class FiguresCollector:
    """Counts the steps of a leg and the other legs' assignments. Several processes of a leg may do so: each page counts once."""

    def __init__(self, store: Store, gate: PriorityGate) -> None:
        self._store, self._gate = store, gate

    async def run(self) -> None:
        """Counts until cancelled. While the database refuses, it retries."""
        while True:
            await retried(self.catch_up, on=Unavailable)
            await asyncio.sleep(CHECK_INTERVAL_S)

    async def catch_up(self) -> None:
        """Counts all that isn't counted yet. Raises Unavailable."""
        while True:
            async with self._gate.record():
                page = await self._store.transaction(figures_store.count_next)
            if not page.is_full:
                return
