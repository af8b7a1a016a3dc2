"""Steps and advice that were published and that their stream has lost since: they are published again, in order, under their ids.

A reader that has seen one before knows it by its number and its id. Looked at are the leg's notes, at the start, after each reconnect
before anything more is published, and every 10 s.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial

from services.common.messaging import flow, published
from services.common.messaging.bus import Bus
from services.common.messaging.published import StreamComparison
from services.dispatch.leg.record import numbered
from services.dispatch.leg.service import LegService
from services.dispatch.leg.subscriptions import Numbered
from services.dispatch.publications.store import PublishedSteps, StoredAs
from services.dispatch.retrying import retried

STREAMS: Mapping[str, Sequence[str]] = {"police": (flow.INCIDENTS.name, flow.ADVICE.name)}
"""Streams that a leg publishes its steps on, where it isn't INCIDENTS alone."""


class StepPublications:
    """What one leg has published on one log."""

    def __init__(self, bus: Bus, leg: LegService, log_id: str) -> None:
        self._bus, self._leg, self._log_id = bus, leg, log_id
        self._compared: list[tuple[PublishedSteps, StreamComparison]] = []
        for stream in STREAMS.get(leg.name, (flow.INCIDENTS.name,)):
            notes = PublishedSteps(leg.store, leg.name, stream, log_id)
            self._compared.append((notes, StreamComparison(stream, notes, published.by_sequence(bus, stream))))
        self._reconnects = -1
        """After which connection everything was compared last; -1: never."""
        self._one_at_a_time = asyncio.Lock()

    async def run(self) -> None:
        """Compares for ever."""
        for stream in STREAMS.get(self._leg.name, (flow.INCIDENTS.name,)):
            first = (await self._bus.bounds_of(stream)).first
            notes = PublishedSteps(self._leg.store, self._leg.name, stream, self._log_id)
            await retried(partial(notes.forget_before, first))
        loop = asyncio.get_running_loop()
        again_at_s = loop.time()
        while True:
            await self.settle()
            if loop.time() >= again_at_s:
                await self._compare_all()  # while new steps go out: that another server leads now is rare
                again_at_s = loop.time() + published.CHECK_INTERVAL_S
            await asyncio.sleep(published.NOTICE_INTERVAL_S)

    async def settle(self) -> None:
        """Returns once everything is compared since the connection was made; what is lost is on its way again."""
        while self._reconnects != self._bus.reconnects:
            reconnects = self._bus.reconnects
            await self._compare_all()
            self._reconnects = reconnects

    async def _compare_all(self) -> None:
        async with self._one_at_a_time:
            for notes, comparison in self._compared:
                await retried(partial(self._compare, notes, comparison))

    async def mark(
        self, steps: Sequence[Numbered], latency_ms: Mapping[str, float], stored: Mapping[int, StoredAs]
    ) -> None:
        """Notes what was published."""
        await self._leg.record.mark_published(steps, latency_ms, stored, self._log_id)

    async def _compare(self, notes: PublishedSteps, comparison: StreamComparison) -> None:
        lost = await comparison.lost()
        if lost:
            await notes.unpublish(lost)
            # Those that another process of this leg unpublished, too: they are known by their ids.
            self._leg.record.outbox.add(numbered(await self._leg.store.unpublished()), again=True)
