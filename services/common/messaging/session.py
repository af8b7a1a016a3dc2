"""A session of pull requests with one consumer of JetStream: the states in which a reader waits for messages and gets them.

The server's heartbeats show that it lives, so that reading survives a killed server. `services.common.messaging.pull` builds its
readers on sessions.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum, auto
from typing import TypeAlias, assert_never

import nats.errors
from nats.aio.msg import Msg
from nats.js.api import ConsumerConfig

from services.common.errors import NotFound, Unavailable
from services.common.messaging.bus import Bus, NameInUse
from services.common.messaging.delivered import Delivered
from services.common.observability.health import ReaderHealth
from services.common.observability.outages import Outages

EXPIRES_S, HEARTBEAT_S = 5.0, 0.5
"""Time after which the server ends a pull request, and interval of its heartbeats during one, seconds."""
FORGOTTEN_AFTER_S = 10.0
"""Time after which the server deletes the consumer of a reader that sends no requests, seconds."""
_CERTAIN_FOR_S = FORGOTTEN_AFTER_S / 2
"""Time after an answer, message or heartbeat of a reader's consumer in which the server can't have deleted the consumer, seconds."""
_MISSED_HEARTBEATS = 3
"""Number of missed heartbeats after which a request counts as lost."""
_CREATE_RETRY_S = 0.25
_REQUEST_RETRY_S = 0.2
_REFUSED_S = 0.1
"""Delays after a failed creation of the consumer, a failed request, and a status with which the server ends a request, seconds."""
_HEARTBEAT = "100"
_REQUEST_TIMEOUT = "408"
_NS = 1_000_000_000
_AWAITED = Outages("consumer_awaited", "retry_succeeded")

Compare: TypeAlias = Callable[[Bus, int], Awaitable[None]]
"""Compares a reader's position with the stream. The number is the last sequence that its consumer has delivered. Raises
StreamWentBack or Unavailable."""


class _State(Enum):
    """State of a session, which determines its next action."""

    CHECKING = auto()
    """Begins a round. If the connection was renewed since the last round, the consumer may be gone."""
    CREATING = auto()
    """Creates the consumer, or confirms that it exists, and compares the reader's position with the stream."""
    REQUESTING = auto()
    """Requests the next messages before the requested ones run out."""
    WAITING = auto()
    """Waits for a message or heartbeat."""
    DELIVERING = auto()
    """Yields the messages that have arrived."""
    ENDED = auto()
    """Ends. The caller then creates a new consumer that continues at the caller's position."""


@dataclass(frozen=True, slots=True)
class Consumer:
    """A consumer that a session reads from."""

    stream: str
    config: ConsumerConfig
    batch: int
    """Number of messages per pull request."""
    is_durable: bool
    """Whether the server keeps the position. If not, the consumer's beginning is fixed when it is created. So the session ends after
    a gap, a reconnect or a missed heartbeat, and another reader may then use the consumer's name."""
    linger_s: float = 0.0
    """Time for which messages are collected after the first one, unless the stream has a backlog, seconds."""

    @property
    def name(self) -> str:
        """Name of the consumer at the server."""
        return str(self.config.name or self.config.durable_name)


class _SignsOfLife:
    """When the server last confirmed a session's consumer, by an answer, a message or a heartbeat."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._heard_s = -math.inf

    def note(self) -> None:
        """Notes that the server has just confirmed the consumer."""
        self._heard_s = self._loop.time()

    def prove_consumer(self) -> bool:
        """Whether the last sign is so recent that the server can't have deleted the consumer since."""
        return self._loop.time() < self._heard_s + _CERTAIN_FOR_S

    def end_s(self, waiting_since_s: float) -> float:
        """When a wait for messages ends unless another sign comes, by the event loop's clock, seconds."""
        return max(waiting_since_s, self._heard_s) + _MISSED_HEARTBEATS * HEARTBEAT_S


