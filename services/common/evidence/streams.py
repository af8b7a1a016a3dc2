"""Reads ranges of streams up to a known end, and single messages by sequence, subject or time."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta

from services.common.errors import NotFound
from services.common.evidence.model import StoredMessage
from services.common.messaging import pull
from services.common.messaging.bus import Bus
from services.common.priority import PriorityGate

_READ_BATCH = 64
_PAGE = 16
"""Messages that are read without a pause. The leg makes its offers on the same event loop."""


class RangeReader:
    """Reads ranges of streams.

    With a gate, each page is record work, so it waits while the leg has response work. `sleep_ratio` is the number of seconds of sleep
    per second of work. The sleep leaves time for other processes, too.
    """

    def __init__(self, bus: Bus, sleep_ratio: float = 0.0, gate: PriorityGate | None = None) -> None:
        self.bus = bus
        self._sleep_ratio, self._gate = sleep_ratio, gate

    async def between(
        self, stream: str, first: int, last: int, *, subject: str | None = None
    ) -> AsyncIterator[pull.Delivered]:
        """Yields messages from `first` to `last`, of one subject or of all. Ends at `last` without waiting for new messages."""
        if subject is not None:
            newest = await message_of(self.bus, stream, last_by_subj=subject)
            last = min(last, newest.sequence if newest else 0)
        if first > last:
            return
        subjects = (subject,) if subject else ()
        async for messages in pull.read(self.bus, stream, first, subjects=subjects, batch=_READ_BATCH):
            for start in range(0, len(messages), _PAGE):
                async with self._gate.record() if self._gate else nullcontext():
                    began_s = time.monotonic()
                    for message in messages[start : start + _PAGE]:
                        if message.sequence <= last:
                            yield message
                    worked_s = time.monotonic() - began_s
                await asyncio.sleep(worked_s * self._sleep_ratio)
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
