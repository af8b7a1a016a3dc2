"""The HTTP server of every service. It limits the resources that a peer can hold, and it never logs data that a peer sent."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import resource
import ssl
import termios
import traceback
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import cast

from aiohttp import web
from aiohttp.http import HttpProcessingError
from prometheus_client import Counter

from services.common.observability.telemetry import logger
from services.common.rpc.errors import CannotBind

REQUEST_WITHIN_S = 10.0
"""Maximum time from the first byte of a request until its head and body have arrived, seconds. It is also the maximum time from
the connection to the first byte."""
MIN_READ_BYTES = 16 << 10
"""Minimum part of an answer that a peer reads within REQUEST_WITHIN_S, bytes, while the answer doesn't fit into the buffers. So a desk
on a line of 13 kbit/s gets a map of 2.6 MB, and a peer that reads nothing is cut off."""
KEEP_ALIVE_S = 75.0
"""Time after which a connection without a request is closed, seconds."""
MAX_CONNECTIONS = 2_000
"""Default maximum number of connections of a port. A new connection beyond it closes the one that has been idle longest. If none is
idle, the new connection is closed."""
MAX_BODY_BYTES = 64 << 10
"""Maximum size of a request's body, bytes."""
CERTIFICATE_INTERVAL_S = 60.0
"""Interval at which certificate files are reloaded, seconds."""
GRACE_S = 1.0
"""Maximum time for requests in progress when the service stops, seconds."""
SPARE_FILES = 1_000
"""Number of open files that a process needs in addition to its connections."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class ConnectionGuard(asyncio.Protocol):
    """Protocol between a connection and aiohttp that adds deadlines for the head and the body of a request, which aiohttp lacks."""

    def __init__(self, endpoint: HttpEndpoint) -> None:
        self._endpoint = endpoint
        self._inner: asyncio.Protocol | None = None
        self._transport: asyncio.Transport
        self._deadline: asyncio.TimerHandle | None = None
        self._answering = False
        self._early = False
        """Whether data of a next request has arrived while a request is being answered."""
        self._unread_bytes: int | None = None
        """What the peer hadn't read of an answer when the deadline began; None while the answer fits into the buffers."""

    def received(self) -> None:
        """Notes that a whole request has arrived, so that the peer now waits for the service."""
        self._disarm()
        self._endpoint.idle.pop(self, None)
        self._answering = True

    def answered(self) -> None:
        """Notes that the handler has ended; its answer is still to be written. Data that arrived meanwhile begins the next request."""
        self._answering = False
        if self._early:
            self._early = False
            self._arm()
        elif self._inner:  # the peer may have disconnected during the request
            self._endpoint.idle[self] = None

    def evict(self) -> None:
        """Closes an idle connection in favour of a new one."""
        self._close("full")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if self._endpoint.open >= self._endpoint.most:
            if not self._endpoint.idle:
                self._close("full")
                return
            next(iter(self._endpoint.idle)).evict()
        self._endpoint.open += 1
        self._inner = self._endpoint.accept()
        self._inner.connection_made(transport)
        self._arm()
        self._endpoint.idle[self] = None

    def data_received(self, data: bytes) -> None:
        if self._inner is None:
            return
        self._endpoint.idle.pop(self, None)
        if self._answering:
            self._early = True
        else:
            self._arm()
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received() if self._inner else None

    def pause_writing(self) -> None:
        # A peer that doesn't read its answer gets the same deadline as one that doesn't send its request, as long as it reads nothing.
        self._unread_bytes = self._count_unread()
        self._arm()
        if self._inner:
            self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._unread_bytes = None
        # Without a next request, the deadline is that of reading the answer, and the peer reads it.
        if self._answering or self in self._endpoint.idle:
            self._disarm()
        if self._inner:
            self._inner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        self._endpoint.idle.pop(self, None)
        if self._inner:
            self._endpoint.open -= 1
            self._inner.connection_lost(exc)
            self._inner = None

    def _arm(self) -> None:
        if self._deadline is None:
            self._deadline = asyncio.get_running_loop().call_later(REQUEST_WITHIN_S, self._expire)

    def _disarm(self) -> None:
        if self._deadline:
            self._deadline.cancel()
            self._deadline = None

    def _expire(self) -> None:
        """Closes the connection at its deadline, unless the peer reads a large answer all the while."""
        self._deadline = None
        before, left = self._unread_bytes, self._count_unread()
        if before is not None and before - left >= MIN_READ_BYTES:
            self._unread_bytes = left
            self._arm()
        else:
            self._close("slow")

    def _count_unread(self) -> int:
        """Bytes of answers that the peer hasn't acknowledged: in this process, and in the kernel where it says so."""
        in_kernel = array("i", [0])
        # Without these, a kernel with large buffers would show no progress for a long time.
        with suppress(OSError, AttributeError):
            fcntl.ioctl(self._transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, in_kernel)
        return self._transport.get_write_buffer_size() + in_kernel[0]

    def _close(self, reason: str) -> None:
        self._endpoint.idle.pop(self, None)
        self._endpoint.closed.labels(self._endpoint.name, reason).inc()
        self._transport.abort()


