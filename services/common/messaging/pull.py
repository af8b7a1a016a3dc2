"""Reading from JetStream by pull requests. The server's heartbeats show that it lives, so that reading survives a killed server.

`consume` is for work that is acknowledged under a durable name. `read` reads a stream by sequence and leaves no state on the server.

**Neither continues after a reused sequence.** Both keep the identity of the entry at their position (`Delivered.cursor`). They
compare it with the stream at each new consumer, that is at the start and after each reconnect, gap and missed heartbeat, and with
the first message that comes. If the stream holds another entry there, or has become shorter, they raise `StreamWentBack` before
they yield another message. An entry that has aged out (it lies before the stream's first sequence) is no difference.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import uuid
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from typing import TypeAlias

import nats.errors
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from services.common.messaging import cursors
from services.common.messaging.bus import Bus, NameInUse
from services.common.messaging.cursors import StreamCursor, StreamWentBack
from services.common.messaging.delivered import Delivered as Delivered
from services.common.messaging.permissions import reader_names
from services.common.observability.readiness import ReaderHealth
from services.common.observability.telemetry import logger
from services.common.rpc.errors import NotFound, Unavailable

BATCH = 256
"""Default number of messages per pull request."""
EXPIRES_S, HEARTBEAT_S = 5.0, 0.5
"""Time after which the server ends a pull request, and interval of its heartbeats during one, seconds."""
FORGOTTEN_AFTER_S = 10.0
"""Time after which the server deletes the consumer of a reader that sends no requests, seconds."""
_CERTAIN_FOR_S = FORGOTTEN_AFTER_S / 2
"""Time after a reader's last sign of its consumer during which the consumer of that name is certainly its own, seconds."""
_NEXT_NAME_S = 0.05
"""Delay before a reader tries its next name, seconds, so that a reader with all names in use doesn't flood the server."""
ACK_WAIT_S = 10.0
"""Time after which the server redelivers a message that wasn't acknowledged, seconds."""
_HEARTBEAT = "100"
_REQUEST_TIMEOUT = "408"
_NS = 1_000_000_000

_Compare: TypeAlias = Callable[[Bus, int], Awaitable[None]]
"""Compares a reader's position with the stream. The number is the last sequence that its consumer has delivered."""


async def consume(
    bus: Bus,
    stream: str,
    durable: str,
    *,
    subjects: Sequence[str],
    batch: int = BATCH,
    after: StreamCursor | None = None,
    health: ReaderHealth | None = None,
) -> AsyncIterator[list[Delivered]]:
    """Reads messages of a durable consumer, in lists as they arrive. Acknowledge each message with `ack` once its effect is durable.
    Messages that aren't acknowledged are redelivered after 10 s.

    `after` is the identity of the newest entry whose effect is durable, if the caller keeps it across restarts. The server only
    keeps a sequence as the position. After the stream went back, it may lie beyond entries that were never read. `consume` then
    raises the alarm (`cursors.alarm`) and yields all messages of the stream once more, in order, before it continues with the
    durable consumer. So effects must be idempotent, as for any redelivery.

    `health` is updated with the server's signs of this reader.
    """
    config = ConsumerConfig(
        durable_name=durable,
        filter_subjects=list(subjects),
        ack_policy=AckPolicy.EXPLICIT,
        deliver_policy=DeliverPolicy.ALL,
        ack_wait=ACK_WAIT_S,
        max_deliver=-1,
        max_ack_pending=4 * batch,
    )
    newest, given = after, 0
    health = health or ReaderHealth(stream)

    async def compare(bus: Bus, delivered: int) -> None:
        nonlocal given
        given = delivered
        if newest is not None:
            await cursors.holds(bus, stream, newest)
        elif delivered > (last := (await bus.bounds_of(stream)).last):
            raise StreamWentBack(stream=stream, sequence=delivered, found=None, last=last)

    went_back = False
    with health.reading():
        while True:
            try:
                if went_back:
                    # The durable's sequence may lie beyond new entries, which it would skip. Read them all first.
                    end = max(given, (await bus.bounds_of(stream)).last)
                    async for messages in read(bus, stream, 1, subjects=subjects, batch=batch):
                        newest = messages[-1].cursor
                        with health.working():
                            yield messages
                        if newest.sequence >= end:
                            break
                    went_back = False
                async for messages in _pull(
                    bus, stream, durable, config=config, batch=batch, compare=compare, health=health
                ):
                    head = max(messages, key=lambda message: message.sequence)
                    if newest is None or head.sequence > newest.sequence:
                        newest = head.cursor
                    yield messages
            except StreamWentBack as error:
                cursors.alarm(error)
                newest, went_back = None, True


