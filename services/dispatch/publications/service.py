"""Republishes steps and advice that a stream has lost, in order and under the same ids.

Readers recognise a repeated step by its number and id, and ignore it. The leg compares its records of publications with the streams at
the start, after each reconnect before anything else is published, and every 10 s.
"""

from __future__ import annotations

import asyncio
from functools import partial

from services.common.messaging import flow, lost_publications
from services.common.messaging.bus import Bus
from services.common.messaging.lost_publications import StreamComparison
from services.common.retrying import retried
from services.dispatch.leg.service import LegService
from services.dispatch.publications.steps import numbered
from services.dispatch.publications.store import Published, PublishedSteps


class StepPublications:
    """Publications of one leg on one log, and their comparison with the streams."""

    def __init__(self, bus: Bus, leg: LegService, log_id: str) -> None:
        self._bus, self._leg, self._log_id = bus, leg, log_id
        self._compared: list[tuple[PublishedSteps, StreamComparison]] = []
        advice = (flow.ADVICE.name,) if leg.name.policy.advises_persons else ()
        for stream in (flow.INCIDENTS.name, *advice):
            records = PublishedSteps(store=leg.store, leg=leg.name, stream=stream, log_id=log_id)
            own = (flow.incident_subject(leg.name, ">"),) if stream == flow.INCIDENTS.name else ()
            comparison = StreamComparison(
                bus, stream, records=records, lost_among=lost_publications.by_sequence(bus, stream, own)
            )
            self._compared.append((records, comparison))
        self._reconnects: int | None = None
        """Number of reconnects at the last full comparison; None before the first."""
        self._lock, self._settling = asyncio.Lock(), asyncio.Lock()

    async def run(self) -> None:
        """Compares the streams until cancelled."""
        for records, _ in self._compared:
            first = (await self._bus.bounds_of(records.stream)).first
            await retried(partial(records.forget_before, first))
        loop = asyncio.get_running_loop()
        next_comparison_s = loop.time()
        while True:
            await self.settle()
            if loop.time() >= next_comparison_s:
                await self._compare_all()  # new steps don't wait, since a change of the stream's leader is rare
                next_comparison_s = loop.time() + lost_publications.CHECK_INTERVAL_S
            await asyncio.sleep(lost_publications.NOTICE_INTERVAL_S)

    async def settle(self) -> None:
        """Returns once the streams were compared after the last reconnect, and lost steps are in the outbox."""
        if self._reconnects == self._bus.reconnects:
            return
        async with self._settling:  # many publications may wait here, and one comparison is enough for all
            while self._reconnects != self._bus.reconnects:
                reconnects = self._bus.reconnects
                await self._compare_all()
                self._reconnects = reconnects

    async def _compare_all(self) -> None:
        async with self._lock:
            for records, comparison in self._compared:
                await retried(partial(self._compare, records, comparison))

    async def mark(self, steps: Published) -> None:
        """Records published steps in the leg's database."""
        await self._leg.record.secondary.mark_published(steps, self._log_id)

    async def _compare(self, records: PublishedSteps, comparison: StreamComparison) -> None:
        lost = await comparison.lost()
        if lost:
            await records.unpublish(lost)
            # This includes steps that another process of this leg unpublished; duplicates are recognised by their ids.
            self._leg.record.outbox.add(numbered(await self._leg.store.unpublished()), republished=True)
