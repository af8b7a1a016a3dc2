"""Delivers the leg's steps by webhook. Messages are queued on disk, signed, sent in order to each receiver, and retried.

After its deadline a message is given up, and an alarm is raised. Delivery is at least once, so a receiver must deduplicate by id.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import aiohttp

from services.common.clock import wall_us
from services.common.observability.telemetry import logger
from services.common.retrying import Backoff, retried
from services.dispatch.exchange import message
from services.dispatch.exchange.links import Links
from services.dispatch.exchange.metrics import WebhookMetrics
from services.dispatch.exchange.posting import open_session, post
from services.dispatch.exchange.receivers import BodyForm, Receiver
from services.dispatch.exchange.store import DELIVERED, GIVEN_UP, WAITING, Delivery, ExchangeStore
from services.dispatch.leg import translate
from services.dispatch.leg.record import LegRecord
from services.dispatch.leg.rows import StepRow
from tandem.common.v1 import exercise_pb2

RETRY = Backoff(1.0, 300.0)
"""Delays between attempts to deliver a step, seconds of wall time."""
MAX_BODY_BYTES = 64 << 10


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
        waiting = self._metrics.waiting.labels(receiver.name)
        failures = 0
        while True:
            head = self._record.head
            await retried(lambda: self._queue_steps(receiver))
            delivery = await retried(lambda: self._store.waiting(receiver.name))
            if delivery is None:
                waiting.set(0)
                await self._record.changed(head)
                continue
            if await self._deliver(session, receiver, delivery):
                failures = 0
                continue
            waiting.set(await retried(lambda: self._store.count_waiting(receiver.name)))
            remaining_s = delivery.deadline_ms / 1000 - wall_us() / 1_000_000
            await asyncio.sleep(min(RETRY.delay_s(failures), max(remaining_s, 0.01)))
            failures += 1

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

    async def _deliveries(self, receiver: Receiver, rows: Sequence[StepRow]) -> list[Delivery]:
        """Writes the message of each step. Canaries are left out."""
        deadline_ms = wall_us() // 1000 + round(receiver.deadline_s * 1000)
        deliveries: list[Delivery] = []
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
                Delivery(
                    receiver=receiver.name,
                    sequence=row.sequence,
                    delivery_id=id_,
                    incident_id=incident_id,
                    step=step.SerializeToString(),
                    body=body,
                    content_type=content_type,
                    deadline_ms=deadline_ms,
                )
            )
        return deliveries

    async def _deliver(self, session: aiohttp.ClientSession, receiver: Receiver, delivery: Delivery) -> bool:
        """Attempts a delivery. Returns True if the message is done with, so that the next message may be sent."""
        fields = {"receiver": receiver.name, "delivery_id": delivery.delivery_id, "tries": delivery.tries + 1}
        is_too_large = len(delivery.body) > MAX_BODY_BYTES
        reason = f"the body is larger than {MAX_BODY_BYTES} bytes"
        if not is_too_large:
            reason = await post(
                session, receiver, delivery.delivery_id, body=delivery.body, content_type=delivery.content_type
            )
        if not reason:
            await self._note(delivery, DELIVERED, "delivered")
            logger().info("webhook_delivered", **fields)
            return True
        if is_too_large or wall_us() // 1000 >= delivery.deadline_ms:
            await self._note(delivery, GIVEN_UP, "given up")
            logger().critical("webhook_given_up", reason=reason, **fields)
            return True
        await self._note(delivery, WAITING, "failed")
        logger().warning("webhook_failed", reason=reason, **fields)
        return False

    async def _note(self, delivery: Delivery, outcome: str, label: str) -> None:
        await retried(lambda: self._store.tried(delivery, outcome))
        self._metrics.tries.labels(delivery.receiver, label).inc()
