"""Reading from JetStream by pull requests. The server's heartbeats show that it lives, so that reading survives a killed server.

`consume` is for work that is acknowledged under a durable name. `read` reads a stream by sequence and leaves no state on the server.

**Neither continues after a reused sequence.** Both keep the identity of the entry at their position (`Delivered.cursor`). They
compare that entry with the stream whenever they create a consumer: at the start and after each reconnect, gap and missed heartbeat.
`read` also compares it with the first message that comes. The stream may hold another entry at this position, or have become shorter.
Then `read` raises `StreamWentBack` before it yields another message, and `consume` reads the whole stream again. An entry that has aged
out, that is, lies before the stream's first sequence, doesn't count as a difference.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from functools import partial

import nats.errors
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from services.common.errors import Unavailable
from services.common.messaging import cursors
from services.common.messaging.bus import Bus, NameInUse
from services.common.messaging.cursors import StreamCursor, StreamWentBack
from services.common.messaging.delivered import Delivered as Delivered
from services.common.messaging.permissions import reader_names
from services.common.messaging.positions import DurablePosition, ReaderPosition
from services.common.messaging.session import FORGOTTEN_AFTER_S, Consumer, PullSession
from services.common.observability.health import ReaderHealth
from services.common.observability.telemetry import logger
from services.common.retrying import every, retried

BATCH = 256
"""Default number of messages per pull request."""
_NEXT_NAME_S = 0.05
"""Delay before a reader tries its next name, seconds, so that a reader with all names in use doesn't flood the server."""
ACK_WAIT_S = 10.0
"""Time after which the server redelivers a message that wasn't acknowledged, seconds."""


async def consume(
    bus: Bus,
    stream: str,
    durable: str,
    *,
    subjects: Sequence[str],
    after: StreamCursor | None = None,
    health: ReaderHealth | None = None,
    linger_s: float = 0.0,
) -> AsyncIterator[list[Delivered]]:
    """Reads messages of a durable consumer, in lists as they arrive. Acknowledge each message with `ack` once its effect is durable.
    Messages that aren't acknowledged are redelivered after 10 s.

    `after` is the identity of the newest entry whose effect is durable, if the caller keeps it across restarts. The server only
    keeps a sequence as the position. After the stream went back, that sequence may lie beyond entries that were never read. `consume`
    then raises the alarm (`cursors.alarm`) and yields all messages of the stream once more, in order, before it continues with the
    durable consumer. So effects must be idempotent, as for any redelivery.

    `health` is updated with the server's messages and heartbeats to this reader. `linger_s` is as in `read`.
    """
    config = _durable_config(durable, subjects)
    consumer = Consumer(stream, config, BATCH, is_durable=True, linger_s=linger_s)
    health = health or ReaderHealth(stream)
    position = DurablePosition(stream, after)
    with health.reading():
        while True:
            try:
                if position.went_back:
                    async for messages in _reread(bus, position, subjects):
                        with health.working():
                            yield messages
                async for messages in PullSession(bus, consumer, compare=position.compare, health=health).batches():
                    position.advance(messages)
                    yield messages
            except StreamWentBack as error:
                cursors.alarm(bus, error)
                position.forget()


async def _reread(bus: Bus, position: DurablePosition, subjects: Sequence[str]) -> AsyncIterator[list[Delivered]]:
    """Reads all messages of a stream that went back: the durable's sequence may lie beyond new entries, which it would skip."""
    end = max(position.delivered, (await bus.bounds_of(position.stream)).last)
    async for messages in read(bus, position.stream, 1, subjects=subjects):
        position.newest = messages[-1].cursor
        yield messages
        if position.newest.sequence >= end:
            break
    position.went_back = False


def _durable_config(durable: str, subjects: Sequence[str]) -> ConsumerConfig:
    return ConsumerConfig(
        durable_name=durable,
        filter_subjects=list(subjects),
        ack_policy=AckPolicy.EXPLICIT,
        deliver_policy=DeliverPolicy.ALL,
        ack_wait=ACK_WAIT_S,
        max_deliver=-1,
        max_ack_pending=4 * BATCH,
    )


