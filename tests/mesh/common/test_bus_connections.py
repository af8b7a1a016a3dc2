"""The bus closes each socket that it opened. Python reports an open one in some later test, and a server keeps it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlparse

from services.common.messaging import bus as buses
from services.common.messaging.nats_transport import ResettingTransport
from tests.support.common.ports import free_port

WITHIN_S = 10.0


class SilentServer:
    """A server that accepts connections and never greets."""

    def __init__(self) -> None:
        self.port = free_port()
        self.accepted = asyncio.Semaphore(0)
        self.ended = asyncio.Semaphore(0)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Reads a connection to its end."""
        self.accepted.release()
        try:
            await reader.read()
        finally:
            writer.close()
        self.ended.release()


@asynccontextmanager
async def silent_server() -> AsyncIterator[SilentServer]:
    server = SilentServer()
    async with await asyncio.start_server(server.serve, "127.0.0.1", server.port):
        yield server


async def test_a_connect_that_is_cancelled_leaves_no_socket() -> None:
    async def connect(url: str) -> None:
        async with buses.connect(url, "test"):
            raise AssertionError("the server never greets")

    async with silent_server() as server, asyncio.timeout(WITHIN_S):
        connecting = asyncio.create_task(connect(f"nats://127.0.0.1:{server.port}"))
        await server.accepted.acquire()
        connecting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await connecting
        await server.ended.acquire()


async def test_a_new_connection_of_a_transport_closes_the_one_before() -> None:
    async with silent_server() as server, asyncio.timeout(WITHIN_S):
        transport, where = ResettingTransport(), urlparse(f"nats://127.0.0.1:{server.port}")  # type: ignore[no-untyped-call]
        await transport.connect(where, buffer_size=1024, connect_timeout=5)
        await transport.connect(where, buffer_size=1024, connect_timeout=5)
        await server.ended.acquire()
        transport.close()  # type: ignore[no-untyped-call]
        await server.ended.acquire()
