"""Delivers the leg's steps by webhook: a message for each step is queued on disk for each receiver."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

import aiohttp

from services.common import times
from services.common.observability.telemetry import logger
from services.common.retrying import retried
from services.dispatch.exchange import message
from services.dispatch.exchange.deliveries import Courier, deadline_ms
from services.dispatch.exchange.links import Links
from services.dispatch.exchange.metrics import WebhookMetrics
from services.dispatch.exchange.posting import open_session
from services.dispatch.exchange.receivers import BodyForm, Receiver
from services.dispatch.exchange.store import ExchangeStore, StepDelivery
from services.dispatch.leg import translate
from services.dispatch.leg.record import LegRecord
from services.dispatch.leg.rows import StepRow
from tandem.common.v1 import exercise_pb2
from tandem.dispatch.v1 import dispatch_pb2

COMPARE_PAGE = 100
"""Number of queued steps that are compared with the leg's record at a time."""


class _StepIdentity(NamedTuple):
    """Identity of a step in the leg's record. A step that the leg makes once more has another time."""

    sequence: int
    step_id: str
    at_ms: int

    @classmethod
    def of(cls, sequence: int, payload: bytes) -> _StepIdentity:
        """The identity of a serialised step."""
        step = dispatch_pb2.Step.FromString(payload)
        return cls(sequence, step.step_id, times.from_timestamp(step.at))


class Webhooks:
    """Delivers the steps of one leg."""

    def __init__(
        self,
        leg: str,
        record: LegRecord,
        store: ExchangeStore,
        *,
        receivers: Sequence[Receiver],
        links: Links | None,
        metrics: WebhookMetrics,
    ) -> None:
        self._leg, self._record, self._store, self._links = leg, record, store, links
        self._receivers, self._metrics = receivers, metrics

    async def run(self) -> None:
        """Delivers steps until cancelled. Receivers don't wait for each other."""
        async with open_session() as session, asyncio.TaskGroup() as tasks:
            for receiver in self._receivers:
                tasks.create_task(self._serve(session, receiver))

    async def _serve(self, session: aiohttp.ClientSession, receiver: Receiver) -> None:
        courier = Courier(session, receiver, self._store.steps, metrics=self._metrics)
        await retried(lambda: self._compare(receiver))
        while True:
            head = self._record.head
            await retried(lambda: self._queue_steps(receiver))
            if not await courier.deliver_next():
                await self._record.changed(head)

    async def _compare(self, receiver: Receiver) -> None:
        """Continues after the last queued step that the leg's record still has.

        The record is another one after its database was lost or an older copy was restored. It numbers its steps from there, and the
        receiver would get none until their sequences exceed the old ones.
        """
        name = receiver.name
        last, newest = await self._store.queued_up_to(name), await self._store.newest_queued(name, None, 1)
        if last is None:
            return
        head = (await self._record.store.head()).id
        held = await self._last_held(name) if newest else min(last, head)
        if held != (newest[0].sequence if newest else last) or head < last:
            await self._store.continue_after(name, held)
            logger().warning("webhook_record_replaced", receiver=name, queued_up_to=last, continues_after=held)

    async def _last_held(self, receiver: str) -> int:
        """Sequence of the last queued step that the leg's record still has; 0 if it has none of them."""
        before: int | None = None
        while queued := await self._store.newest_queued(receiver, before, COMPARE_PAGE):
            rows = await self._record.store.steps_at([step.sequence for step in queued])
            held = {_StepIdentity.of(row.sequence, row.payload) for row in rows}
            for step in queued:
                if _StepIdentity.of(step.sequence, step.step) in held:
                    return step.sequence
            before = queued[-1].sequence
        return 0

    async def _queue_steps(self, receiver: Receiver) -> None:
        """Queues the steps that were committed since the last call. For a new receiver, only later steps are queued."""
        last = await self._store.queued_up_to(receiver.name)
        if last is None:
            head = await self._record.store.head()
            await self._store.queue(receiver.name, head.id, ())
            return
        rows = await self._record.store.steps_after(last)
        if rows:
            await self._store.queue(receiver.name, rows[-1].sequence, await self._deliveries(receiver, rows))

    async def _deliveries(self, receiver: Receiver, rows: Sequence[StepRow]) -> list[StepDelivery]:
        """Writes the message of each step. Canaries are left out."""
        due_ms = deadline_ms(receiver)
        deliveries: list[StepDelivery] = []
        for row in rows:
            step = translate.stored_step(row)
            if step.assignment.exercise == exercise_pb2.CANARY:
                continue
            incident_id = step.assignment.incident_id
            id_ = message.delivery_id(self._leg, receiver.name, step)
            link = self._links.url(receiver.name, id_, step) if self._links and receiver.links else ""
            before: list[bytes] = []
            if receiver.form is not BodyForm.STEP:
                before += await self._store.steps_of(receiver.name, incident_id)
                before += [delivery.step for delivery in deliveries if delivery.incident_id == incident_id]
            body, content_type = message.write(self._leg, receiver, row.sequence, step=step, before=before, link=link)
            deliveries.append(
                StepDelivery(
                    receiver=receiver.name,
                    sequence=row.sequence,
                    delivery_id=id_,
                    incident_id=incident_id,
                    step=step.SerializeToString(),
                    body=body,
                    content_type=content_type,
                    deadline_ms=due_ms,
                )
            )
        return deliveries
