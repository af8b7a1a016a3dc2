"""A TCP server of a test, which leaves no connection open.

Python reports an open connection in some later test.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import TypeAlias

Serve: TypeAlias = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def serving(serve: Serve, host: str, port: int, tls: ssl.SSLContext | None = None) -> AsyncIterator[None]:
    """A server whose connections are all closed at the end."""
    connections: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        connections.add(task)
        try:
            with suppress(asyncio.CancelledError):  # asyncio would log it
                await serve(reader, writer)
        finally:
            writer.transport.abort()

    async with await asyncio.start_server(handle, host, port, ssl=tls):
        try:
            yield
        finally:
            for connection in connections:
                connection.cancel()
            await asyncio.gather(*connections, return_exceptions=True)  # a test may have killed a peer
            await asyncio.sleep(0)  # transports close in the loop's next turn