async def ack(bus: Bus, message: Delivered) -> None:
    """Acknowledges a message whose effect is durable here. A lost acknowledgement causes a redelivery, never a loss."""
    if message.consumer.rpartition("-")[2].isdigit():
        return  # redelivered by a consumer without acknowledgements: only names of readers end in a number
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
) -> AsyncIterator[list[Delivered]]:
    """Reads the messages of a stream in order, each exactly once, in lists as they arrive. Waits for more at the end.

    `start` is the sequence to begin at, or the identity of the entry to continue after. A caller that keeps its position across
    restarts must keep `messages[-1].cursor`, not its sequence. With a sequence, the entry before it is looked up at the start and
    compared from then on. `health` is updated with the server's signs of this reader.

    Raises StreamWentBack if the stream no longer holds the entry at the position or ends before it. This is checked at the start
    and whenever the server may have changed. `cursors.last_common` then finds the entry to continue after.
    """
    position = _Position(stream, start)
    names = reader_names(bus.user, stream)
    number = secrets.randbelow(len(names))
    in_use = 0
    health = health or ReaderHealth(stream)
    with health.reading():
        while True:
            # Use another name each time: the server may still hold the last consumer, which can't begin elsewhere.
            number = (number + 1) % len(names)
            config = ConsumerConfig(
                name=names[number],
                filter_subjects=list(subjects) or None,
                ack_policy=AckPolicy.NONE,
                deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
                opt_start_seq=position.begins_at,
                inactive_threshold=FORGOTTEN_AFTER_S,
                mem_storage=True,
                metadata={"reader": uuid.uuid4().hex},  # the server rejects the same name with other metadata
            )
            try:
                async for messages in _pull(
                    bus,
                    stream,
                    names[number],
                    config=config,
                    batch=batch,
                    compare=position.compare,
                    health=health,
                    restart_on_loss=True,
                ):
                    in_use = 0
                    fresh = position.advance(messages)
                    if fresh:
                        yield fresh
            except NameInUse:
                in_use += 1
                if in_use % len(names) == 0:
                    logger().warning("reader_names_in_use", stream=stream, names=len(names))
                await asyncio.sleep(_NEXT_NAME_S)


async def between(bus: Bus, stream: str, first: int, *, last: int) -> AsyncIterator[Delivered]:
    """Reads the messages of a stream from sequence `first` to `last`, without those that have aged out. Raises StreamWentBack if the
    stream has lost the entry at `last`."""
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
    while True:
        try:
            return await cursors.at(bus, stream, sequence)
        except Unavailable as error:
            logger().info("stream_awaited", stream=stream, reason=error.reason)
            await asyncio.sleep(error.retry_after_s)


class _Position:
    """A reader's position in a stream, with the identity of the entry there."""

    def __init__(self, stream: str, start: int | StreamCursor) -> None:
        self._stream = stream
        self._known = start if isinstance(start, StreamCursor) else None
        self._sequence = start.sequence if isinstance(start, StreamCursor) else start - 1
        """Sequence of the last message that was yielded."""
        self._yielded: Delivered | None = None
        self._known_is_empty = False
        """Whether the entry at the position has no content. A consumer that began there would deliver no message after it."""

    @property
    def begins_at(self) -> int:
        """Sequence at which a consumer begins: at the known entry and not after it, so that this entry comes first and is compared."""
        known = self._cursor()
        is_empty = not self._yielded.data if self._yielded else self._known_is_empty
        return known.sequence if known and not is_empty else max(self._sequence + 1, 1)

    async def compare(self, bus: Bus, _: int) -> None:
        """Checks that the stream still holds the entry at the position. Raises StreamWentBack or Unavailable."""
        known = self._cursor()
        if known is not None:
            self._known_is_empty = await cursors.is_empty(bus, self._stream, known)
        elif self._sequence > 0:
            stored = await cursors.kept_at(bus, self._stream, self._sequence)
            self._known = cursors.of_stored(stored) if stored else None

    def advance(self, messages: list[Delivered]) -> list[Delivered]:
        """Moves the position to the last of the messages and returns those after the old position. Raises StreamWentBack."""
        head = messages[0]
        if head.sequence <= self._sequence:
            if head.cursor != self._cursor():
                raise StreamWentBack(self._stream, self._sequence, head.cursor)
            messages = messages[1:]
        if messages:
            self._yielded = messages[-1]
            self._sequence = self._yielded.sequence
        return messages

    def _cursor(self) -> StreamCursor | None:
        return self._yielded.cursor if self._yielded else self._known


