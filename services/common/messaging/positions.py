"""Positions of readers in a stream: the identity of the last entry, its comparison with the stream, and when it is stored."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Generic, TypeVar

from services.common.messaging import cursors
from services.common.messaging.bus import Bus
from services.common.messaging.cursors import StreamCursor, StreamWentBack
from services.common.messaging.delivered import Delivered
from services.common.retrying import retried

STORE_INTERVAL_S = 5.0
"""Time after which the position behind messages without an effect is stored, seconds. Until then it is only in memory."""
EffectT = TypeVar("EffectT")
PositionT = TypeVar("PositionT")


class ReaderPosition:
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


class DurablePosition:
    """Position of a durable consumer, as the identity of the newest entry that it has yielded."""

    def __init__(self, stream: str, after: StreamCursor | None) -> None:
        self.stream = stream
        self.newest = after
        """Newest entry that was yielded. None if none is known."""
        self.delivered = 0
        """Last sequence that the server has delivered, as of the last comparison."""
        self.went_back = False
        """Whether the stream went back and hasn't been read again yet."""

    async def compare(self, bus: Bus, delivered: int) -> None:
        """Checks that the stream still holds the newest entry. Raises StreamWentBack or Unavailable."""
        self.delivered = delivered
        if self.newest is not None:
            await cursors.holds(bus, self.stream, self.newest)
        elif delivered > (last := (await bus.bounds_of(self.stream)).last):
            raise StreamWentBack(self.stream, delivered, None, last=last)

    def advance(self, messages: Sequence[Delivered]) -> None:
        """Moves the position to the newest of the messages. Redelivered older messages may be among them."""
        head = max(messages, key=lambda message: message.sequence)
        if self.newest is None or head.sequence > self.newest.sequence:
            self.newest = head.cursor

    def forget(self) -> None:
        """Forgets the newest entry, after the stream went back."""
        self.newest, self.went_back = None, True


class DeferredPosition(Generic[EffectT, PositionT]):
    """Stores a reader's position in a stream: with the effects of messages at once, and behind messages without an effect later.

    Most messages of a shared stream concern other readers. The position behind those is stored after 5 s, so that no message that
    concerns this reader waits for the transaction. After a crash the reader skips the same messages once more.
    """

    def __init__(
        self, store: Callable[[Sequence[EffectT], PositionT], Awaitable[None]], interval_s: float | None = None
    ) -> None:
        """`store` stores effects and a position in one transaction; both methods call it until it succeeds. `interval_s` is the time
        for which a position is deferred, seconds; STORE_INTERVAL_S if it isn't given."""
        self._store = store
        self._interval_s = STORE_INTERVAL_S if interval_s is None else interval_s
        self._deferred: PositionT | None = None
        """Position that isn't stored yet; None if there is none."""
        self._is_deferred, self._storing = asyncio.Event(), asyncio.Lock()

    async def put(self, effects: Sequence[EffectT], position: PositionT) -> None:
        """Stores effects with the position of the last of them, durable on return. Without effects, the position is only deferred."""
        if effects:
            self._deferred = None  # `position` is later
            await retried(partial(self._store, effects, position))
        else:
            self._deferred = position
            self._is_deferred.set()

    async def forget(self, _: StreamWentBack) -> None:
        """Drops the deferred position after the stream went back: the reader reads again from before it.

        Returns after a write of it that is under way, which would else replace a position that the reader stores afterwards.
        """
        async with self._storing:
            self._deferred = None

    async def keep(self) -> None:
        """Stores deferred positions until cancelled."""
        while True:
            await self._is_deferred.wait()
            await asyncio.sleep(self._interval_s)
            self._is_deferred.clear()
            await retried(self._store_deferred)

    async def _store_deferred(self) -> None:
        async with self._storing:
            position = self._deferred
            if position is not None:
                await self._store((), position)
                if self._deferred is position:  # a later one is stored after the next interval
                    self._deferred = None
