"""Reads ranges of streams up to a known end, and single messages by sequence, subject or time."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

from services.common.messaging import pull
from services.common.messaging.bus import Bus
from services.common.rpc.errors import NotFound
from services.dispatch.evidence.model import StoredMessage

_READ_BATCH = 64
_SLEEP_EVERY = 16
"""Messages between two sleeps of a throttled reader."""


class RangeReader:
    """Reads ranges of streams.

    `sleep_ratio` is the number of seconds of sleep per second of work. The sleep leaves time for the leg's other tasks.
    """

    def __init__(self, bus: Bus, sleep_ratio: float = 0.0) -> None:
        self.bus = bus
        self._sleep_ratio = sleep_ratio

    async def between(
        self, stream: str, first: int, last: int, *, subject: str | None = None
    ) -> AsyncIterator[pull.Delivered]:
        """Yields messages from `first` to `last`, of one subject or of all. Ends at `last` without waiting for new messages."""
        if subject is not None:
            newest = await message_of(self.bus, stream, last_by_subj=subject)
            last = min(last, newest.sequence if newest else 0)
        if first > last:
            return
        count = 0
        began_s = time.monotonic()
        subjects = (subject,) if subject else ()
        async for messages in pull.read(self.bus, stream, first, subjects=subjects, batch=_READ_BATCH):
            for message in messages:
                if message.sequence <= last:
                    yield message
                count += 1
                if count % _SLEEP_EVERY == 0:
                    # The leg makes its offers on the same event loop.
                    await asyncio.sleep((time.monotonic() - began_s) * self._sleep_ratio)
                    began_s = time.monotonic()
            if messages[-1].sequence >= last:
                return


async def first_at(bus: Bus, stream: str, wall_ms: int) -> int:
    """Returns the first sequence of a stream with a time stamp of at least `wall_ms`; the last sequence + 1 if there is none."""
    bounds = await bus.bounds_of(stream)
    low, high = bounds.first, bounds.last + 1
    middle = low  # most streams hold nothing older than `wall_ms`
    while low < high and wall_ms > 0:
        message = await message_of(bus, stream, seq=middle)
        if message is None or message.stamp_ms < wall_ms:
            low = middle + 1
        else:
            high = middle
        middle = (low + high) // 2
    return low


async def message_of(bus: Bus, stream: str, **which: str | int) -> StoredMessage | None:
    """Returns one message, by `seq` or `last_by_subj`; None if the stream doesn't hold it. Raises Unavailable."""
    try:
        fields = (await bus.api(f"STREAM.MSG.GET.{stream}", which))["message"]
    except NotFound:
        return None
    stamp = datetime.fromisoformat(fields["time"])
    return StoredMessage(
        stream=stream,
        sequence=fields["seq"],
        stamp_ms=(stamp - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1),
        subject=fields["subject"],
        data=base64.b64decode(fields.get("data", "")),
    )