class PullSession:
    """Reads the messages of one consumer. It compares the reader's position whenever the stream may have changed, before it yields any
    message. The session of a durable consumer never ends by itself."""

    def __init__(self, bus: Bus, consumer: Consumer, *, compare: Compare, health: ReaderHealth) -> None:
        self._bus = bus
        self._consumer = consumer
        self._compare = compare
        self._health = health
        self._has_backlog = False
        self._loop = asyncio.get_running_loop()
        self._inbox = bus.client.new_inbox()
        self._arrived: deque[Msg] = deque()
        self._wake = asyncio.Event()
        self._reconnects = bus.reconnects
        self._has_consumer = False
        self._requests = 0
        """Number of requests. Each has a reply subject of its own, which ends in its number."""
        self._left = 0
        """Number of messages that are requested and haven't arrived."""
        self._next_consumer_sequence = 1
        self._has_gap = False
        """Whether a message is missing or will be, so that the session must end."""
        self._signs = _SignsOfLife()
        self._next_request = json.dumps(
            {"batch": consumer.batch, "expires": int(EXPIRES_S * _NS), "idle_heartbeat": int(HEARTBEAT_S * _NS)}
        ).encode()

    async def batches(self) -> AsyncIterator[list[Delivered]]:
        """Yields messages in lists as they arrive. Raises StreamWentBack and, unless durable, NameInUse if the consumer belongs to
        another reader."""
        subscription = await self._bus.client.subscribe(
            f"{self._inbox}.*", cb=self._on_message, pending_msgs_limit=-1, pending_bytes_limit=-1
        )
        state = _State.CHECKING
        try:
            while state is not _State.ENDED:
                match state:
                    case _State.CHECKING:
                        state = self._check()
                    case _State.CREATING:
                        state = await self._create()
                    case _State.REQUESTING:
                        state = await self._request()
                    case _State.WAITING:
                        state = await self._wait()
                    case _State.DELIVERING:
                        messages = await self._collect()
                        # After a reconnect, the messages may come from another store than the one that was compared.
                        if messages and not self._has_reconnected():
                            with self._delivering(messages):
                                yield messages
                        state = self._after_delivery()
                    case _:
                        assert_never(state)
        finally:
            with suppress(nats.errors.Error, OSError):
                if not self._consumer.is_durable and self._signs.prove_consumer():
                    await self._free_name()
                await subscription.unsubscribe()

    async def _on_message(self, message: Msg) -> None:
        is_usual = self._has_consumer and not (self._arrived or self._has_reconnected() or self._is_name_doubtful())
        if is_usual and _status_of(message) == _HEARTBEAT:
            # The task of an idle reader isn't woken: heartbeats are most of what it gets.
            self._health.note_heartbeat()
            self._signs.note()
        else:
            self._arrived.append(message)
            self._wake.set()

    def _check(self) -> _State:
        if self._has_reconnected():
            # The server may have restarted with a store that lost its tail, faster than a heartbeat could be missed.
            if not self._consumer.is_durable:
                return _State.ENDED
            self._reconnects, self._has_consumer = self._bus.reconnects, False
        return _State.REQUESTING if self._has_consumer else _State.CREATING

    async def _create(self) -> _State:
        consumer = self._consumer
        # With the action `create`, the server rejects a name that another reader's consumer has.
        action = "" if consumer.is_durable else "create"
        request = {"stream_name": consumer.stream, "config": consumer.config.as_dict(), "action": action}
        try:
            made = await self._bus.api(f"CONSUMER.CREATE.{consumer.stream}.{consumer.name}", request)
            # Compare after creation: a consumer can't outlive its store, so this is the store that the consumer reads.
            await self._compare(self._bus, made["delivered"]["stream_seq"])
        except NameInUse:
            raise
        except (NotFound, Unavailable) as error:
            _AWAITED.failed({"stream": consumer.stream}, error.reason, logging.WARNING)
            await asyncio.sleep(_CREATE_RETRY_S)
            return _State.CHECKING
        _AWAITED.succeeded({"stream": consumer.stream})
        self._has_consumer, self._left = True, 0
        self._signs.note()
        return _State.REQUESTING

    async def _request(self) -> _State:
        """Requests the next messages while the caller processes the last ones. The server fills requests in order."""
        if self._is_name_doubtful():
            return _State.ENDED
        if self._left > self._consumer.batch // 2:
            return _State.WAITING
        self._requests += 1
        try:
            await self._bus.client.publish(
                f"$JS.API.CONSUMER.MSG.NEXT.{self._consumer.stream}.{self._consumer.name}",
                self._next_request,
                reply=self._reply_subject(),
            )
        except (nats.errors.Error, OSError):
            await asyncio.sleep(_REQUEST_RETRY_S)
            return _State.CHECKING
        self._left += self._consumer.batch
        return _State.WAITING

    async def _wait(self) -> _State:
        since_s = self._loop.time()
        while not self._arrived:
            self._wake.clear()
            end_s = self._signs.end_s(since_s)
            if end_s <= self._loop.time():
                # The request is lost, and after a server restart perhaps the consumer too.
                self._has_consumer = False
                return _State.CHECKING if self._consumer.is_durable else _State.ENDED
            # Neither wait_for, which loses a cancellation that arrives together with the awaited event (up to Python 3.11), nor
            # timeout_at, which takes three times as long: a reader waits before each message.
            timer = self._loop.call_at(end_s, self._wake.set)
            try:
                await self._wake.wait()
            finally:
                timer.cancel()
        if self._consumer.linger_s and not self._has_backlog:
            await asyncio.sleep(self._consumer.linger_s)
        if self._is_name_doubtful():
            return _State.ENDED
        self._signs.note()
        return _State.DELIVERING

    async def _collect(self) -> list[Delivered]:
        """Messages that have arrived, up to a gap."""
        messages: list[Delivered] = []
        while self._arrived and not self._has_gap:
            message = self._arrived.popleft()
            if (status := _status_of(message)) is not None:
                await self._note_status(status, message.subject)
            elif delivered := self._receive(message):
                messages.append(delivered)
        return messages

    async def _note_status(self, status: str, subject: str) -> None:
        if status == _HEARTBEAT:
            self._health.note_heartbeat()
        elif subject == self._reply_subject():
            self._left = 0
            if status != _REQUEST_TIMEOUT:
                self._has_consumer = False
                await asyncio.sleep(_REFUSED_S)

    def _receive(self, message: Msg) -> Delivered | None:
        """The message as its reader gets it, or None if a message before it is missing."""
        # For a request from another account, the server treats a message without content as the last answer: no more messages follow.
        self._left = self._left - 1 if message.data else 0
        if not self._consumer.is_durable:
            sequence = message.metadata.sequence.consumer
            if sequence != self._next_consumer_sequence:
                # A message was lost on its way, or the consumer was recreated: restart after the last received message.
                self._has_gap = True
                return None
            self._next_consumer_sequence = sequence + 1
            self._has_gap = not message.data
        return Delivered.of(self._consumer.stream, message)

    @contextmanager
    def _delivering(self, messages: Sequence[Delivered]) -> Iterator[None]:
        self._health.heard()
        self._has_backlog = messages[-1].pending > 0
        if not self._has_backlog:
            self._health.caught_up()
        with self._health.working():
            yield

    def _after_delivery(self) -> _State:
        lost = self._has_gap or not (self._consumer.is_durable or self._has_consumer)
        return _State.ENDED if lost else _State.CHECKING

    def _reply_subject(self) -> str:
        """Reply subject of the last request."""
        return f"{self._inbox}.{self._requests}"

    def _has_reconnected(self) -> bool:
        return self._bus.reconnects != self._reconnects

    def _is_name_doubtful(self) -> bool:
        """Whether this process was stopped or busy so long that its consumer may be deleted and another reader may have the name."""
        return not (self._consumer.is_durable or self._signs.prove_consumer())

    async def _free_name(self) -> None:
        """Deletes the consumer, so that the next reader can use the name at once. No code waits for the answer."""
        subject = f"$JS.API.CONSUMER.DELETE.{self._consumer.stream}.{self._consumer.name}"
        await self._bus.client.publish(subject, b"", reply=f"{self._inbox}.0")


def _status_of(message: Msg) -> str | None:
    """Status of a pull request that a message carries, such as 100; None for a message of the stream."""
    status: str | None = message.headers.get("Status") if message.headers else None
    return None if message.reply.startswith("$JS.ACK") else status
