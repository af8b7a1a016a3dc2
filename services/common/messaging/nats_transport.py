"""A transport for the NATS client that raises an OSError on writes to a lost connection, as the client expects.

Transports of asyncio drop data that is written to a lost connection, and the reader then reports the loss. Transports of uvloop raise a
RuntimeError instead. That error silently ends the client's flusher and kills its reconnecting task, and a publisher gets an error that
isn't a connection error.
"""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import ParseResult

from nats.aio.transport import TcpTransport


class ConnectionClosed(ConnectionResetError, RuntimeError):
    """Data was written to a lost connection. It is also a RuntimeError, because the client's ping task ends on no other error."""


class ResettingTransport(TcpTransport):
    """A TCP or TLS connection. Writes raise ConnectionClosed once the connection is lost."""

    def __bool__(self) -> bool:
        """Always True, even before the connection is open. Otherwise the client would replace this transport with its default one."""
        return True

    async def connect(self, uri: ParseResult, buffer_size: int, connect_timeout: int) -> None:
        """Opens a connection and closes the previous one, which the client leaves open if the server didn't complete its greeting."""
        self.close()  # type: ignore[no-untyped-call]
        await super().connect(uri, buffer_size, connect_timeout)

    def write(self, payload: bytes) -> None:
        """Sends bytes. Raises ConnectionClosed if the connection is lost."""
        try:
            super().write(payload)  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            raise ConnectionClosed(str(error)) from error

    def writelines(self, payload: Iterable[bytes]) -> None:
        """Sends byte strings in order. Raises ConnectionClosed if the connection is lost."""
        try:
            super().writelines(payload)  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            raise ConnectionClosed(str(error)) from error