async def ack(bus: Bus, message: Delivered) -> None:
    """Acknowledges a message whose effect is durable here. A lost acknowledgement causes a redelivery, never a loss."""
    if message.consumer.rpartition("-")[2].isdigit():
        return  # `read` delivered the message and needs no acknowledgement: only consumers of `read` have names that end in a number
    try:
        await bus.client.publish(message.reply, b"+ACK")
    except (nats.errors.Error, OSError) as error:
        logger().warning("ack_failed", error=type(error).__name__)


async def read(
    bus: Bus,
    stream: str,
    start: int | StreamCursor,
    *,
    subjects: Sequence[str] = (),
    batch: int = BATCH,
    health: ReaderHealth | None = None,
    linger_s: float = 0.0,
) -> AsyncGenerator[list[Delivered], None]:
    """Reads the messages of a stream in order, each exactly once, in lists as they arrive. Waits for more at the end.

    `start` is the sequence to begin at, or the identity of the entry to continue after. A caller that keeps its position across
    restarts must keep `messages[-1].cursor`, not its sequence. With a sequence, the entry before it is looked up at the start and
    compared from then on. `health` is updated with the server's messages and heartbeats to this reader.

    `linger_s` is for readers whose work isn't urgent: the time for which messages are collected after the first one, seconds. So they
    don't work in the same moment as the offers that follow from a message. A backlog is read without it.

    Raises StreamWentBack if the stream no longer holds the entry at the position or ends before it. This is checked at the start
    and whenever the server may have changed. `cursors.last_common` then finds the entry to continue after.
    """
    position = ReaderPosition(stream, start)
    names = reader_names(bus.user, stream)
    number = secrets.randbelow(len(names))
    in_use = 0
    health = health or ReaderHealth(stream)
    with health.reading():
        while True:
            # Use another name each time: the server may still hold the last consumer, which can't begin elsewhere.
            number = (number + 1) % len(names)
            config = _reader_config(names[number], subjects, position.begins_at)
            consumer = Consumer(stream, config, batch, is_durable=False, linger_s=linger_s)
            try:
                async for messages in PullSession(bus, consumer, compare=position.compare, health=health).batches():
                    in_use = 0
                    fresh = position.advance(messages)
                    if fresh:
                        yield fresh
            except NameInUse:
                in_use += 1
                if in_use % len(names) == 0:
                    logger().warning("reader_names_in_use", stream=stream, names=len(names))
                await asyncio.sleep(_NEXT_NAME_S)


def _reader_config(name: str, subjects: Sequence[str], begins_at: int) -> ConsumerConfig:
    return ConsumerConfig(
        name=name,
        filter_subjects=list(subjects) or None,
        ack_policy=AckPolicy.NONE,
        deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
        opt_start_seq=begins_at,
        inactive_threshold=FORGOTTEN_AFTER_S,
        mem_storage=True,
        metadata={"reader": uuid.uuid4().hex},  # the server rejects the same name with other metadata
    )


async def between(bus: Bus, stream: str, first: int, *, last: int) -> AsyncIterator[Delivered]:
    """Reads the messages of a stream from sequence `first` to `last`, without those that have aged out.

    Yields nothing if `last` is before `first`, as the bounds of an empty stream are. Raises StreamWentBack if the stream has lost the
    entry at `last`.
    """
    if last < first:
        return
    end = await _cursor_at(bus, stream, last)
    if end is None:
        bounds = await bus.bounds_of(stream)
        if last > bounds.last:
            raise StreamWentBack(stream=stream, sequence=last, found=None, last=bounds.last)
        if last < bounds.first:
            return  # all messages have aged out
    async for messages in read(bus, stream, first):
        for message in messages:
            if message.sequence == last and end and message.cursor != end:
                raise StreamWentBack(stream, last, message.cursor)
            if message.sequence <= last:
                yield message
        if messages[-1].sequence >= last:
            return


async def _cursor_at(bus: Bus, stream: str, sequence: int) -> StreamCursor | None:
    """Identity of the entry at a sequence, as `cursors.at`, with retries until the server answers."""
    find = partial(cursors.at, bus, stream, sequence)
    return await retried(find, every(1.0), on=Unavailable, event="stream_awaited", level=logging.INFO, stream=stream)
