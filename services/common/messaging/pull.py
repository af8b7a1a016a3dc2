"""Reading from JetStream: one pull request at a time, watched over by the server's heartbeats, so that it survives a killed server.

`consume` is for work that is acknowledged under a durable name; `read` goes through a stream by sequence without leaving a
trace on the server.

**Neither goes on behind a sequence that is used again.** Both know the entry at their position by its identity (`Delivered.cursor`) and
compare it with the stream at each new consumer, that is at the start, after each reconnect, gap and missed heartbeat, and with the
first message that comes. Where it is another entry, or the stream is shorter now, they raise `StreamWentBack` before they yield
anything more. An entry that has aged out (it lies before the stream's first) is no difference.
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


_Compare: TypeAlias = Callable[[Bus, int], Awaitable[None]]
"""Compares what a reader knows with the stream; the number is the last sequence that its consumer has given it."""


async def consume(
    bus: Bus,
    stream: str,
    durable: str,
    subjects: Sequence[str],
    batch: int = BATCH,
    after: StreamCursor | None = None,
    health: ReaderHealth | None = None,
) -> AsyncIterator[list[Delivered]]:
    """Messages for a durable consumer, in lists of what has arrived. Acknowledge each with `ack` once its effect is durable;
    what isn't comes again after 10 s.

    `after` is the identity of the newest entry whose effect is durable, where the caller keeps it over a restart. The server's own
    position is a number: after the stream went back it may lie beyond entries that nobody has seen. Then that is an alarm
    (`cursors.alarm`), and all that the stream holds comes once more, in order, before the durable's turn comes again: effects must not
    mind a repetition, as with any redelivery.

    `health` is kept up to date with what the server says of this reader.
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
            raise StreamWentBack(stream, delivered, None, last)

    went_back = False
    with health.reading():
        while True:
            try:
                if went_back:
                    # By number the durable isn't there yet, or it is beyond what is new.
                    end = max(given, (await bus.bounds_of(stream)).last)
                    async for messages in read(bus, stream, 1, subjects, batch):
                        newest = messages[-1].cursor
                        with health.working():
                            yield messages
                        if newest.sequence >= end:
                            break
                    went_back = False
                async for messages in _pull(bus, stream, durable, config, batch, compare, health):
                    head = max(messages, key=lambda message: message.sequence)
                    if newest is None or head.sequence > newest.sequence:
                        newest = head.cursor
                    yield messages
            except StreamWentBack as error:
                cursors.alarm(error)
                newest, went_back = None, True


async def ack(bus: Bus, message: Delivered) -> None:
    """Tells the server that the message's effect is durable here. Lost acknowledgements mean redelivery, never loss."""
    if message.consumer.rpartition("-")[2].isdigit():
        return  # the name of a reader, which came once more by a consumer that isn't told; a durable's doesn't end so
    try:
        await bus.client.publish(message.reply, b"+ACK")
    except (nats.errors.Error, OSError) as error:
        logger().warning("ack_failed", error=type(error).__name__)


