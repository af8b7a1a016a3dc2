"""A reader's trail: the newest entry that it has processed, and older ones at exponentially growing distances.

A reader keeps its trail in its database, in the same transaction as its effects. After the stream went back, the reader finds the
newest entry of the trail that the stream still holds and reads again from there. So it rereads at most about four times as many
entries as were lost.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial

from services.common.errors import Unavailable
from services.common.messaging import cursors, pull
from services.common.messaging.bus import Bus
from services.common.messaging.cursors import StreamCursor, StreamWentBack
from services.common.messaging.pull import Delivered
from services.common.observability.health import ReaderHealth
from services.common.observability.telemetry import logger
from services.common.retrying import retried

WentBack = Callable[[StreamWentBack], Awaitable[None]]
"""Callback after a reader's stream went back, before the reader reads again."""


class Trail:
    """The trail of a reader in a stream. Empty for a new reader."""

    def __init__(self, known: Sequence[StreamCursor] = ()) -> None:
        self._known = list(known)
        """Entries of the trail, oldest first."""

    @classmethod
    def parse(cls, text: str) -> Trail:
        """Parses a trail from its text form. Raises ValueError."""
        return cls([StreamCursor.parse(line) for line in text.split()])

    def __str__(self) -> str:
        """Text form for a database column: one cursor per line, at most about sixty lines."""
        return "\n".join(map(str, self._known))

    @property
    def known(self) -> Sequence[StreamCursor]:
        """Entries of the trail, oldest first."""
        return self._known

    @property
    def newest(self) -> StreamCursor | None:
        """Newest entry of the trail, after which the reader continues. None if the trail is empty."""
        return self._known[-1] if self._known else None

    def add(self, cursor: StreamCursor) -> None:
        """Adds an entry that the reader has processed. Of the older entries, one is kept for each power of two of the distance."""
        kept: dict[int, StreamCursor] = {}
        for older in self._known:  # keep the oldest entry of each distance, as it reaches the next distance first
            if older.sequence < cursor.sequence:
                kept.setdefault((cursor.sequence - older.sequence).bit_length(), older)
        self._known = [*kept.values(), cursor]

    def cut(self, common: StreamCursor | None) -> None:
        """Removes the entries after `common`, the last entry that the stream still holds. If None, removes all."""
        self._known = [cursor for cursor in self._known if common is not None and cursor.sequence <= common.sequence]


async def follow(
    bus: Bus,
    stream: str,
    trail: Trail,
    *,
    subjects: Sequence[str] = (),
    after: int = 0,
    on_went_back: WentBack | None = None,
    health: ReaderHealth | None = None,
    linger_s: float = 0.0,
) -> AsyncIterator[list[Delivered]]:
    """Reads the messages of a stream after a trail, in lists as they arrive, until cancelled.

    When a list is yielded, the trail already contains the last entry of the list. `after` is the sequence to continue after if the
    trail is empty. `health` is updated with the server's messages and
    heartbeats to this reader. `linger_s` is as in `pull.read`. If the stream went back, `follow` raises the alarm and yields the
    messages after the last common entry again. So effects must be idempotent.
    """
    start: int | StreamCursor = trail.newest or after + 1
    while True:
        try:
            async for messages in pull.read(bus, stream, start, subjects=subjects, health=health, linger_s=linger_s):
                trail.add(messages[-1].cursor)
                yield messages
        except StreamWentBack as error:
            cursors.alarm(bus, error)
            common = await _last_common(bus, stream, trail)
            trail.cut(common)
            logger().critical("stream_read_again", stream=stream, behind=common.sequence if common else 0)
            start = common or 1
            if on_went_back:
                await on_went_back(error)


async def _last_common(bus: Bus, stream: str, trail: Trail) -> StreamCursor | None:
    find = partial(cursors.last_common, bus, stream, trail.known)
    return await retried(find, on=Unavailable, event="stream_awaited", stream=stream)
