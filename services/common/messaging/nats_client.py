"""The NATS client of a service. It reconnects after each error, and doesn't wait for a server that hangs.

nats-py ends for good when the server reports an error, and it waits until a lost connection has sent the rest of its data.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from urllib.parse import ParseResult

import nats.errors
from nats.aio.client import Client
from nats.aio.transport import TcpTransport
from nats.protocol.parser import PERMISSIONS_ERR, STALE_CONNECTION


class ConnectionClosed(ConnectionResetError, RuntimeError):
    """Data was written to a lost connection. It is also a RuntimeError, because the client's ping task ends on no other error."""


class ResettingTransport(TcpTransport):
    """A TCP or TLS connection. Writes raise ConnectionClosed once the connection is lost, as the client expects an OSError.

    Transports of asyncio drop data that is written to a lost connection, and the reader then reports the loss. Transports of uvloop
    raise a RuntimeError instead. Such an error silently ends the client's flusher and kills its reconnecting task, and a publisher
    gets an error that isn't a connection error.
    """

    def __bool__(self) -> bool:
        """Always True, even before the connection is open. Otherwise the client would replace this transport with its default one."""
        return True

    async def connect(self, uri: ParseResult, buffer_size: int, connect_timeout: int) -> None:
        """Opens a connection and closes the previous one, which the client leaves open if the server didn't complete its greeting.

        Up to Python 3.11 wait_for, with which the base class connects, loses a cancellation that arrives together with the connection.
        """
        self.close()
        async with asyncio.timeout(connect_timeout):
            reader, writer = await asyncio.open_connection(uri.hostname, uri.port, limit=buffer_size)
        self._bare_io_reader = self._io_reader = reader
        self._bare_io_writer = self._io_writer = writer

    def close(self) -> None:
        """Closes the connection at once and drops the data that isn't sent yet.

        A server that hangs reads no more data, and with TLS it doesn't answer the closing, so an orderly closing could take half a
        minute or never end. A client that ends has flushed its data before.
        """
        if self._io_writer is not None:
            self._io_writer.transport.abort()

    async def wait_closed(self) -> None:
        """Returns once the system has closed the connection.

        The client waits for this before it connects to another server. Its writer never learns the end of a connection whose TLS
        handshake failed.
        """
        await asyncio.sleep(0)

    def write(self, payload: bytes) -> None:
        """Sends bytes. Raises ConnectionClosed if the connection is lost."""
        try:
            super().write(payload)  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            raise ConnectionClosed(str(error)) from error

    def writelines(self, payload: Iterable[bytes]) -> None:
        """Sends byte strings in order, as one. Raises ConnectionClosed if the connection is lost.

        Transports of Python 3.13 fail on several byte strings once the connection is lost, with an error that depends on the release.
        """
        self.write(b"".join(payload))


class ReconnectingClient(Client):
    """A client that reconnects after an error that the server reports, for example while the server doesn't know the user."""

    async def _process_err(self, err_msg: str) -> None:
        if STALE_CONNECTION in err_msg or PERMISSIONS_ERR in err_msg:
            await super()._process_err(err_msg)
            return
        error = nats.errors.Error("nats: " + err_msg.strip("'"))
        await self._error_cb(error)
        await self._process_op_err(error)
