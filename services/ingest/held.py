"""Reads the messages that a stream holds now, and ends after the last one. To follow a stream, use `pull.read`."""

from __future__ import annotations

from collections.abc import AsyncIterator

from services.common.messaging import pull
from services.common.messaging.bus import Bounds, Bus


async def read_held(bus: Bus, stream: str, bounds: Bounds) -> AsyncIterator[list[pull.Delivered]]:
    """Reads the messages within these bounds of a stream, in lists as they arrive. The last list may contain later messages."""
    if bounds.first > bounds.last:
        return
    async for messages in pull.read(bus, stream, bounds.first):
        yield messages
        if messages[-1].sequence >= bounds.last:
            return
