"""The NATS client's socket, as the client expects one to fail: with an OSError once the connection is lost.

The transports of asyncio drop what is written to a lost connection, and the reader then reports the loss; those of uvloop raise a
RuntimeError. The client ends its flusher on it without a word, its reconnecting task dies of it, and a publisher gets an error that
isn't the connection's.
"""

from __future__ import annotations

from collections.abc import Iterable

from nats.aio.transport import TcpTransport


class ConnectionClosed(ConnectionResetError, RuntimeError):
    """Written to a connection that is lost. Also a RuntimeError: the client's ping task ends on nothing else."""


class ResettingTransport(TcpTransport):
    """A TCP or TLS connection whose writes raise ConnectionClosed once it is lost."""

    def __bool__(self) -> bool:
        """True before it is connected too: else the client replaces it with one of its own."""
        return True

    def write(self, payload: bytes) -> None:
        """Sends bytes. Raises ConnectionClosed."""
        try:
            super().write(payload)  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            raise ConnectionClosed(str(error)) from error

    def writelines(self, payload: Iterable[bytes]) -> None:
        """Sends pieces one behind the other. Raises ConnectionClosed."""
        try:
            super().writelines(payload)  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            raise ConnectionClosed(str(error)) from error
