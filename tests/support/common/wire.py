"""A proxy for PostgreSQL connections that can drop all traffic or hide the end of a connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager

from tests.support.common.ports import free_port
from tests.support.serving import serving


class Wire:
    """A proxy that forwards TCP connections to the server's socket."""

    def __init__(self) -> None:
        self.port = free_port()
        self.swallows = False
        """Whether the proxy silently drops all data from now on."""
        self._hides_ends = False

    @contextmanager
    def hiding_ends(self) -> Iterator[None]:
        """A block in which a connection that the server closes stays open for the client."""
        self._hides_ends = True
        try:
            yield
        finally:
            self._hides_ends = False

    async def ask(self, source: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
        """Forwards the client's messages to the server."""
        while data := await source.read(65_536):
            self._forward(to, data)
        to.close()

    async def answer(self, source: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
        """Forwards the server's answers to the client."""
        while data := await source.read(65_536):
            self._forward(to, data)
        if not self._hides_ends:
            to.close()

    def _forward(self, to: asyncio.StreamWriter, data: bytes) -> None:
        if not self.swallows:
            to.write(data)


@asynccontextmanager
async def wired(url: str) -> AsyncIterator[tuple[Wire, str]]:
    """A proxy for the server of a URL, and the URL that leads through the proxy."""
    wire, (whole, _, folder) = Wire(), url.partition("?host=")
    user = whole.partition("@")[0]

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        theirs, ours = await asyncio.open_unix_connection(f"{folder}/.s.PGSQL.5432")
        with closing(ours):
            await asyncio.gather(wire.ask(reader, ours), wire.answer(theirs, writer))

    async with serving(connect, "127.0.0.1", wire.port):
        yield wire, whole.replace(f"{user}@", f"{user}@127.0.0.1:{wire.port}") + "?ssl=disable"
