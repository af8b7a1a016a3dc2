"""A wire to PostgreSQL that a test can cut, and that counts how often the server is asked for an answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.support.common.ports import free_port

_ASKS = (b"Q"[0], b"S"[0])
"""Types of the protocol's messages that the server answers at once: a simple query, and the end of an extended one."""


class Wire:
    """TCP connections to the server, by way of which all is passed on."""

    def __init__(self) -> None:
        self.port = free_port()
        self.swallows = False
        """All that is said from now on is lost, and nobody is told."""
        self.round_trips = 0

    async def ask(self, source: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
        """Passes on what the client says."""
        try:
            start = await source.readexactly(4)
            self._say(to, start + await source.readexactly(int.from_bytes(start) - 4))
            while True:
                head = await source.readexactly(5)
                self.round_trips += head[0] in _ASKS
                self._say(to, head + await source.readexactly(int.from_bytes(head[1:]) - 4))
        except asyncio.IncompleteReadError:
            to.close()

    async def answer(self, source: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
        """Passes on what the server says."""
        while said := await source.read(65_536):
            self._say(to, said)
        to.close()

    def _say(self, to: asyncio.StreamWriter, said: bytes) -> None:
        if not self.swallows:
            to.write(said)


@asynccontextmanager
async def wired(url: str) -> AsyncIterator[tuple[Wire, str]]:
    """A wire to the server of a URL, and the URL through it."""
    wire, (whole, _, folder) = Wire(), url.partition("?host=")
    user = whole.partition("@")[0]

    opened: list[asyncio.StreamWriter] = []

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        theirs, ours = await asyncio.open_unix_connection(f"{folder}/.s.PGSQL.5432")
        opened.extend((ours, writer))
        await asyncio.gather(wire.ask(reader, ours), wire.answer(theirs, writer))

    async with await asyncio.start_server(connect, "127.0.0.1", wire.port):
        try:
            yield wire, whole.replace(f"{user}@", f"{user}@127.0.0.1:{wire.port}") + "?ssl=disable"
        finally:
            for one in opened:
                one.close()
