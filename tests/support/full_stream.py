"""A stream without space, for tests of what publishers do meanwhile."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from services.common.messaging.bus import Bus


@asynccontextmanager
async def full(bus: Bus, name: str) -> AsyncIterator[None]:
    """Lets a stream refuse all messages until the end of the context."""
    stream = await bus.js.stream_info(name)
    enough, stream.config.max_bytes = stream.config.max_bytes, 1
    await bus.js.update_stream(stream.config)
    yield
    stream.config.max_bytes = enough
    await bus.js.update_stream(stream.config)
