"""Entries of a stream that a reader has dealt with: the newest, and older ones further and further apart.

A reader keeps its trail in its database, in the same transaction as the effects. When the stream went back it finds the newest entry of
the trail that the stream still holds, and reads again from there: at most about four times as many entries as were lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from services.common.messaging import cursors, pull
from services.common.messaging.bus import Bus
from services.common.messaging.cursors import StreamCursor, StreamWentBack
from services.common.messaging.pull import BATCH, Delivered
from services.common.observability.readiness import ReaderHealth
from services.common.observability.telemetry import logger
from services.common.rpc.errors import Unavailable

RETRY_S = 0.5
WentBack = Callable[[StreamWentBack], Awaitable[None]]
"""Called once a reader knows that its stream went back, before it reads again."""


class Trail:
    """The trail of one reader. Empty at the beginning, and for a position that was kept before trails were."""

    def __init__(self, known: Sequence[StreamCursor] = ()) -> None:
        self._known = list(known)
        """The oldest first."""

    @classmethod
    def parse(cls, text: str) -> Trail:
        """The trail that `str` wrote. Raises ValueError."""
        return cls([StreamCursor.parse(line) for line in text.split()])

    def __str__(self) -> str:
        """For a column of a database: a cursor on each line, at most about sixty lines."""
        return "\n".join(map(str, self._known))

    @property
    def known(self) -> Sequence[StreamCursor]:
        """The entries, the oldest first."""
        return self._known

    @property
    def newest(self) -> StreamCursor | None:
        """The entry behind which the reader goes on; None where it has none."""
        return self._known[-1] if self._known else None

    def add(self, cursor: StreamCursor) -> None:
        """The reader has dealt with this entry. Of the older ones one stays for each power of two of the distance to it."""
        kept: dict[int, StreamCursor] = {}
        for older in self._known:  # the oldest of each distance stays: it is the one that the next distance gets
            if older.sequence < cursor.sequence:
                kept.setdefault((cursor.sequence - older.sequence).bit_length(), older)
        self._known = [*kept.values(), cursor]

    def cut(self, common: StreamCursor | None) -> None:
        """The stream went back to this entry, or to nothing that the reader has seen."""
        self._known = [cursor for cursor in self._known if common is not None and cursor.sequence <= common.sequence]


async def follow(
    bus: Bus,
    stream: str,
    trail: Trail,
    subjects: Sequence[str] = (),
    *,
    after: int = 0,
    on_went_back: WentBack | None = None,
    batch: int = BATCH,
    health: ReaderHealth | None = None,
) -> AsyncIterator[list[Delivered]]:
    """Messages of a stream behind a trail, in lists of what has arrived, for ever; the trail has each list's last entry when it comes.

    `after` is the sequence to go on behind where the trail is empty: of a position from before there were trails.
    `health` is kept up to date with what the server says of this reader.
    Where the stream went back that is an alarm, and what it holds behind the last common entry comes again: effects must be idempotent.
    """
    start: int | StreamCursor = trail.newest or after + 1
    while True:
        try:
            async for messages in pull.read(bus, stream, start, subjects, batch, health):
                trail.add(messages[-1].cursor)
                yield messages
        except StreamWentBack as error:
            cursors.alarm(error)
            common = await _last_common(bus, stream, trail)
            trail.cut(common)
            logger().critical("stream_read_again", stream=stream, behind=common.sequence if common else 0)
            start = common or 1
            if on_went_back:
                await on_went_back(error)


async def _last_common(bus: Bus, stream: str, trail: Trail) -> StreamCursor | None:
    while True:
        try:
            return await cursors.last_common(bus, stream, trail.known)
        except Unavailable as error:
            logger().warning("stream_awaited", stream=stream, reason=error.reason)
            await asyncio.sleep(RETRY_S)
