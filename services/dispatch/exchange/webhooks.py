"""Delivers the leg's steps by webhook: queued on disk, signed, in order for each receiver, and retried until a deadline.

After the deadline an alarm is raised. Delivery is at least once, so a receiver must deduplicate by id. The body of a response is
neither read nor logged.
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
"""First and longest backoff, seconds."""
REQUEST_TIMEOUT = aiohttp.ClientTimeout(total=10.0, connect=5.0)
MAX_BODY_BYTES = 64 << 10

_TRIES = Counter(
    "tandem_webhook_tries", "Attempts to deliver a step to a receiver, by outcome", ("receiver", "outcome")
)
_WAITING = Gauge("tandem_webhook_waiting", "Steps that wait for a receiver", ("receiver",))


class Webhooks:
    """Delivers the steps of one leg."""

    def __init__(
        self, leg: str, steps: Store, store: ExchangeStore, *, receivers: Sequence[Receiver], links: Links | None
    ) -> None:
        self._leg, self._steps, self._store, self._links = leg, steps, store, links
        self._receivers = receivers

    async def run(self) -> None:
        """Delivers steps until cancelled. Receivers don't wait for each other."""
        async with open_session() as session, asyncio.TaskGroup() as tasks:
            for receiver in self._receivers:
                tasks.create_task(self._serve(session, receiver))

    async def _serve(self, session: aiohttp.ClientSession, receiver: Receiver) -> None:
        wait_s = FIRST_WAIT_S
        while True:
            await retried(lambda: self._queue_steps(receiver))
            delivery = await retried(lambda: self._store.waiting(receiver.name))
            if delivery is None:
                _WAITING.labels(receiver.name).set(0)
                await asyncio.sleep(CHECK_INTERVAL_S)
                continue
            if await self._deliver(session, receiver, delivery):
                wait_s = FIRST_WAIT_S
                continue
            _WAITING.labels(receiver.name).set(await retried(lambda: self._store.count_waiting(receiver.name)))
            remaining_s = delivery.deadline_ms / 1000 - wall_us() / 1_000_000
            await asyncio.sleep(min(wait_s, max(remaining_s, 0.01)))
            wait_s = min(2 * wait_s, LAST_WAIT_S)

    async def _queue_steps(self, receiver: Receiver) -> None:
        """Queues the steps that were committed since the last call. A new receiver gets only steps from now on."""
        last = await self._store.queued_up_to(receiver.name)
        if last is None:
            head = await self._steps.head()
            await self._store.queue(receiver.name, head.id, ())
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
            body, kind = message.write(self._leg, receiver, row.sequence, step=step, before=before, link=link)
            serialised_step = step.SerializeToString()
            deliveries.append(
                Delivery(
                    receiver=receiver.name,
                    sequence=row.sequence,
                    delivery_id=id_,
                    incident_id=incident_id,
                    step=serialised_step,
                    body=body,
                    content_type=kind,
                    deadline_ms=deadline_ms,
                )
            )
        await self._store.queue(receiver.name, rows[-1].sequence, deliveries)

    async def _deliver(self, session: aiohttp.ClientSession, receiver: Receiver, delivery: Delivery) -> bool:
        """Attempts a delivery. Returns whether the next message may be sent."""
        fields = {"receiver": receiver.name, "delivery_id": delivery.delivery_id, "tries": delivery.tries + 1}
        reason = f"the body is larger than {MAX_BODY_BYTES} bytes"
        if len(delivery.body) <= MAX_BODY_BYTES:
            reason = await post(
                session, receiver, delivery.delivery_id, body=delivery.body, content_type=delivery.content_type
            )
        if not reason:
            await retried(lambda: self._store.tried(delivery, DELIVERED))
            _TRIES.labels(receiver.name, "delivered").inc()
            logger().info("webhook_delivered", **fields)
            return True
        is_final = wall_us() // 1000 >= delivery.deadline_ms or len(delivery.body) > MAX_BODY_BYTES
        await retried(lambda: self._store.tried(delivery, GIVEN_UP if is_final else WAITING))
        _TRIES.labels(receiver.name, "given up" if is_final else "failed").inc()
        if is_final:
            logger().critical("webhook_given_up", reason=reason, **fields)
        else:
            logger().warning("webhook_failed", reason=reason, **fields)
        return is_final


async def post(
    session: aiohttp.ClientSession, receiver: Receiver, delivery_id: str, *, body: bytes, content_type: str
) -> str:
    """Posts a signed message. Returns the reason of a failure; empty on success."""
    timestamp_s = int(time.time())
    headers = {
        "Content-Type": content_type,
        signing.ID_HEADER: delivery_id,
        signing.TIMESTAMP_HEADER: str(timestamp_s),
        signing.SIGNATURE_HEADER: signing.signatures(receiver.keys, timestamp_s, delivery_id, body=body),
    }
    try:
        async with session.post(receiver.url, data=body, headers=headers, allow_redirects=False) as answer:
            return "" if 200 <= answer.status < 300 else f"HTTP status {answer.status}"
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        return type(error).__name__


@asynccontextmanager
async def open_session() -> AsyncIterator[aiohttp.ClientSession]:
    """Opens a session without proxies of the environment and without cookies, so that messages reach only the receiver."""
    jar = aiohttp.DummyCookieJar()
    async with aiohttp.ClientSession(
        timeout=REQUEST_TIMEOUT, trust_env=False, cookie_jar=jar, auto_decompress=False
    ) as session:
        yield session