class HttpEndpoint:
    """State of a listening port: its connections, their maximum number, and the factory of aiohttp's protocols."""

    def __init__(self, name: str, most: int, accept: Callable[[], asyncio.Protocol], *, closed: Counter) -> None:
        self.name, self.most, self.accept = name, most, accept
        self.closed = closed
        """Counter of connections that were closed because of the peer's behaviour, by endpoint and reason."""
        self.open = 0
        self.idle: dict[ConnectionGuard, None] = {}
        """Connections without a request, the one that has been idle longest first. The dict serves as an ordered set."""


class _Log(logging.Logger):
    """Replacement for aiohttp's logger, which would quote requests and thus tokens and positions."""

    def __init__(self, endpoint: str, malformed: Counter) -> None:
        super().__init__(endpoint)
        self._endpoint, self._malformed = endpoint, malformed

    def handle(self, record: logging.LogRecord) -> None:
        """Counts malformed HTTP. Any other record is a defect, and is logged with the error's type and code location only."""
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, HttpProcessingError):
            self._malformed.inc()
        elif record.levelno >= logging.WARNING:
            logger().error("http_failed", endpoint=self._endpoint, kind=type(error).__name__, at=_place(error))


def _place(error: BaseException | None) -> str:
    frames = traceback.extract_tb(error.__traceback__) if error else []
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""


def _guard_of(request: web.Request) -> ConnectionGuard | None:
    protocol = request.transport.get_protocol() if request.transport else None
    return protocol if isinstance(protocol, ConnectionGuard) else None


async def body_of(request: web.Request) -> bytes:
    """Reads the whole body of a request. Raises HTTPRequestEntityTooLarge above MAX_BODY_BYTES, and HTTPBadRequest if it is
    malformed."""
    try:
        body = await request.read()
    except web.RequestPayloadError:
        raise web.HTTPBadRequest from None
    if guard := _guard_of(request):
        guard.received()
    return body


@web.middleware
async def _guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
    guard = _guard_of(request)
    if guard and request.content.is_eof():
        guard.received()
    try:
        answer = await handler(request)
    except web.HTTPException as error:
        # aiohttp would make the same response, but without force_close.
        answer = web.Response(status=error.status, reason=error.reason, text=error.text, headers=error.headers)
    except ConnectionError:
        raise
    except Exception as error:
        # The error ends this request and not the process, because other requests don't depend on it.
        logger().error("http_failed", endpoint=request.app[_NAME], kind=type(error).__name__, at=_place(error))
        answer = web.Response(status=500, text="500: Internal Server Error")
    finally:
        if guard:
            guard.answered()
    if answer.status >= 400:
        answer.force_close()  # only peers whose requests succeed may keep a connection
    return answer


_NAME = web.AppKey("name", str)


@asynccontextmanager
async def served(
    name: str,
    routes: Iterable[web.AbstractRouteDef],
    host: str,
    *,
    port: int,
    closed: Counter,
    tls: tuple[Path, Path] | None = None,
    most: int = MAX_CONNECTIONS,
) -> AsyncIterator[int]:
    """Serves HTTP routes and yields the bound port. At the end of the block, requests have 1 s to finish.

    `closed` is ProcessMetrics.http_closed. `tls` is the certificate chain and private key. If None, the default, the port is
    plaintext. `most` is the maximum number of connections.
    """
    app = web.Application(middlewares=[_guarded], client_max_size=MAX_BODY_BYTES)
    app[_NAME] = name
    app.add_routes(routes)
    runner = web.AppRunner(
        app,
        access_log=None,  # an access log would hold the query string, and with it tokens and positions
        logger=_Log(name, closed.labels(name, "malformed")),
        keepalive_timeout=KEEP_ALIVE_S,
        lingering_time=1.0,
        auto_decompress=False,  # no phone compresses, and a small body then can't expand to a large one
        shutdown_timeout=GRACE_S,
    )
    await runner.setup()
    # A web.Server is a factory that makes a protocol for each connection.
    endpoint = HttpEndpoint(name, most, cast(Callable[[], asyncio.Protocol], runner.server), closed=closed)
    _allow_files(most + SPARE_FILES)
    context = _context(tls) if tls else None
    try:
        server = await asyncio.get_running_loop().create_server(
            lambda: ConnectionGuard(endpoint),
            host,
            port,
            ssl=context,
            ssl_handshake_timeout=REQUEST_WITHIN_S if context else None,
            backlog=512,
        )
    except OSError as error:
        await runner.cleanup()
        raise CannotBind(
            host, port, os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
        ) from None
    bound: int = server.sockets[0].getsockname()[1]
    logger().info("listening", endpoint=name, port=bound, tls=tls is not None)
    renewing = asyncio.create_task(_renew(context, tls)) if context and tls else None
    try:
        yield bound
    finally:
        if renewing:
            renewing.cancel()
        server.close()
        await runner.cleanup()


def _context(tls: tuple[Path, Path]) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(*tls)
    return context


async def _renew(context: ssl.SSLContext, tls: tuple[Path, Path]) -> None:
    """Reloads the certificate files regularly, so that new connections use a replaced certificate without a restart."""
    while True:
        await asyncio.sleep(CERTIFICATE_INTERVAL_S)
        try:
            context.load_cert_chain(*tls)
        except (OSError, ssl.SSLError) as error:
            logger().error("certificate_unreadable", kind=type(error).__name__)


def _allow_files(wanted: int) -> None:
    """Raises the process's limit of open files to `wanted`, if the hard limit allows it. The default is often 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
