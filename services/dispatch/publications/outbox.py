"""Outbox of committed steps: publishes each step on INCIDENTS until it is stored, in order within an incident.

Publications are recorded afterwards, many at a time, while the next steps are being published. A step whose record was lost is
published once more under the same id. The stream recognises it as a duplicate.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeAlias

from services.common import clock
from services.common.messaging import flow
from services.common.messaging.bus import Bus, PubAck
from services.common.observability import trace_ids
from services.dispatch.domain.leg import Leg
from services.dispatch.leg import translate
from services.dispatch.metrics import DispatchMetrics
from services.dispatch.publications.steps import NumberedStep
from services.dispatch.publications.store import Published, StoredAs
from tandem.common.v1 import exercise_pb2
from tandem.dispatch.v1 import dispatch_pb2

PUBLISH_CONCURRENCY = 256
"""Incidents whose steps are published concurrently."""

Mark: TypeAlias = Callable[[Published], Awaitable[None]]
"""Records published steps."""
Settle: TypeAlias = Callable[[], Awaitable[None]]
"""Returns once the streams are known to hold all published steps."""


class StepOutbox:
    """Committed steps that INCIDENTS may not have yet. After a restart they are read from the store."""

    def __init__(self, leg: Leg, unpublished: Iterable[NumberedStep], metrics: DispatchMetrics) -> None:
        self._leg, self._metrics = leg, metrics
        self._waiting = deque(unpublished)
        self._held: dict[int, float] = {}
        """Arrival time, on the monotonic clock, of each step that is waiting, being published or not recorded yet."""
        self._hold(self._waiting)
        self._wake = asyncio.Event()
        self._publishing: dict[str, deque[NumberedStep]] = {}
        """Steps that follow the one that is being published, by incident."""
        self._published = Published()
        """Published steps that aren't recorded yet."""
        self._republished: set[int] = set()
        """Sequences of steps that were published before. The latency of their offers was measured then."""
        self._noteworthy = asyncio.Event()

    def add(self, steps: Iterable[NumberedStep], republished: bool = False) -> None:
        """Adds steps that were just committed, or if `republished`, steps that a stream has lost."""
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

    def _hold(self, steps: Iterable[NumberedStep]) -> None:
        now_s = time.monotonic()
        self._held.update((step.sequence, now_s) for step in steps)

    async def run(self, bus: Bus, settle: Settle) -> None:
        """Publishes committed steps until cancelled, each after `settle`. The steps of an incident follow each other, and no incident
        waits for another."""
        places = asyncio.Semaphore(PUBLISH_CONCURRENCY)
        async with asyncio.TaskGroup() as tasks:
            while True:
                while not self._waiting:
                    self._wake.clear()
                    await self._wake.wait()
                incident_id = self._waiting[0].step.assignment.incident_id
                if incident_id not in self._publishing:
                    await places.acquire()
                    self._publishing[incident_id] = deque()
                    publishing = tasks.create_task(self._publish_in_order(bus, incident_id, settle))
                    publishing.add_done_callback(lambda _: places.release())
                self._publishing[incident_id].append(self._waiting.popleft())

    async def note(self, mark: Mark) -> None:
        """Records published steps with `mark` until cancelled."""
        while True:
            await self._noteworthy.wait()
            published, self._published = self._published, Published()
            self._noteworthy.clear()
            await mark(published)
            for step in published.steps:
                self._held.pop(step.sequence, None)
                self._republished.discard(step.sequence)

    async def _publish_in_order(self, bus: Bus, incident_id: str, settle: Settle) -> None:
        """Publishes the steps of an incident until none is left."""
        steps = self._publishing[incident_id]
        try:
            while steps:
                await settle()
                await self._publish_step(bus, steps.popleft())
        finally:
            del self._publishing[incident_id]

    async def _publish_step(self, bus: Bus, step: NumberedStep) -> None:
        if step.step.kept:
            ack = await self._publish_advice(bus, step.step)
        else:
            ack = await self._publish(bus, step.step)
            self._measure(step)
        if ack is not None:
            self._published.stored[step.sequence] = StoredAs(ack.stream, ack.seq)
        self._published.steps.append(step)
        self._noteworthy.set()

    async def _publish_advice(self, bus: Bus, step: dispatch_pb2.Step) -> PubAck | None:
        """Publishes the advice in a step that isn't published itself. Returns None if the step has no advice."""
        advice = translate.advice(step)
        if advice is None:
            return None
        subject = flow.advice_subject(step.assignment.incident_id)
        return await bus.publish_until_stored(subject, advice, msg_id=step.step_id)

    async def _publish(self, bus: Bus, step: dispatch_pb2.Step) -> PubAck | None:
        incident_id = step.assignment.incident_id
        context = trace_ids.traceparent(incident_id, "step", step.assignment.assignment_id, step.number)
        return await bus.publish_until_stored(
            flow.incident_subject(self._leg, incident_id),
            translate.outward(step),
            msg_id=step.step_id,
            headers={trace_ids.TRACEPARENT: context},
        )

    def _measure(self, step: NumberedStep) -> None:
        """Measures the latency of an offer, at the first publication of the step that made the offer."""
        assignment = step.step.assignment
        is_first = assignment.state == dispatch_pb2.OFFERED and step.step.number == assignment.offer_number
        if not is_first or step.sequence in self._republished or not assignment.HasField("cause"):
            return
        latency_ms = (clock.wall_us() - assignment.cause.received_wall_us) / 1000
        self._published.latency_ms[assignment.assignment_id] = latency_ms
        # A canary has no trace, so its exemplar would lead nowhere.
        is_traced = assignment.exercise != exercise_pb2.CANARY
        exemplar = {"trace_id": trace_ids.trace_id_of(assignment.incident_id)} if is_traced else None
        self._metrics.offer_ms.labels(self._leg).observe(latency_ms, exemplar)
