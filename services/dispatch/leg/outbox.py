"""The way of committed steps onto INCIDENTS: each is published until stored, those of one incident in their order.

That a step was published is noted afterwards, many at a time and beside the next ones: a step whose note was lost is
published again under its id, and the stream takes it for what it is.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TypeAlias

from services.common import clock
from services.common.messaging import flow
from services.common.messaging.bus import Bus, PubAck
from services.common.observability import trace_ids
from services.dispatch import metrics
from services.dispatch.leg import translate
from services.dispatch.leg.subscriptions import Numbered
from services.dispatch.publications.store import StoredAs
from tandem.common.v1 import exercise_pb2
from tandem.dispatch.v1 import dispatch_pb2

WAVE = 256
"""Steps on their way at once."""
NOTE_INTERVAL_S = 0.25
"""How long published steps wait for others, to be noted in one transaction."""

Mark: TypeAlias = Callable[[Sequence[Numbered], Mapping[str, float], Mapping[int, StoredAs]], Awaitable[None]]
"""Notes what was published, by assignment how long its offer took, milliseconds, and by step as which entry it was stored."""
Settle: TypeAlias = Callable[[], Awaitable[None]]
"""Returns once it is known that the streams still hold what was published."""


class StepOutbox:
    """Committed steps that INCIDENTS may not have yet. The store has them too: a restart begins with those."""

    def __init__(self, unpublished: Iterable[Numbered]) -> None:
        self._waiting = deque(unpublished)
        self._held: dict[int, float] = {}
        """When each step came that is waiting, on its way or not noted yet, by the monotonic clock."""
        self._hold(self._waiting)
        self._wake = asyncio.Event()
        self._published: list[Numbered] = []
        self._latency_ms: dict[str, float] = {}
        self._stored: dict[int, StoredAs] = {}
        self._again: set[int] = set()
        """Steps that were published before: how long their offers took is known."""
        self._noteworthy = asyncio.Event()

    def add(self, steps: Iterable[Numbered], again: bool = False) -> None:
        """Steps that were committed just now, or (`again`) that a stream has lost."""
        steps = tuple(step for step in steps if step.sequence not in self._held)
        if again:
            self._again.update(step.sequence for step in steps)
        self._hold(steps)
        self._waiting.extend(steps)
        self._wake.set()

    def age_s(self) -> float:
        """How long the oldest step has been here, seconds."""
        return time.monotonic() - next(iter(self._held.values()), time.monotonic())

    def holds(self, sequence: int) -> bool:
        """Whether a step is waiting here, on its way or about to be noted."""
        return sequence in self._held

    def _hold(self, steps: Iterable[Numbered]) -> None:
        now_s = time.monotonic()
        self._held.update((step.sequence, now_s) for step in steps)

    async def run(self, bus: Bus, leg: str, settle: Settle) -> None:
        """Publishes what is committed, for ever; `settle` comes before it."""
        while True:
            while not self._waiting:
                self._wake.clear()
                await self._wake.wait()
            await settle()
            wave = [self._waiting.popleft() for _ in range(min(WAVE, len(self._waiting)))]
            by_incident: dict[str, list[Numbered]] = {}
            for one in wave:
                by_incident.setdefault(one.step.assignment.incident_id, []).append(one)
            await asyncio.gather(*(self._publish(bus, leg, id_, steps) for id_, steps in by_incident.items()))

    async def note(self, mark: Mark) -> None:
        """Notes what was published, for ever."""
        while True:
            await self._noteworthy.wait()
            await asyncio.sleep(NOTE_INTERVAL_S)
            steps, latency_ms, stored = self._published, self._latency_ms, self._stored
            self._published, self._latency_ms, self._stored = [], {}, {}
            self._noteworthy.clear()
            await mark(steps, latency_ms, stored)
            for step in steps:
                self._held.pop(step.sequence, None)
                self._again.discard(step.sequence)

    async def _publish(self, bus: Bus, leg: str, incident_id: str, steps: Iterable[Numbered]) -> None:
        subject = flow.incident_subject(leg, incident_id)
        for step in steps:
            assignment = step.step.assignment
            if step.step.kept:
                advice = translate.advice(step.step)
                if advice is not None:
                    ack = await bus.publish_until_stored(
                        flow.advice_subject(incident_id), advice, msg_id=step.step.step_id
                    )
                    self._note(step, ack)
                self._published.append(step)
                self._noteworthy.set()
                continue
            context = trace_ids.traceparent(incident_id, "step", assignment.assignment_id, step.step.number)
            ack = await bus.publish_until_stored(
                subject,
                translate.outward(step.step),
                msg_id=step.step.step_id,
                headers={trace_ids.TRACEPARENT: context},
            )
            self._note(step, ack)
            is_first = assignment.state == dispatch_pb2.OFFERED and step.step.number == assignment.offer_number
            offers = is_first and step.sequence not in self._again
            if offers and assignment.HasField("cause"):
                latency_ms = (clock.wall_us() - assignment.cause.received_wall_us) / 1000
                self._latency_ms[assignment.assignment_id] = latency_ms
                # A canary leaves no trace that an exemplar could lead to.
                is_traced = assignment.exercise != exercise_pb2.CANARY
                exemplar = {"trace_id": trace_ids.trace_id_of(incident_id)} if is_traced else None
                metrics.OFFER_MS.labels(leg).observe(latency_ms, exemplar)
            self._published.append(step)
            self._noteworthy.set()

    def _note(self, step: Numbered, ack: PubAck | None) -> None:
        if ack is not None:
            self._stored[step.sequence] = StoredAs(ack.stream, ack.seq)
