"""The leg's steps by webhook: queued durably, signed, to each receiver in order, tried again until a deadline and then an alarm.

At least once: a receiver takes a message once by its id. What it answers beyond its status is neither read nor logged.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import aiohttp
from prometheus_client import Counter, Gauge

from services.common.clock import wall_us
from services.common.observability.telemetry import logger
from services.common.privacy import signing
from services.dispatch.exchange import message
from services.dispatch.exchange.links import Links
from services.dispatch.exchange.receivers import Receiver
from services.dispatch.exchange.store import DELIVERED, GIVEN_UP, WAITING, Delivery, ExchangeStore
from services.dispatch.leg import translate
from services.dispatch.leg.store import Store
from services.dispatch.retrying import retried
from tandem.common.v1 import exercise_pb2

CHECK_INTERVAL_S = 0.2
FIRST_WAIT_S, LAST_WAIT_S = 1.0, 300.0
WITHIN = aiohttp.ClientTimeout(total=10.0, connect=5.0)
BODY_MOST_BYTES = 64 << 10

_TRIES = Counter("tandem_webhook_tries", "Tries to deliver a step to a receiver, by outcome", ("receiver", "outcome"))
_WAITING = Gauge("tandem_webhook_waiting", "Steps that wait for a receiver", ("receiver",))


class Webhooks:
    """Delivers the steps of one leg."""

    def __init__(
        self, leg: str, steps: Store, store: ExchangeStore, receivers: Sequence[Receiver], links: Links | None
    ) -> None:
        self._leg, self._steps, self._store, self._links = leg, steps, store, links
        self._receivers = receivers

    async def run(self) -> None:
        """Delivers for ever; no receiver waits for another."""
        async with open_session() as session, asyncio.TaskGroup() as tasks:
            for receiver in self._receivers:
                tasks.create_task(self._serve(session, receiver))

    async def _serve(self, session: aiohttp.ClientSession, receiver: Receiver) -> None:
        wait_s = FIRST_WAIT_S
        while True:
            await retried(lambda: self._hand(receiver))
            delivery = await retried(lambda: self._store.waiting(receiver.name))
            if delivery is None:
                _WAITING.labels(receiver.name).set(0)
                await asyncio.sleep(CHECK_INTERVAL_S)
                continue
            if await self._deliver(session, receiver, delivery):
                wait_s = FIRST_WAIT_S
                continue
            _WAITING.labels(receiver.name).set(await retried(lambda: self._store.count_waiting(receiver.name)))
            left_s = delivery.deadline_ms / 1000 - wall_us() / 1_000_000
            await asyncio.sleep(min(wait_s, max(left_s, 0.01)))
            wait_s = min(2 * wait_s, LAST_WAIT_S)

    async def _hand(self, receiver: Receiver) -> None:
        """Queues the steps that were committed since. A new receiver gets what happens from now on, not the past."""
        last = await self._store.handed(receiver.name)
        if last is None:
            head = await self._steps.head()
            await self._store.hand(receiver.name, head.id, ())
            return
        rows = await self._steps.steps_after(last)
        if not rows:
            return
        deadline_ms = wall_us() // 1000 + round(receiver.deadline_s * 1000)
        deliveries: list[Delivery] = []
        for row in rows:
            step = translate.stored_step(row)
            if step.assignment.exercise == exercise_pb2.CANARY:
                continue
            incident_id = step.assignment.incident_id
            id_ = message.delivery_id(self._leg, receiver.name, step)
            link = self._links.url(receiver.name, id_, step) if self._links and receiver.links else ""
            before = await self._store.steps_of(receiver.name, incident_id) if receiver.form != "step" else []
            before += [delivery.step for delivery in deliveries if delivery.incident_id == incident_id]
            body, kind = message.write(self._leg, receiver, row.sequence, step, before, link)
            told = step.SerializeToString()
            deliveries.append(Delivery(receiver.name, row.sequence, id_, incident_id, told, body, kind, deadline_ms))
        await self._store.hand(receiver.name, rows[-1].sequence, deliveries)

    async def _deliver(self, session: aiohttp.ClientSession, receiver: Receiver, delivery: Delivery) -> bool:
        """One try; True where the next message may go."""
        told = {"receiver": receiver.name, "delivery_id": delivery.delivery_id, "tries": delivery.tries + 1}
        reason = "too large"
        if len(delivery.body) <= BODY_MOST_BYTES:
            reason = await post(session, receiver, delivery.delivery_id, delivery.body, delivery.content_type)
        if not reason:
            await retried(lambda: self._store.tried(delivery, DELIVERED))
            _TRIES.labels(receiver.name, "delivered").inc()
            logger().info("webhook_delivered", **told)
            return True
        over = wall_us() // 1000 >= delivery.deadline_ms or len(delivery.body) > BODY_MOST_BYTES
        await retried(lambda: self._store.tried(delivery, GIVEN_UP if over else WAITING))
        _TRIES.labels(receiver.name, "given up" if over else "failed").inc()
        if over:
            logger().critical("webhook_given_up", reason=reason, **told)
        else:
            logger().warning("webhook_failed", reason=reason, **told)
        return over


async def post(
    session: aiohttp.ClientSession, receiver: Receiver, delivery_id: str, body: bytes, content_type: str
) -> str:
    """Sends a signed message; empty where the receiver took it, else why not."""
    timestamp_s = int(time.time())
    headers = {
        "Content-Type": content_type,
        signing.ID_HEADER: delivery_id,
        signing.TIMESTAMP_HEADER: str(timestamp_s),
        signing.SIGNATURE_HEADER: signing.signatures(receiver.keys, timestamp_s, delivery_id, body),
    }
    try:
        async with session.post(receiver.url, data=body, headers=headers, allow_redirects=False) as answer:
            return "" if 200 <= answer.status < 300 else f"status {answer.status}"
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        return type(error).__name__


@asynccontextmanager
async def open_session() -> AsyncIterator[aiohttp.ClientSession]:
    """For posting: neither proxies of the environment nor cookies, so that what is sent goes to the receiver alone."""
    jar = aiohttp.DummyCookieJar()
    async with aiohttp.ClientSession(timeout=WITHIN, trust_env=False, cookie_jar=jar, auto_decompress=False) as session:
        yield session
