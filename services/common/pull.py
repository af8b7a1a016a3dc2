"""Reading from JetStream: one pull request at a time, watched over by the server's heartbeats, so that it survives a killed server.

`consume` is for work that is acknowledged under a durable name; `read` goes through a stream by sequence without leaving a
trace on the server.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

import nats.errors
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from services.common.bus import Bus
from services.common.errors import NotFound, Unavailable
from services.common.telemetry import logger

BATCH = 256
EXPIRES_S = 5.0
HEARTBEAT_S = 0.5
ACK_WAIT_S = 10.0
_HEARTBEAT = "100"
_REQUEST_TIMEOUT = "408"
_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Delivered:
    """A message of a stream."""

    subject: str
    data: bytes
    stream: str
    sequence: int
    """Its place in the stream."""
    stamp_ms: int
    """When the stream's leader stored it, wall clock, milliseconds since 1970 UTC."""
    pending: int
    """How many more were waiting behind it when it was sent."""
    reply: str
    headers: Mapping[str, str] | None = None
    stored_at: datetime | None = None
    """`stamp_ms`, as exactly as it is known."""

    @property
    def stamp_us(self) -> int:
        """The same, microseconds since 1970 UTC."""
        return self.stamp_ms * 1000 if self.stored_at is None else round(self.stored_at.timestamp() * 1e6)


async def consume(
    bus: Bus, stream: str, durable: str, subjects: Sequence[str], batch: int = BATCH
) -> AsyncIterator[list[Delivered]]:
    """Messages for a durable consumer, in lists of what has arrived. Acknowledge each with `ack` once its effect is durable;
    what isn't comes again after 10 s."""
    config = ConsumerConfig(
        durable_name=durable,
        filter_subjects=list(subjects),
        ack_policy=AckPolicy.EXPLICIT,
        deliver_policy=DeliverPolicy.ALL,
        ack_wait=ACK_WAIT_S,
        max_deliver=-1,
        max_ack_pending=4 * batch,
    )
    async for messages in _pull(bus, stream, durable, lambda: config, batch):
        yield messages


async def ack(bus: Bus, message: Delivered) -> None:
    """Tells the server that the message's effect is durable here. Lost acknowledgements mean redelivery, never loss."""
    try:
        await bus.client.publish(message.reply, b"+ACK")
    except (nats.errors.Error, OSError) as error:
        logger().warning("ack_failed", error=type(error).__name__)


async def read(
    bus: Bus, stream: str, first_sequence: int, subjects: Sequence[str] = (), batch: int = BATCH
) -> AsyncIterator[list[Delivered]]:
    """Messages of a stream from a sequence on, in their order, each exactly once, in lists of what has arrived; waits for more."""
    position = first_sequence

    def config() -> ConsumerConfig:
        return ConsumerConfig(
            name=name,
            filter_subjects=list(subjects) or None,
            ack_policy=AckPolicy.NONE,
            deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
            opt_start_seq=max(position, 1),
            inactive_threshold=30.0,
            mem_storage=True,
        )

    while True:
        name = f"read-{uuid.uuid4().hex}"
        async for messages in _pull(bus, stream, name, config, batch, restart_on_loss=True):
            fresh = [message for message in messages if message.sequence >= position]
            if fresh:
                position = fresh[-1].sequence + 1
                yield fresh


async def between(bus: Bus, stream: str, first: int, last: int) -> AsyncIterator[Delivered]:
    """Messages from `first` to `last`, which the stream holds, one by one."""
    async for messages in read(bus, stream, first):
        for message in messages:
            if message.sequence <= last:
                yield message
        if messages[-1].sequence >= last:
            return


async def _pull(  # type: ignore[no-untyped-def]  # `config` is called anew for each try: it depends on the position
    bus: Bus, stream: str, name: str, config, batch: int, restart_on_loss: bool = False
) -> AsyncIterator[list[Delivered]]:
    arrived: deque[Msg] = deque()
    wake = asyncio.Event()

    async def on_message(message: Msg) -> None:
        arrived.append(message)
        wake.set()

    inbox = bus.client.new_inbox()
    subscription = await bus.client.subscribe(
        f"{inbox}.*", cb=on_message, pending_msgs_limit=-1, pending_bytes_limit=-1
    )
    request = json.dumps(
        {"batch": batch, "expires": int(EXPIRES_S * _NS), "idle_heartbeat": int(HEARTBEAT_S * _NS)}
    ).encode()
    number = left = 0
    ready = False
    next_consumer_sequence = 1
    try:
        while True:
            if not ready:
                if not await _ensure_consumer(bus, stream, config()):
                    continue
                ready, left = True, 0
            # The next are on their way while these are worked on; the server fills requests in their order.
            if left <= batch // 2:
                number += 1
                try:
                    await bus.client.publish(
                        f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{name}", request, reply=f"{inbox}.{number}"
                    )
                    left += batch
                except (nats.errors.Error, OSError):
                    await asyncio.sleep(0.2)
                    continue
            if not arrived:
                wake.clear()
                try:
                    # Not wait_for: up to Python 3.11 it loses a cancellation that comes with the awaited event.
                    async with asyncio.timeout(3 * HEARTBEAT_S):
                        await wake.wait()
                except TimeoutError:
                    # Three heartbeats missed: the request is lost, and after a restart of the server perhaps the consumer.
                    if restart_on_loss:
                        return  # to a new one: the server doesn't let a consumer that it still has begin elsewhere
                    ready = False
                    continue
            messages: list[Delivered] = []
            gap = False
            while arrived:
                message = arrived.popleft()
                status = message.headers.get("Status") if message.headers else None
                if status is not None and not message.reply.startswith("$JS.ACK"):
                    if status == _HEARTBEAT or message.subject != f"{inbox}.{number}":
                        continue
                    left = 0
                    if status != _REQUEST_TIMEOUT:
                        ready = False
                        await asyncio.sleep(0.1)
                    continue
                left -= 1
                meta = message.metadata
                if restart_on_loss:
                    if meta.sequence.consumer > next_consumer_sequence:
                        gap = True  # a message was lost on its way to us: begin again after the last one seen
                        break
                    next_consumer_sequence = meta.sequence.consumer + 1
                messages.append(
                    Delivered(
                        message.subject,
                        message.data,
                        stream,
                        meta.sequence.stream,
                        int(meta.timestamp.timestamp() * 1000),
                        meta.num_pending,
                        message.reply,
                        message.headers,
                        meta.timestamp,
                    )
                )
            if messages:
                yield messages
            if gap or (restart_on_loss and not ready):
                return
    finally:
        with suppress(nats.errors.Error, OSError):
            await subscription.unsubscribe()


async def _ensure_consumer(bus: Bus, stream: str, config: ConsumerConfig) -> bool:
    name = config.name or config.durable_name
    try:
        await bus.api(f"CONSUMER.CREATE.{stream}.{name}", {"stream_name": stream, "config": config.as_dict()})
    except (NotFound, Unavailable) as error:
        logger().warning("consumer_awaited", stream=stream, reason=error.reason)
        await asyncio.sleep(0.25)
        return False
    return True
