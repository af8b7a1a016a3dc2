"""Reading from JetStream: one pull request at a time, watched over by the server's heartbeats, so that it survives a killed server.

`consume` is for work that is acknowledged under a durable name; `read` goes through a stream by sequence without leaving a
trace on the server.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import uuid
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

import nats.errors
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from services.common.bus import Bus, NameInUse
from services.common.errors import NotFound, Unavailable
from services.common.permissions import reader_names
from services.common.readiness import ReaderHealth
from services.common.telemetry import logger

BATCH = 256
EXPIRES_S = 5.0
HEARTBEAT_S = 0.5
FORGOTTEN_AFTER_S = 10.0
"""How long the server keeps a reader that asks for nothing."""
_CERTAIN_FOR_S = FORGOTTEN_AFTER_S / 2
"""How long after it heard of its consumer a reader takes the consumer of that name for its own."""
_NEXT_NAME_S = 0.05
"""How long a reader waits before it tries its next name, so that one that finds all of them in use doesn't flood the server."""
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
    bus: Bus,
    stream: str,
    durable: str,
    subjects: Sequence[str],
    batch: int = BATCH,
    health: ReaderHealth | None = None,
) -> AsyncIterator[list[Delivered]]:
    """Messages for a durable consumer, in lists of what has arrived. Acknowledge each with `ack` once its effect is durable;
    what isn't comes again after 10 s. `health` is kept up to date with what the server says of this reader."""
    config = ConsumerConfig(
        durable_name=durable,
        filter_subjects=list(subjects),
        ack_policy=AckPolicy.EXPLICIT,
        deliver_policy=DeliverPolicy.ALL,
        ack_wait=ACK_WAIT_S,
        max_deliver=-1,
        max_ack_pending=4 * batch,
    )
    health = health or ReaderHealth(stream)
    with health.reading():
        async for messages in _pull(bus, stream, durable, lambda: config, batch, health):
            yield messages


async def ack(bus: Bus, message: Delivered) -> None:
    """Tells the server that the message's effect is durable here. Lost acknowledgements mean redelivery, never loss."""
    try:
        await bus.client.publish(message.reply, b"+ACK")
    except (nats.errors.Error, OSError) as error:
        logger().warning("ack_failed", error=type(error).__name__)


async def read(
    bus: Bus,
    stream: str,
    first_sequence: int,
    subjects: Sequence[str] = (),
    batch: int = BATCH,
    health: ReaderHealth | None = None,
) -> AsyncIterator[list[Delivered]]:
    """Messages of a stream from a sequence on, in their order, each exactly once, in lists of what has arrived; waits for more.

    `health` is kept up to date with what the server says of this reader.
    """
    position = first_sequence

    def config() -> ConsumerConfig:
        return ConsumerConfig(
            name=name,
            filter_subjects=list(subjects) or None,
            ack_policy=AckPolicy.NONE,
            deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
            opt_start_seq=max(position, 1),
            inactive_threshold=FORGOTTEN_AFTER_S,
            mem_storage=True,
            metadata={"reader": reader},
        )

    names = reader_names(bus.user, stream)
    number = secrets.randbelow(len(names))
    in_use = 0
    health = health or ReaderHealth(stream)
    with health.reading():
        while True:
            # Never the same name twice: the server may still hold the last one, which can't begin elsewhere.
            number = (number + 1) % len(names)
            name, reader = names[number], uuid.uuid4().hex
            try:
                async for messages in _pull(bus, stream, name, config, batch, health, restart_on_loss=True):
                    in_use = 0
                    fresh = [message for message in messages if message.sequence >= position]
                    if fresh:
                        position = fresh[-1].sequence + 1
                        yield fresh
            except NameInUse:
                in_use += 1
                if in_use % len(names) == 0:
                    logger().warning("reader_names_in_use", stream=stream, names=len(names))
                await asyncio.sleep(_NEXT_NAME_S)


async def between(bus: Bus, stream: str, first: int, last: int) -> AsyncIterator[Delivered]:
    """Messages from `first` to `last`, which the stream holds, one by one."""
    async for messages in read(bus, stream, first):
        for message in messages:
            if message.sequence <= last:
                yield message
        if messages[-1].sequence >= last:
            return


async def _pull(  # type: ignore[no-untyped-def]  # `config` is called anew for each try: it depends on the position
    bus: Bus,
    stream: str,
    name: str,
    config,
    batch: int,
    health: ReaderHealth,
    restart_on_loss: bool = False,
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
    loop = asyncio.get_running_loop()
    certain_until_s = 0.0
    try:
        while True:
            if not ready:
                if not await _ensure_consumer(bus, stream, config(), new=restart_on_loss):
                    continue
                ready, left = True, 0
                certain_until_s = loop.time() + _CERTAIN_FOR_S
            if restart_on_loss and loop.time() > certain_until_s:
                return  # this process stood still or was busy: its consumer may be forgotten, and its name another reader's
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
            if restart_on_loss and loop.time() > certain_until_s:
                return
            certain_until_s = loop.time() + _CERTAIN_FOR_S
            messages: list[Delivered] = []
            gap = False
            while arrived:
                message = arrived.popleft()
                status = message.headers.get("Status") if message.headers else None
                if status is not None and not message.reply.startswith("$JS.ACK"):
                    if status == _HEARTBEAT:
                        health.heard()
                        health.caught_up()  # the server has nothing else to say
                        continue
                    if message.subject != f"{inbox}.{number}":
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
                health.heard()
                if messages[-1].pending == 0:
                    health.caught_up()
                with health.working():
                    yield messages
            if gap or (restart_on_loss and not ready):
                return
    finally:
        with suppress(nats.errors.Error, OSError):
            if restart_on_loss and loop.time() < certain_until_s:
                # Its name is free for the next reader at once; nobody waits for the answer.
                await bus.client.publish(f"$JS.API.CONSUMER.DELETE.{stream}.{name}", b"", reply=f"{inbox}.0")
            await subscription.unsubscribe()


async def _ensure_consumer(bus: Bus, stream: str, config: ConsumerConfig, new: bool) -> bool:
    """Whether the server has the consumer. `new` says that it must not be another reader's: raises NameInUse where it is."""
    name = config.name or config.durable_name
    request = {"stream_name": stream, "config": config.as_dict(), "action": "create" if new else ""}
    try:
        await bus.api(f"CONSUMER.CREATE.{stream}.{name}", request)
    except NameInUse:
        raise
    except (NotFound, Unavailable) as error:
        logger().warning("consumer_awaited", stream=stream, reason=error.reason)
        await asyncio.sleep(0.25)
        return False
    return True
