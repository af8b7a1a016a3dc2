"""The way of committed steps onto INCIDENTS: each is published until stored, those of one incident in their order.

That a step was published is noted afterwards, many at a time and beside the next ones: a step whose note was lost is
published again under its id, and the stream takes it for what it is.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TypeAlias

from services.common import clock, flow, trace_ids
from services.common.bus import Bus
from services.dispatch import translate
from services.dispatch.hub import Numbered
from tandem.dispatch.v1 import dispatch_pb2

WAVE = 256
"""Steps on their way at once."""
NOTE_EVERY_S = 0.02
"""How long published steps wait for others, to be noted in one transaction."""

Mark: TypeAlias = Callable[[Sequence[Numbered], Mapping[str, float]], Awaitable[None]]
"""Notes what was published, and by assignment how long its offer took, milliseconds."""


class Outbox:
    """Committed steps that INCIDENTS may not have yet. The store has them too: a restart begins with those."""

    def __init__(self, unpublished: Iterable[Numbered]) -> None:
        self._waiting = deque(unpublished)
        self._wake = asyncio.Event()
        self._published: list[Numbered] = []
        self._latency_ms: dict[str, float] = {}
        self._noteworthy = asyncio.Event()

    def add(self, steps: Iterable[Numbered]) -> None:
        """Steps that were committed just now."""
        self._waiting.extend(steps)
        self._wake.set()

    async def run(self, bus: Bus, leg: str) -> None:
        """Publishes what is committed, for ever."""
        while True:
            while not self._waiting:
                self._wake.clear()
                await self._wake.wait()
            wave = [self._waiting.popleft() for _ in range(min(WAVE, len(self._waiting)))]
            by_incident: dict[str, list[Numbered]] = {}
            for one in wave:
                by_incident.setdefault(one.step.assignment.incident_id, []).append(one)
            await asyncio.gather(*(self._publish(bus, leg, id_, steps) for id_, steps in by_incident.items()))

    async def note(self, mark: Mark) -> None:
        """Notes what was published, for ever."""
        while True:
            await self._noteworthy.wait()
            await asyncio.sleep(NOTE_EVERY_S)
            steps, latency_ms = self._published, self._latency_ms
            self._published, self._latency_ms = [], {}
            self._noteworthy.clear()
            await mark(steps, latency_ms)

    async def _publish(self, bus: Bus, leg: str, incident_id: str, steps: Iterable[Numbered]) -> None:
        subject = flow.incident_subject(leg, incident_id)
        for one in steps:
            assignment = one.step.assignment
            context = trace_ids.traceparent(incident_id, "step", assignment.assignment_id, one.step.number)
            await bus.publish_until_stored(
                subject,
                translate.outward(one.step),
                msg_id=one.step.step_id,
                headers={trace_ids.TRACEPARENT: context},
            )
            offers = assignment.state == dispatch_pb2.OFFERED and not assignment.HasField("received_at")
            if offers and assignment.HasField("cause"):
                took_us = clock.wall_us() - assignment.cause.received_wall_us
                self._latency_ms[assignment.assignment_id] = took_us / 1000
            self._published.append(one)
            self._noteworthy.set()
