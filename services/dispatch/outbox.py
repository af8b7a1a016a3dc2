"""The way of committed steps onto INCIDENTS: each is published until stored, those of one incident in their order."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TypeAlias

from services.common import clock, flow
from services.common.bus import Bus
from services.dispatch.hub import Numbered
from tandem.dispatch.v1 import dispatch_pb2

WAVE = 256
"""Steps on their way at once."""

Mark: TypeAlias = Callable[[Sequence[Numbered], Mapping[str, float]], Awaitable[None]]
"""Notes what was published, and by assignment how long its offer took, milliseconds."""


class Outbox:
    """Committed steps that INCIDENTS may not have yet. The store has them too: a restart begins with those."""

    def __init__(self, unpublished: Iterable[Numbered]) -> None:
        self._waiting = deque(unpublished)
        self._wake = asyncio.Event()
        self._wake.set()

    def add(self, steps: Iterable[Numbered]) -> None:
        """Steps that were committed just now."""
        self._waiting.extend(steps)
        self._wake.set()

    async def run(self, bus: Bus, leg: str, mark: Mark) -> None:
        """Publishes what is committed, for ever."""
        while True:
            while not self._waiting:
                self._wake.clear()
                await self._wake.wait()
            wave = [self._waiting[n] for n in range(min(WAVE, len(self._waiting)))]
            by_incident: dict[str, list[Numbered]] = {}
            for one in wave:
                by_incident.setdefault(one.step.assignment.incident_id, []).append(one)
            latencies = await asyncio.gather(
                *(self._publish(bus, flow.incident_subject(leg, id_), steps) for id_, steps in by_incident.items())
            )
            await mark(wave, {id_: ms for some in latencies for id_, ms in some.items()})
            for _ in wave:
                self._waiting.popleft()

    async def _publish(self, bus: Bus, subject: str, steps: Iterable[Numbered]) -> dict[str, float]:
        latency_ms: dict[str, float] = {}
        for one in steps:
            assignment = one.step.assignment
            await bus.publish_until_stored(subject, one.step.SerializeToString(), msg_id=one.step.step_id)
            if assignment.state == dispatch_pb2.OFFERED and assignment.HasField("cause"):
                waited_us = clock.wall_us() - assignment.cause.received_wall_us
                latency_ms[assignment.assignment_id] = waited_us / 1000
        return latency_ms
