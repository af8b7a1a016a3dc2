"""Outbox of committed steps: publishes each step on INCIDENTS until it is stored, in order within an incident.

Publications are recorded afterwards, many at a time and concurrently with the next ones. A step whose record was lost is published
once more under its id, which the stream recognises as a duplicate.
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

PUBLISH_BATCH = 256
"""Steps that are published concurrently."""
NOTE_INTERVAL_S = 0.25
"""How long published steps are collected into one transaction that records them, seconds."""

Mark: TypeAlias = Callable[[Sequence[Numbered], Mapping[str, float], Mapping[int, StoredAs]], Awaitable[None]]
"""Records published steps, the latency of offers by assignment in milliseconds, and the stream entries by step."""
Settle: TypeAlias = Callable[[], Awaitable[None]]
"""Returns once the streams are known to hold all published steps."""


class StepOutbox:
    """Committed steps that INCIDENTS may not have yet. They are in the store too, from which a restart reads them."""

    def __init__(self, unpublished: Iterable[Numbered]) -> None:
        self._waiting = deque(unpublished)
        self._held: dict[int, float] = {}
        """Monotonic time of arrival of each step that is waiting, being published or not recorded yet."""
        self._hold(self._waiting)
        self._wake = asyncio.Event()
        self._published: list[Numbered] = []
        self._latency_ms: dict[str, float] = {}
        self._stored: dict[int, StoredAs] = {}
        self._republished: set[int] = set()
        """Steps that were published before, so that the latency of their offers is known."""
        self._noteworthy = asyncio.Event()

    def add(self, steps: Iterable[Numbered], republished: bool = False) -> None:
        """Adds steps that were committed just now, or with `republished` steps that a stream has lost."""
        steps = tuple(step for step in steps if step.sequence not in self._held)
        if republished:
            self._republished.update(step.sequence for step in steps)
        self._hold(steps)
        self._waiting.extend(steps)
        self._wake.set()

    def age_s(self) -> float:
        """Age of the oldest step in the outbox, seconds."""
        return time.monotonic() - next(iter(self._held.values()), time.monotonic())

    def holds(self, sequence: int) -> bool:
        """Whether a step is waiting, being published or not recorded yet."""
        return sequence in self._held

    def _hold(self, steps: Iterable[Numbered]) -> None:
        now_s = time.monotonic()
        self._held.update((step.sequence, now_s) for step in steps)

    async def run(self, bus: Bus, leg: str, settle: Settle) -> None:
        """Publishes committed steps until cancelled, each batch after `settle`."""
        while True:
            while not self._waiting:
                self._wake.clear()
                await self._wake.wait()
            await settle()
            batch = [self._waiting.popleft() for _ in range(min(PUBLISH_BATCH, len(self._waiting)))]
            by_incident: dict[str, list[Numbered]] = {}
            for step in batch:
                by_incident.setdefault(step.step.assignment.incident_id, []).append(step)
            await asyncio.gather(*(self._publish(bus, leg, id_, steps=steps) for id_, steps in by_incident.items()))

    async def note(self, mark: Mark) -> None:
        """Records published steps with `mark` until cancelled."""
        while True:
            await self._noteworthy.wait()
            await asyncio.sleep(NOTE_INTERVAL_S)
            steps, latency_ms, stored = self._published, self._latency_ms, self._stored
            self._published, self._latency_ms, self._stored = [], {}, {}
            self._noteworthy.clear()
            await mark(steps, latency_ms, stored)
            for step in steps:
                self._held.pop(step.sequence, None)
                self._republished.discard(step.sequence)

    async def _publish(self, bus: Bus, leg: str, incident_id: str, *, steps: Iterable[Numbered]) -> None:
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
            offers = is_first and step.sequence not in self._republished
            if offers and assignment.HasField("cause"):
                latency_ms = (clock.wall_us() - assignment.cause.received_wall_us) / 1000
                self._latency_ms[assignment.assignment_id] = latency_ms
                # A canary has no trace, so its exemplar would lead nowhere.
                is_traced = assignment.exercise != exercise_pb2.CANARY
                exemplar = {"trace_id": trace_ids.trace_id_of(incident_id)} if is_traced else None
                metrics.OFFER_MS.labels(leg).observe(latency_ms, exemplar)
            self._published.append(step)
            self._noteworthy.set()

    def _note(self, step: Numbered, ack: PubAck | None) -> None:
        if ack is not None:
            self._stored[step.sequence] = StoredAs(ack.stream, ack.seq)