async def read(
    bus: Bus,
    stream: str,
    start: int | StreamCursor,
    subjects: Sequence[str] = (),
    batch: int = BATCH,
    health: ReaderHealth | None = None,
) -> AsyncIterator[list[Delivered]]:
    """Messages of a stream in their order, each exactly once, in lists of what has arrived; waits for more.

    `health` is kept up to date with what the server says of this reader.

    `start` is the sequence to begin at, or the identity of the entry to go on behind: who keeps a position over a restart keeps
    `messages[-1].cursor`, not its number. With a number, the entry before it is looked up at the start and known from then on.

    Raises StreamWentBack where the stream doesn't hold the entry at the position any more, or ends before it, at the start and whenever
    the server may have changed meanwhile; `cursors.last_common` finds the entry to begin again behind.
    """
    position = _Position(stream, start)
    names = reader_names(bus.user, stream)
    number = secrets.randbelow(len(names))
    in_use = 0
    health = health or ReaderHealth(stream)
    with health.reading():
        while True:
            # Never the same name twice: the server may still hold the last one, which can't begin elsewhere.
            number = (number + 1) % len(names)
            config = ConsumerConfig(
                name=names[number],
                filter_subjects=list(subjects) or None,
                ack_policy=AckPolicy.NONE,
                deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
                opt_start_seq=position.begins_at,
                inactive_threshold=FORGOTTEN_AFTER_S,
                mem_storage=True,
                metadata={"reader": uuid.uuid4().hex},  # the server refuses the same name with another one
            )
            try:
                async for messages in _pull(
                    bus, stream, names[number], config, batch, position.compare, health, restart_on_loss=True
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


async def between(bus: Bus, stream: str, first: int, last: int) -> AsyncIterator[Delivered]:
    """Messages from `first` to `last`, which the stream holds, one by one. Raises StreamWentBack where it holds `last` no more."""
    end = await _at_once_it_answers(bus, stream, last)
    if end is None:
        bounds = await bus.bounds_of(stream)
        if last > bounds.last:
            raise StreamWentBack(stream, last, None, bounds.last)
        if last < bounds.first:
            return  # all of it has aged out
    async for messages in read(bus, stream, first):
        for message in messages:
            if message.sequence == last and end and message.cursor != end:
                raise StreamWentBack(stream, last, message.cursor)
            if message.sequence <= last:
                yield message
        if messages[-1].sequence >= last:
            return


async def _at_once_it_answers(bus: Bus, stream: str, sequence: int) -> StreamCursor | None:
    """As cursors.at; waits while the server doesn't answer, as reading does."""
    while True:
        try:
            return await cursors.at(bus, stream, sequence)
        except Unavailable as error:
            logger().info("stream_awaited", stream=stream, reason=error.reason)
            await asyncio.sleep(error.retry_after_s)


class _Position:
    """How far a reader is in a stream, and which entry it knows there."""

    def __init__(self, stream: str, start: int | StreamCursor) -> None:
        self._stream = stream
        self._known = start if isinstance(start, StreamCursor) else None
        self._sequence = start.sequence if isinstance(start, StreamCursor) else start - 1
        """Of the last message that was yielded."""
        self._yielded: Delivered | None = None
        self._known_is_empty = False
        """The entry at the position has no content, so a consumer that began there would give nothing behind it."""

    @property
    def begins_at(self) -> int:
        """Where a consumer begins: at the known entry, which then comes first and is compared, not behind it."""
        known = self._cursor()
        is_empty = not self._yielded.data if self._yielded else self._known_is_empty
        return known.sequence if known and not is_empty else max(self._sequence + 1, 1)

    async def compare(self, bus: Bus, _: int) -> None:
        """Looks whether the stream still holds the entry. Raises StreamWentBack, Unavailable."""
        known = self._cursor()
        if known is not None:
            self._known_is_empty = await cursors.is_empty(bus, self._stream, known)
        elif self._sequence > 0:
            stored = await cursors.kept_at(bus, self._stream, self._sequence)
            self._known = cursors.of_stored(stored) if stored else None

    def advance(self, messages: list[Delivered]) -> list[Delivered]:
        """What of the messages comes behind the position, which they move. Raises StreamWentBack."""
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
    config: ConsumerConfig,
    batch: int,
    compare: _Compare,
    health: ReaderHealth,
    restart_on_loss: bool = False,
) -> AsyncIterator[list[Delivered]]:
    """Messages of a consumer. `compare` is called whenever the stream behind it may be another, before any message of it is yielded."""
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
                # Perhaps to a server that was restarted, on a store that lost its tail, faster than heartbeats are missed.
                if restart_on_loss:
                    return
                reconnects, ready = bus.reconnects, False
            if not ready:
                if not await _ensure_consumer(bus, stream, config, compare, new=restart_on_loss):
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
                # To the server a message without content ends the answers that an account imports: no more come to this request.
                left = left - 1 if message.data else 0
                meta = message.metadata
                if restart_on_loss:
                    if meta.sequence.consumer != next_consumer_sequence:
                        # A message was lost on its way to us, or the consumer was created again: begin again after the last one seen.
                        gap = True
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
                if not message.data and restart_on_loss:
                    gap = True
                    break
            # After a reconnect they may be of another store than what the position was compared with.
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
                # Its name is free for the next reader at once; nobody waits for the answer.
                await bus.client.publish(f"$JS.API.CONSUMER.DELETE.{stream}.{name}", b"", reply=f"{inbox}.0")
            await subscription.unsubscribe()


async def _ensure_consumer(bus: Bus, stream: str, config: ConsumerConfig, compare: _Compare, new: bool) -> bool:
    """Whether the server has the consumer. `new` says that it must not be another reader's: raises NameInUse where it is."""
    name = config.name or config.durable_name
    request = {"stream_name": stream, "config": config.as_dict(), "action": "create" if new else ""}
    try:
        made = await bus.api(f"CONSUMER.CREATE.{stream}.{name}", request)
        # After it is made: a consumer doesn't outlive the store that it reads.
        await compare(bus, made["delivered"]["stream_seq"])
    except NameInUse:
        raise
    except (NotFound, Unavailable) as error:
        logger().warning("consumer_awaited", stream=stream, reason=error.reason)
        await asyncio.sleep(0.25)
        return False
    return True
