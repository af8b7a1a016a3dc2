"""Sends queued messages to one receiver: signed, in order, retried, and given up after a deadline with an alarm.

Delivery is at least once, so a receiver must deduplicate by id.
"""

from __future__ import annotations

import asyncio

import aiohttp

from services.common.clock import wall_us
from services.common.observability.telemetry import logger
from services.common.retrying import Backoff, retried
from services.dispatch.exchange.metrics import WebhookMetrics
from services.dispatch.exchange.posting import post
from services.dispatch.exchange.receivers import Receiver
from services.dispatch.exchange.store import DELIVERED, GIVEN_UP, WAITING, Delivery, DeliveryQueue

RETRY = Backoff(1.0, 300.0)
"""Delays between attempts to deliver a message, seconds of wall time."""
MAX_BODY_BYTES = 64 << 10


class Courier:
    """Delivers the messages of one queue to one receiver. Receivers and queues don't wait for each other."""

    def __init__(
        self, session: aiohttp.ClientSession, receiver: Receiver, queue: DeliveryQueue, *, metrics: WebhookMetrics
    ) -> None:
        self._session, self._receiver, self._queue, self._metrics = session, receiver, queue, metrics
        self._waiting = metrics.waiting.labels(receiver.name, queue.name)
        self._failures = 0

    async def deliver_next(self) -> bool:
        """Attempts the next message. Returns False at once if none waits; after a failure, waits until the next attempt."""
        delivery = await retried(lambda: self._queue.waiting(self._receiver.name))
        if delivery is None:
            self._waiting.set(0)
            return False
        if await self._attempt(delivery):
            self._failures = 0
            return True
        self._waiting.set(await retried(lambda: self._queue.count_waiting(self._receiver.name)))
        remaining_s = delivery.deadline_ms / 1000 - wall_us() / 1_000_000
        await asyncio.sleep(min(RETRY.delay_s(self._failures), max(remaining_s, 0.01)))
        self._failures += 1
        return True

    async def _attempt(self, delivery: Delivery) -> bool:
        """Attempts a delivery. Returns True if the message is done with, so that the next message may be sent."""
        fields = {"receiver": delivery.receiver, "delivery_id": delivery.delivery_id, "tries": delivery.tries + 1}
        is_too_large = len(delivery.body) > MAX_BODY_BYTES
        reason = f"the body is larger than {MAX_BODY_BYTES} bytes"
        if not is_too_large:
            reason = await post(
                self._session,
                self._receiver,
                delivery.delivery_id,
                body=delivery.body,
                content_type=delivery.content_type,
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
        await retried(lambda: self._queue.tried(delivery, outcome))
        self._metrics.tries.labels(delivery.receiver, label).inc()


def deadline_ms(receiver: Receiver) -> int:
    """The deadline of a message that is queued now for a receiver, wall clock, milliseconds since 1970 UTC."""
    return wall_us() // 1000 + round(receiver.deadline_s * 1000)