async def _pull(
    bus: Bus,
    stream: str,
    name: str,
    *,
    config: ConsumerConfig,
    batch: int,
    compare: _Compare,
    health: ReaderHealth,
    restart_on_loss: bool = False,
) -> AsyncIterator[list[Delivered]]:
    """Reads the messages of a consumer. It calls `compare` whenever the stream may have changed, before it yields any message. With
    `restart_on_loss` it ends after a gap or reconnect, so that the caller creates a new consumer."""
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
    reconnects = bus.reconnects
    next_consumer_sequence = 1
    loop = asyncio.get_running_loop()
    certain_until_s = 0.0
    try:
        while True:
            if bus.reconnects != reconnects:
                # The server may have restarted with a store that lost its tail, faster than a heartbeat could be missed.
                if restart_on_loss:
                    return
                reconnects, ready = bus.reconnects, False
            if not ready:
                if not await _ensure_consumer(bus, stream, config, compare=compare, new=restart_on_loss):
                    continue
                ready, left = True, 0
                certain_until_s = loop.time() + _CERTAIN_FOR_S
            if restart_on_loss and loop.time() > certain_until_s:
                return  # this process was stopped or busy: its consumer may be deleted, and its name may be another reader's
            # Request the next messages while the caller processes these. The server fills requests in order.
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
                    # Not wait_for: up to Python 3.11 it loses a cancellation that arrives together with the awaited event.
                    async with asyncio.timeout(3 * HEARTBEAT_S):
                        await wake.wait()
                except TimeoutError:
                    # Three missed heartbeats mean that the request is lost, and after a server restart perhaps the consumer too.
                    if restart_on_loss:
                        return  # the server can't move an existing consumer to another position, so a new one is needed
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
                        health.caught_up()  # heartbeats come only while no message waits
                        continue
                    if message.subject != f"{inbox}.{number}":
                        continue
                    left = 0
                    if status != _REQUEST_TIMEOUT:
                        ready = False
                        await asyncio.sleep(0.1)
                    continue
                # Across accounts, the server takes a message without content for the last answer: this request gets no more.
                left = left - 1 if message.data else 0
                meta = message.metadata
                if restart_on_loss:
                    if meta.sequence.consumer != next_consumer_sequence:
                        # A message was lost on its way, or the consumer was recreated: restart after the last received message.
                        gap = True
                        break
                    next_consumer_sequence = meta.sequence.consumer + 1
                messages.append(
                    Delivered(
                        subject=message.subject,
                        data=message.data,
                        stream=stream,
                        sequence=meta.sequence.stream,
                        stamp_ms=int(meta.timestamp.timestamp() * 1000),
                        pending=meta.num_pending,
                        reply=message.reply,
                        headers=message.headers,
                        stored_at=meta.timestamp,
                    )
                )
                if not message.data and restart_on_loss:
                    gap = True
                    break
            # After a reconnect, they may come from another store than the one that the position was compared with.
            if messages and bus.reconnects == reconnects:
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
                # Frees the name for the next reader at once. No code waits for the answer.
                await bus.client.publish(f"$JS.API.CONSUMER.DELETE.{stream}.{name}", b"", reply=f"{inbox}.0")
            await subscription.unsubscribe()


async def _ensure_consumer(bus: Bus, stream: str, config: ConsumerConfig, *, compare: _Compare, new: bool) -> bool:
    """Creates a consumer and compares the reader's position. Returns False if the server doesn't answer. Raises StreamWentBack and,
    with `new`, NameInUse if the consumer belongs to another reader."""
    name = config.name or config.durable_name
    request = {"stream_name": stream, "config": config.as_dict(), "action": "create" if new else ""}
    try:
        made = await bus.api(f"CONSUMER.CREATE.{stream}.{name}", request)
        # Compare after creation: a consumer can't outlive its store, so this is the store that the consumer reads.
        await compare(bus, made["delivered"]["stream_seq"])
    except NameInUse:
        raise
    except (NotFound, Unavailable) as error:
        logger().warning("consumer_awaited", stream=stream, reason=error.reason)
        await asyncio.sleep(0.25)
        return False
    return True
